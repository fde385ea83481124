"""Random identities: shape, skin, eyes, hair, glasses and clothes."""

# V vertices, G vertices of glasses, T texture's side in px
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.synthetic import raster
from pipeline.synthetic.bank import STEP_M, Bank
from pipeline.synthetic.clothing import cloth_distance, sample_cloth, sample_glasses
from pipeline.synthetic.hair import Hair, sample_hair, sample_hair_colour
from pipeline.synthetic.skin import lip_mask, skin_texture
from pipeline.synthetic.textures import SKIN_TONES, linear, mixed, pick
from pipeline.synthetic.wrinkles import Wrinkles, sample_wrinkles

EYE_COLOURS = np.array(
    [(74, 46, 26), (98, 64, 34), (58, 38, 26), (108, 96, 56), (92, 112, 84), (96, 130, 160), (120, 140, 150)]
)


@dataclass(frozen=True, eq=False)
class Identity:
    """A person with a neutral face.

    points (V + G, 3) m, the glasses' last; faces, material, attributes (V + G, 7), texture (T, T, 5), eye_look, cloth,
    cloth_scale and looks as `raster.shade` takes them; lip_mask (T, T) 0..1. strength: factor of each AU.
    """

    points: np.ndarray
    num_head_points: int
    faces: np.ndarray
    material: np.ndarray
    attributes: np.ndarray
    texture: np.ndarray
    wrinkles: Wrinkles
    wrinkle_depth: float
    lip_mask: np.ndarray
    hair: Hair
    eye_look: np.ndarray
    cloth: np.ndarray
    cloth_scale: float
    looks: np.ndarray
    strength: dict[int, float]
    gender: float
    age: float


def sample_identity(
    bank: Bank,
    rng: np.random.Generator,
    *,
    texture_px: int = 512,
    gender: float | None = None,
    is_face_clear: bool = False,
) -> Identity:
    """Sample a person, near `gender` (0 female, 1 male) if given; a clear face has no dark glasses and no fringe."""
    rows = (
        np.arange(len(bank.people))
        if gender is None
        else np.flatnonzero(np.abs(bank.people_traits[:, 0] - gender) < 0.5)
    )
    row = int(rng.choice(rows))
    gender, age = bank.people_traits[row]
    points = _shape(bank, row, rng)
    tone = rng.beta(1.0, 1.25)
    skin = mixed(linear(SKIN_TONES), tone) * rng.normal(1, [0.05, 0.03, 0.05])
    hair_colour = sample_hair_colour(tone, age, rng)
    hair, scalp_mask = sample_hair(
        bank, hair_colour, rng, texture_px, gender=gender, age=age, tone=tone, is_face_clear=is_face_clear
    )
    wrinkles = sample_wrinkles(bank, rng, texture_px)
    texture = skin_texture(bank, skin, hair_colour, scalp_mask, wrinkles, rng, tone=tone, gender=gender, age=age)
    glasses = (
        sample_glasses(bank, points, rng, can_be_dark=not is_face_clear)
        if rng.random() < 0.22
        else (np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
    )
    looks = np.zeros((8, 3), np.float32)
    looks[raster.MOUTH] = linear((88, 32, 30))
    looks[raster.TONGUE] = linear((188, 100, 96))
    looks[raster.TEETH] = linear((232, 222, 200)) * rng.uniform(0.75, 1.0)
    looks[raster.FRAME] = linear(rng.integers(10, 60, 3)) if rng.random() < 0.7 else linear(rng.integers(40, 200, 3))
    looks[raster.LENS] = linear((18, 16, 16))
    iris = linear(pick(EYE_COLOURS[:3] if tone > 0.5 else EYE_COLOURS, rng)) * rng.uniform(0.7, 1.3)
    sclera = linear((226, 218, 212)) * rng.uniform(0.75, 1.0)
    eye_look = np.zeros((4, 3), np.float32)
    eye_look[0], eye_look[1] = iris, sclera
    eye_look[2] = rng.uniform(0.40, 0.45), rng.uniform(0.12, 0.22), rng.uniform(0.5, 1.6)
    cloth, cloth_scale = sample_cloth(rng)
    attributes = np.zeros((len(points) + len(glasses[0]), 7), np.float32)
    attributes[: len(points)] = np.c_[bank.uv, bank.occlusion, cloth_distance(bank, rng), bank.rest]
    attributes[len(points) :, 2] = 1
    strength = {au: float(np.clip(rng.normal(1.0, 0.14), 0.72, 1.3)) for au in range(1, 29)}
    return Identity(
        points=np.concatenate([points, glasses[0]]).astype(np.float32),
        num_head_points=len(points),
        faces=np.concatenate([bank.faces, glasses[1] + len(points)]).astype(np.int32),
        material=np.concatenate([bank.material, glasses[2]]).astype(np.uint8),
        attributes=attributes,
        texture=texture,
        wrinkles=wrinkles,
        wrinkle_depth=float(0.75 + 0.5 * age + rng.uniform(-0.15, 0.25)),
        lip_mask=lip_mask(bank, texture_px),
        hair=hair,
        eye_look=eye_look,
        cloth=cloth,
        cloth_scale=cloth_scale,
        looks=looks,
        strength=strength,
        gender=float(gender),
        age=float(age),
    )


def _shape(bank: Bank, row: int, rng: np.random.Generator) -> np.ndarray:
    """Sample points (V, 3) of a head near the bank's person `row`, with random local features."""
    body = bank.people[row] + rng.normal(0, 0.3, bank.people.shape[1])
    changes = np.clip(rng.normal(0, 0.27, len(bank.local_names)), -0.9, 0.9).astype(np.float32)
    points = bank.mean.copy()
    raster.blend(points, body.astype(np.float32), bank.components, STEP_M)
    raster.blend(points, np.maximum(changes, 0), bank.local_up, STEP_M)
    raster.blend(points, np.maximum(-changes, 0), bank.local_down, STEP_M)
    teeth = np.unique(bank.faces[bank.material == raster.TEETH])
    points[teeth] = points[teeth] * np.array([0.86, 1, 1], np.float32) + np.array(
        [0, 0, 0.004], np.float32
    )  # behind any lips
    hull = np.unique(bank.hair_faces)
    points[hull] *= np.array([rng.uniform(0.86, 0.97), 1, rng.uniform(0.92, 1.0)], np.float32)  # hair nearer the neck
    return points

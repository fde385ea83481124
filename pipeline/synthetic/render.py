"""Render one face or a scene with several, with their true boxes, landmarks and poses.

Space: x right, y down, z away; metres. Images RGB uint8, pixel centres at integers, boxes xyxy px.
"""

# V vertices, H height, W width, N faces
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.synthetic import raster
from pipeline.synthetic.backgrounds import draw_distractors, draw_occluder, sample_background
from pipeline.synthetic.bank import STEP_M, Bank, light_axes, texture_angles
from pipeline.synthetic.camera import Camera, expose, sample_camera, sample_lens, sample_light
from pipeline.synthetic.expressions import Expression, random_expression
from pipeline.synthetic.identity import Identity, sample_identity
from pipeline.synthetic.wrinkles import add_wrinkle

FACE_HEIGHT_M = 0.175
"""Chin to hairline; sets a face's size in the image."""
NECK_PIVOT = np.array([0.0, 0.085, 0.01])


@dataclass(frozen=True, eq=False)
class FaceTruth:
    """box_xyxy (4,), landmarks (68, 2), points (5, 2), all float32 px; angles in degrees."""

    box_xyxy: np.ndarray
    landmarks: np.ndarray
    points: np.ndarray
    yaw_deg: float
    pitch_deg: float
    roll_deg: float


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Return eye centres, nose tip, mouth corners, image-left before image-right: (5, 2) from landmarks (68, 2)."""
    return np.stack(
        [landmarks[36:42].mean(0), landmarks[42:48].mean(0), landmarks[30], landmarks[48], landmarks[54]]
    ).astype(np.float32)


def render_face(
    bank: Bank, identity: Identity, expression: Expression, camera: Camera, rng: np.random.Generator, *, size_px: int
) -> tuple[np.ndarray, FaceTruth]:
    """Render one person: RGB uint8 (size, size, 3) and the truth."""
    zoom = 1.3 if size_px < 400 else 1.0
    side = round(size_px * zoom)
    canvas = sample_background(rng, side) if camera.background is None else cv2.resize(camera.background, (side, side))
    truth, _ = draw_person(canvas, bank, identity, expression, camera)
    if camera.has_occluder:
        draw_occluder(canvas, truth.box_xyxy, rng)
    if zoom > 1:
        canvas = cv2.resize(canvas, (size_px, size_px), interpolation=cv2.INTER_AREA)
    return expose(canvas, camera.lens, rng), _scaled(truth, 1 / zoom)


def random_face(
    bank: Bank, rng: np.random.Generator, *, size_px: int, max_angle_deg: float = 35.0
) -> tuple[np.ndarray, FaceTruth]:
    """Render a random person with a random expression, light and view up to `max_angle_deg`."""
    identity = sample_identity(bank, rng, texture_px=256 if size_px < 280 else 320)
    camera = sample_camera(rng, max_angle_deg=max_angle_deg)
    image, truth = render_face(bank, identity, random_expression(bank, rng), camera, rng, size_px=size_px)
    return image, truth


# --------------------------------------------------------------------------------------------------------- one person


def draw_person(
    canvas: np.ndarray, bank: Bank, identity: Identity, expression: Expression, camera: Camera
) -> tuple[FaceTruth, np.ndarray]:
    """Draw a person over `canvas`, linear float32 (H, W, 3), in place; return truth and opacity (H, W)."""
    height, width = canvas.shape[:2]
    head = len(bank.rest)
    points = identity.points.copy()
    raster.blend(points[:head], expression.actions, bank.actions, STEP_M)
    turned, turn = _posed(points, bank, head, camera)
    normals = raster.vertex_normals(turned, identity.faces)
    hair = identity.hair
    shell = turned[hair.shell] + normals[hair.shell] * hair.thickness[:, None]
    hair_points = np.concatenate([shell, turned[:head]])

    centre = (turned[bank.landmarks].mean(0) * [1, 1, 0]).astype(np.float32)
    focal = camera.face_frac * height * camera.distance_m / FACE_HEIGHT_M
    away = np.array([0, 0, camera.distance_m], np.float32)
    at = np.array([camera.centre_frac[0] * width, camera.centre_frac[1] * height], np.float32)

    def screen(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen = p - centre + away
        return seen, np.concatenate([seen[:, :2] * (focal / np.maximum(seen[:, 2:], 0.05)) + at, seen[:, 2:]], 1)

    seen, flat = screen(turned)
    hair_seen, hair_flat = screen(hair_points)
    landmarks = flat[bank.landmarks, :2]
    box = _box(flat[_face_vertices(bank), :2])
    truth = FaceTruth(box, landmarks, five_points(landmarks), camera.yaw_deg, camera.pitch_deg, camera.roll_deg)

    x1, y1 = np.clip(np.floor(np.minimum(flat.min(0), hair_flat.min(0))[:2]), 0, [width, height]).astype(int)
    x2, y2 = np.clip(np.ceil(np.maximum(flat.max(0), hair_flat.max(0))[:2]) + 1, 0, [width, height]).astype(int)
    cover = np.zeros((height, width), np.float32)
    if x1 >= x2 or y1 >= y2:
        return truth, cover
    flat[:, :2] -= [x1, y1]
    hair_flat[:, :2] -= [x1, y1]
    shape = (y2 - y1, x2 - x1)
    part = np.ascontiguousarray(canvas[y1:y2, x1:x2])
    part_cover = np.zeros(shape, np.float32)
    triangle, weights, depth = (
        np.full(shape, -1, np.int32),
        np.empty((*shape, 2), np.float32),
        np.full(shape, np.inf, np.float32),
    )
    raster.rasterize(flat, identity.faces, identity.material >= raster.MOUTH, triangle, weights, depth)

    axes = light_axes(camera.light[0]).astype(np.float32)
    shadow, scale, middle = _shadow(seen, identity, axes, focal)
    eyes = np.stack(
        [_eye(bank, seen, material, turn, expression.gaze_deg) for material in (raster.EYE_RIGHT, raster.EYE_LEFT)]
    )
    up = -turn[:, 1].astype(np.float32)
    bias = 0.001 + 0.55 * camera.shadow_softness / scale
    lighting = (camera.light, axes, shadow, scale, middle, camera.shadow_softness)
    raster.shade(
        triangle,
        weights,
        identity.faces,
        identity.material,
        seen,
        normals,
        identity.attributes,
        _texture(identity, expression),
        part,
        part_cover,
        up,
        *lighting,
        bias,
        eyes.astype(np.float32),
        identity.eye_look,
        identity.cloth,
        identity.cloth_scale,
        identity.looks,
    )
    for faces in (hair.shell_faces, hair.hull_faces):
        if not len(faces):
            continue
        is_shell = faces is hair.shell_faces
        hair_normals = normals[hair.shell] if is_shell else raster.vertex_normals(hair_seen, faces)
        hair_triangle, hair_weights = np.full(shape, -1, np.int32), np.empty((*shape, 2), np.float32)
        hair_depth = np.full(shape, np.inf, np.float32)
        raster.rasterize(hair_flat, faces, np.ones(len(faces), bool), hair_triangle, hair_weights, hair_depth)
        raster.shade_hair(
            hair_triangle,
            hair_weights,
            faces,
            hair_seen,
            hair_normals,
            hair.attributes,
            hair_depth,
            depth,
            part,
            part_cover,
            hair.density,
            hair.strands,
            up,
            *lighting,
            0.003,
            hair.colour,
            hair.look,
        )
    raster.composite(canvas, part, part_cover, int(y1), int(x1))
    cover[y1:y2, x1:x2] = part_cover
    return truth, cover


def rotation(yaw_deg: float, pitch_deg: float, roll_deg: float) -> np.ndarray:
    """Return a head's rotation (3, 3): yaw to the image's right, pitch down, roll clockwise in the image."""
    a, b, c = np.deg2rad([yaw_deg, pitch_deg, roll_deg])
    yaw = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    pitch = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    roll = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    rotation: np.ndarray = roll @ pitch @ yaw
    return rotation


def _posed(points: np.ndarray, bank: Bank, num_head: int, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Return points with the head rotated and the body partly following, and the head's rotation."""
    k = camera.body_turn
    head = rotation(camera.yaw_deg, camera.pitch_deg, camera.roll_deg)
    body = rotation(camera.yaw_deg * k, camera.pitch_deg * k * 0.4, camera.roll_deg * k * 0.5)
    weight = np.ones((len(points), 1))
    weight[:num_head, 0] = _head_weight(bank)
    offset = points - NECK_PIVOT
    turned = offset @ (head.T - body.T) * weight + offset @ body.T + NECK_PIVOT
    return turned.astype(np.float32), head


@lru_cache(maxsize=2)
def _head_weight(bank: Bank) -> np.ndarray:
    """Return each vertex's weight of the head against the body (V,) 0..1."""
    level = bank.rest[:, 1] + 0.35 * bank.rest[:, 2]
    t = np.clip((0.20 - level) / 0.15, 0, 1)
    return t * t * (3 - 2 * t)


@lru_cache(maxsize=2)
def _face_vertices(bank: Bank) -> np.ndarray:
    """Return the vertices of the face from hairline to chin, without ears."""
    turn, height = texture_angles(bank.uv)
    chin = bank.rest[bank.landmarks[8]]
    is_face = (
        bank.is_head
        & (np.abs(turn) < 70)
        & (height < 42)
        & (bank.rest[:, 1] < chin[1] + 0.004)
        & (bank.rest[:, 2] < -0.02)
    )
    return np.flatnonzero(is_face)


def _box(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(0), points.max(0)]).astype(np.float32)


def _scaled(truth: FaceTruth, scale: float) -> FaceTruth:
    """Return the truth for an image resized by `scale`, pixel centres at integers."""
    moved = [((xy + 0.5) * scale - 0.5).astype(np.float32) for xy in (truth.box_xyxy, truth.landmarks, truth.points)]
    return replace(truth, box_xyxy=moved[0], landmarks=moved[1], points=moved[2])


def _eye(bank: Bank, seen: np.ndarray, material: int, turn: np.ndarray, gaze_deg: tuple[float, float]) -> np.ndarray:
    """Return an eye's centre and gaze direction, (6,)."""
    ids = _eye_vertices(bank, material)
    right, down = np.deg2rad(gaze_deg)
    look = turn @ np.array([np.sin(right) * np.cos(down), np.sin(down), -np.cos(right) * np.cos(down)])
    centre = (seen[ids].min(0) + seen[ids].max(0)) / 2
    return np.concatenate([centre, look])


@lru_cache(maxsize=4)
def _eye_vertices(bank: Bank, material: int) -> np.ndarray:
    return np.unique(bank.faces[bank.material == material])


def _shadow(
    seen: np.ndarray, identity: Identity, axes: np.ndarray, focal: float
) -> tuple[np.ndarray, float, np.ndarray]:
    """Return the shadow map (S, S), its scale in texels per metre, and its centre in light space."""
    size = int(np.clip(focal * 0.12, 48, 224))
    scale = size / 0.42
    lit = seen @ axes.T
    middle = np.median(lit[: identity.num_head_points], 0).astype(np.float32)
    flat = np.concatenate([(lit[:, :2] - middle[:2]) * scale + size / 2, lit[:, 2:]], 1).astype(np.float32)
    shadow = np.full((size, size), np.inf, np.float32)
    raster.rasterize_depth(flat, identity.faces, shadow)
    return shadow, scale, middle


def _texture(identity: Identity, expression: Expression) -> np.ndarray:
    """Return the skin's texture with the expression's wrinkles."""
    wrinkles = [(name, amount) for name, amount in expression.wrinkles.items() if amount > 0.03]
    if not wrinkles and expression.lips_pale < 0.03:
        return identity.texture
    texture = identity.texture.copy()
    for name, amount in wrinkles:
        add_wrinkle(texture[..., 4], identity.wrinkles[name], amount * identity.wrinkle_depth)
    if expression.lips_pale >= 0.03:
        rows, columns = np.flatnonzero(identity.lip_mask.any(1)), np.flatnonzero(identity.lip_mask.any(0))
        area = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        mask = identity.lip_mask[area][..., None] * expression.lips_pale * 0.6
        part = texture[area][..., :3]
        part += mask * (part.mean(2, keepdims=True) * np.array([1.25, 0.95, 0.85], np.float32) - part)
    return texture


# ------------------------------------------------------------------------------------------------------------- scenes


class SceneTruth(NamedTuple):
    """The faces of a scene, far to near, float32: boxes (N, 4) and points (N, 5, 2) px; seen (N,) 0..1, the visible
    fraction of each.
    """

    boxes: np.ndarray
    points: np.ndarray
    seen: np.ndarray


def random_scene(bank: Bank, rng: np.random.Generator, *, size_px: int) -> tuple[np.ndarray, SceneTruth]:
    """Render a scene with 0 to 5 faces of 24 to 400 px: RGB uint8 (size, size, 3)."""
    zoom = 1.25
    side = round(size_px * zoom)
    canvas = sample_background(rng, side, sharp=True if rng.random() < 0.5 else None)
    number = int(rng.choice(6, p=[0.16, 0.36, 0.2, 0.14, 0.08, 0.06]))
    if number == 0 or rng.random() < 0.3:
        draw_distractors(canvas, rng)
    shared = sample_light(rng)
    sizes = np.sort(np.exp(rng.uniform(np.log(24), np.log(min(400.0, 0.8 * size_px)), number)))
    if number > 1:
        sizes = np.minimum(sizes, 0.6 * size_px)
    lens = sample_lens(rng)
    lens = replace(
        lens, shrink=max(lens.shrink, 0.7), motion_px=min(lens.motion_px, 3.0)
    )  # keep faces of 24 px visible
    truths: list[FaceTruth] = []
    covers: list[np.ndarray] = []
    for face_px in sizes:  # small faces are far, and may get hidden
        camera = sample_camera(rng, max_angle_deg=45.0 if rng.random() < 0.3 else 35.0)
        frac = float(face_px / size_px)
        camera = replace(
            camera,
            light=shared if rng.random() < 0.7 else sample_light(rng),
            face_frac=frac,
            centre_frac=_free_place(rng, frac, np.array([t.box_xyxy for t in truths]).reshape(-1, 4) / side),
            distance_m=max(camera.distance_m, 0.8),
        )
        identity = sample_identity(bank, rng, texture_px=128 if face_px < 90 else 256)
        truth, cover = draw_person(canvas, bank, identity, random_expression(bank, rng), camera)
        truths.append(truth)
        covers.append(cover > 0.5)
    if truths and rng.random() < 0.15:
        covers.append(draw_occluder(canvas, truths[int(rng.integers(len(truths)))].box_xyxy, rng) > 0.5)
    seen = [seen_frac(truth.box_xyxy, covers[i], covers[i + 1 :]) for i, truth in enumerate(truths)]
    canvas = cv2.resize(canvas, (size_px, size_px), interpolation=cv2.INTER_AREA)
    truths = [_scaled(t, 1 / zoom) for t in truths]
    return expose(canvas, lens, rng), SceneTruth(
        boxes=np.array([t.box_xyxy for t in truths], np.float32).reshape(-1, 4),
        points=np.array([t.points for t in truths], np.float32).reshape(-1, 5, 2),
        seen=np.array(seen, np.float32),
    )


def _free_place(rng: np.random.Generator, frac: float, boxes: np.ndarray) -> tuple[float, float]:
    """Sample the centre of a face of size `frac`; prefer a place where it hides no other face.

    boxes: (n, 4), faces behind it. All numbers are fractions of the image's side.
    """
    margin = (0.35 if rng.random() < 0.15 else 0.55) * frac  # some are cut by the border
    low, high = min(0.5, margin), max(0.5, 1 - margin)
    for _ in range(10):
        x, y = (float(v) for v in rng.uniform(low, high, 2))
        aside = np.maximum(boxes[:, 0] - x, x - boxes[:, 2]) / frac
        is_level = (boxes[:, 3] > y - 0.85 * frac) & (boxes[:, 1] < y + 0.6 * frac)
        is_below = boxes[:, 3] > y + 0.6 * frac
        if not (is_level & (aside < 0.7) | is_below & (aside < 1.4)).any():
            break
    return x, y


def seen_frac(box_xyxy: np.ndarray, own: np.ndarray, nearer: list[np.ndarray]) -> float:
    """Return the fraction of a face in `box_xyxy` that is inside the image and not covered by `nearer`.

    own: pixels of the person, bool (H, W). nearer: pixels of each nearer person or occluder.
    """
    height, width = own.shape
    x1, y1, x2, y2 = np.clip(box_xyxy, 0, [width, height, width, height]).round().astype(int)
    part = np.s_[y1:y2, x1:x2]
    num_own = int(own[part].sum())
    if not num_own:
        return 0.0
    is_hidden = np.any([own[part] & cover[part] for cover in nearer], axis=0) if nearer else np.zeros(1, bool)
    inside: float = (x2 - x1) * (y2 - y1) / float(np.prod(box_xyxy[2:] - box_xyxy[:2]))
    return min(1.0, inside) * (1 - int(is_hidden.sum()) / num_own)

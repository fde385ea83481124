"""Who is rendered: shape, skin, eyes, brows, beard, hair, glasses and clothes, each a function of a random generator."""

# V vertices, T texture's side in px, L landmarks
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from pipeline.synthetic import raster
from pipeline.synthetic.bank import Bank, texture_angles

SKIN_TONES = np.array([
    (244, 208, 184), (234, 192, 160), (222, 178, 148), (205, 156, 122), (184, 134, 100), (158, 108, 76), (122, 80, 56),
    (94, 60, 42), (68, 44, 33),
])
"""sRGB, light to dark."""
HAIR_COLOURS = np.array([
    (28, 22, 20), (46, 34, 27), (70, 48, 34), (96, 66, 42), (134, 96, 60), (178, 140, 92), (214, 184, 136), (122, 58, 32),
    (150, 148, 146), (205, 203, 200),
])
EYE_COLOURS = np.array([(74, 46, 26), (98, 64, 34), (58, 38, 26), (108, 96, 56), (92, 112, 84), (96, 130, 160), (120, 140, 150)])
HULL_ROWS, HULL_HEIGHTS = (0.92, 1.0), (-0.14, 0.36)
ACTION_FOLDS = (
    "forehead_inner", "forehead_right", "forehead_left", "glabella", "crow_right", "crow_left", "under_eye_right",
    "under_eye_left", "nose_right", "nose_left", "laugh_right", "laugh_left", "dimple_right", "dimple_left",
    "corner_right", "corner_left", "chin", "lip_lines", "under_lip", "stretch_right", "stretch_left",
)
"""Folds of the skin that facial actions deepen; right is the person's right, at the image's left."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Height (h, w) float32 of a fold at full strength, to be added to the texture's at [top:, left:]."""

    top: int
    left: int
    height: np.ndarray


class Folds:
    """Folds by name, each painted when first asked for."""

    def __init__(self, paths: dict[str, list[np.ndarray]], bumps: np.ndarray, marks: np.ndarray) -> None:
        self._paths, self._bumps, self._marks = paths, bumps, marks
        self._made: dict[str, Fold] = {}

    def __getitem__(self, name: str) -> Fold:
        if name not in self._made:
            size = len(self._bumps)
            self._made[name] = _chin(self._marks, self._bumps) if name == "chin" else _fold(self._paths[name], size, 1.0)
        return self._made[name]


@dataclass(frozen=True, eq=False)
class Hair:
    """Shell over the scalp and, for long hair, the hull that falls from it.

    thickness (S,) m of the shell's vertices `shell`; shell_faces, hull_faces index [shell vertices; bank vertices].
    attributes (S + V, 5): u, v, across, along, occlusion. density (T, T): hair where positive. colour (2, 3) linear.
    look: shine, contrast, raggedness.
    """

    shell: np.ndarray
    thickness: np.ndarray
    faces: np.ndarray
    attributes: np.ndarray
    density: np.ndarray
    strands: np.ndarray
    colour: np.ndarray
    look: np.ndarray
    lash_faces: np.ndarray


@dataclass(frozen=True, eq=False)
class Identity:
    """A person with a face at rest.

    points (V, 3) m, then the glasses' vertices (G, 3); faces, material of both. attributes (V + G, 7) and texture (T, T, 5)
    as `raster.shade` takes them. strength: how far each AU's action goes, by AU. folds by name of ACTION_FOLDS.
    """

    points: np.ndarray
    num_head_points: int
    faces: np.ndarray
    material: np.ndarray
    attributes: np.ndarray
    texture: np.ndarray
    folds: Folds
    fold_depth: float
    lip_mask: np.ndarray
    hair: Hair
    eye_look: np.ndarray
    cloth: np.ndarray
    cloth_scale: float
    looks: np.ndarray
    strength: dict[int, float]
    gender: float
    age: float


def linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 to linear 0..1, float32."""
    return ((np.asarray(srgb, np.float32) / 255) ** 2.2).astype(np.float32)


def sample_identity(
    bank: Bank, rng: np.random.Generator, *, texture_px: int = 512, gender: float | None = None, is_face_clear: bool = False
) -> Identity:
    """A random person, of about a gender (0 female, 1 male) if given; a clear face has no dark glasses, no fringe."""
    rows = np.arange(len(bank.people)) if gender is None else np.flatnonzero(np.abs(bank.people_traits[:, 0] - gender) < 0.5)
    row = int(rng.choice(rows))
    gender, age = bank.people_traits[row]
    points = _shape(bank, row, rng)
    tone = rng.beta(1.0, 1.25)
    skin = _mixed(linear(SKIN_TONES), tone) * rng.normal(1, [0.05, 0.03, 0.05])
    hair_colour = _hair_colour(tone, age, rng)
    hair, painted = _hair(bank, gender, age, tone, hair_colour, rng, texture_px, is_face_clear=is_face_clear)
    folds = _folds(bank, rng, texture_px)
    texture = _skin_texture(bank, skin, tone, gender, age, hair_colour, painted, folds, rng, texture_px)
    glasses = _glasses(bank, points, rng, can_be_dark=not is_face_clear) if rng.random() < 0.22 else (np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
    looks = np.zeros((8, 3), np.float32)
    looks[raster.MOUTH] = linear((88, 32, 30))
    looks[raster.TONGUE] = linear((188, 100, 96))
    looks[raster.TEETH] = linear((232, 222, 200)) * rng.uniform(0.75, 1.0)
    looks[raster.FRAME] = linear(rng.integers(10, 60, 3)) if rng.random() < 0.7 else linear(rng.integers(40, 200, 3))
    looks[raster.LENS] = linear((18, 16, 16))
    iris = linear(_pick(EYE_COLOURS[:3] if tone > 0.5 else EYE_COLOURS, rng)) * rng.uniform(0.7, 1.3)
    sclera = linear((226, 218, 212)) * rng.uniform(0.75, 1.0)
    eye_look = np.zeros((4, 3), np.float32)
    eye_look[0], eye_look[1] = iris, sclera
    eye_look[2] = rng.uniform(0.40, 0.45), rng.uniform(0.12, 0.22), rng.uniform(0.5, 1.6)
    cloth, cloth_scale = _cloth(rng)
    attributes = np.zeros((len(points) + len(glasses[0]), 7), np.float32)
    attributes[: len(points)] = np.c_[bank.uv, bank.occlusion, _cloth_distance(bank, rng), bank.rest]
    attributes[len(points):, 2] = 1
    strength = {au: float(np.clip(rng.normal(1.0, 0.14), 0.72, 1.3)) for au in range(1, 29)}
    return Identity(
        points=np.concatenate([points, glasses[0]]).astype(np.float32), num_head_points=len(points),
        faces=np.concatenate([bank.faces, glasses[1] + len(points)]).astype(np.int32),
        material=np.concatenate([bank.material, glasses[2]]).astype(np.uint8), attributes=attributes, texture=texture,
        folds=folds, fold_depth=float(0.75 + 0.5 * age + rng.uniform(-0.15, 0.25)), lip_mask=_lip_mask(bank, texture_px),
        hair=hair, eye_look=eye_look, cloth=cloth, cloth_scale=cloth_scale, looks=looks, strength=strength,
        gender=float(gender), age=float(age),
    )


# -------------------------------------------------------------------------------------------------------------- shape


def _shape(bank: Bank, row: int, rng: np.random.Generator) -> np.ndarray:
    """Points (V, 3) of somebody near person `row` with features of their own."""
    body = bank.people[row] + rng.normal(0, 0.3, bank.people.shape[1])
    changes = np.clip(rng.normal(0, 0.27, len(bank.local_names)), -0.9, 0.9).astype(np.float32)
    points = bank.mean + np.tensordot(body.astype(np.float32), bank.components, 1)
    points += np.tensordot(np.maximum(changes, 0), bank.local_up, 1)
    points += np.tensordot(np.maximum(-changes, 0), bank.local_down, 1)
    return points


def _mixed(colours: np.ndarray, t: float) -> np.ndarray:
    """Colour at 0..1 along a list."""
    place = t * (len(colours) - 1)
    i = min(int(place), len(colours) - 2)
    return colours[i] + (colours[i + 1] - colours[i]) * (place - i)


def _pick(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows[rng.integers(len(rows))]


# ------------------------------------------------------------------------------------------------------------- paint


@lru_cache(maxsize=64)
def noise_tile(size_px: int, scale_px: float, seed: int = 0) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1 that repeats, float32 (size, size)."""
    raw = np.random.default_rng([8912, seed]).standard_normal((size_px, size_px)).astype(np.float32)
    pad = min(size_px, int(4 * scale_px) + 1)
    raw = np.pad(raw, pad, mode="wrap")
    raw = cv2.GaussianBlur(raw, (0, 0), scale_px)[pad:-pad, pad:-pad] if scale_px > 0 else raw[pad:-pad, pad:-pad]
    return (raw - raw.mean()) / raw.std()


@lru_cache(maxsize=4)
def strand_tile(kind: str) -> np.ndarray:
    """Brightness 0..1 of hair, float32 (256, 256): rows run along the strands."""
    raw = np.random.default_rng(4711).standard_normal((256, 256)).astype(np.float32)
    wide = np.pad(raw, 128, mode="wrap")
    along, across = (28, 0.6) if kind == "straight" else (9, 0.8) if kind == "wavy" else (1.8, 1.8)
    fine = cv2.GaussianBlur(wide, (0, 0), sigmaX=across, sigmaY=along)[128:-128, 128:-128]
    broad = cv2.GaussianBlur(wide, (0, 0), sigmaX=3.5 * across, sigmaY=along)[128:-128, 128:-128]
    both = fine / fine.std() + 0.9 * broad / broad.std()
    return np.clip(0.5 + 0.21 * both, 0, 1).astype(np.float32)


def _noise(size_px: int, scale_px: float, rng: np.random.Generator) -> np.ndarray:
    """A tile at a random place."""
    return np.roll(noise_tile(size_px, scale_px), tuple(rng.integers(0, size_px, 2)), (0, 1))


def _spot(size_px: int, uv: np.ndarray, width: float, height: float | None = None) -> np.ndarray:
    """A bell of given deviations (in u, v) around a texture place, (T, T)."""
    at = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    x = np.exp(-(((at - uv[0]) / width) ** 2) / 2)
    y = np.exp(-(((at - uv[1]) / (height or width)) ** 2) / 2)
    return y[:, None] * x


@lru_cache(maxsize=4)
def _angles(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    turn, height = texture_angles(np.stack(np.meshgrid(at, at), -1))
    return turn.astype(np.float32), height.astype(np.float32)


@lru_cache(maxsize=4)
def _lip_mask(bank: Bank, size_px: int) -> np.ndarray:
    """Where the red of the lips lies in the texture, float32 (T, T) 0..1."""
    flat = np.concatenate([bank.uv * size_px - 0.5, np.linalg.norm(bank.rest, axis=1)[:, None] * -1], 1).astype(np.float32)
    faces = np.ascontiguousarray(bank.faces[bank.material == raster.SKIN])
    triangle = np.full((size_px, size_px), -1, np.int32)
    weights = np.zeros((size_px, size_px, 2), np.float32)
    depth = np.full((size_px, size_px), np.inf, np.float32)
    raster.rasterize(flat, faces, np.ones(len(faces), bool), triangle, weights, depth)
    corner = bank.lips[faces[triangle]]
    value = (corner[..., :2] * weights).sum(-1) + corner[..., 2] * (1 - weights.sum(-1))
    value = np.where(triangle >= 0, value, 0).astype(np.float32)
    return cv2.GaussianBlur(np.clip(value * 1.3, 0, 1), (0, 0), size_px / 400)


def _marks(bank: Bank) -> np.ndarray:
    """Texture place of each landmark (68, 2), mirrored halves averaged."""
    return bank.uv[bank.landmarks]


def _smoothed(path: np.ndarray, num: int = 24) -> np.ndarray:
    """A Catmull-Rom curve through the points of a path (n, 2)."""
    ends = np.concatenate([2 * path[:1] - path[1:2], path, 2 * path[-1:] - path[-2:-1]])
    at = np.linspace(0, len(path) - 1 - 1e-6, num)
    i = at.astype(int)
    t = (at - i)[:, None]
    a, b, c, d = (ends[i + k] for k in range(4))
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)


def _draw(canvas: np.ndarray, path: np.ndarray, thickness: int, value: int = 255) -> None:
    """A smooth line on uint8 (T, T), given by texture places (n, 2)."""
    px = np.round(path * canvas.shape[0] * 16).astype(np.int32)
    cv2.polylines(canvas, [px], False, value, thickness, cv2.LINE_AA, 4)


def _skin_texture(bank, skin, tone, gender, age, hair_colour, painted, folds, rng, size):
    """Static texture float32 (T, T, 5): linear RGB, gloss, height."""
    marks = _marks(bank)
    out = np.empty((size, size, 5), np.float32)
    broad, middle, fine = (_noise(size, size * s, rng) for s in (0.045, 0.011, 0.0018))
    fade = np.clip((0.93 - np.arange(size) / size) * 8, 0, 1).astype(np.float32)[:, None]  # no grain where it is stretched
    broad, middle, fine = broad * fade, middle * fade, fine * fade
    shade = 1 + 0.035 * broad + 0.03 * middle + rng.uniform(0.003, 0.018) * fine
    red = rng.uniform(0.1, 1.0) * (
        0.8 * _spot(size, marks[36] * [1, 1] + [0.01, 0.13], 0.055, 0.05)
        + 0.8 * _spot(size, marks[45] + [-0.01, 0.13], 0.055, 0.05)
        + 0.9 * _spot(size, marks[30], 0.04, 0.035) + 0.4 * _spot(size, marks[8] - [0, 0.03], 0.06, 0.03)
    ) + 0.22 * np.maximum(broad, 0) + 0.1 * middle
    red *= 0.42 * (1 - 0.55 * tone)
    eyes = sum(_spot(size, marks[a : a + 6].mean(0) + [0, 0.015], 0.05, 0.035) for a in (36, 42))
    dark_eyes = rng.uniform(0.04, 0.3) * eyes
    colour = skin * (shade[..., None])
    colour *= 1 - red[..., None] * np.array([0.10, 0.62, 0.55], np.float32)
    colour *= 1 - dark_eyes[..., None] * np.array([0.6, 0.85, 0.8], np.float32)
    if rng.random() < 0.3 * (1 - tone) + 0.08:  # freckles
        spots = np.clip((_noise(size, size * 0.0035, rng) - rng.uniform(1.2, 2.0)) * 2, 0, 1)
        spots *= np.clip(_spot(size, marks[29], 0.22, 0.12) * 1.5, 0, 1)
        colour *= 1 - spots[..., None] * np.array([0.35, 0.5, 0.6], np.float32)
    for _ in range(rng.integers(0, 4)):  # moles
        place = marks[30] + rng.uniform(-1, 1, 2) * [0.25, 0.25]
        colour *= 1 - 0.7 * _spot(size, place, rng.uniform(0.002, 0.005))[..., None]
    lips = _lip_mask(bank, size)[..., None]
    lip_colour = skin * np.array([0.92, rng.uniform(0.5, 0.75), rng.uniform(0.55, 0.8)])
    if gender < 0.5 and rng.random() < 0.45:
        lip_colour = lip_colour * 0.35 + linear((rng.integers(120, 205), rng.integers(20, 90), rng.integers(40, 100))) * 0.65
    creases = 1 + 0.12 * noise_tile(size, size * 0.003)[..., None]
    colour = colour * (1 - 0.88 * lips) + 0.88 * lips * lip_colour * creases
    beard, gloss_cut = _beard(marks, lips[..., 0], gender, rng, size)
    colour = colour * (1 - beard[..., None]) + beard[..., None] * (hair_colour.mean(0) * 0.6 + 0.08 * skin)
    brows = _brows(marks, gender, rng, size)[..., None]
    colour = colour * (1 - brows) + brows * (hair_colour[0] * 0.55 + hair_colour[1] * 0.15)
    lids = _lid_lines(marks, size)[..., None] * (rng.uniform(0.35, 0.65) + (0.3 if gender < 0.5 else 0.0))
    colour = colour * (1 - lids * 0.8) + lids * 0.8 * skin * [0.12, 0.08, 0.07]
    if gender < 0.5 and rng.random() < 0.35:  # eye shadow
        lid = sum(_spot(size, marks[a : a + 2].mean(0) - [0, 0.012], 0.04, 0.018) for a in (37, 43))
        colour *= 1 - np.clip(lid, 0, 1)[..., None] * rng.uniform(0.1, 0.55, 3)
    cover = painted[..., None]
    colour = colour * (1 - cover) + cover * hair_colour.mean(0) * (0.55 + 0.25 * noise_tile(size, size * 0.003, 1)[..., None])
    out[..., :3] = np.clip(colour, 0.003, 0.95)
    zone = 0.5 * _spot(size, marks[30] - [0, 0.03], 0.05, 0.08) + 0.5 * _spot(size, marks[27] - [0, 0.12], 0.14, 0.06)
    gloss = rng.uniform(0.15, 0.75) * (0.55 + zone + 0.12 * middle) + 0.5 * lips[..., 0] * rng.uniform(0.2, 1.3)
    out[..., 3] = np.clip(gloss * (1 - np.clip(gloss_cut + brows[..., 0] + painted, 0, 1)), 0, 1.5)
    height = 0.00005 * fine + 0.00006 * middle
    if age > 0.6:
        for name in ACTION_FOLDS:
            amount = max(0.0, (age - 0.6) * rng.uniform(0.2, 1.3))
            if name not in ("chin", "lip_lines", "under_lip"):
                _add_fold(height, folds[name], amount)
    out[..., 4] = height
    return out


def _add_fold(height: np.ndarray, fold: Fold, amount: float) -> None:
    h, w = fold.height.shape
    height[fold.top : fold.top + h, fold.left : fold.left + w] += amount * fold.height


def _brows(marks: np.ndarray, gender: float, rng: np.random.Generator, size: int) -> np.ndarray:
    """Strength 0..1 of the eyebrows, hair by hair, (T, T)."""
    canvas = np.zeros((size, size), np.uint8)
    num = int(rng.integers(70, 170))
    thick = rng.uniform(0.006, 0.0135) * (1.15 if gender > 0.5 else 0.85)
    drop, arch = rng.normal(0.006, 0.004), rng.normal(0, 0.005)
    reach = rng.uniform(-0.02, 0.012)
    for first, side in ((17, -1), (22, 1)):
        path = marks[first : first + 5].copy()
        if side > 0:
            path = path[::-1]  # both from the outer end inwards
        path[:, 1] += drop - arch * np.array([-1, 0.5, 1, 0.3, -0.5])
        path[:, 0] += -side * np.array([0, 0, 0, 0.3, 1]) * reach
        curve = _smoothed(path, 64)
        at = rng.random(num)
        centre = curve[(at * 63).astype(int)]
        taper = np.clip(np.minimum(at / 0.45, 1.0), 0.12, 1) * thick
        root = centre + np.stack([rng.normal(0, 0.002, num), rng.uniform(-1, 1, num) * taper], 1)
        lean = np.stack([side * (0.4 + 0.9 * (1 - at)), -0.9 + 1.1 * (1 - at)], 1) + rng.normal(0, 0.15, (num, 2))
        lean /= np.linalg.norm(lean, axis=1, keepdims=True)
        tip = root + lean * (rng.uniform(0.009, 0.017, num) * (0.6 + 0.4 * taper / thick))[:, None]
        segments = np.round(np.stack([root, tip], 1) * size * 16).astype(np.int32)
        cv2.polylines(canvas, list(segments), False, int(rng.integers(120, 230)), 1 if size < 700 else 2, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(canvas, (0, 0), size / 512 * 0.55).astype(np.float32) / 255
    under = cv2.GaussianBlur(soft, (0, 0), size * 0.006)
    return np.clip(soft * 1.05 + under * rng.uniform(0.2, 0.9), 0, 0.96)


@lru_cache(maxsize=4)
def _beard_zone(marks_bytes: bytes, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places where beards grow, and the moustache alone, both 0..1 (T, T)."""
    marks = np.frombuffer(marks_bytes, np.float32).reshape(68, 2)
    jaw = np.zeros((size, size), np.uint8)
    upper = [marks[0] + [0, 0.02], marks[2] + [0.03, -0.02], marks[3] + [0.06, -0.02], marks[48] + [-0.03, 0.0],
             marks[51] + [0, -0.02], marks[54] + [0.03, 0.0], marks[13] + [-0.06, -0.02], marks[14] + [-0.03, -0.02],
             marks[16] + [0, 0.02]]
    lower = [[marks[16][0] + 0.02, marks[12][1]], [marks[12][0], 0.95], [marks[4][0], 0.95], [marks[0][0] - 0.02, marks[4][1]]]
    cv2.fillPoly(jaw, [np.round(np.array(upper + lower) * size).astype(np.int32)], 255)
    lip = np.zeros((size, size), np.uint8)
    line = [marks[48] + [-0.015, 0.0], marks[50] + [-0.01, -0.022], marks[51] + [0, -0.018], marks[52] + [0.01, -0.022],
            marks[54] + [0.015, 0.0]]
    _draw(lip, _smoothed(np.array(line)), max(1, int(size * 0.028)))
    return tuple(cv2.GaussianBlur(m, (0, 0), size * s).astype(np.float32) / 255 for m, s in ((jaw, 0.018), (lip, 0.008)))


def _beard(marks, lips, gender, rng, size):
    """Strength 0..1 of a beard (T, T) and how much of the skin's shine it takes."""
    none = np.zeros((size, size), np.float32)
    if gender < 0.5 or rng.random() < 0.35:
        return none, none
    jaw, lip = _beard_zone(marks.astype(np.float32).tobytes(), size)
    kind = rng.choice(["shadow", "stubble", "full", "moustache", "goatee"], p=[0.35, 0.25, 0.2, 0.08, 0.12])
    zone = {
        "moustache": lip, "goatee": np.maximum(lip * 0.9, jaw * _spot(size, marks[8] - [0, 0.03], 0.075, 0.08) * 1.4),
    }.get(kind, np.maximum(jaw, 0.85 * lip))
    grain = _noise(size, size * 0.0015, rng)
    clumps = _noise(size, size * 0.012, rng)
    edge = np.clip(zone * 1.3 + 0.18 * clumps * zone, 0, 1)
    dots = np.clip(0.5 + 0.55 * grain, 0, 1)
    amount = {"shadow": rng.uniform(0.08, 0.25), "stubble": rng.uniform(0.25, 0.5)}.get(kind, rng.uniform(0.65, 0.95))
    strength = edge * amount * (0.35 + 0.65 * dots if amount > 0.5 else dots + 0.25)
    strength *= 1 - np.clip(lips * 1.4, 0, 1)
    return np.clip(strength, 0, 0.95).astype(np.float32), np.clip(strength * 1.5, 0, 1)


@lru_cache(maxsize=4)
def _lid_map(marks_bytes: bytes, size: int) -> np.ndarray:
    marks = np.frombuffer(marks_bytes, np.float32).reshape(68, 2)
    upper, lower = np.zeros((2, size, size), np.uint8)
    for first, order_up, order_low in ((36, (0, 1, 2, 3), (0, 5, 4, 3)), (42, (0, 1, 2, 3), (0, 5, 4, 3))):
        _draw(upper, _smoothed(marks[[first + i for i in order_up]]), max(1, round(size / 170)))
        _draw(lower, _smoothed(marks[[first + i for i in order_low]]), max(1, round(size / 300)), 120)
    return np.maximum(*(cv2.GaussianBlur(m, (0, 0), size / 500).astype(np.float32) / 255 for m in (upper, lower)))


def _lid_lines(marks: np.ndarray, size: int) -> np.ndarray:
    """Lashes' roots along the lids, 0..1 (T, T)."""
    return _lid_map(marks.astype(np.float32).tobytes(), size)


# ------------------------------------------------------------------------------------------------------------- folds


def _folds(bank: Bank, rng: np.random.Generator, size: int) -> Folds:
    """Each fold that an action deepens, with lines of this person's own."""
    m = _marks(bank)
    jitter = lambda n=2: rng.normal(0, 0.0035, n)  # noqa: E731
    lines: dict[str, list[np.ndarray]] = {name: [] for name in ACTION_FOLDS}
    top, brow = m[27, 1] - 0.155, m[19, 1] - 0.035
    for y in np.linspace(top, brow, int(rng.integers(3, 6))):
        wave = rng.normal(0, 0.004, 5)
        lines["forehead_inner"].append(np.stack([np.linspace(0.415, 0.585, 5) + jitter(5), y + wave + [0.006, 0, 0.003, 0, 0.006]], 1))
        for side, name in ((-1, "forehead_right"), (1, "forehead_left")):
            x = 0.5 + side * np.linspace(0.085, 0.2, 4)
            lines[name].append(np.stack([x, y + rng.normal(0, 0.004, 4) + [0.003, -0.006, 0.0, 0.014]], 1))
    for x in (-1, 1):
        start = np.array([0.5 + x * rng.uniform(0.016, 0.026), m[21, 1] - 0.035])
        lines["glabella"].append(np.array([start, start + [-x * 0.004, 0.035], start + [-x * 0.001, 0.065]]) + jitter())
    if rng.random() < 0.4:
        lines["glabella"].append(np.array([[0.5, m[21, 1] - 0.03], [0.501, m[21, 1] + 0.02]]) + jitter())
    for side, right, eye, inner, corner, wing in ((-1, "right", 36, 39, 48, 31), (1, "left", 45, 42, 54, 35)):
        for angle in np.linspace(-0.55, 0.6, int(rng.integers(3, 5))):
            a = angle + rng.normal(0, 0.06)
            start = m[eye] + [side * 0.016, 0.004] + np.array([side * 0.006, 0.5 * 0.03 * angle])
            end = start + np.array([side * np.cos(a), np.sin(a)]) * rng.uniform(0.035, 0.06)
            lines[f"crow_{right}"].append(np.array([start, (start + end) / 2 + jitter() + [0, 0.002], end]))
        lower = m[[eye, eye + (5 if side < 0 else 2) - 0, inner]] if side < 0 else m[[45, 46, 42]]
        for drop in (0.02, 0.034):
            ends = m[eye] + [side * 0.004, drop - 0.004], m[inner] + [side * 0.012, drop + 0.002]
            middle = (ends[0] + ends[1]) / 2 + [0, 0.016]
            lines[f"under_eye_{right}"].append(np.array([ends[0], middle, ends[1]]) + jitter())
        del lower
        for k in range(3):
            start = np.array([0.5 + side * 0.006, m[28, 1] - 0.03 + 0.018 * k])
            lines[f"nose_{right}"].append(np.array([start, start + [side * 0.02, -0.007], start + [side * 0.045, 0.014]]) + jitter())
        laugh = [m[wing] + [side * 0.022, -0.028], m[wing] + [side * 0.045, 0.012], m[corner] + [side * 0.036, -0.025],
                 m[corner] + [side * 0.036, 0.018]]
        lines[f"laugh_{right}"].append(np.array(laugh) + jitter())
        dimple = m[corner] + [side * 0.026, 0.0]
        lines[f"dimple_{right}"].append(np.array([dimple + [-side * 0.003, -0.026], dimple + [side * 0.004, 0], dimple + [-side * 0.004, 0.024]]))
        down = m[corner] + [side * 0.008, 0.012]
        lines[f"corner_{right}"].append(np.array([down, down + [side * 0.012, 0.03], down + [side * 0.008, 0.065]]) + jitter())
        for k in range(2):
            out = m[corner] + [side * (0.045 + 0.028 * k), -0.02]
            lines[f"stretch_{right}"].append(np.array([out, out + [side * 0.008, 0.03], out + [side * 0.004, 0.075]]) + jitter())
    for x in np.linspace(m[49, 0], m[53, 0], 9):
        for y, sign in ((m[51, 1] - 0.012, -1), (m[57, 1] + 0.01, 1)):
            lines["lip_lines"].append(np.array([[x, y + sign * 0.012], [x + jitter(1)[0], y - sign * 0.006]]))
    lines["under_lip"].append(np.array([m[59] + [0, 0.014], m[57] + [0, 0.022], m[55] + [0, 0.014]]))
    return Folds(lines, _noise(size, size * 0.0075, rng), m)


def _fold(paths: list[np.ndarray], size: int, depth: float) -> Fold:
    """Furrows along paths: a narrow valley between two soft ridges."""
    every = np.concatenate(paths)
    pad = 0.03
    left, top = np.maximum(0, ((every.min(0) - pad) * size).astype(int))
    right, bottom = np.minimum(size, ((every.max(0) + pad) * size).astype(int) + 1)
    canvas = np.zeros((bottom - top, right - left), np.uint8)
    for path in paths:
        px = np.round((_smoothed(path, 16) * size - [left, top]) * 16).astype(np.int32)
        cv2.polylines(canvas, [px], False, 255, max(1, round(size / 300)), cv2.LINE_AA, 4)
    lines = canvas.astype(np.float32) / 255
    narrow, wide = (cv2.GaussianBlur(lines, (0, 0), size * s) for s in (0.0045, 0.011))
    return Fold(int(top), int(left), (0.0068 * depth * (wide * 1.25 - narrow)).astype(np.float32))


def _chin(m: np.ndarray, noise: np.ndarray) -> Fold:
    """Pits and bumps of a bunched chin."""
    size = len(noise)
    centre = (m[57] * 0.45 + m[8] * 0.55) + [0, -0.005]
    left, top = ((centre - [0.08, 0.055]) * size).astype(int)
    right, bottom = ((centre + [0.08, 0.055]) * size).astype(int)
    bumps = noise[top:bottom, left:right]
    zone = _spot(size, centre, 0.03, 0.02)[top:bottom, left:right]
    arc = _fold([np.array([m[59] + [0.01, 0.022], m[57] + [0, 0.03], m[55] + [-0.01, 0.022]])], size, 1.0)
    height = 0.0011 * zone * bumps
    full = np.zeros((size, size), np.float32)
    full[top:bottom, left:right] = height
    _add_fold(full, arc, 0.9)
    top, left = min(top, arc.top), min(left, arc.left)
    bottom, right = max(bottom, arc.top + arc.height.shape[0]), max(right, arc.left + arc.height.shape[1])
    return Fold(int(top), int(left), full[top:bottom, left:right])


# -------------------------------------------------------------------------------------------------------------- hair


def _hair_colour(tone: float, age: float, rng: np.random.Generator) -> np.ndarray:
    """Dark and light strands, linear (2, 3)."""
    if rng.random() < max(0.03, (age - 0.72) * 2.2):
        base = linear(HAIR_COLOURS[rng.integers(8, 10)])
    else:
        base = linear(HAIR_COLOURS[min(7, int(rng.beta(1.0, 1.2 + 5 * tone) * 8))])
    base = base * rng.uniform(0.75, 1.25) * rng.normal(1, 0.04, 3)
    return np.stack([base * 0.55, base * 1.35]).astype(np.float32)


@lru_cache(maxsize=2)
def _scalp(bank: Bank) -> tuple[np.ndarray, np.ndarray]:
    """Vertices that hair may cover, and their triangles in those vertices' numbering."""
    turn, height = texture_angles(bank.uv)
    limit = np.interp(np.abs(turn), [0, 40, 62, 75, 100, 180], [9, 9, 4, -28, -42, -48])
    is_ear = (np.abs(bank.rest[:, 0]) > 0.071) & (np.abs(bank.rest[:, 1]) < 0.045) & (np.abs(bank.rest[:, 2]) < 0.05)
    is_scalp = bank.is_head & (height > limit) & ~is_ear
    faces = bank.faces[bank.material == raster.SKIN]
    faces = faces[is_scalp[faces].all(1)]
    used = np.unique(faces)
    new = np.full(len(bank.rest), -1, np.int32)
    new[used] = np.arange(len(used))
    return used, new[faces]


def _hair(bank, gender, age, tone, colour, rng, size, *, is_face_clear):
    """Hair and how much of the scalp is painted in its colour (T, T)."""
    style = _style(gender, age, tone, rng)
    if is_face_clear:
        style["front"] = max(style["front"], 33.0)
    turn, height = _angles(size)
    line = _hairline(np.abs(turn), style, rng)
    ragged = style["ragged"] * (1.6 * _noise(size, size * 0.012, rng) + 1.2 * _noise(size, size * 0.004, rng))
    lean = style["part"] * 0.04 * turn * (np.abs(turn) < 70)
    density = (height - line + ragged + lean).astype(np.float32)
    painted = np.clip((density + 2.0) / 5.0, 0, 1) * style["paint"]
    painted[int(0.85 * size) :] = 0
    used, faces = _scalp(bank)
    place = np.clip((bank.uv[used] * size).astype(int), 0, size - 1)
    inside = density[place[:, 1], place[:, 0]]
    top = np.clip((texture_angles(bank.uv[used])[1] - 15) / 60, 0, 1)
    lumps = noise_tile(128, 5.0, int(rng.integers(6)))[(bank.uv[used, 1] * 127).astype(int), (bank.uv[used, 0] * 127).astype(int)]
    rise = 0.0025 + style["volume"] * np.clip((inside + 4) / 22, 0.05, 1) * (0.55 + 0.45 * top) * (1 + 0.22 * lumps)
    u, v = bank.uv.T
    across, along = (u * style["strands"], v * 1.2) if not style["part"] else (
        (v + 0.25 * np.sign(style["part"]) * u) * style["strands"] * 0.6, u * 1.5)
    attributes = np.stack([u, v, across, along, np.maximum(bank.occlusion, 0.75)], 1).astype(np.float32)
    shell_attributes = attributes[used]
    hull = np.zeros((0, 3), np.int32)
    if style["length"] > 0:
        corners = bank.rest[bank.hair_faces]
        hull = bank.hair_faces[(corners[..., 1].min(1) < style["length"])]
        ids = np.unique(bank.hair_faces)
        x, y, z = bank.rest[ids].T
        # the texture's last rows, under the neck, hold the hull: its height goes by row
        rows = slice(int(HULL_ROWS[0] * size), size)
        level = np.linspace(*HULL_HEIGHTS, size - rows.start)[:, None]
        parting = style["open"] * np.clip((level + 0.1) / 0.07, 0, 1) + np.clip(level, 0, 0.2) * style["spread"]
        density[rows] = np.minimum(np.abs(turn[rows]) - parting, (style["length"] - level) * 160) + ragged[: size - rows.start]
        attributes[ids, 1] = np.interp(y, HULL_HEIGHTS, [HULL_ROWS[0] + 1.5 / size, HULL_ROWS[1] - 1.5 / size])
        attributes[ids, 2] = np.arctan2(x, -z) * style["strands"] / 2.6
        attributes[ids, 3] = y * 3.0
        attributes[ids, 4] = np.clip(0.95 - 0.9 * y, 0.5, 1)
    if not style["volume"]:
        faces = faces[:0]
    return Hair(
        shell=used, thickness=rise.astype(np.float32), faces=np.concatenate([faces, hull + len(used)]).astype(np.int32),
        attributes=np.concatenate([shell_attributes, attributes]).astype(np.float32), density=density / 10,
        strands=strand_tile(style["kind"]), colour=colour,
        look=np.array([style["shine"], 0.35 if style["kind"] != "curly" else 0.55, style["soft"]], np.float32),
        lash_faces=bank.lash_faces,
    ), painted.astype(np.float32)


def _style(gender: float, age: float, tone: float, rng: np.random.Generator) -> dict:
    """Numbers of a hair style."""
    is_woman = gender < 0.5
    names = ["bald", "buzz", "short", "swept", "fringe", "long", "long_fringe", "afro", "tied"]
    odds = [0.02, 0.02, 0.1, 0.08, 0.06, 0.35, 0.17, 0.05, 0.15] if is_woman else [0.09, 0.16, 0.31, 0.2, 0.13, 0.03, 0.02, 0.05, 0.01]
    odds = np.array(odds)
    if tone > 0.55:
        odds[[1, 7]] *= 2.2
    name = str(rng.choice(names, p=odds / odds.sum()))
    volume = {"bald": 0, "buzz": 0.002, "short": rng.uniform(0.006, 0.02), "swept": rng.uniform(0.015, 0.035),
              "fringe": rng.uniform(0.01, 0.024), "long": rng.uniform(0.012, 0.028), "long_fringe": rng.uniform(0.012, 0.026),
              "afro": rng.uniform(0.03, 0.07), "tied": rng.uniform(0.003, 0.009)}[name]
    kind = "curly" if name in ("afro", "buzz") or rng.random() < 0.15 + 0.3 * tone else rng.choice(["straight", "wavy"])
    return {
        "volume": volume, "kind": str(kind), "length": rng.uniform(0.06, 0.34) if name.startswith("long") else 0.0,
        "open": rng.uniform(34, 68), "spread": rng.uniform(-60, 140),
        "front": rng.uniform(14, 27) if "fringe" in name else rng.uniform(36, 46) + (6 if not is_woman and age > 0.8 else 0),
        "temple": 0.0 if is_woman else rng.uniform(0, 9), "side": rng.uniform(-14, 2) if name != "bald" else 10,
        "ragged": rng.uniform(0.5, 1.4) * (1.6 if "fringe" in name else 1.0), "part": float(rng.choice([0, 0, -1, 1])) if volume > 0.005 else 0.0,
        "paint": {"bald": rng.uniform(0, 0.25), "buzz": rng.uniform(0.45, 0.8)}.get(name, 0.97), "strands": rng.uniform(3, 6),
        "shine": rng.uniform(0.15, 0.8) if kind != "curly" else 0.1, "soft": rng.uniform(0.5, 1.1) if "fringe" in name else rng.uniform(0.3, 0.7),
    }


def _hairline(turn: np.ndarray, style: dict, rng: np.random.Generator) -> np.ndarray:
    """Height in degrees above which hair grows, by absolute turn from the front."""
    front, temple = style["front"], style["temple"]
    knots = [0, 18, 34, 50, 62, 70, 84, 100, 130, 180]
    heights = [front - 2, front, front + temple, front - 4 + temple * 0.5, max(8, front - 22), style["side"], 14, -24, -34, -38]
    if front < 30:  # a fringe ends at the temples
        heights[3:5] = front, front - 4
    return np.interp(turn, knots, np.array(heights) + rng.normal(0, 1.0, len(knots)))


# --------------------------------------------------------------------------------------------------- glasses, clothes


def _tube(path: np.ndarray, radius: float, *, is_closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Square bar along a path (n, 3): points (4 n, 3), triangles."""
    ahead = np.roll(path, -1, 0) - np.roll(path, 1, 0) if is_closed else np.gradient(path, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True) + 1e-9
    side = np.cross(ahead, [0.0, 0.3, 1.0])
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-9
    other = np.cross(ahead, side)
    ring = np.stack([path + radius * (a * side + b * other) for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))], 1)
    n = len(path)
    faces = []
    for i in range(n if is_closed else n - 1):
        for k in range(4):
            a, b, c, d = 4 * i + k, 4 * i + (k + 1) % 4, 4 * ((i + 1) % n) + k, 4 * ((i + 1) % n) + (k + 1) % 4
            faces += [(a, b, c), (b, d, c)]
    return ring.reshape(-1, 3), np.array(faces)


def _glasses(
    bank: Bank, points: np.ndarray, rng: np.random.Generator, *, can_be_dark: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (G, 3), triangles and their material, sitting on the nose and the ears."""
    at = points[bank.landmarks]
    eyes = [at[36:42].mean(0), at[42:48].mean(0)]
    half = np.linalg.norm(eyes[1] - eyes[0]) / 2
    wide, tall = half * rng.uniform(0.62, 0.8), half * rng.uniform(0.42, 0.68)
    square, radius = rng.choice([2.0, 2.6, 4.0]), rng.uniform(0.0006, 0.0026)
    front = min(at[27, 2], at[19, 2], at[24, 2]) - rng.uniform(0.004, 0.009)
    level = (eyes[0][1] + eyes[1][1]) / 2 + tall * rng.uniform(0.05, 0.25)
    turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    x = np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** (2 / square) * wide
    y = np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** (2 / square) * tall
    parts, materials = [], []
    is_dark = rng.random() < 0.12 and can_be_dark
    for centre in eyes:
        rim = np.stack([centre[0] + x, level + y, front + 1.6 * (centre[0] + x) ** 2], 1)
        parts.append(_tube(rim, radius, is_closed=True))
        materials.append(raster.FRAME)
        if is_dark:
            fan = [(0, i + 1, (i + 1) % len(rim) + 1) for i in range(len(rim))]
            parts.append((np.concatenate([rim.mean(0, keepdims=True), rim]), np.array(fan)))
            materials.append(raster.LENS)
    inner = eyes[0][0] + wide, eyes[1][0] - wide
    bow = np.linspace(inner[0], inner[1], 7)
    bow = np.stack([bow, level - tall * 0.25 - 0.003 * np.sin(np.linspace(0, np.pi, 7)), front + 1.6 * bow**2 - 0.001], 1)
    parts.append(_tube(bow, radius, is_closed=False))
    ear_x = np.abs(points[bank.landmarks[[0, 16]], 0]).mean() + 0.004
    for side, eye in ((-1, eyes[0]), (1, eyes[1])):
        hinge = eye[0] + side * wide
        start = np.array([hinge, level - tall * 0.3, front + 1.6 * hinge**2])
        bend = np.array([side * ear_x, level - tall * 0.3, start[2] + 0.02])
        parts.append(_tube(np.stack([start, bend, [side * ear_x, level - 0.004, 0.012]]), radius, is_closed=False))
    materials += [raster.FRAME] * 3
    points_out, faces_out, material_out, offset = [], [], [], 0
    for (vertices, faces), material in zip(parts, materials, strict=True):
        points_out.append(vertices)
        faces_out.append(faces + offset)
        material_out.append(np.full(len(faces), material))
        offset += len(vertices)
    return np.concatenate(points_out), np.concatenate(faces_out), np.concatenate(material_out)


def _cloth_distance(bank: Bank, rng: np.random.Generator) -> np.ndarray:
    """How far below the neckline each vertex lies, m (V,): cloth where positive."""
    x, y, z = bank.rest.T
    collar, depth, width = rng.uniform(0.125, 0.185), rng.choice([0.0, rng.uniform(0, 0.1)]), rng.uniform(0.03, 0.07)
    neckline = collar + (z < 0) * depth * np.clip(1 - np.abs(x) / width, 0, 1)
    return np.where(bank.is_head, -1.0, y + 0.3 * z - neckline + 0.9 * np.maximum(0, np.abs(x) - 0.055))


def _cloth(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A fabric, linear float32 (128, 128, 3), and its repeats: px a metre."""
    base = linear(rng.integers(15, 235, 3) * 0.75 + rng.integers(0, 60))
    other = linear(rng.integers(10, 245, 3))
    at = np.arange(128)
    stripes = ((at // int(rng.choice([4, 8, 16]))) % 2).astype(np.float32)
    kind = rng.choice(["plain", "plain", "stripes", "bands", "checks", "blotches"])
    mask = {
        "plain": np.zeros((128, 128)), "stripes": np.tile(stripes, (128, 1)), "bands": np.tile(stripes[:, None], (1, 128)),
        "checks": (stripes[:, None] + stripes) / 2, "blotches": np.clip(noise_tile(128, 6.0) - 0.4, 0, 1),
    }[kind]
    weave = 1 + 0.10 * noise_tile(128, 1.0)[..., None] + 0.07 * noise_tile(128, 9.0)[..., None]
    cloth = (base * (1 - mask[..., None]) + other * mask[..., None]) * weave
    return np.clip(cloth, 0.004, 0.9).astype(np.float32), float(rng.uniform(350, 900))

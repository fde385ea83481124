"""A face's texture: colour, gloss and height of skin, lips, brows, beard and lids."""

# T texture's side in px
from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from pipeline.synthetic import raster
from pipeline.synthetic.bank import Bank
from pipeline.synthetic.textures import cover, draw_line, linear, noise, noise_tile, smoothed, spot, tint
from pipeline.synthetic.wrinkles import SIDED_WRINKLES, Wrinkles, add_wrinkle


@lru_cache(maxsize=4)
def lip_mask(bank: Bank, size_px: int) -> np.ndarray:
    """Return the mask of the lips in the texture, float32 (T, T) 0..1."""
    flat = np.concatenate([bank.uv * size_px - 0.5, np.linalg.norm(bank.rest, axis=1)[:, None] * -1], 1).astype(
        np.float32
    )
    faces = np.ascontiguousarray(bank.faces[bank.material == raster.SKIN])
    triangle = np.full((size_px, size_px), -1, np.int32)
    weights = np.zeros((size_px, size_px, 2), np.float32)
    depth = np.full((size_px, size_px), np.inf, np.float32)
    raster.rasterize(flat, faces, np.ones(len(faces), bool), triangle, weights, depth)
    corner = bank.lips[faces[triangle]]
    value = (corner[..., :2] * weights).sum(-1) + corner[..., 2] * (1 - weights.sum(-1))
    value = np.where(triangle >= 0, value, 0).astype(np.float32)
    return cv2.GaussianBlur(np.clip(value * 1.3, 0, 1), (0, 0), size_px / 400)


def skin_texture(
    bank: Bank,
    skin: np.ndarray,
    hair_colour: np.ndarray,
    scalp_mask: np.ndarray,
    wrinkles: Wrinkles,
    rng: np.random.Generator,
    *,
    tone: float,
    gender: float,
    age: float,
) -> np.ndarray:
    """Sample the texture of a neutral face, float32 (T, T, 5): linear RGB, gloss, height.

    skin: linear RGB (3,) of tone 0..1. hair_colour: (2, 3). scalp_mask: opacity of the hair's colour, (T, T).
    """
    size = len(scalp_mask)
    marks = bank.marks
    fade = np.clip((0.93 - np.arange(size) / size) * 8, 0, 1).astype(np.float32)[
        :, None
    ]  # no grain where it is stretched
    broad, middle, fine = (noise(size, size * s, rng) * fade for s in (0.045, 0.011, 0.0018))
    shade = 1 + 0.035 * broad + 0.03 * middle + np.float32(rng.uniform(0.003, 0.018)) * fine
    colour = shade[..., None] * skin.astype(np.float32)
    _redden(colour, marks, tone, 0.22 * np.maximum(broad, 0) + 0.1 * middle, rng)
    if rng.random() < 0.3 * (1 - tone) + 0.08:  # freckles
        spots = np.clip((noise(size, size * 0.0035, rng) - rng.uniform(1.2, 2.0)) * 2, 0, 1)
        tint(colour, spots * np.clip(spot(size, marks[29], 0.22, 0.12) * 1.5, 0, 1), (0.35, 0.5, 0.6))
    for _ in range(rng.integers(0, 4)):  # moles
        place = marks[30] + rng.uniform(-1, 1, 2) * [0.25, 0.25]
        tint(colour, spot(size, place, rng.uniform(0.002, 0.005)), (0.7, 0.7, 0.7))
    lips = lip_mask(bank, size)
    cover(colour, 0.88 * lips, (1 + 0.12 * noise_tile(size, size * 0.003)[..., None]) * _lip_colour(skin, gender, rng))
    beard, gloss_cut = _beard(marks, lips, gender, rng, size)
    cover(colour, beard, hair_colour.mean(0) * 0.6 + 0.08 * skin)
    brows = _brows(marks, gender, rng, size)
    cover(colour, brows, hair_colour[0] * 0.55 + hair_colour[1] * 0.15)
    lids = _lid_lines(marks, size) * np.float32(rng.uniform(0.28, 0.52) + (0.24 if gender < 0.5 else 0.0))
    cover(colour, lids, skin * [0.12, 0.08, 0.07])
    if gender < 0.5 and rng.random() < 0.35:  # eye shadow
        lid = sum(spot(size, marks[a : a + 2].mean(0) - [0, 0.012], 0.04, 0.018) for a in (37, 43))
        tint(colour, np.clip(lid, 0, 1), rng.uniform(0.1, 0.55, 3))
    roots = (0.55 + 0.25 * noise_tile(size, size * 0.003, 1))[..., None] * hair_colour.mean(0)
    cover(colour, scalp_mask, roots)
    zone = 0.5 * spot(size, marks[30] - [0, 0.03], 0.05, 0.08) + 0.5 * spot(size, marks[27] - [0, 0.12], 0.14, 0.06)
    gloss = rng.uniform(0.15, 0.75) * (0.55 + zone + 0.12 * middle) + 0.5 * lips * rng.uniform(0.2, 1.3)
    out = np.empty((size, size, 5), np.float32)
    out[..., :3] = np.clip(colour, 0.003, 0.95)
    out[..., 3] = np.clip(gloss * (1 - np.clip(gloss_cut + brows + scalp_mask, 0, 1)), 0, 1.5)
    height = 0.00005 * fine + 0.00006 * middle
    if age > 0.6:  # old skin keeps wrinkles at rest
        for name in ("glabella", *(f"{wrinkle}_{side}" for wrinkle in SIDED_WRINKLES for side in ("right", "left"))):
            add_wrinkle(height, wrinkles[name], (age - 0.6) * rng.uniform(0.2, 1.3))
    out[..., 4] = height
    return out


def _redden(colour: np.ndarray, marks: np.ndarray, tone: float, blotches: np.ndarray, rng: np.random.Generator) -> None:
    """Redden cheeks, nose and chin, and shade the eye sockets, in place."""
    size = len(colour)
    red = rng.uniform(0.1, 1.0) * (
        0.8 * spot(size, marks[36] + [0.01, 0.13], 0.055, 0.05)
        + 0.8 * spot(size, marks[45] + [-0.01, 0.13], 0.055, 0.05)
        + 0.9 * spot(size, marks[30], 0.04, 0.035)
        + 0.4 * spot(size, marks[8] - [0, 0.03], 0.06, 0.03)
    )
    tint(colour, (red + blotches) * (0.42 * (1 - 0.55 * tone)), (0.10, 0.62, 0.55))
    below = np.array([0, 0.015])
    eyes = spot(size, marks[36:42].mean(0) + below, 0.05, 0.035) + spot(size, marks[42:48].mean(0) + below, 0.05, 0.035)
    tint(colour, rng.uniform(0.04, 0.3) * eyes, (0.6, 0.85, 0.8))


def _lip_colour(skin: np.ndarray, gender: float, rng: np.random.Generator) -> np.ndarray:
    """Sample the colour of bare or made-up lips, linear (3,)."""
    bare: np.ndarray = skin * np.array([0.92, rng.uniform(0.5, 0.75), rng.uniform(0.55, 0.8)])
    if gender > 0.5 or rng.random() > 0.45:
        return bare.astype(np.float32)
    stick = linear(rng.integers([120, 20, 40], [205, 90, 100]))
    made_up: np.ndarray = (bare * 0.35 + stick * 0.65).astype(np.float32)
    return made_up


def _brows(marks: np.ndarray, gender: float, rng: np.random.Generator, size: int) -> np.ndarray:
    """Sample the opacity 0..1 of the eyebrows (T, T), drawn hair by hair."""
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
        curve = smoothed(path, 64)
        at = rng.random(num)
        centre = curve[(at * 63).astype(int)]
        taper = np.clip(np.minimum(at / 0.45, 1.0), 0.12, 1) * thick
        root = centre + np.stack([rng.normal(0, 0.002, num), rng.uniform(-1, 1, num) * taper], 1)
        lean = np.stack([side * (0.4 + 0.9 * (1 - at)), -0.9 + 1.1 * (1 - at)], 1) + rng.normal(0, 0.15, (num, 2))
        lean /= np.linalg.norm(lean, axis=1, keepdims=True)
        tip = root + lean * (rng.uniform(0.009, 0.017, num) * (0.6 + 0.4 * taper / thick))[:, None]
        segments = np.round(np.stack([root, tip], 1) * size * 16).astype(np.int32)
        cv2.polylines(
            canvas, list(segments), False, int(rng.integers(120, 230)), 1 if size < 700 else 2, cv2.LINE_AA, 4
        )
    soft = cv2.GaussianBlur(canvas, (0, 0), size / 512 * 0.55).astype(np.float32) / 255
    under = cv2.GaussianBlur(soft, (0, 0), size * 0.006)
    return np.clip(soft * 1.05 + under * rng.uniform(0.2, 0.9), 0, 0.96)


@lru_cache(maxsize=4)
def _beard_zone(marks_bytes: bytes, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places where beards grow, and the moustache alone, both 0..1 (T, T)."""
    marks = np.frombuffer(marks_bytes, np.float32).reshape(68, 2)
    jaw = np.zeros((size, size), np.uint8)
    upper = [
        marks[0] + [0, 0.02],
        marks[2] + [0.03, -0.02],
        marks[3] + [0.06, -0.02],
        marks[48] + [-0.03, 0.0],
        marks[51] + [0, -0.02],
        marks[54] + [0.03, 0.0],
        marks[13] + [-0.06, -0.02],
        marks[14] + [-0.03, -0.02],
        marks[16] + [0, 0.02],
    ]
    lower = [
        [marks[16][0] + 0.02, marks[12][1]],
        [marks[12][0], 0.95],
        [marks[4][0], 0.95],
        [marks[0][0] - 0.02, marks[4][1]],
    ]
    cv2.fillPoly(jaw, [np.round(np.array(upper + lower) * size).astype(np.int32)], 255)
    lip = np.zeros((size, size), np.uint8)
    line = [
        marks[48] + [-0.015, 0.0],
        marks[50] + [-0.01, -0.022],
        marks[51] + [0, -0.018],
        marks[52] + [0.01, -0.022],
        marks[54] + [0.015, 0.0],
    ]
    draw_line(lip, smoothed(np.array(line)), max(1, int(size * 0.028)))
    soft_jaw, soft_lip = cv2.GaussianBlur(jaw, (0, 0), size * 0.018), cv2.GaussianBlur(lip, (0, 0), size * 0.008)
    return soft_jaw.astype(np.float32) / 255, soft_lip.astype(np.float32) / 255


def _beard(
    marks: np.ndarray, lips: np.ndarray, gender: float, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sample the opacity 0..1 of a beard (T, T), and how much it reduces the skin's gloss."""
    none = np.zeros((size, size), np.float32)
    if gender < 0.5 or rng.random() < 0.35:
        return none, none
    jaw, lip = _beard_zone(marks.astype(np.float32).tobytes(), size)
    kind = rng.choice(["shadow", "stubble", "full", "moustache", "goatee"], p=[0.35, 0.25, 0.2, 0.08, 0.12])
    zone = {
        "moustache": lip,
        "goatee": np.maximum(lip * 0.9, jaw * spot(size, marks[8] - [0, 0.03], 0.075, 0.08) * 1.4),
    }.get(kind, np.maximum(jaw, 0.85 * lip))
    grain = noise(size, size * 0.0015, rng)
    clumps = noise(size, size * 0.012, rng)
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
        draw_line(upper, smoothed(marks[[first + i for i in order_up]]), max(1, round(size / 170)))
        draw_line(lower, smoothed(marks[[first + i for i in order_low]]), max(1, round(size / 300)), 120)
    return np.maximum(*(cv2.GaussianBlur(m, (0, 0), size / 500).astype(np.float32) / 255 for m in (upper, lower)))


def _lid_lines(marks: np.ndarray, size: int) -> np.ndarray:
    """Return the lash lines along the lids, 0..1 (T, T)."""
    return _lid_map(marks.astype(np.float32).tobytes(), size)

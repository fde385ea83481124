"""Glasses and clothes."""

# V vertices, G vertices of glasses
from __future__ import annotations

import numpy as np

from pipeline.synthetic import raster
from pipeline.synthetic.bank import Bank
from pipeline.synthetic.textures import linear, noise_tile


def _tube(path: np.ndarray, radius: float, *, is_closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return a square bar along a path (n, 3): points (4 n, 3) and triangles."""
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


def sample_glasses(
    bank: Bank, points: np.ndarray, rng: np.random.Generator, *, can_be_dark: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample glasses on nose and ears: points (G, 3), triangles, and the material of each triangle."""
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
    bow = np.stack(
        [bow, level - tall * 0.25 - 0.003 * np.sin(np.linspace(0, np.pi, 7)), front + 1.6 * bow**2 - 0.001], 1
    )
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


def cloth_distance(bank: Bank, rng: np.random.Generator) -> np.ndarray:
    """Return each vertex's distance below the neckline, m (V,): cloth where positive."""
    x, y, z = bank.rest.T
    collar, depth, width = rng.uniform(0.125, 0.185), rng.choice([0.0, rng.uniform(0, 0.1)]), rng.uniform(0.03, 0.07)
    neckline = collar + (z < 0) * depth * np.clip(1 - np.abs(x) / width, 0, 1)
    return np.where(bank.is_head, -1.0, y + 0.3 * z - neckline + 0.9 * np.maximum(0, np.abs(x) - 0.055))


def sample_cloth(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Sample a fabric, linear float32 (128, 128, 3), and its scale in px per metre."""
    base = linear(rng.integers(15, 235, 3) * 0.75 + rng.integers(0, 60))
    other = linear(rng.integers(10, 245, 3))
    at = np.arange(128)
    stripes = ((at // int(rng.choice([4, 8, 16]))) % 2).astype(np.float32)
    patterns: dict[str, np.ndarray] = {
        "plain": np.zeros((128, 128)),
        "stripes": np.tile(stripes, (128, 1)),
        "bands": np.tile(stripes[:, None], (1, 128)),
        "checks": (stripes[:, None] + stripes) / 2,
        "blotches": np.clip(noise_tile(128, 6.0) - 0.4, 0, 1),
    }
    mask = patterns[str(rng.choice(["plain", *patterns]))]
    weave = 1 + 0.10 * noise_tile(128, 1.0)[..., None] + 0.07 * noise_tile(128, 9.0)[..., None]
    cloth = (base * (1 - mask[..., None]) + other * mask[..., None]) * weave
    return np.clip(cloth, 0.004, 0.9).astype(np.float32), float(rng.uniform(350, 900))

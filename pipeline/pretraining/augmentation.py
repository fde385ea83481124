"""Random crops of a pool's faces: rotated, scaled, shifted, flipped, occluded and degraded.

A crop depends on the pool, the face and the state of the random generator only.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from models.maps import INPUT_SIZE_PX, NUM_LANDMARKS
from pipeline.config import CropConfig
from pipeline.faces.geometry import crop_from_frame, transform_points
from pipeline.pretraining.face_pool import FacePool

_MIRRORED_RUNS = ((0, 17), (17, 27), (31, 36), (48, 55), (60, 65))
_MIRRORED_PAIRS = ((36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46), (55, 59), (56, 58), (65, 67))


def mirrored_order() -> np.ndarray:
    """Return the number of the landmark that takes each landmark's place in a mirrored face, int (68,)."""
    order = np.arange(NUM_LANDMARKS)
    for first, end in _MIRRORED_RUNS:
        order[first:end] = order[first:end][::-1].copy()
    for a, b in _MIRRORED_PAIRS:
        order[a], order[b] = b, a
    return order


def augmented(pool: FacePool, index: int, rng: np.random.Generator, *, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a `random_crop` of a face, occluded and degraded, and its landmarks: the input of the trainings."""
    crop, landmarks = random_crop(pool, index, rng, size_px=size_px)
    return degrade(occlude(crop, pool, rng), rng), landmarks


def random_crop(pool: FacePool, index: int, rng: np.random.Generator, *, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a crop of a face, uint8 (size_px, size_px, 3), and its landmarks, float64 (68, 2) in px of the crop.

    The box is perturbed; the crop is rotated, scaled, shifted and flipped at random.
    """
    box = pool.boxes[index].astype(np.float64)
    span = np.array([box[2] - box[0], box[3] - box[1]])
    box += np.tile(span, 2) * rng.uniform(-0.08, 0.08, 4)
    is_flipped = bool(rng.random() < 0.5)
    affine = crop_from_frame(
        box,
        INPUT_SIZE_PX,
        side_frac=CropConfig().side_per_box_frac,
        is_flipped=is_flipped,
        rotation_deg=rng.uniform(-30, 30) * rng.uniform(),
        scale=math.exp(rng.uniform(math.log(0.7), math.log(1.35))),
        shift_frac=tuple(rng.uniform(-0.06, 0.06, 2)),
    )
    border = int(rng.choice([cv2.BORDER_CONSTANT, cv2.BORDER_REFLECT_101, cv2.BORDER_REPLICATE], p=[0.5, 0.4, 0.1]))
    crop = cv2.warpAffine(np.asarray(pool.images[index]), affine, (INPUT_SIZE_PX, INPUT_SIZE_PX), borderMode=border)
    landmarks = transform_points(pool.landmarks[index].astype(np.float64), affine)
    if is_flipped:
        landmarks = landmarks[mirrored_order()]
    if size_px != INPUT_SIZE_PX:
        crop = cv2.resize(crop, (size_px, size_px), interpolation=cv2.INTER_AREA)
        landmarks = (landmarks + 0.5) * size_px / INPUT_SIZE_PX - 0.5
    return crop, landmarks


def occlude(crop: np.ndarray, pool: FacePool, rng: np.random.Generator) -> np.ndarray:
    """Return `crop`, uint8 (S, S, 3), in half of the cases with one to three ellipses or rectangles of `occluder`."""
    if rng.random() < 0.5:
        return crop
    size = len(crop)
    for _ in range(rng.integers(1, 4)):
        height, width = rng.integers(size // 16, size // 3, 2)
        y, x = rng.integers(-height // 2, size - height // 2), rng.integers(-width // 2, size - width // 2)
        area = np.zeros((size, size), np.uint8)
        if rng.random() < 0.5:
            centre, axes = (int(x + width // 2), int(y + height // 2)), (int(width // 2), int(height // 2))
            cv2.ellipse(area, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        else:
            area[max(y, 0) : y + height, max(x, 0) : x + width] = 1
        crop = np.where(area[..., None] == 1, occluder(size, pool, rng), crop)
    return crop


def occluder(size_px: int, pool: FacePool, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 (size_px, size_px, 3) to occlude a face with: one colour, coarse noise or another face, rotated."""
    kind = rng.integers(3)
    if kind == 2:
        other = np.asarray(pool.images[rng.integers(len(pool))])
        return cv2.resize(np.rot90(other, int(rng.integers(4))), (size_px, size_px))
    cells = (1, 1) if kind == 0 else rng.integers(2, 24, 2)
    return cv2.resize(rng.integers(0, 256, (*cells, 3), dtype=np.uint8), (size_px, size_px))


def degrade(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `crop`, uint8 (S, S, 3), with random resolution, blur, light, colour, noise and JPEG quality."""
    size = len(crop)
    if rng.random() < 0.25:  # as a small face in the frame, or through a poor lens
        small = int(size * rng.uniform(0.3, 0.9))
        crop = cv2.resize(cv2.resize(crop, (small, small), interpolation=cv2.INTER_AREA), (size, size))
    if rng.random() < 0.2:
        crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.3, 2.0) * size / INPUT_SIZE_PX + 0.2)
    levels = np.linspace(0, 1, 256)[:, None] ** math.exp(rng.uniform(-0.5, 0.5)) * rng.uniform(0.75, 1.25, 3)
    levels = (levels - 0.5) * rng.uniform(0.6, 1.3) + 0.5 + rng.uniform(-0.12, 0.12)
    crop = cv2.LUT(np.ascontiguousarray(crop), (levels.clip(0, 1) * 255).astype(np.uint8)[None])
    grey_frac = 1.0 if rng.random() < 0.12 else rng.uniform(0, 0.5)
    grey = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    crop = cv2.addWeighted(grey, grey_frac, crop, 1 - grey_frac, 0)
    if rng.random() < 0.5:
        noise = rng.standard_normal(crop.shape, np.float32) * np.float32(rng.uniform(0, 15))
        crop = (crop + noise).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        jpeg = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 90))])[1]
        crop = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))
    return crop

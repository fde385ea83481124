"""Camera poses, light, and the lens that turns linear light into a photograph."""

# H height, W width; colours linear RGB float32 unless said otherwise
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from pipeline.synthetic import raster


@dataclass(frozen=True, eq=False)
class Lens:
    """Effects of a camera: gains (3,) of the channels, tone curve, blur, noise, JPEG quality (0: none)."""

    gains: np.ndarray
    contrast: float = 1.0
    defocus_px: float = 0.5
    motion_px: float = 0.0
    motion_deg: float = 0.0
    vignette: float = 0.1
    noise: float = 0.008
    shrink: float = 1.0
    quality: int = 0
    grey: float = 0.0


@dataclass(frozen=True, eq=False)
class Camera:
    """A view of a head. Angles in degrees: yaw to the image's right, pitch down, roll clockwise. Centre and size as
    fractions of the image's side. light (9, 3): see `raster.shade`. background (H, W, 3), or None for a random one.
    """

    yaw_deg: float
    pitch_deg: float
    roll_deg: float
    light: np.ndarray
    lens: Lens
    centre_frac: tuple[float, float] = (0.5, 0.5)
    face_frac: float = 0.45
    distance_m: float = 1.2
    body_turn: float = 0.4
    shadow_softness: float = 1.5
    background: np.ndarray | None = None
    has_occluder: bool = False


def sample_camera(rng: np.random.Generator, *, max_angle_deg: float = 35.0) -> Camera:
    """Sample a view: yaw up to the limit, pitch up to 0.7 of it, a face of 25 to 60 % of the image's side."""
    pitch_max = 0.7 * max_angle_deg
    yaw = (
        rng.uniform(-1, 1) * max_angle_deg if rng.random() < 0.6 else np.clip(rng.normal(0, 0.3), -1, 1) * max_angle_deg
    )
    face_frac = float(rng.uniform(0.25, 0.6))
    room = max(0.0, 0.5 - 0.62 * face_frac)
    return Camera(
        yaw_deg=float(yaw),
        pitch_deg=float(np.clip(rng.normal(0, 0.45), -1, 1) * pitch_max),
        roll_deg=float(np.clip(rng.normal(0, 9), -25, 25)),
        light=sample_light(rng),
        lens=sample_lens(rng),
        centre_frac=(float(0.5 + rng.uniform(-room, room)), float(0.5 + rng.uniform(-room, room))),
        face_frac=face_frac,
        distance_m=float(np.exp(rng.uniform(np.log(0.55), np.log(3.5)))),
        body_turn=float(rng.uniform(0.1, 0.9)),
        shadow_softness=float(rng.uniform(0.6, 3.2)),
        has_occluder=bool(rng.random() < 0.1),
    )


def sample_light(rng: np.random.Generator) -> np.ndarray:
    """Key, fill, ambient light with a gradient, and a rim, (9, 3): rows as in `raster.shade`."""
    light = np.zeros((9, 3), np.float32)
    side = rng.uniform(-1.3, 1.3)
    towards = np.array([side, rng.uniform(-1.3, 0.15), -1.0])
    warm = np.array([1, 0, -1]) * rng.normal(0.04, 0.09) + np.array([0, 1, 0]) * rng.normal(0, 0.015)
    key = rng.uniform(0.5, 1.6)
    light[0] = towards / np.linalg.norm(towards)
    light[1] = key * (1 + warm)
    away = np.array([-np.sign(side) * rng.uniform(0.4, 1.2), rng.uniform(-0.7, 0.5), -1.0])
    light[2] = away / np.linalg.norm(away)
    light[3] = rng.uniform(0.0, 0.5) * key * (1 - warm * rng.uniform(-0.5, 1))
    light[4] = rng.uniform(0.15, 0.6) * (1 + np.array([1, 0, -1]) * rng.normal(0, 0.06))
    light[5] = light[4] * rng.normal(0, 0.2)
    light[6] = light[4] * rng.normal(-0.28, 0.18) * (1 + rng.normal(0, 0.12, 3))
    light[7] = light[4] * rng.normal(-0.1, 0.15)
    light[8] = max(0.0, rng.normal(0.02, 0.08)) * (1 + rng.normal(0, 0.1, 3))
    if rng.random() < 0.05:  # coloured light of a stage
        light[1] *= rng.uniform(0.3, 1.3, 3)
    total = (light[1] * 0.75 + light[3] * 0.5 + light[4]).mean()
    light[[1, 3, 4, 5, 6, 7, 8]] *= rng.uniform(0.75, 1.15) / total
    return light


def sample_lens(rng: np.random.Generator) -> Lens:
    """Sample a lens, from a good studio camera to a poor phone."""
    poor = rng.random()
    gains = np.exp(rng.normal(0, 0.32)) * np.exp(rng.normal(0, [0.06, 0.02, 0.07]))
    return Lens(
        gains=gains.astype(np.float32),
        contrast=float(np.clip(rng.normal(1.05, 0.18), 0.65, 1.6)),
        defocus_px=float(0.35 + rng.exponential(0.35) + (rng.uniform(0, 1.0) if poor > 0.85 else 0)),
        motion_px=float(rng.uniform(2, 8)) if rng.random() < 0.1 else 0.0,
        motion_deg=float(rng.uniform(0, 180)),
        vignette=float(max(0, rng.normal(0.08, 0.14))),
        noise=float((0.002 + rng.exponential(0.007)) * (0.6 + 1.8 * poor**2)),
        shrink=float(rng.uniform(0.45, 0.9)) if poor > 0.7 else 1.0,
        quality=int(rng.integers(35, 96)) if rng.random() < 0.7 else 0,
        grey=1.0 if rng.random() < 0.05 else float(max(0, rng.normal(0, 0.2))),
    )


def expose(image: np.ndarray, lens: Lens, rng: np.random.Generator) -> np.ndarray:
    """Turn linear light (H, W, 3) into a photograph, RGB uint8 (H, W, 3)."""
    height, width = image.shape[:2]
    if lens.shrink < 1:
        size = max(16, round(width * lens.shrink)), max(16, round(height * lens.shrink))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if lens.defocus_px > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), lens.defocus_px)
    if lens.motion_px > 1:
        image = cv2.filter2D(image, -1, _streak(round(lens.motion_px), lens.motion_deg))
    if lens.grey > 0.05:
        image = image + lens.grey * (image.mean(2, keepdims=True) - image)
    image = np.ascontiguousarray(image, np.float32)
    shown = np.empty(image.shape, np.uint8)
    y, x = (int(i) for i in rng.integers(0, 256, 2))
    curve = _curve(round(lens.contrast, 2))
    raster.develop(image, lens.gains, curve, lens.vignette, _grain(), y, x, lens.noise, shown)
    if lens.shrink < 1:
        way = cv2.INTER_CUBIC if lens.motion_deg > 90 else cv2.INTER_LINEAR
        shown = np.asarray(cv2.resize(shown, (width, height), interpolation=way), np.uint8)
    if lens.quality:
        _, code = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, lens.quality])
        shown = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)
    return shown


@lru_cache(maxsize=256)
def _curve(contrast: float) -> np.ndarray:
    """Return display values 0..255 over half the square root of light: shoulder, gamma, contrast about mid-grey."""
    light = (np.linspace(0, 1, 4096) * 2) ** 2
    shown = np.where(light < 0.5, light, 0.5 + 0.5 * (1 - np.exp(-(light - 0.5) * 1.6)))
    value = shown ** (1 / 2.2)
    value = 0.5 + contrast * (value - 0.5) + 0.12 * (contrast - 1) * np.sin(2 * np.pi * value)
    return (np.clip(value, 0, 1) * 255).astype(np.float32)


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    rng = np.random.default_rng(515)
    fine = rng.standard_normal((256, 256, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(fine, (0, 0), 0.7)
    grain = 0.7 * fine + 0.9 * soft + 0.5 * rng.standard_normal((256, 256, 1)).astype(np.float32)
    unit_grain: np.ndarray = grain / grain.std()
    return unit_grain


@lru_cache(maxsize=512)
def _streak(length: int, angle_deg: float) -> np.ndarray:
    kernel = np.zeros((length | 1, length | 1), np.float32)
    c = length // 2
    dx, dy = np.cos(np.deg2rad(angle_deg)) * length / 2, np.sin(np.deg2rad(angle_deg)) * length / 2
    cv2.line(kernel, (round(c - dx), round(c - dy)), (round(c + dx), round(c + dy)), 1.0, 1)
    streak: np.ndarray = kernel / max(kernel.sum(), 1e-6)
    return streak

"""Where a face is seen from, in which light, before what, and through which camera."""

# H height, W width; colours linear RGB float32 unless said otherwise
from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

from pipeline.synthetic import raster
from pipeline.synthetic.people import linear, noise_tile


@dataclass(frozen=True, eq=False)
class Lens:
    """What a camera does to light: gains (3,) of the channels, tone curve, blur, noise, JPEG quality (0: none)."""

    gains: np.ndarray
    contrast: float = 1.0
    defocus_px: float = 0.5
    motion_px: float = 0.0
    motion_deg: float = 0.0
    vignette: float = 0.1
    shot_noise: float = 0.01
    read_noise: float = 0.004
    shrink: float = 1.0
    quality: int = 0
    grey: float = 0.0


@dataclass(frozen=True, eq=False)
class Camera:
    """A view of a head: angles in degrees (yaw to the image's right, pitch down, roll clockwise), place and size in
    parts of the image's side, light as `raster.shade` takes it (9, 3), background (H, W, 3) or None for a random one.
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
    background: np.ndarray | None = field(default=None)


def sample_camera(rng: np.random.Generator, *, max_angle_deg: float = 35.0) -> Camera:
    """A view with yaw up to the limit, pitch to 0.7 of it, the face filling 25 to 60 % of the side."""
    pitch_max = 0.7 * max_angle_deg
    yaw = rng.uniform(-1, 1) * max_angle_deg if rng.random() < 0.6 else np.clip(rng.normal(0, 0.3), -1, 1) * max_angle_deg
    face_frac = float(rng.uniform(0.25, 0.6))
    room = max(0.0, 0.5 - 0.62 * face_frac)
    return Camera(
        yaw_deg=float(yaw), pitch_deg=float(np.clip(rng.normal(0, 0.45), -1, 1) * pitch_max),
        roll_deg=float(np.clip(rng.normal(0, 9), -25, 25)), light=sample_light(rng), lens=sample_lens(rng),
        centre_frac=(float(0.5 + rng.uniform(-room, room)), float(0.5 + rng.uniform(-room, room))), face_frac=face_frac,
        distance_m=float(np.exp(rng.uniform(np.log(0.55), np.log(3.5)))), body_turn=float(rng.uniform(0.1, 0.9)),
        shadow_softness=float(rng.uniform(0.6, 3.2)),
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
    """Anything from a good studio camera to a poor phone."""
    poor = rng.random()
    gains = np.exp(rng.normal(0, 0.32)) * np.exp(rng.normal(0, [0.06, 0.02, 0.07]))
    return Lens(
        gains=gains.astype(np.float32), contrast=float(np.clip(rng.normal(1.05, 0.18), 0.65, 1.6)),
        defocus_px=float(0.35 + rng.exponential(0.35) + (rng.uniform(0, 1.6) if poor > 0.85 else 0)),
        motion_px=float(rng.uniform(2, 8)) if rng.random() < 0.1 else 0.0, motion_deg=float(rng.uniform(0, 180)),
        vignette=float(max(0, rng.normal(0.08, 0.14))), shot_noise=float(rng.exponential(0.006) * (0.6 + 1.6 * poor**2)),
        read_noise=float(rng.exponential(0.003) * (0.6 + 1.6 * poor**2)), shrink=float(rng.uniform(0.35, 0.9)) if poor > 0.7 else 1.0,
        quality=int(rng.integers(35, 96)) if rng.random() < 0.7 else 0,
        grey=1.0 if rng.random() < 0.05 else float(max(0, rng.normal(0, 0.2))),
    )


def expose(image: np.ndarray, lens: Lens, rng: np.random.Generator) -> np.ndarray:
    """A photograph, RGB uint8 (H, W, 3), of linear light (H, W, 3)."""
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
    out = np.empty(image.shape, np.uint8)
    offset_y, offset_x = (int(i) for i in rng.integers(0, 1 << 20, 2))
    raster.develop(
        np.ascontiguousarray(image, np.float32), lens.gains, _curve(round(lens.contrast, 2)), lens.vignette, _grain(), offset_y,
        offset_x, lens.shot_noise, lens.read_noise, out,
    )
    if lens.shrink < 1:
        out = cv2.resize(out, (width, height), interpolation=cv2.INTER_CUBIC if lens.motion_deg > 90 else cv2.INTER_LINEAR)
    if lens.quality:
        _, code = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, lens.quality])
        out = cv2.imdecode(code, cv2.IMREAD_COLOR)
    return out


@lru_cache(maxsize=256)
def _curve(contrast: float) -> np.ndarray:
    """Display value 0..255 over half the square root of light: a shoulder, gamma, and contrast about mid-grey."""
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
    return grain / grain.std()


@lru_cache(maxsize=512)
def _streak(length: int, angle_deg: float) -> np.ndarray:
    kernel = np.zeros((length | 1, length | 1), np.float32)
    c = length // 2
    dx, dy = np.cos(np.deg2rad(angle_deg)) * length / 2, np.sin(np.deg2rad(angle_deg)) * length / 2
    cv2.line(kernel, (round(c - dx), round(c - dy)), (round(c + dx), round(c + dy)), 1.0, 1)
    return kernel / max(kernel.sum(), 1e-6)


# -------------------------------------------------------------------------------------------------------- backgrounds


def sample_background(rng: np.random.Generator, size_px: int, *, sharp: bool | None = None) -> np.ndarray:
    """Something behind people, linear RGB float32 (size, size, 3): plain, rooms, lights, nature, patterns."""
    kind = rng.choice(["plain", "room", "lights", "clutter", "nature", "pattern"], p=[0.2, 0.22, 0.12, 0.26, 0.12, 0.08])
    side = max(48, size_px // 2)
    image = {"plain": _plain, "room": _room, "lights": _lights, "clutter": _clutter, "nature": _nature, "pattern": _pattern}[kind](rng, side)
    blur = 0.0 if sharp or (sharp is None and rng.random() < 0.25) else rng.exponential(0.018) * side
    if blur > 0.4:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    image = cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
    grain = noise_tile(256, 1.2)
    shift = rng.integers(0, 256, 2)
    tile = np.tile(grain, (size_px // 256 + 2, size_px // 256 + 2))[shift[0] : shift[0] + size_px, shift[1] : shift[1] + size_px]
    image *= (1 + rng.uniform(0, 0.05) * tile)[..., None]
    mean = image.mean()
    return np.clip(image * (rng.uniform(0.08, 0.75) / max(mean, 0.02)) ** 0.6, 0.001, 3).astype(np.float32)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A colour of things: mostly muted."""
    grey = rng.uniform(10, 245)
    return linear(np.clip(grey + rng.normal(0, rng.choice([5, 10, 22, 50]), 3), 4, 252))


def _ramp(rng: np.random.Generator, side: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    t = np.clip(0.5 + 0.5 * (np.cos(angle) * x + np.sin(angle) * y), 0, 1)[..., None]
    return (a * (1 - t) + b * t).astype(np.float32)


def _plain(rng: np.random.Generator, side: int) -> np.ndarray:
    base = _colour(rng)
    image = _ramp(rng, side, base * rng.uniform(0.5, 1), base * rng.uniform(0.9, 1.4))
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    glow = np.exp(-((x - rng.uniform(-0.7, 0.7)) ** 2 + (y - rng.uniform(-0.7, 0.7)) ** 2) / rng.uniform(0.3, 2))
    return image * (1 + rng.uniform(0, 1.2) * glow[..., None])


def _room(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _ramp(rng, side, _colour(rng), _colour(rng) * 0.8)
    floor = int(side * rng.uniform(0.5, 1.0))
    image[floor:] = _ramp(rng, side, _colour(rng), _colour(rng))[floor:]
    for _ in range(rng.integers(1, 8)):  # doors, windows, shelves, pictures
        w, h = (rng.uniform(0.05, 0.5, 2) * side).astype(int)
        x, y = (rng.uniform(-0.2, 1.0, 2) * side).astype(int)
        colour = _colour(rng) * (rng.uniform(1.5, 5) if rng.random() < 0.2 else 1)
        cv2.rectangle(image, (x, y), (x + w, y + h), colour.tolist(), -1)
        if rng.random() < 0.6:
            cv2.rectangle(image, (x, y), (x + w, y + h), _colour(rng).tolist(), int(rng.integers(1, 4)))
        if rng.random() < 0.3:
            for k in range(x, x + w, max(2, w // int(rng.integers(2, 9)))):
                cv2.rectangle(image, (k, y), (k + max(1, w // 14), y + h), _colour(rng).tolist(), -1)
    return image


def _lights(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _ramp(rng, side, _colour(rng) * 0.15, _colour(rng) * 0.3)
    for _ in range(rng.integers(8, 40)):
        x, y = (rng.uniform(0, 1, 2) * side).astype(int)
        colour = linear(np.array([255, rng.uniform(150, 250), rng.uniform(60, 240)])[rng.permutation(3) if rng.random() < 0.3 else [0, 1, 2]])
        layer = np.zeros_like(image)
        cv2.circle(layer, (int(x), int(y)), int(side * rng.uniform(0.01, 0.06)), (colour * rng.uniform(0.2, 2)).tolist(), -1, cv2.LINE_AA)
        image += layer
    return image


def _clutter(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _ramp(rng, side, _colour(rng), _colour(rng))
    for _ in range(rng.integers(6, 45)):
        x, y = (rng.uniform(-0.1, 1.1, 2) * side).astype(int)
        colour, r = _colour(rng).tolist(), side * rng.uniform(0.01, 0.25)
        what = rng.integers(4)
        if what == 0:
            cv2.ellipse(image, (int(x), int(y)), (int(r), int(r * rng.uniform(0.3, 1.5))), rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
        elif what == 1:
            corners = np.array([x, y]) + rng.normal(0, r, (int(rng.integers(3, 7)), 2))
            cv2.fillPoly(image, [np.round(corners).astype(np.int32)], colour, cv2.LINE_AA)
        elif what == 2:
            end = (np.array([x, y]) + rng.normal(0, 3 * r, 2)).astype(int)
            cv2.line(image, (int(x), int(y)), (int(end[0]), int(end[1])), colour, int(rng.integers(1, 8)), cv2.LINE_AA)
        else:
            box = cv2.boxPoints(((float(x), float(y)), (2 * r, 2 * r * rng.uniform(0.3, 1.5)), rng.uniform(0, 90)))
            cv2.fillPoly(image, [np.round(box).astype(np.int32)], colour, cv2.LINE_AA)
    return image


def _nature(rng: np.random.Generator, side: int) -> np.ndarray:
    sky, ground = linear((rng.uniform(140, 220), rng.uniform(180, 230), 245)), linear((rng.uniform(40, 130), rng.uniform(60, 140), rng.uniform(20, 80)))
    y = np.linspace(0, 1, side, dtype=np.float32)[:, None]
    noise = noise_tile(256, 14.0, int(rng.integers(4)))
    noise = cv2.resize(noise, (side, side)) * 0.6 + cv2.resize(noise_tile(256, 3.0), (side, side)) * 0.5
    mask = np.clip((y - rng.uniform(0.1, 0.8) + 0.12 * noise) * 8, 0, 1)[..., None]
    leaves = (1 + 0.45 * cv2.resize(noise_tile(256, 1.5), (side, side)) * rng.uniform(0.3, 1.2))[..., None]
    return (sky * (1 - mask) + np.clip(ground * leaves, 0.002, 2) * mask).astype(np.float32)


def _pattern(rng: np.random.Generator, side: int) -> np.ndarray:
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j].astype(np.float32)
    angle, count = rng.uniform(0, np.pi), rng.uniform(3, 25)
    a = np.sin(2 * np.pi * count * (x * np.cos(angle) + y * np.sin(angle)))
    b = np.sin(2 * np.pi * count * (y * np.cos(angle) - x * np.sin(angle)) * rng.choice([0, 1, 0.3]))
    t = np.clip(0.5 + rng.uniform(0.5, 4) * (a + b) / 2 + 0.3 * cv2.resize(noise_tile(256, 6.0), (side, side)), 0, 1)[..., None]
    return (_colour(rng) * (1 - t) + _colour(rng) * t).astype(np.float32)

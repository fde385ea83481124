"""Random backgrounds, distractors and occluders."""

# H height, W width; colours linear RGB float32 unless said otherwise
from __future__ import annotations

import cv2
import numpy as np

from pipeline.synthetic.textures import SKIN_TONES, linear, noise_tile


def sample_background(rng: np.random.Generator, size_px: int, *, sharp: bool | None = None) -> np.ndarray:
    """Sample a background, linear RGB float32 (size, size, 3): plain, room, lights, clutter, nature or pattern."""
    kind = rng.choice(
        ["plain", "room", "lights", "clutter", "nature", "pattern"], p=[0.2, 0.22, 0.12, 0.26, 0.12, 0.08]
    )
    side = max(48, size_px // 2)
    image = {
        "plain": _plain,
        "room": _room,
        "lights": _lights,
        "clutter": _clutter,
        "nature": _nature,
        "pattern": _pattern,
    }[kind](rng, side)
    blur = 0.0 if sharp or (sharp is None and rng.random() < 0.25) else rng.exponential(0.018) * side
    if blur > 0.4:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    image = cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
    y, x = rng.integers(0, 256, 2)
    grain = np.tile(noise_tile(256, 1.2), (size_px // 256 + 2, size_px // 256 + 2))[y : y + size_px, x : x + size_px]
    image = image * (1 + np.float32(rng.uniform(0, 0.05)) * grain)[..., None]
    mean = image.mean()
    out: np.ndarray = np.clip(image * (rng.uniform(0.08, 0.75) / max(mean, 0.02)) ** 0.6, 0.001, 3).astype(np.float32)
    return out


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Sample a colour, mostly muted."""
    grey = rng.uniform(10, 245)
    return linear(np.clip(grey + rng.normal(0, rng.choice([5, 10, 22, 50]), 3), 4, 252))


def _ramp(rng: np.random.Generator, side: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    t = np.clip(0.5 + 0.5 * (np.cos(angle) * x + np.sin(angle) * y), 0, 1)[..., None]
    ramp: np.ndarray = (a * (1 - t) + b * t).astype(np.float32)
    return ramp


def _plain(rng: np.random.Generator, side: int) -> np.ndarray:
    base = _colour(rng)
    image = _ramp(rng, side, base * rng.uniform(0.5, 1), base * rng.uniform(0.9, 1.4))
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    glow = np.exp(-((x - rng.uniform(-0.7, 0.7)) ** 2 + (y - rng.uniform(-0.7, 0.7)) ** 2) / rng.uniform(0.3, 2))
    lit: np.ndarray = image * (1 + rng.uniform(0, 1.2) * glow[..., None])
    return lit


def _room(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _ramp(rng, side, _colour(rng), _colour(rng) * 0.8)
    floor = int(side * rng.uniform(0.5, 1.0))
    image[floor:] = _ramp(rng, side, _colour(rng), _colour(rng))[floor:]
    for _ in range(rng.integers(1, 8)):  # doors, windows, shelves, paintings
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
        colour = linear(
            np.array([255, rng.uniform(150, 250), rng.uniform(60, 240)])[
                rng.permutation(3) if rng.random() < 0.3 else [0, 1, 2]
            ]
        )
        layer = np.zeros_like(image)
        cv2.circle(
            layer,
            (int(x), int(y)),
            int(side * rng.uniform(0.01, 0.06)),
            (colour * rng.uniform(0.2, 2)).tolist(),
            -1,
            cv2.LINE_AA,
        )
        image += layer
    return image


def _clutter(rng: np.random.Generator, side: int) -> np.ndarray:
    image = _ramp(rng, side, _colour(rng), _colour(rng))
    for _ in range(rng.integers(6, 45)):
        x, y = (rng.uniform(-0.1, 1.1, 2) * side).astype(int)
        colour, r = _colour(rng).tolist(), side * rng.uniform(0.01, 0.25)
        kind = rng.integers(4)
        if kind == 0:
            cv2.ellipse(
                image,
                (int(x), int(y)),
                (int(r), int(r * rng.uniform(0.3, 1.5))),
                rng.uniform(0, 180),
                0,
                360,
                colour,
                -1,
                cv2.LINE_AA,
            )
        elif kind == 1:
            corners = np.array([x, y]) + rng.normal(0, r, (int(rng.integers(3, 7)), 2))
            cv2.fillPoly(image, [np.round(corners).astype(np.int32)], colour, cv2.LINE_AA)
        elif kind == 2:
            end = (np.array([x, y]) + rng.normal(0, 3 * r, 2)).astype(int)
            cv2.line(image, (int(x), int(y)), (int(end[0]), int(end[1])), colour, int(rng.integers(1, 8)), cv2.LINE_AA)
        else:
            box = cv2.boxPoints(((float(x), float(y)), (2 * r, 2 * r * rng.uniform(0.3, 1.5)), rng.uniform(0, 90)))
            cv2.fillPoly(image, [np.round(box).astype(np.int32)], colour, cv2.LINE_AA)
    return image


def _nature(rng: np.random.Generator, side: int) -> np.ndarray:
    sky, ground = (
        linear((rng.uniform(140, 220), rng.uniform(180, 230), 245)),
        linear((rng.uniform(40, 130), rng.uniform(60, 140), rng.uniform(20, 80))),
    )
    y = np.linspace(0, 1, side, dtype=np.float32)[:, None]
    noise = noise_tile(256, 14.0, int(rng.integers(4)))
    noise = cv2.resize(noise, (side, side)) * 0.6 + cv2.resize(noise_tile(256, 3.0), (side, side)) * 0.5
    mask = np.clip((y - rng.uniform(0.1, 0.8) + 0.12 * noise) * 8, 0, 1)[..., None]
    leaves = (1 + 0.45 * cv2.resize(noise_tile(256, 1.5), (side, side)) * rng.uniform(0.3, 1.2))[..., None]
    image: np.ndarray = (sky * (1 - mask) + np.clip(ground * leaves, 0.002, 2) * mask).astype(np.float32)
    return image


def _pattern(rng: np.random.Generator, side: int) -> np.ndarray:
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j].astype(np.float32)
    angle, count = rng.uniform(0, np.pi), rng.uniform(3, 25)
    a = np.sin(2 * np.pi * count * (x * np.cos(angle) + y * np.sin(angle)))
    b = np.sin(2 * np.pi * count * (y * np.cos(angle) - x * np.sin(angle)) * rng.choice([0, 1, 0.3]))
    t = np.clip(0.5 + rng.uniform(0.5, 4) * (a + b) / 2 + 0.3 * cv2.resize(noise_tile(256, 6.0), (side, side)), 0, 1)[
        ..., None
    ]
    image: np.ndarray = (_colour(rng) * (1 - t) + _colour(rng) * t).astype(np.float32)
    return image


def draw_distractors(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw things that are not faces, in place: ovals of skin colour with spots, lines of text."""
    side = canvas.shape[0]
    for _ in range(rng.integers(1, 9)):
        x, y = (rng.uniform(0, 1, 2) * side).astype(int).tolist()
        r = side * np.exp(rng.uniform(np.log(0.02), np.log(0.3)))
        colour = linear(SKIN_TONES[rng.integers(len(SKIN_TONES))]) * rng.uniform(0.5, 1.3)
        layer, mask = np.empty_like(canvas), np.zeros((side, side), np.uint8)
        layer[:] = colour * rng.uniform(0.7, 1.1, 3)
        layer *= np.linspace(rng.uniform(0.4, 1), rng.uniform(0.7, 1.3), side, dtype=np.float32)[:, None, None]
        cv2.ellipse(
            mask, (x, y), (int(r * rng.uniform(0.2, 1)), int(r)), rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA
        )
        alpha = cv2.GaussianBlur(mask, (0, 0), max(0.6, r * rng.uniform(0.01, 0.2))).astype(np.float32)[..., None] / 255
        canvas += (layer - canvas) * alpha
        for _ in range(rng.integers(1, 5) if rng.random() < 0.3 else 0):
            px, py = (np.array([x, y]) + rng.normal(0, r * 0.4, 2)).astype(int).tolist()
            cv2.circle(
                canvas,
                (px, py),
                max(1, int(r * rng.uniform(0.03, 0.14))),
                (colour * rng.uniform(0, 0.4)).tolist(),
                -1,
                cv2.LINE_AA,
            )
    if rng.random() < 0.5:
        start = rng.uniform(0, 0.8, 2) * side
        ink, font, scale = np.zeros((side, side), np.uint8), int(rng.integers(0, 7)), side / 900 * rng.uniform(0.6, 2)
        for k in range(rng.integers(4, 16)):
            word = "".join(chr(int(c)) for c in rng.integers(65, 122, rng.integers(2, 9)))
            cv2.putText(
                ink,
                word,
                (int(start[0]), int(start[1] + k * side * 0.06)),
                font,
                scale,
                255,
                int(rng.integers(1, 3)),
                cv2.LINE_AA,
            )
        canvas += (rng.uniform(0, 1, 3).astype(np.float32) - canvas) * (ink.astype(np.float32)[..., None] / 255)


def draw_occluder(canvas: np.ndarray, box_xyxy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw hand-sized strokes at the border of a face, in place; return their opacity (H, W) 0..1."""
    side = canvas.shape[0]
    x1, y1, x2, y2 = box_xyxy
    size = np.array([x2 - x1, y2 - y1])
    angle = rng.uniform(0, 2 * np.pi)
    centre = np.array([x1 + x2, y1 + y2]) / 2 + size * 0.55 * np.array([np.cos(angle), np.sin(angle)])
    mask = np.zeros((side, side), np.uint8)
    for _ in range(rng.integers(1, 6)):
        a = centre + rng.normal(0, 0.1, 2) * size
        b = a + rng.normal(0, 0.4, 2) * size
        cv2.line(
            mask,
            tuple(a.astype(int).tolist()),
            tuple(b.astype(int).tolist()),
            255,
            max(1, int(size.min() * rng.uniform(0.06, 0.2))),
            cv2.LINE_AA,
        )
    tint = rng.uniform(0.05, 0.7) * np.array([1, rng.uniform(0.4, 1), rng.uniform(0.3, 1)])
    alpha = cv2.GaussianBlur(mask, (0, 0), 0.8).astype(np.float32)[..., None] / 255
    canvas += (tint.astype(np.float32) - canvas) * alpha
    return alpha[..., 0]

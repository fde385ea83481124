"""Tools for textures: colours, tiling noise, spots, curves."""

# T texture's side in px
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from pipeline.synthetic.bank import texture_angles

SKIN_TONES = np.array(
    [
        (244, 208, 184),
        (234, 192, 160),
        (222, 178, 148),
        (205, 156, 122),
        (184, 134, 100),
        (158, 108, 76),
        (122, 80, 56),
        (94, 60, 42),
        (68, 44, 33),
    ]
)
"""sRGB, light to dark."""


def linear(srgb: Sequence[float] | np.ndarray) -> np.ndarray:
    """Convert sRGB 0..255 to linear 0..1, float32."""
    return ((np.asarray(srgb, np.float32) / 255) ** 2.2).astype(np.float32)


def mixed(colours: np.ndarray, t: float) -> np.ndarray:
    """Interpolate a list of colours at 0..1."""
    place = t * (len(colours) - 1)
    i = min(int(place), len(colours) - 2)
    colour: np.ndarray = colours[i] + (colours[i + 1] - colours[i]) * (place - i)
    return colour


def pick(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sample one row of an array."""
    row: np.ndarray = rows[rng.integers(len(rows))]
    return row


@lru_cache(maxsize=64)
def noise_tile(size_px: int, scale_px: float, seed: int = 0) -> np.ndarray:
    """Return tiling smooth noise of mean 0 and standard deviation 1, float32 (size, size)."""
    raw = np.random.default_rng([8912, seed]).standard_normal((size_px, size_px)).astype(np.float32)
    pad = min(size_px, int(4 * scale_px) + 1)
    wide = np.asarray(cv2.GaussianBlur(np.pad(raw, pad, mode="wrap"), (0, 0), scale_px))[pad:-pad, pad:-pad]
    tile: np.ndarray = (wide - wide.mean()) / wide.std()
    return tile


@lru_cache(maxsize=4)
def strand_tile(kind: str) -> np.ndarray:
    """Return the brightness 0..1 of hair, float32 (256, 256); strands run along the rows' axis."""
    raw = np.random.default_rng(4711).standard_normal((256, 256)).astype(np.float32)
    wide = np.pad(raw, 128, mode="wrap")
    along, across = (28, 0.6) if kind == "straight" else (9, 0.8) if kind == "wavy" else (1.8, 1.8)
    fine = cv2.GaussianBlur(wide, (0, 0), sigmaX=across, sigmaY=along)[128:-128, 128:-128]
    broad = cv2.GaussianBlur(wide, (0, 0), sigmaX=3.5 * across, sigmaY=along)[128:-128, 128:-128]
    both = fine / fine.std() + 0.9 * broad / broad.std()
    tile: np.ndarray = np.clip(0.5 + 0.21 * both, 0, 1).astype(np.float32)
    return tile


def noise(size_px: int, scale_px: float, rng: np.random.Generator) -> np.ndarray:
    """Return a noise tile with a random offset."""
    return np.roll(noise_tile(size_px, scale_px), tuple(rng.integers(0, size_px, 2)), (0, 1))


def spot(size_px: int, uv: np.ndarray, width: float, height: float | None = None) -> np.ndarray:
    """Return a Gaussian (T, T) of given standard deviations (in u, v) around texture coordinates `uv`."""
    at = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    x = np.exp(-(((at - uv[0]) / width) ** 2) / 2)
    y = np.exp(-(((at - uv[1]) / (height or width)) ** 2) / 2)
    image: np.ndarray = (y[:, None] * x).astype(np.float32)
    return image


@lru_cache(maxsize=4)
def texture_grid(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return turn and height in degrees (see `texture_angles`) of each texel (T, T)."""
    at = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    turn, height = texture_angles(np.stack(np.meshgrid(at, at), -1))
    return turn.astype(np.float32), height.astype(np.float32)


def smoothed(path: np.ndarray, num: int = 24) -> np.ndarray:
    """Return a Catmull-Rom curve (num, 2) through the points of a path (n, 2)."""
    ends = np.concatenate([2 * path[:1] - path[1:2], path, 2 * path[-1:] - path[-2:-1]])
    at = np.linspace(0, len(path) - 1 - 1e-6, num)
    i = at.astype(int)
    t = (at - i)[:, None]
    a, b, c, d = (ends[i + k] for k in range(4))
    out: np.ndarray = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return out


def draw_line(canvas: np.ndarray, path: np.ndarray, thickness: int, value: int = 255) -> None:
    """Draw an antialiased line on uint8 (T, T), given by texture coordinates (n, 2)."""
    px = np.round(path * canvas.shape[0] * 16).astype(np.int32)
    cv2.polylines(canvas, [px], False, value, thickness, cv2.LINE_AA, 4)


def tint(colour: np.ndarray, mask: np.ndarray, loss: Sequence[float] | np.ndarray) -> None:
    """Darken by the fractions `loss` (3,) where mask (T, T) is 1, in place."""
    colour *= 1 - mask[..., None] * np.asarray(loss, np.float32)


def cover(colour: np.ndarray, mask: np.ndarray, coat: np.ndarray) -> None:
    """Cover with the colour `coat` (3,) or (T, T, 3) where mask (T, T) is 1, in place."""
    colour += mask[..., None] * (np.asarray(coat, np.float32) - colour)

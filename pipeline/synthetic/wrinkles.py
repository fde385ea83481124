"""Wrinkles that facial actions deepen, as heights over the texture.

Sides are the person's: `right` lies at the image's left.
"""

# T texture's side in px
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.synthetic.bank import Bank
from pipeline.synthetic.textures import noise, smoothed, spot

SIDED_WRINKLES = ("forehead", "crow", "under_eye", "nose", "laugh", "dimple", "corner", "stretch")
DEPTH = 0.0068
"""Height of a wrinkle at full depth, in units of the texture's side, before smoothing."""
_PAD = 0.03


@dataclass(frozen=True, eq=False)
class Wrinkle:
    """Height (h, w), float32, of a wrinkle at full depth, to add to the texture's height at [top:, left:]."""

    top: int
    left: int
    height: np.ndarray


class Wrinkles:
    """A person's wrinkles by name ("glabella", "crow_right"), each drawn at first use."""

    def __init__(self, lines: dict[str, list[np.ndarray]], bumps: np.ndarray, marks: np.ndarray) -> None:
        self._lines, self._bumps, self._marks = lines, bumps, marks
        self._made: dict[str, Wrinkle] = {}

    def __getitem__(self, name: str) -> Wrinkle:
        """Return the wrinkle: its place in the texture is fixed, its lines are this person's."""
        if name not in self._made:
            is_chin = name == "chin"
            self._made[name] = (
                _chin(self._marks, self._bumps) if is_chin else _furrows(self._lines[name], len(self._bumps))
            )
        return self._made[name]


def add_wrinkle(height: np.ndarray, wrinkle: Wrinkle, amount: float) -> None:
    """Add a wrinkle, times `amount`, to a texture's height (T, T), in place."""
    h, w = wrinkle.height.shape
    height[wrinkle.top : wrinkle.top + h, wrinkle.left : wrinkle.left + w] += np.float32(amount) * wrinkle.height


def sample_wrinkles(bank: Bank, rng: np.random.Generator, size: int) -> Wrinkles:
    """Sample a person's wrinkles."""
    marks = bank.marks
    lines = _middle_lines(marks, rng)
    for side, name in ((-1, "right"), (1, "left")):
        lines |= {f"{wrinkle}_{name}": paths for wrinkle, paths in _side_lines(marks, side, rng).items()}
    return Wrinkles(lines, noise(size, size * 0.0075, rng), marks)


def _middle_lines(marks: np.ndarray, rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Sample paths (n, 2) in the texture of the wrinkles without sides."""
    across, between = [], []
    for y in _forehead_rows(marks, rng):
        x = np.linspace(0.415, 0.585, 5) + rng.normal(0, 0.0035, 5)
        across.append(np.stack([x, y + rng.normal(0, 0.004, 5) + [0.006, 0, 0.003, 0, 0.006]], 1))
    for side in (-1, 1):
        start = (0.5 + side * rng.uniform(0.016, 0.026), marks[21, 1] - 0.035)
        between.append(_walk(start, (0, 0), (-side * 0.004, 0.035), (-side * 0.001, 0.065)) + _shift(rng))
    if rng.random() < 0.4:
        between.append(_walk((0.5, marks[21, 1] - 0.03), (0, 0), (0.001, 0.05)) + _shift(rng))
    edges = ((marks[51, 1] - 0.012, -1), (marks[57, 1] + 0.01, 1))
    upright = [
        _walk((x, y), (0, sign * 0.012), (rng.normal(0, 0.0035), -sign * 0.006))
        for x in np.linspace(marks[49, 0], marks[53, 0], 9)
        for y, sign in edges
    ]
    below = np.array([marks[59] + (0, 0.014), marks[57] + (0, 0.022), marks[55] + (0, 0.014)])
    return {"forehead_inner": across, "glabella": between, "lip_lines": upright, "under_lip": [below]}


def _side_lines(marks: np.ndarray, side: int, rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Sample paths of the wrinkles on one side: -1 the image's left, 1 its right."""
    outer, inner, corner, wing = marks[[36, 39, 48, 31] if side < 0 else [45, 42, 54, 35]]
    x = 0.5 + side * np.linspace(0.085, 0.2, 4)
    bend = np.array([0.003, -0.006, 0.0, 0.014])
    forehead = [np.stack([x, y + rng.normal(0, 0.004, 4) + bend], 1) for y in _forehead_rows(marks, rng)]
    crow = []
    for angle in np.linspace(-0.55, 0.6, int(rng.integers(3, 5))):
        turned = angle + rng.normal(0, 0.06)
        reach = rng.uniform(0.035, 0.06) * np.array([side * np.cos(turned), np.sin(turned)])
        crow.append(_walk(_at(outer, side * 0.022, 0.004 + 0.015 * angle), (0, 0), reach / 2 + (0, 0.003), reach))
    under_eye = []
    for drop in (0.02, 0.034):
        ends = _at(outer, side * 0.004, drop - 0.004), _at(inner, side * 0.012, drop + 0.002)
        under_eye.append(np.array([ends[0], (ends[0] + ends[1]) / 2 + (0, 0.016), ends[1]]) + _shift(rng))
    nose = [
        _walk(
            (0.5 + side * 0.006, marks[28, 1] - 0.03 + 0.018 * k), (0, 0), (side * 0.02, -0.007), (side * 0.045, 0.014)
        )
        + _shift(rng)
        for k in range(3)
    ]
    laugh = np.array(
        [
            _at(wing, side * 0.022, -0.028),
            _at(wing, side * 0.045, 0.012),
            _at(corner, side * 0.036, -0.025),
            _at(corner, side * 0.036, 0.018),
        ]
    )
    dimple = _walk(_at(corner, side * 0.026, 0), (-side * 0.003, -0.026), (side * 0.004, 0), (-side * 0.004, 0.024))
    down = _walk(_at(corner, side * 0.008, 0.012), (0, 0), (side * 0.012, 0.03), (side * 0.008, 0.065))
    stretch = [
        _walk(_at(corner, side * (0.045 + 0.028 * k), -0.02), (0, 0), (side * 0.008, 0.03), (side * 0.004, 0.075))
        + _shift(rng)
        for k in range(2)
    ]
    return {
        "forehead": forehead,
        "crow": crow,
        "under_eye": under_eye,
        "nose": nose,
        "laugh": [laugh + _shift(rng)],
        "dimple": [dimple],
        "corner": [down + _shift(rng)],
        "stretch": stretch,
    }


def _forehead_rows(marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.linspace(marks[27, 1] - 0.155, marks[19, 1] - 0.035, int(rng.integers(3, 6)))


def _walk(start: Sequence[float] | np.ndarray, *steps: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return a path (n, 2): each step is relative to `start`."""
    path: np.ndarray = np.asarray(start) + np.array(steps, float)
    return path


def _at(place: np.ndarray, right: float, down: float) -> np.ndarray:
    moved: np.ndarray = place + np.array([right, down])
    return moved


def _shift(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 0.0035, 2)


def _furrows(paths: list[np.ndarray], size: int) -> Wrinkle:
    """Return narrow valleys along paths, between soft ridges."""
    every = np.concatenate(paths)
    left, top = np.maximum(0, ((every.min(0) - _PAD) * size).astype(int))
    right, bottom = np.minimum(size, ((every.max(0) + _PAD) * size).astype(int) + 1)
    canvas = np.zeros((bottom - top, right - left), np.uint8)
    for path in paths:
        px = np.round((smoothed(path, 16) * size - [left, top]) * 16).astype(np.int32)
        cv2.polylines(canvas, [px], False, 255, max(1, round(size / 300)), cv2.LINE_AA, 4)
    line = canvas.astype(np.float32) / 255
    valley, ridges = (cv2.GaussianBlur(line, (0, 0), size * width) for width in (0.0045, 0.011))
    return Wrinkle(int(top), int(left), DEPTH * (1.25 * ridges - valley))


def _chin(marks: np.ndarray, bumps: np.ndarray) -> Wrinkle:
    """Return the pits of a bunched chin, from noise (T, T), under an arc."""
    size = len(bumps)
    height = 0.0011 * spot(size, marks[57] * 0.45 + marks[8] * 0.55 - (0, 0.005), 0.03, 0.02) * bumps
    arc = np.array([marks[59] + (0.01, 0.022), marks[57] + (0, 0.03), marks[55] + (-0.01, 0.022)])
    add_wrinkle(height, _furrows([arc], size), 0.9)
    left, top = ((marks[57] - (0.1, 0.02)) * size).astype(int)
    right, bottom = ((marks[8] + (0.1, 0.06)) * size).astype(int)
    return Wrinkle(int(top), int(left), height[top:bottom, left:right])

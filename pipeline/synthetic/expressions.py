"""From action-unit intensities to facial actions, wrinkles and gaze."""

# A facial actions of the bank
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.synthetic.bank import Bank
from pipeline.synthetic.wrinkles import SIDED_WRINKLES

AU_ACTIONS: dict[int, tuple[tuple[str, float], ...]] = {
    1: (("browInnerUp", 1.15),),
    2: (("browOuterUp", 1.35),),
    4: (("browDown", 1.5),),
    5: (("eyeWide", 1.0),),
    6: (("cheekSquint", 2.0), ("eyeSquint", 0.35)),
    7: (("eyeSquint", 1.35),),
    9: (("noseSneer", 2.0), ("mouthUpperUp", 0.2)),
    10: (("mouthUpperUp", 0.85),),
    12: (("mouthSmile", 0.85),),
    14: (("mouthDimple", 1.5),),
    15: (("mouthFrown", 1.5),),
    16: (("mouthLowerDown", 0.8),),
    17: (("mouthShrugLower", 0.9), ("mouthShrugUpper", 0.45)),
    20: (("mouthStretch", 1.0),),
    23: (("mouthRollLower", 1.2), ("mouthRollUpper", 1.2), ("mouthPucker", 0.4)),
    24: (("mouthPress", 0.9), ("mouthRollLower", 0.65), ("mouthRollUpper", 0.55)),
    25: (("mouthLowerDown", 0.45), ("mouthUpperUp", 0.15), ("jawOpen", 0.12)),
    26: (("jawOpen", 0.5),),
}
"""Facial actions, without their side, of each action unit at full intensity, and their gains."""

AU_WRINKLES: dict[int, tuple[tuple[str, float], ...]] = {
    1: (("forehead_inner", 1.0),),
    2: (("forehead", 1.0), ("forehead_inner", 0.25)),
    4: (("glabella", 1.6),),
    6: (("crow", 1.2), ("under_eye", 0.7), ("laugh", 0.25)),
    7: (("under_eye", 0.5), ("crow", 0.15)),
    9: (("nose", 1.6), ("laugh", 0.35), ("glabella", 0.25)),
    10: (("laugh", 0.75),),
    12: (("laugh", 0.8), ("crow", 0.15)),
    14: (("dimple", 1.2),),
    15: (("corner", 1.3),),
    17: (("chin", 1.1), ("under_lip", 0.3)),
    20: (("stretch", 0.9),),
    23: (("lip_lines", 1.0),),
    24: (("under_lip", 0.9), ("lip_lines", 0.25), ("corner", 0.25)),
}
"""Wrinkles of each action unit at full intensity, and their depths."""

LIPS_PALE = {23: 0.95, 24: 0.6}


@dataclass(frozen=True, eq=False)
class Expression:
    """actions: float32 (A,); wrinkles: depth by name; gaze_deg: to the image's right, down; lips_pale: 0..1."""

    actions: np.ndarray
    wrinkles: Mapping[str, float]
    gaze_deg: tuple[float, float] = (0.0, 0.0)
    lips_pale: float = 0.0


@lru_cache(maxsize=4)
def _rows(bank: Bank) -> dict[str, tuple[int, ...]]:
    """Return the rows of each action, right before left if it has sides."""
    names = [str(name) for name in bank.action_names]
    rows: dict[str, tuple[int, ...]] = {name: (i,) for i, name in enumerate(names)}
    for name in names:
        if name.endswith("Left"):
            rows[name[:-4]] = (names.index(name[:-4] + "Right"), names.index(name))
    return rows


def expression(
    bank: Bank,
    aus: Mapping[int, float],
    *,
    strength: Mapping[int, float] | None = None,
    asymmetry: float = 0.0,
    extra: Mapping[str, float] | None = None,
    gaze_deg: tuple[float, float] = (0.0, 0.0),
    blink: float = 0.0,
) -> Expression:
    """Return the expression of AU intensities 0..1.

    strength: factor of each AU. asymmetry: -1..1, weakens the right (negative) or left side. extra: actions by name,
    with or without a side. gaze_deg: to the image's right, down. blink: 0..1.
    """
    rows = _rows(bank)
    actions = np.zeros(len(bank.action_names), np.float32)
    wrinkles: dict[str, float] = {}
    sides = 1 + min(asymmetry, 0), 1 - max(asymmetry, 0)
    pale = 0.0
    for au, intensity in aus.items():
        amount = intensity * (strength[au] if strength else 1.0)
        for name, gain in AU_ACTIONS.get(au, ()):
            for row, side in zip(rows[name], sides, strict=False):
                actions[row] += amount * gain * (side if len(rows[name]) == 2 else 1.0)
        for name, gain in AU_WRINKLES.get(au, ()):
            for place, side in (("_right", sides[0]), ("_left", sides[1])) if name in SIDED_WRINKLES else (("", 1.0),):
                wrinkles[name + place] = wrinkles.get(name + place, 0.0) + amount * gain * side
        pale += LIPS_PALE.get(au, 0.0) * amount
    for name, value in (extra or {}).items():
        for row in rows[name]:
            actions[row] += value
    right, down = gaze_deg
    # the person's left is the image's right
    for name, value in (
        ("eyeLookInRight", right),
        ("eyeLookOutLeft", right),
        ("eyeLookOutRight", -right),
        ("eyeLookInLeft", -right),
        ("eyeLookUp", -down),
        ("eyeLookDown", down),
    ):
        for row in rows[name]:
            actions[row] += max(0.0, value) / 30.0
    for row in rows["eyeBlink"]:
        actions[row] = max(actions[row], blink)
    squint = actions[list(rows["eyeSquint"])].max()
    for row in rows["eyeBlink"]:
        actions[row] = min(actions[row], 1.0 - 0.35 * min(squint, 1.0))
    return Expression(np.minimum(actions, 2.2), {k: min(v, 1.6) for k, v in wrinkles.items()}, gaze_deg, min(pale, 1.0))


def random_expression(bank: Bank, rng: np.random.Generator) -> Expression:
    """Sample an expression for detector training, with gaze, blinks and speech."""
    aus: dict[int, float] = {}
    if rng.random() < 0.75:
        picked = rng.choice(sorted(AU_ACTIONS), int(rng.integers(1, 6)), replace=False)
        aus = {int(au): float(rng.uniform(0.2, 1.1)) for au in picked}
    if rng.random() < 0.3:
        aus |= {6: float(rng.uniform(0.3, 1)), 12: float(rng.uniform(0.3, 1.1)), 25: float(rng.uniform(0, 1.2))}
    extra = {}
    if rng.random() < 0.4:
        extra["jawOpen"] = float(rng.uniform(0, 0.8) ** 1.3)
    if rng.random() < 0.15:
        extra[
            str(
                rng.choice(
                    ["mouthPucker", "mouthFunnel", "jawLeft", "jawRight", "cheekPuff", "mouthLeft", "mouthRight"]
                )
            )
        ] = float(rng.uniform(0.2, 0.9))
    blink = float(rng.uniform(0.3, 1.0)) if rng.random() < 0.15 else float(rng.uniform(0, 0.15))
    gaze = (float(rng.normal(0, 11)), float(rng.normal(0, 6))) if rng.random() < 0.7 else (0.0, 0.0)
    return expression(
        bank, aus, asymmetry=float(np.clip(rng.normal(0, 0.2), -0.8, 0.8)), extra=extra, gaze_deg=gaze, blink=blink
    )

"""Schedules of action units: intensities over time that meet given base rates exactly.

An AU with intensity 0..1 is present from `PRESENT_FROM` up, where DISFA's level 2 of 0..5 starts.
"""

# S subjects, K tasks, T frames of a sequence, A action units
from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

import numpy as np

PRESENT_FROM = 0.4
LEVEL_STARTS = (0.2, PRESENT_FROM, 0.58, 0.76, 0.92)

TASK_EMOTIONS = ("joy", "sadness", "surprise", "embarrassment", "fear", "pain", "anger", "disgust")
"""Emotions that tasks T1..T8 elicit; further tasks repeat them."""

EMOTIONS: Mapping[str, Mapping[int, float]] = {
    "joy": {6: 2.2, 7: 0.8, 10: 1.7, 12: 2.4, 14: 1.4, 25: 1.8, 26: 0.8},
    "sadness": {1: 2.0, 4: 1.4, 15: 2.4, 17: 1.8, 24: 0.6},
    "surprise": {1: 2.0, 2: 2.4, 5: 1.8, 25: 1.5, 26: 2.2},
    "embarrassment": {2: 0.6, 6: 1.0, 12: 1.4, 14: 1.2, 17: 0.8, 23: 1.2, 24: 1.8},
    "fear": {1: 1.4, 2: 1.2, 4: 1.4, 5: 1.2, 7: 0.8, 20: 2.2, 25: 1.2},
    "pain": {4: 1.8, 6: 1.2, 7: 1.6, 9: 1.8, 10: 1.3, 17: 0.6, 25: 0.8},
    "anger": {4: 1.6, 7: 1.2, 14: 0.8, 17: 1.0, 23: 2.2, 24: 1.6},
    "disgust": {4: 0.8, 7: 1.0, 9: 2.4, 10: 1.8, 14: 0.5, 15: 1.4, 17: 1.2},
}
"""Log-odds that an emotion adds to an action unit; the others get `QUIET`."""

QUIET = -1.1


def plan_intensities(
    rates: Mapping[int, float], *, num_subjects: int, num_tasks: int, num_frames: int, rng: np.random.Generator
) -> np.ndarray:
    """Return intensities, float32 (S, K, T, A), with A in the order of `rates` (fraction of frames by action unit).

    Exactly round(rate * S * K * T) frames have an AU. Their subjects and tasks follow EMOTIONS and a random
    expressiveness; within a sequence an AU rises, holds and falls.
    """
    shape = (num_subjects, num_tasks)
    reach = rng.normal(0, 0.5, (num_subjects, 1))  # expressiveness of each subject
    when = _times(num_frames, rng)
    envelope = np.stack([_wave(when, rng) for _ in range(num_subjects * num_tasks)]).reshape(*shape, num_frames)
    out = np.zeros((*shape, num_frames, len(rates)), np.float32)
    for column, (au, rate) in enumerate(rates.items()):
        boost = np.array([EMOTIONS[TASK_EMOTIONS[k % 8]].get(au, QUIET) for k in range(num_tasks)])
        odds = boost + reach + rng.normal(0, 0.6, (num_subjects, 1)) + rng.normal(0, 0.5, shape)
        counts = _quota(odds.ravel(), rate, num_frames, rng).reshape(shape)
        own = np.stack([_wave(when, rng) for _ in range(num_subjects * num_tasks)]).reshape(*shape, num_frames)
        wave = 0.75 * envelope + 0.65 * own
        for s in range(num_subjects):
            for k in range(num_tasks):
                out[s, k, :, column] = _with_count(wave[s, k], int(counts[s, k]), rng)
    return out


def _times(num_frames: int, rng: np.random.Generator) -> np.ndarray:
    return (np.arange(num_frames) + rng.uniform(0.3, 0.7)) / num_frames


def _wave(at: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a slow random wave over times 0..1, of standard deviation about 1, with an event that rises fast."""
    slow = sum(rng.normal(0, 1 / (1 + k)) * np.sin(np.pi * (k + 1) * at + rng.uniform(0, 2 * np.pi)) for k in range(4))
    apex, rise, fall = rng.uniform(0.1, 0.9), rng.uniform(0.04, 0.12), rng.uniform(0.1, 0.35)
    event = np.exp(-np.where(at < apex, (apex - at) / rise, (at - apex) / fall))
    return 0.6 * slow + 1.6 * event


def _quota(odds: np.ndarray, rate: float, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return each sequence's number of frames with an AU; they sum to the rounded rate of all frames."""
    low, high = -40.0, 40.0
    for _ in range(60):
        shift = (low + high) / 2
        low, high = (shift, high) if (1 / (1 + np.exp(-odds - shift))).mean() < rate else (low, shift)
    share = num_frames / (1 + np.exp(-odds - low))
    total = round(rate * len(odds) * num_frames)
    order = rng.permutation(len(odds))
    ends = np.cumsum(share[order]) * (total / max(share.sum(), 1e-12))
    ends = np.floor(ends + rng.random() * (1 - 1e-9)).astype(int)
    ends[-1] = total
    counts = np.empty(len(odds), int)
    counts[order] = np.clip(np.diff(ends, prepend=0), 0, num_frames)
    return counts


def _with_count(wave: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Map a wave (T,) to intensities 0..1, of which exactly `count` are present."""
    falling = np.sort(wave)[::-1]
    if count == 0:
        border = falling[0] + rng.uniform(0.15, 1.2)
    elif count == len(wave):
        border = falling[-1] - rng.uniform(0.15, 0.9)
    else:
        border = falling[count] + (falling[count - 1] - falling[count]) * rng.uniform(0.2, 0.8)
    beyond = wave - border
    present = PRESENT_FROM + 0.02 + (0.98 - PRESENT_FROM) * (1 - np.exp(-np.maximum(beyond, 0) * 2.4))
    absent = (PRESENT_FROM - 0.02) * np.exp(np.minimum(beyond, 0) * 3.2)
    place = np.argsort(np.argsort(-wave, kind="stable"), kind="stable")
    intensities: np.ndarray = np.where(place < count, present, absent)
    return intensities


def level(intensity: float) -> int:
    """Return DISFA's level, 0..5, of an intensity 0..1."""
    return bisect_right(LEVEL_STARTS, intensity)

"""AU schedules: base rates at any size, tasks that differ, intensities that rise and fall, DISFA's levels."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.protocols import PROTOCOLS
from pipeline.synthetic.au_schedules import PRESENT_FROM, level, plan_intensities
from pipeline.synthetic.layout import BP4D_RATES, DISFA_RATES

PUBLISHED_PERCENT = {
    "bp4d": (21.1, 17.0, 20.3, 46.1, 54.9, 59.4, 56.2, 46.6, 16.9, 34.4, 16.5, 15.2),
    "disfa": (5.0, 4.0, 15.0, 7.9, 4.2, 12.9, 27.8, 8.9),
}


def plan(rates, num_subjects, num_tasks, num_frames, seed=0):
    rng = np.random.default_rng(seed)
    return plan_intensities(rates, num_subjects=num_subjects, num_tasks=num_tasks, num_frames=num_frames, rng=rng)


@pytest.mark.parametrize(("layout", "rates"), [("bp4d", BP4D_RATES), ("disfa", DISFA_RATES)])
@pytest.mark.parametrize("size", [(90, 8, 3), (12, 8, 3), (41, 8, 10), (6, 8, 2), (27, 1, 60)])
def test_published_rates_are_met_within_three_points_at_any_size(layout, rates, size):
    if layout == "disfa" and size == (6, 8, 2):
        size = (6, 8, 5)  # one frame in 96 is already a point
    present = (plan(rates, *size) >= PRESENT_FROM).mean((0, 1, 2))
    got = dict(zip(rates, 100 * present, strict=True))
    for au, percent in zip(PROTOCOLS[layout].aus, PUBLISHED_PERCENT[layout], strict=True):
        assert got[au] == pytest.approx(percent, abs=3.0), au


def test_joy_fires_cheeks_lips_and_dimples_together_and_sadness_the_corners():
    present = plan(BP4D_RATES, 60, 8, 3) >= PRESENT_FROM
    by_task = {au: present[..., i].mean((0, 2)) for i, au in enumerate(BP4D_RATES)}
    for au in (6, 10, 12, 14):
        assert by_task[au][0] > 1.25 * by_task[au].mean()
    assert by_task[15].argmax() == 1  # sadness
    assert by_task[2].argmax() == 2  # surprise
    assert by_task[23].argmax() == 6  # anger
    columns = {au: present[..., i].ravel() for i, au in enumerate(BP4D_RATES)}
    together = np.corrcoef(columns[6], columns[12])[0, 1]
    assert together > 0.2
    assert together > np.corrcoef(columns[12], columns[15])[0, 1] + 0.15


def test_intensities_stay_in_range_with_some_near_the_border_and_most_clear():
    values = plan(BP4D_RATES, 60, 8, 4)
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() <= 1
    near = np.abs(values - PRESENT_FROM) < 0.1
    assert 0.05 < near.mean() < 0.3
    assert values[values >= PRESENT_FROM].mean() > 0.65
    assert values[values < PRESENT_FROM].mean() < 0.15


def test_neighbouring_frames_are_alike():
    values = plan(BP4D_RATES, 6, 8, 40)
    step = np.abs(np.diff(values, axis=2)).mean()
    shuffled = np.random.default_rng(0).permuted(values, axis=2)
    assert step < 0.5 * np.abs(np.diff(shuffled, axis=2)).mean()


def test_a_plan_is_a_function_of_its_generator():
    assert np.array_equal(plan(BP4D_RATES, 5, 8, 3, seed=4), plan(BP4D_RATES, 5, 8, 3, seed=4))
    assert not np.array_equal(plan(BP4D_RATES, 5, 8, 3, seed=4), plan(BP4D_RATES, 5, 8, 3, seed=5))


@pytest.mark.parametrize(
    ("intensity", "expected"), [(0.0, 0), (0.19, 0), (0.2, 1), (0.39, 1), (0.4, 2), (0.6, 3), (0.8, 4), (1.0, 5)]
)
def test_level_two_starts_where_presence_does(intensity, expected):
    assert level(intensity) == expected

"""How far the F1 of a training differs from that of another one with the same settings: measured, lent or assumed."""

# R resamples of the subjects, A action units, S runs (one per seed), V values: the AUs, then their mean
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.training.intervals import subjects_variance

ASSUMED_SD_POINTS = 1.15
"""Of the mean F1 of a run, where too few runs show it; from docs/tables.md, see docs/experiments.md."""
ASSUMED_FREE = 4
"""Degrees of freedom below which that assumption counts; three runs on either side have as many."""
LENT_FREE = 10
"""Degrees of freedom below which the other rows of a set count; six runs on either side have as many."""


@dataclass(frozen=True)
class TrainingChance:
    """Variances (V,) between runs that differ by seed only, in squared points of F1, with degrees of freedom (V,).

    runs_V: on the tested subjects. subjects_V: the share of it that other subjects would change, since a run suits some
    subjects better than another run does; resampling the subjects contains it already. assumed_V: the share (0..1) of
    the degrees of freedom that is assumed.
    """

    runs_V: np.ndarray
    subjects_V: np.ndarray
    num_free_V: np.ndarray
    assumed_V: np.ndarray

    @property
    def beyond_subjects(self) -> np.ndarray:
        """The variance (V,) that resampling the subjects does not contain."""
        variance_V: np.ndarray = np.maximum(self.runs_V - self.subjects_V, 0.0)
        return variance_V


def measured_chance(values_SRV: np.ndarray, *, num_subjects: int, num_parts: int) -> TrainingChance:
    """Return the chance that S runs show; no degree of freedom for one run, or where an F1 is undefined.

    values_SRV: F1 of each run, see `metrics.resampled_percent`.
    """
    num_free = len(values_SRV) - 1
    if num_free == 0:
        zero_V = np.zeros(values_SRV.shape[2])
        return TrainingChance(zero_V, zero_V, zero_V, zero_V)
    gaps_SRV = values_SRV - values_SRV.mean(0)
    runs_V = (gaps_SRV[:, 0] ** 2).sum(0) / num_free
    of_each = [subjects_variance(gaps_RV[1:], num_subjects=num_subjects, num_parts=num_parts) for gaps_RV in gaps_SRV]
    subjects_V = np.sum(of_each, 0) / num_free
    is_defined_V = ~np.isnan(runs_V) & ~np.isnan(subjects_V)
    runs_V, subjects_V = (np.where(is_defined_V, each_V, 0.0) for each_V in (runs_V, subjects_V))
    return TrainingChance(runs_V, subjects_V, num_free * is_defined_V, np.zeros(len(runs_V)))


def chance_for(own: Iterable[TrainingChance], beside: Iterable[TrainingChance]) -> TrainingChance:
    """Return the chance of the runs of one or two rows.

    Their own runs count in full. Up to `LENT_FREE` degrees of freedom, the runs of other rows, `beside`, fill what is
    missing; up to `ASSUMED_FREE`, the assumption does. An action unit varies more than the mean of A: by the factor
    sqrt(A), as if action units varied independently.
    """
    total = _pooled(own)
    others = _pooled(beside, like=total)
    total = _filled(total, others, up_to=LENT_FREE)
    num_aus = len(total.runs_V) - 1
    assumed_V = ASSUMED_SD_POINTS**2 * np.append(np.full(num_aus, float(num_aus)), 1.0)
    zero_V, one_V = np.zeros(num_aus + 1), np.ones(num_aus + 1)
    return _filled(total, TrainingChance(assumed_V, zero_V, np.inf * one_V, one_V), up_to=ASSUMED_FREE)


def _pooled(chances: Iterable[TrainingChance], *, like: TrainingChance | None = None) -> TrainingChance:
    """Return the mean of variances, each with the weight of its degrees of freedom; of none, zeros as in `like`."""
    listed = list(chances)
    if not listed:
        assert like is not None
        zero_V = np.zeros_like(like.runs_V)
        return TrainingChance(zero_V, zero_V, zero_V, zero_V)
    total = listed[0]
    for each in listed[1:]:
        total = _added(total, each, each.num_free_V)
    return total


def _filled(total: TrainingChance, more: TrainingChance, *, up_to: int) -> TrainingChance:
    return _added(total, more, np.minimum(np.maximum(up_to - total.num_free_V, 0), more.num_free_V))


def _added(total: TrainingChance, more: TrainingChance, weight_V: np.ndarray) -> TrainingChance:
    num_free_V = total.num_free_V + weight_V
    share_V = weight_V / np.maximum(num_free_V, 1.0)

    def mixed(old_V: np.ndarray, new_V: np.ndarray) -> np.ndarray:
        mean_V: np.ndarray = old_V * (1 - share_V) + new_V * share_V
        return mean_V

    return TrainingChance(
        mixed(total.runs_V, more.runs_V),
        mixed(total.subjects_V, more.subjects_V),
        num_free_V,
        mixed(total.assumed_V, more.assumed_V),
    )

"""Confidence intervals of F1 from variances with few degrees of freedom, and the correction for several tests."""

# R resamples of the subjects, V values, N tests
from __future__ import annotations

from typing import NamedTuple

import numpy as np

CONFIDENCE_PERCENT = 95
ERROR_RATE = 1 - CONFIDENCE_PERCENT / 100


class Interval(NamedTuple):
    """The ends (V,) of 95 % intervals, and the two-sided p (V,) of a value that is zero in truth."""

    low: np.ndarray
    high: np.ndarray
    p_values: np.ndarray


def subjects_variance(values_RV: np.ndarray, *, num_subjects: int, num_parts: int) -> np.ndarray:
    """Return the variance (V,) of each value over bootstrap samples of the subjects; NaN where none is defined.

    Drawing n subjects from n gives (n - 1) / n of the variance, within each of the parts; that is corrected here.
    """
    is_defined_RV = ~np.isnan(values_RV)
    with np.errstate(invalid="ignore", divide="ignore"):
        num_V = is_defined_RV.sum(0)
        gaps_RV = values_RV - np.nansum(values_RV, 0) / num_V
        variances_V: np.ndarray = np.nansum(gaps_RV**2, 0) / num_V
    return variances_V * (num_subjects / max(num_subjects - num_parts, 1))


def subjects_free(*, num_subjects: int, num_parts: int) -> float:
    """Return the degrees of freedom of `subjects_variance`.

    Half of those that normal values would have: few subjects decide the F1 of a rare action unit, so that its variance
    is known less well. In benchmarks/intervals.py it varies as if with half to two thirds of them.
    """
    return max((num_subjects - num_parts) / 2, 1.0)


def subjects_bias(values_RV: np.ndarray) -> np.ndarray:
    """Return by how much F1 (V,) is off because the subjects are few; NaN where it is undefined.

    values_RV: the value of all subjects first, then of bootstrap samples. A ratio of sums over few subjects is lower on
    average than that over many, and as much lower again in samples of these few.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps_RV = values_RV[1:] - values_RV[0]
        bias_V: np.ndarray = np.nansum(gaps_RV, 0) / (~np.isnan(gaps_RV)).sum(0)
        return bias_V


def t_interval(
    points_V: np.ndarray, variances_KV: np.ndarray, num_free_KV: np.ndarray, variance_V: np.ndarray
) -> Interval:
    """Return the interval of values whose variance is a sum of estimates, by Student's t.

    variances_KV: the K estimates as measured, each with its degrees of freedom; variance_V: their sum, less what two of
    them count twice. The degrees of freedom of the sum are Satterthwaite's. NaN where a value or its variance is.
    """
    from scipy.special import stdtr, stdtrit  # noqa: PLC0415 - most commands need no quantile

    with np.errstate(invalid="ignore", divide="ignore"):
        num_free_V = variance_V**2 / (variances_KV**2 / num_free_KV).sum(0)
        num_free_V = np.where(variance_V > 0, np.maximum(num_free_V, 1.0), 1.0)
        error_V = np.sqrt(variance_V)
        half_V = stdtrit(num_free_V, 1 - ERROR_RATE / 2) * error_V
        p_V = 2 * stdtr(num_free_V, -np.abs(points_V) / error_V)
    p_V = np.where((error_V == 0) & ~np.isnan(points_V), (points_V == 0).astype(float), p_V)
    return Interval(points_V - half_V, points_V + half_V, p_V)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p values (N,) corrected for N tests by Holm's method; NaN, where there is no test, stays NaN.

    Where those of at most 5 % are called different, the chance that any equal pair is among them is at most 5 %.
    """
    corrected_N = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: int((~np.isnan(p_values)).sum())]
    factors = np.arange(len(order), 0, -1)
    corrected_N[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return corrected_N

"""Counts of correct and wrong predictions, and the scores that follow from these counts.

A table of counts has one row per subject and action unit. F1 is in percent; it is NaN ("undefined"), not 0, if there is
neither a positive label nor a positive prediction. See docs/protocols.md.
"""

# N frames, A action units, R resamples, S subjects
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pipeline.errors import DataError
from pipeline.training.intervals import subjects_bias, subjects_free, subjects_variance, t_interval

OUTCOMES = ["tp", "fp", "fn", "tn", "unknown"]
COUNT_COLUMNS = ["part", "subject", "au", *OUTCOMES]
THRESHOLD = 0.5
NUM_RESAMPLES = 2000
"""Of the bootstrap over subjects, in reports and in tables."""


@dataclass(frozen=True)
class Scores:
    """Scores of the folds of a run; every F1 in percent.

    folds: one row per part and AU with its counts, `f1_percent` and `always_positive_percent`, the F1 of predicting
    "present" for every frame.
    aus: one row per AU. `f1_percent` and `always_positive_percent` are averaged over the folds where they are defined,
    `pooled_percent` is the F1 of the folds' summed counts, `low_percent` and `high_percent` are the 95 % interval of
    `f1_percent`; `num_positive` and `num_known` count labels, `num_undefined` folds without an F1.
    f1_percent, always_positive_percent, pooled_percent: averaged over the AUs; the first is what the field reports.
    low_percent, high_percent: 95 % interval of `f1_percent`. num_undefined: pairs of fold and AU without an F1.
    """

    folds: pd.DataFrame
    aus: pd.DataFrame
    f1_percent: float
    always_positive_percent: float
    pooled_percent: float
    low_percent: float
    high_percent: float
    num_undefined: int


def f1_percent(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> np.ndarray:
    """Return the F1 in percent for counts of any common shape; NaN where tp, fp and fn are all 0."""
    twice_tp = 2.0 * np.asarray(tp)
    with np.errstate(invalid="ignore"):
        percent: np.ndarray = 100 * twice_tp / (twice_tp + np.asarray(fp) + np.asarray(fn))
        return percent


def confusion_counts(
    labels_NA: np.ndarray,
    probabilities_NA: np.ndarray,
    *,
    subjects: Sequence[str] | np.ndarray,
    aus: Sequence[int],
    part: str,
    threshold: float | np.ndarray = THRESHOLD,
) -> pd.DataFrame:
    """Return the counts (`COUNT_COLUMNS`) of one fold from labels (N, A) and probabilities (N, A).

    Labels are in {0, 1, -1 unknown}, probabilities in 0..1. subjects: subject of each of the N frames. part: the tested
    part. A probability of at least `threshold`, one number or one per action unit (A,), predicts "present"; frames with
    an unknown label are counted as `unknown` only. Raises `DataError` if shapes differ or a probability is NaN.
    """
    labels_NA, probabilities_NA = np.asarray(labels_NA), np.asarray(probabilities_NA)
    expected = (len(subjects), len(aus))
    for name, array in (("labels", labels_NA), ("probabilities", probabilities_NA)):
        if array.shape != expected:
            raise DataError(f"{name} of part {part} are {array.shape}, expected {expected} (frames, action units)")
    if np.isnan(probabilities_NA).any():
        num_frames = int(np.isnan(probabilities_NA).any(1).sum())
        raise DataError(
            f"{num_frames} frames of part {part} have NaN as probability; leave out frames without features"
        )
    answers_NA = probabilities_NA >= threshold
    is_present_NA, is_absent_NA = labels_NA == 1, labels_NA == 0
    names_S, subject_N = np.unique(np.asarray(subjects), return_inverse=True)
    kinds = {
        "tp": is_present_NA & answers_NA,
        "fp": is_absent_NA & answers_NA,
        "fn": is_present_NA & ~answers_NA,
        "tn": is_absent_NA & ~answers_NA,
        "unknown": ~is_present_NA & ~is_absent_NA,
    }
    table = pd.DataFrame(
        {"part": part, "subject": np.repeat(names_S, len(aus)), "au": np.tile(np.asarray(aus), len(names_S))}
    )
    for kind, is_kind_NA in kinds.items():
        counts_SA = np.zeros((len(names_S), len(aus)), dtype=np.int64)
        np.add.at(counts_SA, subject_N, is_kind_NA)
        table[kind] = counts_SA.ravel()
    return table


def compute_scores(counts: pd.DataFrame, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Scores:
    """Return the scores of the counts of one or more folds, each with its own `part`."""
    folds = counts.groupby(["part", "au"])[OUTCOMES].sum().reset_index()
    folds["f1_percent"] = f1_percent(folds["tp"], folds["fp"], folds["fn"])
    folds["always_positive_percent"] = _always_positive_percent(folds)
    by_au = folds.groupby("au")
    sums = by_au[OUTCOMES].sum()
    values_RV = resampled_percent(counts, num_resamples=num_resamples, seed=seed)
    lows, highs = subjects_interval(values_RV, **num_tested(counts["part"], counts["subject"]))
    aus = pd.DataFrame(
        {
            "f1_percent": by_au["f1_percent"].mean(),
            "always_positive_percent": by_au["always_positive_percent"].mean(),
            "pooled_percent": f1_percent(sums["tp"], sums["fp"], sums["fn"]),
            "low_percent": lows[:-1],
            "high_percent": highs[:-1],
            "num_positive": sums["tp"] + sums["fn"],
            "num_known": sums["tp"] + sums["fn"] + sums["fp"] + sums["tn"],
            "num_undefined": by_au["f1_percent"].agg(lambda column: int(column.isna().sum())),
        }
    )
    return Scores(
        folds=folds,
        aus=aus.reset_index(),
        f1_percent=float(aus["f1_percent"].mean()),
        always_positive_percent=float(aus["always_positive_percent"].mean()),
        pooled_percent=float(aus["pooled_percent"].mean()),
        low_percent=float(lows[-1]),
        high_percent=float(highs[-1]),
        num_undefined=int(folds["f1_percent"].isna().sum()),
    )


def _always_positive_percent(counts: pd.DataFrame) -> np.ndarray:
    """F1 of always predicting "present"; NaN where F1 is undefined, so that both are averaged over the same folds."""
    num_positive = counts["tp"] + counts["fn"]
    floor = f1_percent(num_positive, counts["fp"] + counts["tn"], np.zeros(len(counts)))
    return np.where(counts["f1_percent"].isna(), np.nan, floor)


def resampled_percent(counts: pd.DataFrame, *, num_resamples: int, seed: int = 0) -> np.ndarray:
    """Return F1 in percent averaged over folds, float64 (1 + R, A + 1).

    Row 0 uses all subjects, each other row a bootstrap sample; the last column is the mean over AUs. Subjects are drawn
    with replacement within their part, since each fold's head predicts its own part. Counts of the same subjects get
    the same draws, so that the resamples of two runs can be subtracted row by row.
    """
    folds = [fold for _, fold in counts.sort_values(["part", "subject", "au"]).groupby("part")]
    counts_FSAK = [fold[["tp", "fp", "fn"]].to_numpy().reshape(-1, fold["au"].nunique(), 3) for fold in folds]
    times_FRS = subject_draws(tuple(map(len, counts_FSAK)), num_resamples, seed)
    f1_FRA = [
        f1_percent(*np.einsum("rs,sak->kra", times_RS, counts_SAK, optimize=True))
        for times_RS, counts_SAK in zip(times_FRS, counts_FSAK, strict=True)
    ]
    mean_RA = mean_of_defined(np.stack(f1_FRA), axis=0)
    return np.column_stack((mean_RA, mean_of_defined(mean_RA, axis=1)))


@lru_cache(maxsize=4)
def subject_draws(num_subjects: tuple[int, ...], num_resamples: int, seed: int) -> list[np.ndarray]:
    """Return how often each resample draws each subject, (1 + R, S) per part; in row 0 each once.

    num_subjects: of each part. All runs that were tested on the same subjects take the same draws.
    """
    rng = np.random.default_rng(seed)
    times_FRS = []
    for num in num_subjects:
        drawn_RS = rng.multinomial(num, np.full(num, 1 / num), size=num_resamples)
        times_FRS.append(np.concatenate((np.ones((1, num)), drawn_RS)))
    return times_FRS


def num_tested(parts: Iterable[str], subjects: Iterable[str]) -> dict[str, int]:
    """Return `num_subjects` and `num_parts` of tested subjects, given with their parts in any number of rows."""
    tested = set(zip(parts, subjects, strict=True))
    return {"num_subjects": len(tested), "num_parts": len({part for part, _ in tested})}


def subjects_interval(values_RV: np.ndarray, *, num_subjects: int, num_parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends (V,) of the 95 % interval of F1 over subjects, without the chance of a training.

    values_RV: see `resampled_percent`. NaN for an undefined F1.
    """
    variance_V = subjects_variance(values_RV[1:], num_subjects=num_subjects, num_parts=num_parts)
    num_free_V = np.full(len(variance_V), subjects_free(num_subjects=num_subjects, num_parts=num_parts))
    centre_V = values_RV[0] - subjects_bias(values_RV)
    low_V, high_V, _ = t_interval(centre_V, variance_V[None], num_free_V[None], variance_V)
    return np.maximum(low_V, 0.0), np.minimum(high_V, 100.0)


def mean_of_defined(values: np.ndarray, *, axis: int) -> np.ndarray:
    """Return the mean over `axis` of the values that are not NaN; NaN if all are."""
    num_defined = (~np.isnan(values)).sum(axis)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.nansum(values, axis) / num_defined
        return means

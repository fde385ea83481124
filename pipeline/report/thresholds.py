"""Precision, recall and F1 over all thresholds, average precision, and thresholds chosen on other folds.

Only frames with a known label count. A probability of at least the threshold predicts "present".
"""

# N frames, T thresholds, A action units, R resamples, S subjects, B bins of probabilities
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import DataError, UsageError
from pipeline.runtime.text import join_first
from pipeline.tables import au_column, probability_column
from pipeline.training.metrics import (
    NUM_RESAMPLES,
    THRESHOLD,
    confusion_counts,
    f1_percent,
    mean_of_defined,
    subject_draws,
)
from pipeline.training.run_files import finished_folds, read_predictions, read_run

NUM_BINS = 100
"""Steps in which resamples compare probabilities: on 16,000 frames a resample is within 0.3 points of its exact AP."""


@dataclass(frozen=True)
class Curve:
    """One action unit on the frames of one fold or several: counts at each distinct probability, from high to low.

    thresholds_T: the probabilities, float64. tp_T, fp_T: frames predicted "present" at that threshold, by label.
    """

    thresholds_T: np.ndarray
    tp_T: np.ndarray
    fp_T: np.ndarray
    num_positive: int
    num_known: int

    @property
    def precision(self) -> np.ndarray:
        """Share (T,) of the predicted frames that are positive."""
        precision: np.ndarray = self.tp_T / (self.tp_T + self.fp_T)
        return precision

    @property
    def recall(self) -> np.ndarray:
        """Share (T,) of the positive frames that are predicted; NaN without a positive frame."""
        with np.errstate(invalid="ignore"):
            recall: np.ndarray = self.tp_T / np.float64(self.num_positive)
            return recall

    @property
    def average_precision(self) -> float:
        """Precision averaged over the steps of recall, 0..1; NaN without a positive frame."""
        if self.num_positive == 0:
            return float("nan")
        return float(np.sum(np.diff(self.recall, prepend=0) * self.precision))

    @property
    def roc_auc(self) -> float:
        """Share 0..1 of pairs of a positive and a negative frame where the positive one has the higher probability.

        Equal ones count half; NaN without a frame of either label. It is the area under the ROC curve.
        """
        num_negative = self.num_known - self.num_positive
        if self.num_positive == 0 or num_negative == 0:
            return float("nan")
        area = np.trapezoid(np.append(0, self.tp_T), np.append(0, self.fp_T))
        return float(area / (self.num_positive * num_negative))

    def counts_at(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return tp, fp and fn at thresholds of any order and shape."""
        num_passed = np.searchsorted(-self.thresholds_T, -np.asarray(thresholds, np.float64), side="right")
        tp, fp = (np.concatenate(([0], counts_T))[num_passed] for counts_T in (self.tp_T, self.fp_T))
        return tp, fp, self.num_positive - tp

    def best_threshold(self) -> float:
        """Return the threshold with the highest F1; of equal ones the nearest to 0.5, and 0.5 without a positive frame.

        It lies half way between the lowest probability that passes and the next one.
        """
        if self.num_positive == 0:
            return THRESHOLD
        between_T = (self.thresholds_T + np.append(self.thresholds_T[1:], 0)) / 2
        percent_T = f1_percent(self.tp_T, self.fp_T, self.num_positive - self.tp_T)
        best = np.flatnonzero(percent_T == percent_T.max())
        return float(between_T[best[np.argmin(np.abs(between_T[best] - THRESHOLD))]])

    def thinned(self, num_points: int) -> tuple[np.ndarray, np.ndarray]:
        """Return recall and precision at up to `num_points` thresholds, evenly spaced in recall, ends included."""
        if self.num_positive == 0 or not len(self.thresholds_T):
            return np.empty(0), np.empty(0)
        wanted = np.linspace(self.recall[0], self.recall[-1], num_points)
        chosen = np.unique(np.searchsorted(self.recall, wanted).clip(max=len(self.recall) - 1))
        return self.recall[chosen], self.precision[chosen]


def make_curve(labels_N: np.ndarray, probabilities_N: np.ndarray) -> Curve:
    """Return the curve of labels in {0, 1, -1 unknown} and probabilities in 0..1."""
    is_known_N = labels_N >= 0
    order = np.argsort(-probabilities_N[is_known_N], kind="stable")
    sorted_N = probabilities_N[is_known_N][order].astype(np.float64)
    is_last_N = np.append(np.diff(sorted_N) != 0, True)[: len(sorted_N)]
    tp_N = np.cumsum(labels_N[is_known_N][order] == 1)
    num_passed_T = 1 + np.flatnonzero(is_last_N)
    tp_T = tp_N[is_last_N]
    num_positive = int(tp_N[-1]) if len(tp_N) else 0
    return Curve(sorted_N[is_last_N], tp_T, num_passed_T - tp_T, num_positive, len(sorted_N))


def chosen_thresholds(predictions: Mapping[str, pd.DataFrame], aus: Sequence[int]) -> Mapping[str, np.ndarray]:
    """Return a threshold per action unit (A,) by tested part, chosen on the predictions of all other parts.

    predictions: of each finished fold, see `training.predict.predict`; empty with fewer than two. A threshold has the
    highest F1 on the other folds' predictions together, see `Curve.best_threshold`.
    """
    if len(predictions) < 2:
        return {}
    chosen = {}
    for part in predictions:
        others = pd.concat([table for name, table in predictions.items() if name != part])
        labels_NA, probabilities_NA = arrays(others, aus)
        chosen[part] = np.array(
            [make_curve(labels_NA[:, i], probabilities_NA[:, i]).best_threshold() for i in range(len(aus))]
        )
    return chosen


def thresholds_of_fold(folder: Path, test_part: str) -> list[float]:
    """Return the calibrated threshold of each action unit for the head of one fold of a run, see `chosen_thresholds`.

    Raises `UsageError` for a fold that is not finished, `DataError` if no other one is, or for damaged predictions.
    """
    folds = finished_folds(folder)
    if folds and test_part not in folds:
        raise UsageError(f"{folder.name} has no finished fold {test_part}; finished: {', '.join(folds)}")
    if len(folds) < 2:
        raise DataError(
            f"thresholds for the head that tests {test_part} are chosen on the other folds of {folder}, and it has "
            f"{join_first(folds, 3) or 'no fold'}; finish them with `fantrans train`, or use the threshold {THRESHOLD}"
        )
    aus = tuple(read_run(folder)["aus"])
    predictions = {part: read_predictions(fold) for part, fold in folds.items()}
    thresholds: list[float] = chosen_thresholds(predictions, aus)[test_part].tolist()
    return thresholds


def calibrated_counts(
    predictions: Mapping[str, pd.DataFrame], thresholds: Mapping[str, np.ndarray], aus: Sequence[int]
) -> pd.DataFrame:
    """Return the counts (`metrics.COUNT_COLUMNS`) of each part's predictions at that part's thresholds (A,)."""
    tables = []
    for part, table in predictions.items():
        labels_NA, probabilities_NA = arrays(table, aus)
        tables.append(
            confusion_counts(
                labels_NA,
                probabilities_NA,
                subjects=table["subject"].to_numpy(),
                aus=aus,
                part=part,
                threshold=thresholds[part],
            )
        )
    return pd.concat(tables)


def resampled_ap_percent(
    predictions: Mapping[str, pd.DataFrame], aus: Sequence[int], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Return average precision in percent, averaged over folds, as `metrics.resampled_percent` does F1: (1 + R, A + 1).

    Row 0 is exact. Resamples draw the same subjects as those of F1, compare probabilities in `NUM_BINS` steps, and are
    shifted by what these steps change in row 0.
    """
    tables = [table for _, table in sorted(predictions.items())]
    subjects = [np.unique(table["subject"].to_numpy(), return_inverse=True) for table in tables]
    draws = subject_draws(tuple(len(names_S) for names_S, _ in subjects), num_resamples, seed)
    ap_FRA = []
    for table, (_, subject_N), times_RS in zip(tables, subjects, draws, strict=True):
        labels_NA, probabilities_NA = arrays(table, aus)
        binned_RA = _binned_ap(labels_NA, probabilities_NA, subject_N, times_RS)
        curves = (make_curve(*each) for each in zip(labels_NA.T, probabilities_NA.T, strict=True))
        exact_A = np.array([curve.average_precision for curve in curves])
        ap_FRA.append(100 * np.clip(binned_RA + (exact_A - binned_RA[0]), 0, 1))
    mean_RA = mean_of_defined(np.stack(ap_FRA), axis=0)
    return np.column_stack((mean_RA, mean_of_defined(mean_RA, axis=1)))


def _binned_ap(
    labels_NA: np.ndarray, probabilities_NA: np.ndarray, subject_N: np.ndarray, times_RS: np.ndarray
) -> np.ndarray:
    """Average precision (R, A), 0..1, with each subject counted as often as drawn; NaN without a positive frame."""
    num_subjects = times_RS.shape[1]
    steps = np.linspace(0, 1, NUM_BINS + 1)[1:-1]
    counts = []
    for labels_N, given_N in zip(labels_NA.T, probabilities_NA.T, strict=True):
        bin_N = NUM_BINS - 1 - np.searchsorted(np.quantile(given_N, steps), given_N, side="right")
        place_N = subject_N * NUM_BINS + bin_N  # bin 0 has the highest probabilities
        for is_counted_N in (labels_N == 1, labels_N >= 0):
            found = np.bincount(place_N[is_counted_N], minlength=num_subjects * NUM_BINS)
            counts.append(found.reshape(num_subjects, NUM_BINS).cumsum(1))
    passed_S = np.stack(counts, axis=1).reshape(num_subjects, -1)
    tp_RAB, known_RAB = (times_RS @ passed_S).reshape(len(times_RS), -1, 2, NUM_BINS).transpose(2, 0, 1, 3)
    steps_RAB = np.diff(tp_RAB, prepend=0, axis=2)
    with np.errstate(invalid="ignore"):
        ap_RA: np.ndarray = np.sum(steps_RAB * tp_RAB / np.maximum(known_RAB, 1), axis=2) / tp_RAB[:, :, -1]
        return ap_RA


def arrays(predictions: pd.DataFrame, aus: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (N, A) int8 in {0, 1, -1 unknown} and probabilities (N, A) of a table of predictions."""
    labels_NA = predictions[[au_column(au) for au in aus]].to_numpy(np.int8)
    return labels_NA, predictions[[probability_column(au) for au in aus]].to_numpy(np.float64)

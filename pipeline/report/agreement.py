"""How well probabilities agree with labels and, where they are coded, with intensities, at no threshold."""

# N frames, A action units, B bins of probabilities
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pipeline.report.thresholds import arrays, make_curve
from pipeline.tables import intensity_column
from pipeline.training.metrics import mean_of_defined

ROC_AUC, ECE, ICC, PEARSON = "roc_auc_percent", "ece_percent", "icc", "pearson"
NUM_ECE_BINS = 15
"""Of equal width, as in Guo et al. 2017."""
MAX_INTENSITY = 5


def agreement(predictions: Mapping[str, pd.DataFrame], aus: Sequence[int]) -> dict[str, np.ndarray]:
    """Return each measure of a run's predictions by name, (A,), averaged over the folds where it is defined.

    predictions: by tested part, see `training.predict.predict`. `ROC_AUC`, `ECE`: in percent. `ICC`, `PEARSON`: -1..1,
    of probability and intensity, NaN for an action unit without intensities.
    """
    folds = [_of_fold(table, aus) for table in predictions.values()]
    return {name: mean_of_defined(np.stack([fold[name] for fold in folds]), axis=0) for name in folds[0]}


def _of_fold(table: pd.DataFrame, aus: Sequence[int]) -> dict[str, np.ndarray]:
    labels_NA, probabilities_NA = arrays(table, aus)
    found: dict[str, list[float]] = {ROC_AUC: [], ECE: [], ICC: [], PEARSON: []}
    for au, labels_N, probabilities_N in zip(aus, labels_NA.T, probabilities_NA.T, strict=True):
        found[ROC_AUC].append(100 * make_curve(labels_N, probabilities_N).roc_auc)
        found[ECE].append(100 * calibration_error(labels_N, probabilities_N))
        name = intensity_column(au)
        intensities_N = table[name].to_numpy(np.int8) if name in table else np.full(len(table), -1, np.int8)
        is_known_N = intensities_N >= 0
        pair_2N = np.stack((intensities_N[is_known_N], MAX_INTENSITY * probabilities_N[is_known_N]))
        found[ICC].append(icc_3_1(pair_2N))
        found[PEARSON].append(pearson(pair_2N))
    return {name: np.array(values) for name, values in found.items()}


def calibration_error(labels_N: np.ndarray, probabilities_N: np.ndarray) -> float:
    """Return the expected calibration error, 0..1; NaN without a known label.

    It is the distance between mean probability and share of positive frames in a bin, averaged over the frames.
    Labels in {0, 1, -1 unknown}, probabilities in 0..1.
    """
    is_known_N = labels_N >= 0
    given_N, is_present_N = probabilities_N[is_known_N], labels_N[is_known_N] == 1
    if not len(given_N):
        return float("nan")
    bin_N = np.minimum((given_N * NUM_ECE_BINS).astype(int), NUM_ECE_BINS - 1)
    gap_B = np.bincount(bin_N, given_N - is_present_N, minlength=NUM_ECE_BINS)
    return float(np.abs(gap_B).sum() / len(given_N))


def icc_3_1(pair_2N: np.ndarray) -> float:
    """Return the intraclass correlation ICC(3,1) of two ratings of the same frames (Shrout and Fleiss 1979), -1..1.

    It is the agreement of single, fixed raters up to a constant. NaN for fewer than two frames, or constant ratings.
    """
    num_raters, num_frames = pair_2N.shape
    if num_frames < 2:
        return float("nan")
    centred_2N = pair_2N - pair_2N.mean(1, keepdims=True)  # the raters' own levels do not count
    between = num_raters * centred_2N.mean(0).var(ddof=1)
    within = np.sum((centred_2N - centred_2N.mean(0)) ** 2) / ((num_raters - 1) * (num_frames - 1))
    with np.errstate(invalid="ignore"):
        return float((between - within) / (between + (num_raters - 1) * within))


def pearson(pair_2N: np.ndarray) -> float:
    """Return Pearson's correlation of two rows, -1..1; NaN if one is constant."""
    centred_2N = pair_2N - (pair_2N.mean(1, keepdims=True) if pair_2N.size else 0)
    with np.errstate(invalid="ignore"):
        return float(np.sum(centred_2N[0] * centred_2N[1]) / np.sqrt(np.prod(np.sum(centred_2N**2, 1))))

"""Which action units appear together: correlation and co-occurrence of labels or predictions."""

# N frames, A action units
from __future__ import annotations

import numpy as np
import pandas as pd


def correlations(values_NA: np.ndarray) -> np.ndarray:
    """Return Pearson's r (A, A) of the columns (N, A), over frames where both are known; NaN for a constant column."""
    return pd.DataFrame(values_NA).corr().to_numpy()


def correlation_distance(ours_AA: np.ndarray, theirs_AA: np.ndarray) -> float:
    """Return the norm of the difference of two correlation matrices over their A^2 elements, without NaN (Fig. 5)."""
    gaps = (ours_AA - theirs_AA)[~np.isnan(ours_AA - theirs_AA)]
    return float(np.linalg.norm(gaps) / len(gaps)) if len(gaps) else float("nan")


def co_occurrences(is_present_NA: np.ndarray) -> np.ndarray:
    """Return the share (A, A) of the frames with the row's action unit that have the column's, too.

    is_present_NA: 1, 0 or NaN for unknown; frames count where both are known. NaN for a row that is never present.
    """
    present_NA, known_NA = np.nan_to_num(is_present_NA), (~np.isnan(is_present_NA)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        shares: np.ndarray = (present_NA.T @ present_NA) / (present_NA.T @ known_NA)
        return shares

"""The weights of the action units in the loss of one fold, and what a user should know about them."""

# N frames, A action units
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.losses import class_weights
from pipeline.errors import DataError

LARGE_SHARE = 0.5
"""Above this share of all weight, one action unit decides the loss."""


def fold_weights(labels_NA: np.ndarray, *, aus: tuple[int, ...], dataset: str) -> Tensor:
    """Return the class weights of a fold's training frames, float32 (A,), see `models.losses.class_weights`.

    labels_NA: int8 in {0, 1, -1 unknown}. Raises `DataError` if an action unit has no positive label.
    """
    try:
        return class_weights(torch.from_numpy(labels_NA), aus=aus)
    except ValueError as error:
        is_without_A = ~(labels_NA == 1).any(0)
        left_out = [au for au, is_without in zip(aus, is_without_A, strict=True) if is_without]
        raise DataError(
            f"{error}; check the codes (0 absent, 1 present, 9 unknown; an intensity is not a code of occurrence), or "
            f"set `leave_out: {left_out}` in the catalog's entry of {dataset}"
        ) from None


def large_weight(weights_A: Tensor, labels_NA: np.ndarray, *, aus: tuple[int, ...], dataset: str) -> str | None:
    """Return a warning if one of three or more action units has more than `LARGE_SHARE` of all weight, else None."""
    shares_A = weights_A / weights_A.sum()
    i = int(shares_A.argmax())
    if len(aus) < 3 or shares_A[i] <= LARGE_SHARE:
        return None
    num_positive, num_known = int((labels_NA[:, i] == 1).sum()), int((labels_NA[:, i] >= 0).sum())
    return (
        f"AU{aus[i]} has {100 * shares_A[i]:.0f} % of the weight of all {len(aus)} action units in the loss: "
        f"{num_positive:,} of {num_known:,} training frames are positive; add frames with it, or set "
        f"`leave_out: [{aus[i]}]` in the catalog's entry of {dataset}"
    )

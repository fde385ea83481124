"""Predict the frames of a part with a deployed head, and count correct and wrong predictions."""

# N frames, A action units
from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import nn

from pipeline.cache.reader import Features
from pipeline.faces.views import CLEAN_VIEW, FLIPPED_VIEW
from pipeline.tables import au_column, intensity_column, probability_column
from pipeline.training.loader import Batch, CachedFrames, evaluation_batches
from pipeline.training.metrics import confusion_counts

_BATCH_SIZE = 64


def predict(
    head: nn.Module,
    cache: Features,
    frames: pd.DataFrame,
    *,
    aus: tuple[int, ...],
    test_part: str,
    device: str,
    averages_flip: bool = False,
) -> pd.DataFrame:
    """Return one row per frame of `test_part` in the cache: frame_id, subject, part, `p_01`..., labels `au_01`...,
    and, where the index has them, intensities `int_01`...

    Probabilities (0..1) are of the clean view; with `averages_flip`, logits are averaged with those of the flipped view
    before the sigmoid. frames: the index with labels of `aus`. Raises `StoreError` if the cache has none of the frames.
    """
    views = (CLEAN_VIEW, FLIPPED_VIEW) if averages_flip else (CLEAN_VIEW,)
    found = CachedFrames(cache, frames, aus=aus, parts=[test_part])
    logits = [
        _logits(head, evaluation_batches(cache, found, batch_size=_BATCH_SIZE, view=view, device=device))
        for view in views
    ]
    probabilities_NA = torch.stack(logits).mean(0).sigmoid().numpy()
    table = pd.DataFrame({"frame_id": found.frame_ids})
    coded = [name for name in map(intensity_column, aus) if name in frames]
    table = table.merge(frames[["frame_id", "subject", "part", *coded]], on="frame_id", validate="1:1")
    table[[probability_column(au) for au in aus]] = probabilities_NA
    table[[au_column(au) for au in aus]] = found.labels_NA
    return table


def count(predictions: pd.DataFrame, *, aus: tuple[int, ...], test_part: str) -> pd.DataFrame:
    """Return the counts (`metrics.COUNT_COLUMNS`) of `predict`'s table, one row per subject and action unit.

    The threshold is 0.5. Raises `DataError` if a probability is NaN.
    """
    return confusion_counts(
        predictions[[au_column(au) for au in aus]].to_numpy(np.int8),
        predictions[[probability_column(au) for au in aus]].to_numpy(),
        subjects=predictions["subject"].to_numpy(),
        aus=aus,
        part=test_part,
    )


@torch.inference_mode()
def _logits(head: nn.Module, batches: Iterable[Batch]) -> torch.Tensor:
    """Logits fp32 (N, A) on the CPU."""
    head.eval()
    return torch.cat([head(batch.features).float().cpu() for batch in batches])

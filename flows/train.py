"""Train and score a head per fold on a cached data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.tasks import fantrans_flow, fantrans_task
from pipeline.config import Part
from pipeline.training import trainer as stages


@fantrans_task()
def train_heads(config: str, **settings: Any) -> list[Path]:
    """Heads that read together, from wherever they were left."""
    return stages.train_folds(config, **settings)


@fantrans_flow(name="train-folds")
def train_folds(
    config: str,
    dataset: str,
    base: str | None = None,
    parts: list[Part] | None = None,
    init_from: str | None = None,
    device: str = "cpu",
) -> list[Path]:
    """Train what is not done yet of an experiment, or of a set's; returns the runs' folders."""
    return train_heads(config, dataset=dataset, base=base, parts=parts, init_from=init_from, device=device)

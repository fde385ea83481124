"""Train and score one head per fold on a cached data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.tasks import fantrans_flow, fantrans_task
from pipeline.config import Part
from pipeline.training import trainer as stages


@fantrans_task()
def train_heads(config: str, **settings: Any) -> list[Path]:
    """Train heads that read the cache together; each resumes at its last checkpoint."""
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
    """Train the unfinished folds of an experiment, or of all experiments of a set; returns the folders of the runs."""
    return train_heads(config, dataset=dataset, base=base, parts=parts, init_from=init_from, device=device)

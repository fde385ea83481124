"""Train and score a head per fold on a cached data set."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from pipeline import train as stages
from pipeline.runs import TrainingRun, fold_parts, runs_of


@task(cache_policy=NO_CACHE)
def train_heads(folds: list[tuple[TrainingRun, str]], device: str) -> None:
    """Heads that read together, from wherever they were left."""
    stages.train_heads(folds, device=device)


@flow(name="train-folds")
def train_folds(
    config: str,
    dataset: str,
    base: str | None = None,
    parts: list[str] | None = None,
    init_from: str | None = None,
    device: str = "cpu",
) -> list[Path]:
    """Train what is not done yet of an experiment, or of a set's; returns the runs' folders."""
    runs = runs_of(config, dataset=dataset, base=base, init_from=init_from)
    train_heads([(run, part) for run in runs for part in fold_parts(run, parts)], device)
    return [run.folder for run in runs]

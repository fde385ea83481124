"""Train and score a head per fold on a cached data set."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from pipeline import train as stages
from pipeline.train import TrainingRun


@task(cache_policy=NO_CACHE, task_run_name="train-fold-{test_part}")
def train_fold(run: TrainingRun, test_part: str, device: str) -> Path:
    """One fold, from wherever it was left."""
    return stages.train_fold(run, test_part, device=device)


@flow(name="train-folds")
def train_folds(
    config: str, dataset: str, parts: list[str] | None = None, init_from: str | None = None, device: str = "cpu"
) -> Path:
    """Train the folds that test `parts` (default: the experiment's); returns the run's folder."""
    run = stages.prepare_run(config, dataset=dataset, init_from=init_from)
    for part in stages.fold_parts(run, parts):
        train_fold(run, part, device)
    return run.folder

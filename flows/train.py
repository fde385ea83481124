"""Train and score one head per fold on a cached data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.tasks import fantrans_flow, fantrans_task
from pipeline.cache.live import Source, feature_opener
from pipeline.catalog import load_catalog
from pipeline.config import Part
from pipeline.errors import FantransError
from pipeline.experiments import resolve
from pipeline.runtime.device import choose_device
from pipeline.training import trainer as stages


def describe_folds(given: Mapping[str, Any]) -> str | None:
    """Return how many folds a run with these parameters trains; None for settings that the run will refuse."""
    dataset, parts = given["dataset"], given.get("parts")
    try:
        catalog = load_catalog()
        experiment = given.get("experiment") or catalog.get_dataset(dataset).experiment
        base, overrides = given.get("base"), given.get("overrides") or ()
        experiments = resolve(catalog, dataset, experiment, base=base, overrides=overrides).experiments
    except FantransError:
        return None
    num_folds = sum(len(parts or each.parts) for each in experiments)
    named = f" ({', '.join(parts)})" if parts else ""
    return f"{num_folds} {'fold' if num_folds == 1 else 'folds'}{named}"


@fantrans_task(task_run_name="train heads on {settings[dataset]}")
def train_heads(experiment: str, *, device: str, source: Source, **settings: Any) -> list[Path]:
    """Train heads that read the cache together; each resumes at its last checkpoint."""
    return stages.train_folds(experiment, device=device, open_features=feature_opener(source, device), **settings)


@fantrans_flow("train-folds", verb="train", describe=describe_folds)
def train_folds(
    dataset: str,
    experiment: str | None = None,
    base: str | None = None,
    parts: list[Part] | None = None,
    init_from: str | None = None,
    overrides: list[str] | None = None,
    device: str = "auto",
    source: Source = "cache",
) -> list[Path]:
    """Train the unfinished folds of an experiment, or of all experiments of a set; returns the folders of the runs.

    The default experiment is the data set's own. overrides: settings, such as ["train.lr=1e-4,3e-4"].
    source: "crops" computes features from crops in place of reading them from the cache.
    """
    experiment = experiment or load_catalog().get_dataset(dataset).experiment
    device = choose_device(device)
    return train_heads(
        experiment,
        dataset=dataset,
        base=base,
        parts=parts,
        init_from=init_from,
        overrides=overrides or (),
        device=device,
        source=source,
    )

"""A run: one experiment on one revision of one cache, in a folder that is named by all that decides its result.

    runs/{experiment}-{dataset}-{run fingerprint}/
        run.json                 resolved settings, seeds, versions, cache fingerprint and revision
        fold-P1/checkpoint.pt    state after the last whole epoch, gone once the fold is done
        fold-P1/head.safetensors         the head as it was trained
        fold-P1/deployed/                the branch that is used afterwards, see pipeline/deployed.py
        fold-P1/predictions.parquet, counts.parquet
        fold-P1/result.json      history and sizes; written last, so a fold that has it is done
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from models.head import INPUT_MAPS, HeadShape
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.catalog import Catalog, load_catalog
from pipeline.config import ExperimentConfig, load_experiment, load_set
from pipeline.errors import CacheError, ConfigError, DataError
from pipeline.files import file_sha256, write_bytes_atomically
from pipeline.fingerprint import cache_fingerprint, fingerprint
from pipeline.folds import check_subject_exclusive
from pipeline.frames import FILE_NAME, read_index
from pipeline.protocols import PARTS, Protocol

DEPLOYED_NAME = "deployed"


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One experiment on one revision of one cache, and where its results go."""

    experiment: ExperimentConfig
    dataset: str
    rules: Protocol
    frames: pd.DataFrame
    cache: CacheReader
    folder: Path
    init_from: Path | None
    """Folder of a run whose heads, part by part, are the start."""
    record: Mapping[str, Any]
    """All that decides the result, as `run.json` says it."""

    def fold_folder(self, test_part: str) -> Path:
        """Where the fold that tests `test_part` goes."""
        return self.folder / f"fold-{test_part}"

    def is_done(self, test_part: str) -> bool:
        """Whether a fold's result stands."""
        return (self.fold_folder(test_part) / "result.json").is_file()


def prepare_run(
    config: str, *, dataset: str, init_from: str | None = None, catalog: Catalog | None = None
) -> TrainingRun:
    """`run_of` an experiment in configs/, or in a .yaml file."""
    return run_of(load_experiment(config), dataset=dataset, init_from=init_from, catalog=catalog)


def run_of(
    experiment: ExperimentConfig, *, dataset: str, init_from: str | None = None, catalog: Catalog | None = None
) -> TrainingRun:
    """Pin the cache's newest revision and name the run by everything that decides its result.

    `init_from` is a run, or a data set: then its run of the same experiment. A run that is there under another
    experiment's name is taken up, not made again. Raises `CacheError` when the data set has no cache of the
    experiment's settings, `DataError` when subjects cross parts.
    """
    catalog = catalog or load_catalog()
    if init_from in catalog.datasets:
        init_from = run_of(experiment, dataset=init_from, catalog=catalog).folder.name
    entry = catalog.dataset(dataset)
    frames = read_index(catalog.work_of(dataset), dataset=dataset, config=experiment.source)
    check_subject_exclusive(frames)
    folder = catalog.caches_of(dataset) / cache_fingerprint(experiment.cache, catalog)
    if not folder.is_dir():
        raise CacheError(
            f"{dataset} has no cache of the settings in {experiment.name} ({folder} is not there); "
            f"run `fantrans refresh {dataset} --config {experiment.source}`"
        )
    cache, num_views = open_cache(folder), experiment.cache.views.num_views
    if cache.num_views < num_views:
        raise CacheError(
            f"{folder} has {cache.num_views} views, {experiment.name} trains on {num_views}; "
            f"run `fantrans refresh {dataset} --config {experiment.source}`, or set `cache: {{views: {{num_views}}}}`"
        )
    plain, _ = INPUT_MAPS[experiment.head.input_features]
    cache.codec.check_serves(plain=plain, experiment=experiment.name)
    document = {
        "head": experiment.head.model_dump(),
        "train": experiment.train.model_dump(),
        "cache": cache.fingerprint,
        "index": cache.manifest["index"]["sha256"],
        "num_views": num_views,
        "labels": file_sha256(catalog.work_of(dataset) / FILE_NAME),
        "aus": list(entry.rules.aus),
        "init_from": init_from,
    }
    runs, name = catalog.roots.runs, f"{dataset}-{fingerprint(document)}"
    folder = next(iter(sorted(runs.glob(f"*-{name}"))), runs / f"{experiment.name}-{name}")
    return TrainingRun(
        experiment=experiment, dataset=dataset, rules=entry.rules, frames=frames, cache=cache, folder=folder,
        init_from=runs / init_from if init_from else None, record=document | {"revision": cache.revision},
    )


def runs_of(
    config: str, *, dataset: str, base: str | None = None, init_from: str | None = None
) -> list[TrainingRun]:
    """The runs of an experiment (one), or of a set (one a variant and seed), on the data set's newest cache."""
    catalog = load_catalog()
    experiments = load_set(config, base=base or catalog.dataset(dataset).experiment).experiments
    return [run_of(each, dataset=dataset, init_from=init_from, catalog=catalog) for each in experiments]


def finished_run(config: str, *, dataset: str) -> TrainingRun | None:
    """The experiment's run on the newest cache and labels if all its folds are done; None if anything is missing."""
    try:
        run = prepare_run(config, dataset=dataset)
    except (CacheError, DataError):
        return None
    return run if all(run.is_done(part) for part in run.experiment.parts) else None


def fold_parts(run: TrainingRun, parts: list[str] | None) -> tuple[str, ...]:
    """The asked-for test parts, or the experiment's; `DataError` for an unknown one."""
    unknown = sorted(set(parts or ()) - set(PARTS))
    if unknown:
        raise DataError(f"there is no part {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    return tuple(parts) if parts else run.experiment.parts


def head_shape(run: TrainingRun) -> HeadShape:
    """The head's sizes: the experiment's settings on the cache's maps and the protocol's action units.

    Raises `ConfigError` for settings that no head can be built from.
    """
    try:
        return HeadShape(fan_width=run.cache.num_channels, map_size=run.cache.map_size, num_aus=len(run.rules.aus),
                         **run.experiment.head.model_dump())
    except ValueError as error:
        raise ConfigError(f"experiment {run.experiment.name}: {error}") from None


def done_folds(folder: Path) -> dict[str, Path]:
    """Folders of a run's finished folds, by the part that each tests."""
    return {path.parent.name.removeprefix("fold-"): path.parent for path in sorted(folder.glob("fold-*/result.json"))}


def write_record(run: TrainingRun) -> None:
    """`run.json`, once: what the run's name stands for, and with which versions it started."""
    path = run.folder / "run.json"
    if path.is_file():
        return
    record = {
        "experiment": run.experiment.name,
        "dataset": run.dataset,
        "protocol": run.rules.name,
        **run.record,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    write_bytes_atomically(path, json.dumps(record, indent=2).encode())

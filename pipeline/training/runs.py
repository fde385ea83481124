"""A run: one experiment on one revision of one cache, in a folder that is named by all that decides its result.

runs/{dataset}-{head variant}-seed{N}-{run fingerprint}/
    run.json                 resolved settings, seeds, versions, cache fingerprint and revision
    fold-P1/checkpoint.pt    state after the last whole epoch, gone once the fold is done
    fold-P1/head.safetensors         the head as it was trained
    fold-P1/deployed/                the branch that is used afterwards, see pipeline/training/export.py
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

from models.head import HeadShape
from models.variants import INPUT_MAPS
from pipeline import experiments
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.catalog import Catalog, load_catalog
from pipeline.config import ExperimentConfig
from pipeline.datasets.index import read_index
from pipeline.errors import ConfigError, DataError, DataNotFoundError, StoreError, StoreNotFoundError
from pipeline.fingerprint import cache_fingerprint
from pipeline.protocols import PARTS, Protocol, check_subject_exclusive
from pipeline.runtime.atomic import file_sha256, write_bytes_atomically
from pipeline.store.fingerprint import fingerprint
from pipeline.tables import read_record, read_table
from pipeline.training.loader import page_sizes
from pipeline.training.metrics import COUNT_COLUMNS

CHECKPOINT_NAME, HEAD_NAME, DEPLOYED_NAME = "checkpoint.pt", "head.safetensors", "deployed"
RECORD_NAME = "run.json"
RESULT_NAME, PREDICTIONS_NAME, COUNTS_NAME = "result.json", "predictions.parquet", "counts.parquet"

_FOLD_PREFIX = "fold-"
_MADE_BY = "fantrans train"

RUN_VERSION = 1
"""Raised when the same settings on the same cache train another head."""


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
        return fold_folder(self.folder, test_part)

    def is_done(self, test_part: str) -> bool:
        """Whether a fold's result stands."""
        return _is_done(self.fold_folder(test_part))

    @property
    def is_whole(self) -> bool:
        """Whether all folds of the experiment are done."""
        return all(self.is_done(part) for part in self.experiment.parts)


class Runs:
    """The runs of experiments on a data set: its index and each of its caches are opened once, at their newest.

    `init_from` is a run, or a data set: then its run of the same experiment.
    """

    def __init__(self, catalog: Catalog, dataset: str, *, init_from: str | None = None) -> None:
        self._catalog, self._dataset, self._source = catalog, dataset, None
        self._sources = Runs(catalog, init_from) if init_from in catalog.datasets else None
        if init_from is not None and self._sources is None:
            self._source = run_folder(catalog, init_from)
            if self._source is None:
                raise DataNotFoundError(
                    f"{init_from} is not a run or a data set; pass one that `fantrans train` printed"
                )
        self._frames: pd.DataFrame | None = None
        self._caches: dict[Path, CacheReader] = {}

    def resolve(self, experiment: ExperimentConfig) -> TrainingRun:
        """Pin the cache's newest revision and name the run by everything that decides its result.

        Raises `StoreError` when the data set has no cache of the experiment's settings, `DataError` when subjects cross
        parts, `ConfigError` for an experiment that the cache cannot serve.
        """
        catalog, dataset = self._catalog, self._dataset
        source = self._source if self._sources is None else self._sources.resolve(experiment).folder
        frames, cache = self._frames_for(experiment), self._cache_for(experiment)
        num_views, rules = experiment.cache.views.num_views, catalog.dataset(dataset).rules
        if cache.num_views < num_views:
            raise StoreError(
                f"{cache.folder} has {cache.num_views} views, {experiment.name} trains on {num_views}; run `fantrans "
                f"refresh {dataset} --config {experiment.refresh_args}`, or set `cache: {{views: {{num_views}}}}`"
            )
        plain, gated = INPUT_MAPS[experiment.head.input_features]
        cache.codec.check_serves(plain=plain, gated=gated, experiment=experiment.name)
        document = {
            "head": experiment.head.model_dump(),
            "train": experiment.train.model_dump(),
            "cache": cache.fingerprint,
            "index": cache.manifest["index"]["sha256"],
            "num_views": num_views,
            "pages": page_sizes(cache),
            "labels": file_sha256(catalog.index_path(dataset)),
            "aus": list(rules.aus),
            "init_from": None if source is None else source.name,
            "version": RUN_VERSION,
        }
        runs, seed = catalog.roots.runs, experiment.train.seed
        name = f"{dataset}-{experiment.head.variant}-seed{seed}-{fingerprint(document)}"
        return TrainingRun(
            experiment=experiment,
            dataset=dataset,
            rules=rules,
            frames=frames,
            cache=cache,
            folder=runs / name,
            init_from=source,
            record=document | {"revision": cache.revision},
        )

    def _frames_for(self, experiment: ExperimentConfig) -> pd.DataFrame:
        if self._frames is None:
            work = self._catalog.work_dir(self._dataset)
            self._frames = read_index(work, dataset=self._dataset, config=experiment.refresh_args)
            check_subject_exclusive(self._frames)
        return self._frames

    def _cache_for(self, experiment: ExperimentConfig) -> CacheReader:
        folder = self._catalog.cache_dir(self._dataset) / cache_fingerprint(experiment.cache, self._catalog)
        if not folder.is_dir():
            raise StoreNotFoundError(
                f"{self._dataset} has no cache of the settings in {experiment.name} ({folder} does not exist); "
                f"run `fantrans refresh {self._dataset} --config {experiment.refresh_args}`"
            )
        if folder not in self._caches:
            self._caches[folder] = open_cache(folder)
        return self._caches[folder]


def prepare_run(config: str, *, dataset: str, init_from: str | None = None) -> TrainingRun:
    """The run of one experiment in configs/, or in a .yaml file, on the data set's newest cache."""
    return Runs(load_catalog(), dataset, init_from=init_from).resolve(experiments.load_experiment(config))


def resolve_runs(
    config: str, *, dataset: str, base: str | None = None, init_from: str | None = None
) -> list[TrainingRun]:
    """The runs of an experiment (one), or of a set (one per member and seed), on the data set's newest caches."""
    catalog = load_catalog()
    runs = Runs(catalog, dataset, init_from=init_from)
    return [
        runs.resolve(experiment) for experiment in experiments.resolve(catalog, dataset, config, base=base).experiments
    ]


def finished_run(config: str, *, dataset: str) -> TrainingRun | None:
    """The experiment's run on the newest cache and labels if all its folds are done; None if anything is missing."""
    try:
        run = prepare_run(config, dataset=dataset)
    except (StoreError, DataError):
        return None
    return run if run.is_whole else None


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
        return HeadShape(
            fan_width=run.cache.num_channels,
            map_size=run.cache.map_size,
            num_aus=len(run.rules.aus),
            **run.experiment.head.model_dump(),
        )
    except ValueError as error:
        raise ConfigError(f"experiment {run.experiment.name}: {error}") from None


def run_folder(catalog: Catalog, run: str) -> Path | None:
    """Folder of a run, given as such or by its name under the runs root; None if there is none."""
    return next((folder for folder in (Path(run), catalog.roots.runs / run) if (folder / RECORD_NAME).is_file()), None)


def read_run(folder: Path) -> dict[str, Any]:
    """What `run.json` says; `DataError` if the folder is no run's, or the file is damaged."""
    if not (folder / RECORD_NAME).is_file():
        raise DataNotFoundError(
            f"{folder} is not a run (no {RECORD_NAME}); pass a folder that `fantrans train` printed"
        )
    return read_record(folder / RECORD_NAME, keys=("experiment", "dataset", "cache", "head", "aus"), made_by=_MADE_BY)


def fold_folder(folder: Path, test_part: str) -> Path:
    """Return where a run keeps the fold that tests `test_part`."""
    return folder / f"{_FOLD_PREFIX}{test_part}"


def done_folds(folder: Path) -> dict[str, Path]:
    """Folders of a run's finished folds, by the part that each tests."""
    return {
        path.name.removeprefix(_FOLD_PREFIX): path for path in sorted(folder.glob(f"{_FOLD_PREFIX}*")) if _is_done(path)
    }


def _is_done(fold: Path) -> bool:
    return all((fold / name).is_file() for name in (RESULT_NAME, PREDICTIONS_NAME, COUNTS_NAME))


def read_counts(fold: Path) -> pd.DataFrame:
    """Outcomes (`metrics.COUNT_COLUMNS`) of a finished fold; `DataError` if the table is damaged."""
    return read_table(fold / COUNTS_NAME, columns=tuple(COUNT_COLUMNS), made_by=_MADE_BY)


def read_predictions(fold: Path) -> pd.DataFrame:
    """Frames that a finished fold was tested on, see `evaluate.predict`; `DataError` if the table is damaged."""
    return read_table(fold / PREDICTIONS_NAME, columns=("frame_id", "subject"), made_by=_MADE_BY)


def read_history(fold: Path) -> pd.DataFrame:
    """What each epoch of a finished fold cost, and its losses; `DataError` if the record is damaged."""
    return pd.DataFrame(read_record(fold / RESULT_NAME, keys=("history",), made_by=_MADE_BY)["history"])


def write_record(run: TrainingRun) -> None:
    """`run.json`, once: what the run's name stands for, and with which versions it started."""
    path = run.folder / RECORD_NAME
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

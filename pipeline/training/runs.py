"""A run: one experiment on one revision of one cache, in a folder named by everything that decides its result.

runs/{dataset}-{head}-seed{N}-{run fingerprint}/
    run.json                 resolved settings, seeds, versions, cache fingerprint and revision
    .lock                    held by every training of the run, see pipeline/training/run_lock.py
    source/                  source files of a head of one's own
    fold-P1/history.csv      losses, learning rate and seconds of the finished epochs, written after each
    fold-P1/checkpoint.pt    state after the last finished epoch, and beside it that of the one before (`.before`);
                             removed when the fold is finished
    fold-P1/head.safetensors         the head as trained, with all branches
    fold-P1/deployed/                the deployed head, see pipeline/training/export.py
    fold-P1/predictions.parquet, counts.parquet
    fold-P1/result.json      history and sizes; written last, so it marks the fold as finished
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline import experiments
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.catalog import RUN_RECORD_NAME, Catalog, load_catalog
from pipeline.config import ExperimentConfig, OwnHeadConfig
from pipeline.datasets.index import coverage, read_index
from pipeline.errors import DataError, DataNotFoundError, StoreError, StoreNotFoundError, UsageError
from pipeline.fingerprint import cache_fingerprint
from pipeline.protocols import PARTS, Protocol, check_subject_exclusive
from pipeline.runtime.atomic import file_sha256, write_bytes_atomically, write_json
from pipeline.runtime.text import join_first, unknown_name
from pipeline.store.hashing import hash_document
from pipeline.tables import read_record, read_table
from pipeline.training.heads import check_maps
from pipeline.training.loader import page_sizes
from pipeline.training.metrics import COUNT_COLUMNS

RECORD_NAME, SOURCE_NAME = RUN_RECORD_NAME, "source"
CHECKPOINT_NAME, HEAD_NAME, DEPLOYED_NAME = "checkpoint.pt", "head.safetensors", "deployed"
RESULT_NAME, PREDICTIONS_NAME, COUNTS_NAME = "result.json", "predictions.parquet", "counts.parquet"
HISTORY_NAME, HISTORY_COLUMNS = "history.csv", ["epoch", "loss", "loss_cls", "loss_kd", "lr", "seconds"]

_FOLD_PREFIX = "fold-"
_MADE_BY = "fantrans train"

RUN_VERSION = 1
"""Increased when the same settings on the same cache train another head."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One experiment on one revision of one cache, and the folder of its results."""

    experiment: ExperimentConfig
    dataset: str
    rules: Protocol
    frames: pd.DataFrame
    cache: CacheReader
    folder: Path
    init_from: Path | None
    """Folder of a run whose heads initialise those of the same test parts; None without one."""
    record: Mapping[str, Any]
    """Everything that decides the result, as stored in `run.json`."""

    def fold_folder(self, test_part: str) -> Path:
        """Return the folder of the fold that tests `test_part`."""
        return fold_folder(self.folder, test_part)

    def is_fold_finished(self, test_part: str) -> bool:
        """Return whether the fold that tests `test_part` is finished."""
        return _is_fold_finished(self.fold_folder(test_part))

    @cached_property
    def gaps(self) -> str | None:
        """What of the data set's subjects, tasks and coded frames has features, as "12 of 41 subjects"; None if all."""
        found, num_frames = coverage(self.frames, self.rules), len(self.frames)
        num_cached = int(self.frames["frame_id"].isin(self.cache.index["frame_id"]).sum())
        parts = [] if found.is_complete else [str(found)]
        parts += [f"{num_cached:,} of {num_frames:,} coded frames"] if num_cached < num_frames else []
        return ", ".join(parts) or None

    @property
    def is_finished(self) -> bool:
        """Whether all folds of the experiment are finished."""
        return all(self.is_fold_finished(part) for part in self.experiment.parts)


class Runs:
    """Runs of experiments on a data set; its index and each of its caches are opened once, at the newest revision.

    init_from: a run that initialises the heads, or a data set: then its run of the same experiment. Raises
    `UsageError` if it is neither.
    """

    def __init__(self, catalog: Catalog, dataset: str, *, init_from: str | None = None) -> None:
        self._catalog, self._dataset, self._source = catalog, dataset, None
        self._sources = Runs(catalog, init_from) if init_from in catalog.datasets else None
        if init_from is not None and self._sources is None:
            self._source = run_folder(catalog, init_from)
            if self._source is None:
                names = [*catalog.datasets, *catalog.run_names()]
                raise UsageError(unknown_name("run or data set", init_from, names))
        self._frames: pd.DataFrame | None = None
        self._caches: dict[Path, CacheReader] = {}

    def resolve(self, experiment: ExperimentConfig) -> TrainingRun:
        """Return the run of an experiment on the newest revision of its cache.

        Its folder is named by everything that decides the result. Raises `StoreError` if the data set has no cache of
        the experiment's settings, `DataError` if a subject is in two parts or labels changed since the last refresh,
        `ConfigError` for an experiment that reads maps which the cache does not hold.
        """
        catalog, dataset = self._catalog, self._dataset
        source = self._source if self._sources is None else self._sources.resolve(experiment).folder
        frames, cache = self._frames_for(experiment), self._cache_for(experiment)
        num_views, rules = experiment.cache.views.num_views, catalog.get_dataset(dataset).rules
        if cache.num_views < num_views:
            raise StoreError(
                f"{cache.folder} has {cache.num_views} views, {experiment.name} trains on {num_views}; run `fantrans "
                f"refresh {dataset} --experiment {experiment.refresh_args}`, or set `cache: "
                f"{{views: {{num_views: {cache.num_views}}}}}`"
            )
        check_maps(experiment.name, experiment.head, cache)
        document = {
            "head": experiment.head.document(),
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
        name = f"{dataset}-{experiment.head.title}-seed{seed}-{hash_document(document)}"
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
            self._catalog.check_labels(self._dataset)
            work = self._catalog.work_folder(self._dataset)
            self._frames = read_index(work, dataset=self._dataset, experiment=experiment.refresh_args)
            check_subject_exclusive(self._frames)
        return self._frames

    def _cache_for(self, experiment: ExperimentConfig) -> CacheReader:
        folder = self._catalog.caches_folder(self._dataset) / cache_fingerprint(experiment.cache, self._catalog)
        if not folder.is_dir():
            raise StoreNotFoundError(
                f"{self._dataset} has no cache with the settings of {experiment.name} ({folder} does not exist); "
                f"run `fantrans refresh {self._dataset} --experiment {experiment.refresh_args}`"
            )
        if folder not in self._caches:
            self._caches[folder] = open_cache(folder)
        return self._caches[folder]


def prepare_run(experiment: str, *, dataset: str, init_from: str | None = None) -> TrainingRun:
    """Return the run of one experiment, named in configs/ or a .yaml file, on the data set's newest cache.

    Raises what `load_experiment` and `Runs.resolve` raise.
    """
    return Runs(load_catalog(), dataset, init_from=init_from).resolve(experiments.load_experiment(experiment))


def resolve_runs(
    experiment: str,
    *,
    dataset: str,
    base: str | None = None,
    init_from: str | None = None,
    overrides: Sequence[str] = (),
) -> list[TrainingRun]:
    """Return the run of an experiment, or the runs of a set (one per member and seed), on the newest caches.

    Raises what `Runs.resolve` raises, and `ConfigError` for an unknown experiment.
    """
    catalog = load_catalog()
    runs = Runs(catalog, dataset, init_from=init_from)
    chosen = experiments.resolve(catalog, dataset, experiment, base=base, overrides=overrides)
    return [runs.resolve(each) for each in chosen.experiments]


def finished_run(experiment: str, *, dataset: str) -> TrainingRun | None:
    """Return the experiment's run on the newest cache and labels if all its folds are finished, else None."""
    try:
        run = prepare_run(experiment, dataset=dataset)
    except (StoreError, DataError):
        return None
    return run if run.is_finished else None


def fold_parts(run: TrainingRun, parts: list[str] | None) -> tuple[str, ...]:
    """Return `parts`, or those of the experiment if it is None or empty; `UsageError` for an unknown part."""
    check_parts(parts or ())
    return tuple(parts) if parts else run.experiment.parts


def check_parts(parts: Iterable[str]) -> None:
    """Raise `UsageError` for a part that no protocol has, or that appears twice."""
    parts = list(parts)
    for part in parts:
        if part not in PARTS:
            raise UsageError(unknown_name("part", part, PARTS))
        if parts.count(part) > 1:
            raise UsageError(f"part {part} appears twice; name it once")


def run_folder(catalog: Catalog, run: str) -> Path | None:
    """Return the folder of a run, given by path, or by its name below the runs root.

    A beginning of the name, or of the fingerprint at its end, is enough if no other run has it. None if it does not
    exist. Raises `UsageError` if several begin so.
    """
    for folder in (Path(run), catalog.roots.runs / run):
        if (folder / RECORD_NAME).is_file():
            return folder
    names = catalog.run_names()
    found = [name for name in names if run and (name.startswith(run) or name.rpartition("-")[2].startswith(run))]
    if len(found) > 1:
        raise UsageError(f"{len(found)} runs begin with {run!r}, give more letters of one: {join_first(found, 10)}")
    return catalog.roots.runs / found[0] if found else None


def find_run(catalog: Catalog, run: str) -> Path:
    """Return the folder of a run as `run_folder` does; raises `UsageError` with the nearest names if there is none."""
    folder = run_folder(catalog, run)
    if folder is None:
        names = catalog.run_names()
        near = get_close_matches(run, names, n=3)
        shown = f"near ones: {', '.join(near)}" if near else f"known ones: {join_first(names, 10)}"
        shown = shown if names else "train one with `fantrans train DATASET`"
        raise UsageError(f"run {run!r} does not exist below {catalog.roots.runs}; {shown}")
    return folder


def read_run(folder: Path) -> dict[str, Any]:
    """Read `run.json`; `DataNotFoundError` if the folder is not a run, `DataError` if the file is damaged."""
    if not (folder / RECORD_NAME).is_file():
        raise DataNotFoundError(f"{folder} is not a run (no {RECORD_NAME}); pass a folder printed by `fantrans train`")
    return read_record(folder / RECORD_NAME, keys=("experiment", "dataset", "cache", "head", "aus"), made_by=_MADE_BY)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name: `{"head": {"dim": 8}}` becomes `{"head.dim": 8}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def fold_folder(folder: Path, test_part: str) -> Path:
    """Return where a run keeps the fold that tests `test_part`."""
    return folder / f"{_FOLD_PREFIX}{test_part}"


def finished_folds(folder: Path) -> dict[str, Path]:
    """Return the folders of a run's finished folds by test part, in order of the parts."""
    folds = sorted(folder.glob(f"{_FOLD_PREFIX}*"))
    return {path.name.removeprefix(_FOLD_PREFIX): path for path in folds if _is_fold_finished(path)}


def _is_fold_finished(fold: Path) -> bool:
    return all((fold / name).is_file() for name in (RESULT_NAME, PREDICTIONS_NAME, COUNTS_NAME))


def read_counts(fold: Path) -> pd.DataFrame:
    """Read the counts (`metrics.COUNT_COLUMNS`) of a finished fold; `DataError` if the table is damaged."""
    return read_table(fold / COUNTS_NAME, columns=tuple(COUNT_COLUMNS), made_by=_MADE_BY)


def read_predictions(fold: Path) -> pd.DataFrame:
    """Read the predictions of a finished fold, see `predict.predict`; `DataError` if the table is damaged."""
    return read_table(fold / PREDICTIONS_NAME, columns=("frame_id", "subject"), made_by=_MADE_BY)


def read_history(fold: Path) -> pd.DataFrame:
    """Read losses, learning rate and seconds of a fold, one row per finished epoch; `DataError` if damaged."""
    if not (fold / RESULT_NAME).is_file() and (fold / HISTORY_NAME).is_file():
        try:
            return pd.read_csv(fold / HISTORY_NAME)
        except ValueError:
            raise DataError(
                f"{fold / HISTORY_NAME} is damaged; delete it, and run `{_MADE_BY}` to rebuild it"
            ) from None
    return pd.DataFrame(read_record(fold / RESULT_NAME, keys=("history",), made_by=_MADE_BY)["history"])


def write_record(run: TrainingRun) -> None:
    """Write `run.json` unless it exists: everything that decides the result, and the versions at the start.

    Copies the source of a head of one's own beside it.
    """
    path = run.folder / RECORD_NAME
    if path.is_file():
        return
    head = run.experiment.head
    if isinstance(head, OwnHeadConfig):
        for source in head.load().files:
            name = source.relative_to(Path.cwd()) if source.is_relative_to(Path.cwd()) else source.name
            write_bytes_atomically(run.folder / SOURCE_NAME / name, source.read_bytes())
    record = {
        "experiment": run.experiment.name,
        "dataset": run.dataset,
        "protocol": run.rules.name,
        "parts": list(run.experiment.parts),
        **run.record,
        "gaps": run.gaps,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    write_json(path, record)

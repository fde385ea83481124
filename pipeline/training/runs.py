"""One experiment on one revision of one cache: everything that decides its result, and so the name of its folder.

pipeline/training/run_files.py lists the folder's files.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline import experiments
from pipeline.cache.reader import Features, open_cache
from pipeline.catalog import Catalog, load_catalog
from pipeline.config import ExperimentConfig, OwnHeadConfig
from pipeline.datasets.index import coverage, read_index
from pipeline.errors import DataError, DataNotFoundError, StoreError, StoreNotFoundError, UsageError
from pipeline.fingerprint import cache_fingerprint, overrides_for
from pipeline.protocols import Protocol, check_subject_exclusive
from pipeline.runtime.atomic import file_sha256, write_bytes_atomically, write_json
from pipeline.runtime.text import join_first, unknown_name
from pipeline.runtime.version import written_by
from pipeline.store.hashing import hash_document
from pipeline.store.revisions import load_revision, read_fingerprint, store_folders
from pipeline.training.heads import check_maps
from pipeline.training.loader import page_sizes
from pipeline.training.run_files import (
    RECORD_NAME,
    SCHEMA,
    SOURCE_NAME,
    check_parts,
    fold_folder,
    is_fold_finished,
    run_folder,
)

RUN_VERSION = 1
"""Increased when the same settings on the same cache train another head."""


FeatureOpener = Callable[[Catalog, str, ExperimentConfig, pd.DataFrame], Features]
"""Opens features from catalog, name of the data set, experiment and frame index."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One experiment on one revision of one cache, and the folder of its results."""

    experiment: ExperimentConfig
    dataset: str
    rules: Protocol
    frames: pd.DataFrame
    cache: Features
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
        return is_fold_finished(self.fold_folder(test_part))

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

    init_from: a run that initialises the heads, or a data set: then its run of the same experiment. open_features:
    opens what is read in place of caches, which then need not exist; the runs are the same. Raises `UsageError` if
    `init_from` is neither.
    """

    def __init__(
        self,
        catalog: Catalog,
        dataset: str,
        *,
        init_from: str | None = None,
        open_features: FeatureOpener | None = None,
    ) -> None:
        self._catalog, self._dataset, self._source = catalog, dataset, None
        self._open_features = open_features
        self._sources = Runs(catalog, init_from, open_features=open_features) if init_from in catalog.datasets else None
        if init_from is not None and self._sources is None:
            self._source = run_folder(catalog, init_from)
            if self._source is None:
                names = [*catalog.datasets, *catalog.run_names()]
                raise UsageError(unknown_name("run or data set", init_from, names))
        self._frames: pd.DataFrame | None = None
        self._features: dict[tuple[Path, int], Features] = {}

    def resolve(self, experiment: ExperimentConfig) -> TrainingRun:
        """Return the run of an experiment on the newest revision of its cache.

        Its folder is named by everything that decides the result. Raises `StoreError` if the data set has no cache of
        the experiment's settings, `DataError` if a subject is in two parts or labels changed since the last refresh,
        `ConfigError` for an experiment that reads maps which the cache does not hold.
        """
        catalog, dataset = self._catalog, self._dataset
        source = self._source if self._sources is None else self._sources.resolve(experiment).folder
        frames, cache = self._frames_for(experiment), self._features_for(experiment)
        num_views, rules = experiment.cache.views.num_views, catalog.get_dataset(dataset).rules
        if cache.num_views < num_views:
            raise StoreError(
                f"{cache.folder} has {cache.num_views} views, {experiment.name} trains on {num_views}; run `fantrans "
                f"refresh {dataset} --experiment {experiment.refresh_args}`, or give `--set "
                f"cache.views.num_views={cache.num_views}`"
            )
        check_maps(experiment.name, experiment.head, cache)
        document = {
            "head": experiment.head.document(),
            "train": experiment.train.document(),
            "cache": cache.fingerprint,
            "index": cache.index_sha256,
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
            work, path = self._catalog.work_folder(self._dataset), self._catalog.index_path(self._dataset)
            if not path.is_file() and store_folders(self._catalog.caches_folder(self._dataset)):
                raise DataNotFoundError(
                    f"{path} does not exist, and heads learn from its labels; run `fantrans refresh "
                    f"{self._dataset} --until index` where the labels are, or copy it and labels.json from where the "
                    "cache was made (docs/sharing.md)"
                )
            self._frames = read_index(work, dataset=self._dataset, experiment=experiment.refresh_args)
            check_subject_exclusive(self._frames)
        return self._frames

    def _features_for(self, experiment: ExperimentConfig) -> Features:
        settings, catalog, dataset = experiment.cache, self._catalog, self._dataset
        folder = catalog.caches_folder(dataset) / cache_fingerprint(settings, catalog)
        key = folder, 0 if self._open_features is None else settings.views.num_views
        if key not in self._features and self._open_features is not None:
            self._features[key] = self._open_features(catalog, dataset, experiment, self._frames_for(experiment))
        elif key not in self._features:
            if not folder.is_dir():
                raise StoreNotFoundError(
                    f"{dataset} has no cache with the settings of {experiment.name} ({folder} does not exist); "
                    f"{_existing(experiment, catalog, dataset)}"
                    f"run `fantrans refresh {dataset} --experiment {experiment.refresh_args}`"
                )
            self._features[key] = open_cache(folder)
        return self._features[key]


def _existing(experiment: ExperimentConfig, catalog: Catalog, dataset: str) -> str:
    """Return the beginning of a sentence that names the options with which an experiment uses a cache that exists."""
    found = []
    for folder in store_folders(catalog.caches_folder(dataset)):
        try:
            revision, document = load_revision(folder), read_fingerprint(folder)
        except StoreError:  # damaged
            continue
        overrides = overrides_for(experiment.cache, document, catalog)
        if revision is None or not overrides:
            continue
        num_views = len(revision.groups)
        overrides += [f"cache.views.num_views={num_views}"] * (num_views < experiment.cache.views.num_views)
        found.append(f"`{shlex.join(word for override in overrides for word in ('--set', override))}`")
    return f"to use a cache that exists, give {join_first(found, 3, separator=' or ')}; or " if found else ""


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
    open_features: FeatureOpener | None = None,
) -> list[TrainingRun]:
    """Return the run of an experiment, or the runs of a set (one per member and seed), on the newest caches.

    open_features: see `Runs`. Raises what `Runs.resolve` raises, and `ConfigError` for an unknown experiment.
    """
    catalog = load_catalog()
    runs = Runs(catalog, dataset, init_from=init_from, open_features=open_features)
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
        **written_by(SCHEMA, python=platform.python_version(), torch=torch.__version__),
    }
    write_json(path, record)

"""Refresh and train on a sample of a data set, in a temporary folder on the caches' disk, and take the time.

The sample goes through the stages, stores and heads of a real refresh and training. Its labels are made up: time does
not depend on them, and a small sample would lack rare action units.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from pipeline import fingerprint
from pipeline.cache import prepare
from pipeline.cache.live import LiveFeatures
from pipeline.catalog import Catalog
from pipeline.config import PROFILES, CacheConfig, ExperimentConfig, Profile
from pipeline.datasets.index import index_frames, read_index, write_index
from pipeline.errors import CatalogError, ConfigError, DataError
from pipeline.protocols import PARTS, train_parts
from pipeline.refresh.boxes import DetectionWorker
from pipeline.refresh.job import RefreshJob, cache_build, crop_reader
from pipeline.refresh.stages import CropStage, DetectStage, Stage
from pipeline.runtime.allocator import tune_allocator
from pipeline.store.revisions import load_revision
from pipeline.tables import au_column
from pipeline.training.export import load_deployed
from pipeline.training.loader import NEIGHBOUR_ROWS, CachedFrames, TrainingPages
from pipeline.training.predict import predict
from pipeline.training.run_files import DEPLOYED_NAME, read_history
from pipeline.training.runs import Runs, TrainingRun
from pipeline.training.trainer import num_head_threads, train_heads

MIN_SAMPLE_FRAMES = 96
_FRAMES_PER_BATCH = 1.6
"""Frames of the sample per frame of a batch: two of three parts must fill a batch, also if some faces are not found."""
_UNTIMED_EPOCHS, _TIMED_EPOCHS = 1, 2


@dataclass(frozen=True)
class ProfileRate:
    """What was measured of one profile; times are of one process on the chosen device.

    encode_s: to encode a view that the FAN has computed, and to write it. epoch_s: per frame that a head learns from.
    waiting: share (0..1) of an epoch in which the heads wait for data. evaluation_s: per frame of the scored parts.
    """

    view_bytes: float
    encode_s: float
    epoch_s: float
    waiting: float
    evaluation_s: float


@dataclass(frozen=True)
class SampleRates:
    """What was measured of a sample: seconds per frame or view, bytes per second of the disk, and by profile.

    fan_s: per view that is extracted in the profile exact. live_s: per view that is computed for a head, not stored.
    unavailable: why a profile was not measured, by its name.
    """

    num_frames: int
    detect_s: float
    crop_s: float
    fan_s: float
    live_s: float
    disk_bytes_per_s: float
    profiles: dict[Profile, ProfileRate]
    unavailable: dict[Profile, str]


def measure_sample(
    dataset: str, experiments: Sequence[ExperimentConfig], catalog: Catalog, *, device: str
) -> tuple[SampleRates, pd.DataFrame]:
    """Return the rates of a sample, and the whole index of the data set.

    experiments: those that would be trained together. Raises `DataError` for a data set that is not rendered yet, or
    whose faces are not found.
    """
    tune_allocator()
    root = catalog.roots.cache
    root.mkdir(parents=True, exist_ok=True)
    frames = _whole_index(dataset, catalog)
    with TemporaryDirectory(dir=root, prefix=".plan-") as name:
        folder = Path(name)
        roots = {"work": folder / "work", "cache": folder / "cache", "runs": folder / "runs"}
        there = catalog.model_copy(update={"roots": catalog.roots.model_copy(update=roots)})
        return _Sample(dataset, experiments, there, device).measure(frames), frames


def _whole_index(dataset: str, catalog: Catalog) -> pd.DataFrame:
    entry = catalog.get_dataset(dataset)
    if catalog.index_path(dataset).is_file():
        return read_index(catalog.work_folder(dataset), dataset=dataset)
    if entry.count_unrendered()[0]:
        raise DataError(
            f"the faces of {dataset} are not rendered yet; run `fantrans render {dataset}`, then plan again"
        )
    return index_frames(entry.root, entry.raw_layout, entry.rules, entry)


class _Sample:
    """A data set's sample in a catalog with roots of its own."""

    def __init__(self, dataset: str, members: Sequence[ExperimentConfig], catalog: Catalog, device: str) -> None:
        self._dataset, self._catalog, self._device = dataset, catalog, device
        self._num_views = 2 if any(each.train.averages_flip for each in members) else 1
        self._members = [_with_cache(each, _with_views(each.cache, self._num_views)) for each in members]
        self._job = RefreshJob(
            dataset=dataset, catalog=catalog, config=self._members[0].cache, limit=None, device=device
        )

    def measure(self, frames: pd.DataFrame) -> SampleRates:
        """Return all rates."""
        job, sample = self._job, self._chosen(frames)
        write_index(job.work, sample)
        DetectionWorker(job).detect(sample[:8])  # loads the libraries; the network loads again below, in a blink
        detect_s = _seconds(lambda: _run(DetectStage(), job))
        crop_s = _seconds(lambda: _run(CropStage(), job))
        num_faces, largest = len(crop_reader(job).index), max(each.train.batch_size for each in self._members)
        if 2 * num_faces < 3 * largest:
            raise DataError(
                f"{num_faces} of {len(sample)} sampled frames of {self._dataset} have a face, too few for a batch of "
                f"{largest}; run `fantrans refresh {self._dataset} --until crop` and read its summary"
            )
        fan_s, profiles, unavailable = 0.0, {}, {}
        for profile in PROFILES:  # exact comes first: the others are encoded from it
            try:
                view_s, view_bytes = self._extract(profile)
                learned = self._learn(profile)
            except (CatalogError, ConfigError) as error:
                unavailable[profile] = str(error)
                continue
            fan_s = view_s if profile == "exact" else fan_s
            encode_s = 0.0 if profile == "exact" else view_s
            profiles[profile] = ProfileRate(view_bytes=view_bytes, encode_s=encode_s, **learned)
        return SampleRates(
            num_frames=len(sample),
            detect_s=detect_s / len(sample),
            crop_s=crop_s / num_faces,
            fan_s=fan_s,
            live_s=self._live_seconds(),
            disk_bytes_per_s=_disk_rate(job.catalog.caches_folder(self._dataset)),
            profiles=profiles,
            unavailable=unavailable,
        )

    def _chosen(self, frames: pd.DataFrame) -> pd.DataFrame:
        """Return the sample: the first frames of each part, which lie in few files, with made-up labels."""
        largest = max(each.train.batch_size for each in self._members)
        per_part = math.ceil(max(MIN_SAMPLE_FRAMES, _FRAMES_PER_BATCH * largest) / frames["part"].nunique())
        has_source = frames["source_file"] != ""
        sample = frames[has_source].groupby("part", sort=False).head(per_part).reset_index(drop=True)
        aus = self._catalog.get_dataset(self._dataset).rules.aus
        labels = (np.arange(len(sample))[:, None] + np.arange(len(aus))) % 2
        sample[[au_column(au) for au in aus]] = labels.astype(np.int8)
        return sample

    def _extract(self, profile: Profile) -> tuple[float, float]:
        """Fill the cache of a profile; return seconds and bytes per view."""
        job = replace(self._job, config=prepare.with_profile(self._job.config, profile))
        fingerprint.cache_document(job.config, self._catalog)  # refuses weights without this profile
        build, frames = cache_build(job), read_index(job.work, dataset=self._dataset)
        load_s = _seconds(build.make_extractor) if build.exact is None else 0.0
        seconds = _seconds(lambda: build.run(frames, crop_reader(job))) - load_s
        revision = load_revision(build.folder)
        assert revision is not None
        num_views = revision.manifest["num_rows"] * self._num_views
        return seconds / num_views, revision.manifest["num_bytes"] / num_views

    def _learn(self, profile: Profile) -> dict[str, float]:
        """Train all folds on a profile; return the fields of `ProfileRate` that it shows."""
        runs = Runs(self._catalog, self._dataset)
        folds = [
            (run, part)
            for each in self._members
            for run in [runs.resolve(_for_epochs(each, profile, _UNTIMED_EPOCHS + _TIMED_EPOCHS))]
            for part in run.experiment.parts
        ]
        train_heads(folds, device=self._device)
        seconds = num_frames = 0.0
        for run, part in folds:
            batch_size = run.experiment.train.batch_size
            learned = CachedFrames(run.cache, run.frames, aus=run.rules.aus, parts=train_parts(part)).rows.size
            num_frames += learned // batch_size * batch_size
            seconds += read_history(run.fold_folder(part))["seconds"][_UNTIMED_EPOCHS:].sum()
        learn_s = seconds / _TIMED_EPOCHS / min(num_head_threads(self._device), len(folds))
        epoch_s = max(learn_s, self._reading_seconds(folds[0][0]))
        return {
            "epoch_s": epoch_s / num_frames,
            "waiting": 1 - learn_s / epoch_s,
            "evaluation_s": self._evaluation_seconds(*folds[-1]),
        }

    def _reading_seconds(self, run: TrainingRun) -> float:
        """Return the seconds in which an epoch of the whole sample is read, without a head."""
        pages = TrainingPages(run.cache, run.frames, parts=PARTS, device=self._device)
        next(iter(pages.epochs(0, 1)))
        return _seconds(lambda: deque(pages.epochs(0, _TIMED_EPOCHS), maxlen=0)) / _TIMED_EPOCHS

    def _evaluation_seconds(self, run: TrainingRun, part: str) -> float:
        """Return the seconds per frame of scoring a fold."""
        model = load_deployed(run.fold_folder(part) / DEPLOYED_NAME)
        tested = run.frames[run.frames["part"] == part]
        evaluation = partial(
            predict, model.head, run.cache, tested, aus=run.rules.aus, test_part=part, device=self._device,
            averages_flip=run.experiment.train.averages_flip,
        )  # fmt: skip
        evaluation()
        return _seconds(evaluation) / len(tested)

    def _live_seconds(self) -> float:
        """Return the seconds per view of a FAN in the loop, for the profile of the experiment."""
        job = self._job
        frames = read_index(job.work, dataset=self._dataset)
        live = LiveFeatures(cache_build(job), frames, crop_reader(job))
        rows = live.index["row"].to_numpy()[:NEIGHBOUR_ROWS]
        live.read(rows[:8])
        return _seconds(lambda: live.read(rows)) / len(rows)


def _with_views(settings: CacheConfig, num_views: int) -> CacheConfig:
    return settings.model_copy(update={"views": settings.views.model_copy(update={"num_views": num_views})})


def _with_cache(experiment: ExperimentConfig, cache: CacheConfig) -> ExperimentConfig:
    return experiment.model_copy(update={"cache": cache})


def _for_epochs(experiment: ExperimentConfig, profile: Profile, num_epochs: int) -> ExperimentConfig:
    train = experiment.train.model_copy(update={"num_epochs": num_epochs})
    of_profile = _with_cache(experiment, prepare.with_profile(experiment.cache, profile))
    return of_profile.model_copy(update={"train": train})


def _run(stage: Stage[Any], job: RefreshJob) -> None:
    stage.run(job, stage.plan(job), job.workers)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _disk_rate(folder: Path) -> float:
    """Return how many bytes per second the disk reads of the files below a folder, past the page cache."""
    paths = [path for path in folder.rglob("c.*") if path.is_file()]
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    seconds = _seconds(lambda: [path.read_bytes() for path in paths])
    return sum(path.stat().st_size for path in paths) / seconds

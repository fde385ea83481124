"""The functions that `fantrans` offers to notebooks and scripts; docs/api.md lists them."""

# B frames of a batch, N frames, A action units, C channels, H W rows and columns of a map
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from models.head import HeadInputs, deployed_head
from models.losses import class_weights
from models.registry import HEADS
from pipeline.cache.reader import Features
from pipeline.catalog import load_catalog
from pipeline.config import HeadConfig
from pipeline.errors import ConfigError, DataError, UsageError
from pipeline.experiments import resolve
from pipeline.protocols import PARTS
from pipeline.report.compare import compare_runs
from pipeline.report.listing import list_runs, select_runs
from pipeline.report.rows import Difference
from pipeline.report.run import read_report, write_files, written_unless_read_only
from pipeline.report.sets import read_set_report, write_set_files
from pipeline.runtime.device import choose_device
from pipeline.tables import au_column
from pipeline.training.export import DESCRIPTION_NAME, DeployedModel, load_deployed
from pipeline.training.heads import head_inputs
from pipeline.training.loader import Batch, CachedFrames, HeadBatches, TrainingPages, evaluation_batches
from pipeline.training.metrics import compute_scores
from pipeline.training.predict import count
from pipeline.training.predict import predict as predict_part
from pipeline.training.run_files import DEPLOYED_NAME, check_parts, find_run, finished_folds
from pipeline.training.runs import Runs
from pipeline.training.trainer import train_folds


@dataclass(frozen=True)
class Cache:
    """The cached features of a data set with its labels; what `open_cache` returns.

    dataset, experiment: their names. aus: the action units of the protocol, in order. reader: the pinned revision of
    the store; `reader.folder` is its folder.
    """

    dataset: str
    experiment: str
    aus: tuple[int, ...]
    reader: Features = field(repr=False)
    _index: pd.DataFrame = field(repr=False)

    @cached_property
    def frames(self) -> pd.DataFrame:
        """One row per frame in the cache: frame_id, subject, task, part and a label per action unit, `au_01`...

        Labels are 1 present, 0 absent, -1 unknown.
        """
        columns = ["frame_id", "subject", "task", "part", *map(au_column, self.aus)]
        cached = self._index["frame_id"].isin(self.reader.index["frame_id"])
        return self._index.loc[cached, columns].reset_index(drop=True)

    @property
    def num_views(self) -> int:
        """Number of views per frame: 0 clean, 1 flipped, 2 and up augmented."""
        return self.reader.num_views

    @property
    def inputs(self) -> HeadInputs:
        """What a head gets: channels and size of the maps, number of action units."""
        return head_inputs(self.reader, len(self.aus))

    def maps(self, frame_id: str, *, view: int = 0) -> dict[str, Tensor]:
        """Return the maps of one frame and view by name, each (1, C, H, W), as a head takes them.

        Raises `DataError` for a frame that is not in the cache, `StoreError` for an unknown view.
        """
        rows = self.reader.index.loc[self.reader.index["frame_id"] == frame_id, "row"].to_numpy()
        if len(rows) == 0:
            raise DataError(f"frame {frame_id!r} is not in {self.reader.folder}; `cache.frames` lists those that are")
        stored = self.reader.read(rows, view=view)
        return self.reader.codec.decode({name: torch.from_numpy(values) for name, values in stored.items()})

    def class_weights(self, parts: Collection[str]) -> Tensor:
        """Return the weight of each action unit, (A,) fp32, from the labels of `parts` (paper 4.1)."""
        frames = CachedFrames(self.reader, self._index, aus=self.aus, parts=parts)
        return class_weights(torch.from_numpy(frames.labels_NA), aus=self.aus)


def open_cache(dataset: str, experiment: str | None = None, *, overrides: Sequence[str] = ()) -> Cache:
    """Open the newest revision of a data set's feature cache.

    experiment: whose cache settings name the cache, default: the data set's own. overrides: settings KEY=VALUE, such as
    "cache.features.profile=exact". Raises `StoreError` if the cache does not exist.
    """
    catalog = load_catalog()
    chosen = resolve(catalog, dataset, experiment, overrides=_listed(overrides))
    run = Runs(catalog, dataset).resolve(chosen.experiments[0])
    return Cache(dataset, chosen.name, run.rules.aus, run.cache, run.frames)


def batches(
    cache: Cache,
    parts: Collection[str] = PARTS,
    *,
    batch_size: int = 64,
    epoch: int = 0,
    view: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Iterator[Batch]:
    """Yield batches (features, labels_BA, frame_ids) of the frames in `parts`.

    Without `view`, those of a training epoch: shuffled, of the augmented view of that epoch, full batches only. With
    view 0 (clean) or 1 (flipped), all frames in the order of the cache. features: maps by name, as a head takes them;
    labels_BA: int8 in {0, 1, -1 unknown}. Threads read ahead. Raises `StoreError` if the cache has none of the frames.
    """
    parts = _listed(parts)
    check_parts(parts)
    on = torch.device(choose_device(device))
    frames = CachedFrames(cache.reader, cache._index, aus=cache.aus, parts=parts)
    if view is not None:
        yield from evaluation_batches(cache.reader, frames, batch_size=batch_size, view=view, device=on)
        return
    pages = TrainingPages(cache.reader, cache._index, parts=parts, device=on)
    own = HeadBatches(cache.reader, frames, batch_size=batch_size, seed=seed)
    for page in pages.epochs(epoch, epoch + 1):
        yield from own.from_page(page)


def new_head(cache: Cache, variant: str = "t1_o2o_t2_o2m", **settings: Any) -> nn.Module:
    """Return an untrained head of the paper for a cache: maps in, `HeadOutput` out.

    variant: a row of Table 1 (`models.registry.HEADS`). settings: other keys of `head:` in an experiment. Raises
    `ValueError` for settings from which no head can be built.
    """
    chosen = HeadConfig(variant=variant, **settings).model_dump(exclude={"variant"})
    return HEADS[variant](cache.inputs, **chosen)


def score(head: nn.Module, cache: Cache, part: str, *, device: str = "auto") -> pd.DataFrame:
    """Return one row per action unit: F1 in percent on the clean views of a part, and counts of labels.

    head: such as `load_head(run).head`, `new_head(cache)` or one of one's own (docs/heads.md); a copy of its deployed
    branch is scored.
    """
    on = choose_device(device)
    predictions = predict_part(
        deployed_head(head).to(on), cache.reader, cache._index, aus=cache.aus, test_part=part, device=on
    )
    return compute_scores(count(predictions, aus=cache.aus, test_part=part)).aus


Image = str | Path | np.ndarray
"""A path, or pixels: RGB uint8 (H, W, 3)."""


def predict(
    inputs: Image | Sequence[Image],
    model: str | Path | None = None,
    *,
    part: str | None = None,
    faces: Literal["all", "largest"] = "all",
    every: int = 1,
    min_score: float = 0.0,
    recursive: bool = False,
    device: str = "auto",
    batch_size: int | None = None,
) -> pd.DataFrame:
    """Return the action units of images and videos, one row per face and frame; docs/predict.md lists the columns.

    inputs: paths of images, videos and folders, patterns, and images in memory, RGB uint8 (H, W, 3), which are named
    `image 0`, `image 1`... and follow the files. model: a run, a folder of `fantrans export` or a shipped model;
    default: the shipped default. part: the fold of a run. every: predict each N-th frame of a video. min_score:
    faces that the detector gives a lower score, 0..1, are left out. An input that cannot be read has a row with the
    status unreadable. Raises `UsageError` for an input that does not exist and for an unknown model.
    """
    from pipeline.predict.inputs import find_sources  # noqa: PLC0415 - training and reports need no detector
    from pipeline.predict.job import JobWorker, predict_table, with_batch_size  # noqa: PLC0415
    from pipeline.predict.model import find_model, open_model  # noqa: PLC0415
    from pipeline.predict.stream import Options  # noqa: PLC0415

    is_size = batch_size is None or batch_size >= 1
    if faces not in ("all", "largest") or every < 1 or not is_size or not 0 <= min_score <= 1:
        raise UsageError(
            f"expected faces 'all' or 'largest', every and batch_size of 1 or more, min_score of 0 to 1; found "
            f"faces={faces!r}, every={every!r}, batch_size={batch_size!r}, min_score={min_score!r}"
        )
    listed = [inputs] if isinstance(inputs, str | Path | np.ndarray) else list(inputs)
    images = [each for each in listed if isinstance(each, np.ndarray)]
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UsageError(f"an image must be RGB uint8 (H, W, 3), found {image.dtype} {image.shape}")
    sources = find_sources([each for each in listed if not isinstance(each, np.ndarray)], recursive=recursive)
    catalog, on = load_catalog(), choose_device(device)
    opened = open_model(find_model(catalog, None if model is None else str(model), part=part), catalog)
    options = Options(faces=faces, every=every, min_score=min_score)
    worker = JobWorker(opened, on, with_batch_size(options, on, batch_size))
    return predict_table(worker, sources, [(f"image {number}", image) for number, image in enumerate(images)])


def train(
    dataset: str,
    experiment: str | None = None,
    *,
    parts: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    init_from: str | None = None,
    device: str = "auto",
    source: Literal["cache", "crops"] = "cache",
) -> list[Path]:
    """Train one head per fold of an experiment or set on its cache; return the folders of the runs.

    Finished folds are skipped. parts: tested parts, default: the experiment's. overrides: settings KEY=VALUE; several
    values, "train.lr=1e-4,3e-4", train one head each. source: "crops" computes features in place of reading them from
    the cache. Raises `StoreError` if the cache (or crops) does not exist, `ConfigError` for a wrong setting.
    """
    from pipeline.cache.live import feature_opener  # noqa: PLC0415 - only training from crops runs a FAN

    name, on = experiment or load_catalog().get_dataset(dataset).experiment, choose_device(device)
    return train_folds(
        name,
        dataset=dataset,
        parts=None if parts is None else list(_listed(parts)),
        overrides=_listed(overrides),
        init_from=init_from,
        device=on,
        open_features=feature_opener(source, on),
    )


def runs(dataset: str | None = None) -> pd.DataFrame:
    """Return one row per run below the runs root, the newest first, with the columns of `fantrans runs ls --csv`.

    Undefined values are missing.
    """
    return select_runs(list_runs(load_catalog().roots.runs), dataset=dataset, sort="age_s").reset_index(drop=True)


def report(run_or_dataset: str | Path, experiment: str | None = None, *, overrides: Sequence[str] = ()) -> pd.DataFrame:
    """Return the F1 table of a run, one row per action unit; or of a data set's experiments, one row per member.

    run_or_dataset: a run (folder or name), or a data set with an experiment or set. Writes the files of the report if
    the runs can be written. Raises `DataError` if nothing is finished.
    """
    catalog, dataset = load_catalog(), str(run_or_dataset)
    if dataset not in catalog.datasets:
        of_run = read_report(find_run(catalog, dataset))
        written_unless_read_only(lambda: write_files(of_run))
        return of_run.table()
    name = experiment or catalog.get_dataset(dataset).experiment
    table = read_set_report(name, dataset=dataset, overrides=_listed(overrides))
    written_unless_read_only(lambda: write_set_files(table))
    return table.table()


def compare(ours: str, theirs: str, *, dataset: str | None = None, overrides: Sequence[str] = ()) -> Difference:
    """Return the paired difference of two runs, or of two experiments on a data set, with 95 % intervals.

    `.points`, `.low` and `.high` are in points of F1, (A + 1,) with the mean last; `.sentence()` is the conclusion. The
    intervals are over subjects and trainings; how far trainings vary is assumed where fewer than three runs show it.
    """
    return compare_runs(ours, theirs, dataset=dataset, overrides=_listed(overrides))


def _listed(words: Collection[str]) -> Sequence[str]:
    """Return a single word, as people write it, as a list of one."""
    return [words] if isinstance(words, str) else list(words)


def load_head(run: str | Path, part: str | None = None) -> DeployedModel:
    """Return the deployed head of a finished fold: `.head` (maps to logits), `.aus`, `.probabilities(maps)` (B, A).

    run: a run (folder or name), or a folder of `fantrans export`. part: the fold, by its tested part; default: the
    first finished one.
    """
    if (Path(run) / DESCRIPTION_NAME).is_file():
        return load_deployed(run)
    folder = find_run(load_catalog(), str(run))
    folds: Mapping[str, Path] = finished_folds(folder)
    if not folds:
        raise DataError(f"{folder} has no finished fold; train it first")
    if part is not None and part not in folds:
        raise ConfigError(f"{folder.name} has no finished fold {part}; finished: {', '.join(folds)}")
    return load_deployed(folds[part or next(iter(folds))] / DEPLOYED_NAME)

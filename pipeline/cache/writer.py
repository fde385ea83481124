"""Bringing a feature cache up to date: render the views of the faces that changed, extract, write, publish."""

from __future__ import annotations

import json
import os
import pickle
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.cache.codecs import RELATIVE_L2, Codec, encode_rows
from pipeline.cache.crops import CropReader
from pipeline.cache.format import CODEC_NAME, PARAMS, view_group, view_number
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.config import ViewConfig
from pipeline.errors import DataError
from pipeline.faces.views import render_view, view_params
from pipeline.fingerprint import versions
from pipeline.runtime.atomic import write_bytes_atomically
from pipeline.runtime.executors import outcome, outcomes, raise_failures
from pipeline.runtime.prefetch import prefetch_map
from pipeline.runtime.progress import ProgressCallback, no_progress
from pipeline.store.format import StoreFormat
from pipeline.store.plan import NO_ROW, Plan, Unit
from pipeline.store.reader import readable_rows
from pipeline.store.revisions import shard_path
from pipeline.store.shards import ArraySpec, read_shard
from pipeline.store.writer import StagedUnit, StoreWriter, open_writer, plan_store, stage_unit

Extractor = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Images RGB uint8 (n, S, S, 3) to what the codec stores of their maps, (n, *row_shape) by array name."""

FIDELITY_FILE = Path(__file__).with_name("fidelity.json")

_FIDELITY_ROWS = 256
_MAX_BYTES_AHEAD = 2**30
_MAX_LOADED = 2
"""Blocks whose crops are in memory."""


@dataclass(frozen=True)
class UnitTask:
    """A unit to compute: its rows of the plan, and whether some may still be good in its damaged shards."""

    unit: Unit
    rows: pd.DataFrame
    is_damaged: bool


class UnitValues(NamedTuple):
    """A unit's rows, with those that a damaged shard still held, and their arrays by name."""

    rows: pd.DataFrame
    arrays: dict[str, np.ndarray]


class _UnitInput(NamedTuple):
    """The task, good rows of its damaged shards with their mask, and exact maps or images of the others."""

    task: UnitTask
    kept: tuple[np.ndarray, dict[str, np.ndarray]]
    maps: dict[str, np.ndarray] | None
    images: np.ndarray


@dataclass(frozen=True, kw_only=True)
class UnitSource:
    """All that a process needs in order to compute units, here or elsewhere.

    make_extractor: called in the process, once, if there is something to extract. exact: folder of a cache of the
    profile exact with the same settings, whose maps are encoded in place of extracting them.
    """

    folder: Path
    arrays: tuple[ArraySpec, ...]
    block_rows: int
    crops_folder: Path
    crops_revision: int
    views: ViewConfig
    view_px: int
    make_extractor: Callable[[], Extractor]
    codec: Codec
    exact: Path | None

    def computed(self, tasks: Iterable[UnitTask]) -> Iterator[tuple[UnitTask, UnitValues | Exception]]:
        """Each task's values or error, in order; inputs are read and rendered ahead. A block's tasks lie together."""
        for task, read in prefetch_map(self.inputs.of, tasks, num_threads=self._num_threads):
            yield task, outcome(partial(self._values, read))

    def staged(self, tasks: Iterable[UnitTask]) -> Iterator[tuple[UnitTask, StagedUnit | Exception]]:
        """Each task's shards under temporary names, or its error, in order.

        Written behind what is computed, so that a GPU waits neither for its inputs nor for the disk.
        """
        computed = self.computed(tasks)
        for (task, _), staged in prefetch_map(self._staged, computed, num_threads=self._num_threads, drop=_discard):
            yield task, outcome(staged.result)

    def _staged(self, computed: tuple[UnitTask, UnitValues | Exception]) -> StagedUnit | Exception:
        task, values = computed
        if isinstance(values, Exception):
            return values
        return stage_unit(self.folder, self.arrays, task.unit, values.rows, values.arrays, block_rows=self.block_rows)

    @property
    def _num_threads(self) -> int:
        """Units that are read ahead, and as many that are written behind."""
        unit_bytes = self.block_rows * sum(spec.row_bytes for spec in self.arrays)
        return max(1, min(os.cpu_count() or 1, _MAX_BYTES_AHEAD // unit_bytes))

    def _values(self, read: Future[_UnitInput]) -> UnitValues:
        task, kept, maps, images = read.result()
        arrays: Mapping[str, np.ndarray] = {}
        if maps is not None:
            arrays = encode_rows(self.codec, maps)
        elif len(images):
            arrays = self.extractor(images)
        return UnitValues(task.rows, self._merged(task, arrays, kept))

    @cached_property
    def extractor(self) -> Extractor:
        """Made when it is first needed."""
        return self.make_extractor()

    @cached_property
    def inputs(self) -> _UnitInputs:
        """Opened when they are first needed: they hold the crops' index."""
        return _UnitInputs(self)

    def _merged(
        self, task: UnitTask, computed: Mapping[str, np.ndarray], kept: tuple[np.ndarray, Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """A unit's arrays from the rows that are kept, where the mask says so, and the computed others."""
        is_kept, old = kept
        if is_kept.all():
            return dict(old)
        view, names = view_number(task.unit.group), task.rows.loc[~is_kept, "frame_id"]
        new = {**computed, PARAMS: np.stack([view_params(name, view, self.views).as_row() for name in names])}
        if not is_kept.any():
            return new
        merged = {}
        for spec in self.arrays:
            merged[spec.name] = np.empty((len(is_kept), *spec.row_shape), spec.dtype)
            merged[spec.name][is_kept] = old[spec.name][is_kept]
            merged[spec.name][~is_kept] = new[spec.name]
        return merged


class _UnitInputs:
    """Reads what a unit is computed from; a block's crops are read once for all its views."""

    def __init__(self, source: UnitSource) -> None:
        self._source = weakref.proxy(source)  # which holds these inputs: a cycle would keep their files open
        self._crops = CropReader(source.crops_folder, revision=source.crops_revision)
        self._crop_row = self._crops.index.set_index("frame_id")["row"]
        self._exact = None if source.exact is None else open_cache(source.exact)
        self._exact_rows = None
        if self._exact is not None:
            self._exact_rows = self._exact.index.set_index(["frame_id", "key"])["row"]
        self._loading = Lock()
        self._loaded: dict[tuple[str, ...], np.ndarray] = {}

    def of(self, task: UnitTask) -> _UnitInput:
        """What the task needs."""
        is_kept = np.zeros(len(task.rows), bool)
        kept: dict[str, np.ndarray] = {}
        if task.is_damaged:
            task, is_kept, kept = self._salvaged(task)
        todo = task.rows[~is_kept]
        maps = self._exact_maps(todo, view_number(task.unit.group))
        images = np.empty(0) if maps is not None or todo.empty else self._images(todo, view_number(task.unit.group))
        return _UnitInput(task, (is_kept, kept), maps, images)

    def _salvaged(self, task: UnitTask) -> tuple[UnitTask, np.ndarray, dict[str, np.ndarray]]:
        """A damaged unit's task with all rows that can be read, also dead ones, which stale revisions may name."""
        source = self._source
        first = task.unit.block * source.block_rows
        wanted = task.rows["row"].to_numpy() - first
        dead = np.setdiff1d(np.arange(source.block_rows), wanted)
        is_good, _ = readable_rows(source.folder, source.arrays, task.unit, dead, block_rows=source.block_rows)
        nameless = pd.DataFrame({"frame_id": "", "key": "", "row": first + dead[is_good]})
        rows = pd.concat([task.rows[["frame_id", "key", "row"]], nameless]).sort_values("row", ignore_index=True)
        slots = rows["row"].to_numpy() - first
        is_kept, kept = readable_rows(source.folder, source.arrays, task.unit, slots, block_rows=source.block_rows)
        return UnitTask(task.unit, rows, is_damaged=True), is_kept, kept

    def _exact_maps(self, todo: pd.DataFrame, view: int) -> dict[str, np.ndarray] | None:
        """fp16 maps of all frames, or None where the exact cache lacks one."""
        if self._exact is None or self._exact_rows is None or todo.empty or view >= self._exact.num_views:
            return None
        rows = self._exact_rows.reindex(pd.MultiIndex.from_frame(todo[["frame_id", "key"]]))
        return None if rows.isna().any() else self._exact.read(rows.to_numpy(np.int64), view=view)

    def _images(self, todo: pd.DataFrame, view: int) -> np.ndarray:
        names = tuple(todo["frame_id"])
        params = [view_params(name, view, self._source.views) for name in names]
        crops = zip(self._crops_of(names), params, strict=True)
        return np.stack([render_view(crop, each, view_px=self._source.view_px) for crop, each in crops])

    def _crops_of(self, names: tuple[str, ...]) -> np.ndarray:
        with self._loading:  # threads work on the views of a block, the last ones of the block before
            if names not in self._loaded:
                if len(self._loaded) == _MAX_LOADED:
                    del self._loaded[next(iter(self._loaded))]
                self._loaded[names] = self._crops.read_crops(self._crop_row.loc[list(names)].to_numpy())
            return self._loaded[names]


def plan_refresh(
    root: Path, frames: pd.DataFrame, crops: pd.DataFrame, *, format: StoreFormat, views: ViewConfig
) -> Plan:
    """What `refresh` would keep, compute and drop, and how many bytes it would write; changes nothing.

    crops: frame_id, key and status of all crops, as `CropReader.listed` has them.
    """
    return plan_store(format.folder_in(root), format, _wanted(frames, crops), view_groups(views))


def refresh(
    root: Path,
    frames: pd.DataFrame,
    crops: CropReader,
    make_extractor: Callable[[], Extractor],
    *,
    format: StoreFormat,
    codec: Codec,
    views: ViewConfig,
    view_px: int,
    basis: bytes | None = None,
    exact: Path | None = None,
    executor: Executor | None = None,
    provenance: Mapping[str, Any] = MappingProxyType({}),
    step: ProgressCallback = no_progress,
) -> CacheReader:
    """Bring the cache of `format` below `root` up to date, and return a reader of its newest revision.

    frames: frame_id, part. A frame is computed if it is new, if its image or box changed, if its shard is damaged, or
    for views that it lacks. A killed refresh goes on where it was; one that finds nothing to do publishes nothing. With
    an executor, its workers compute and stage whole blocks and this process publishes them; the bytes are the same.
    `step` is told of views of frames as they are done. Raises `StoreError` if another process writes this cache, and,
    once all other blocks are done, for blocks that failed: then nothing is published, and what is done is kept.
    """
    folder = format.folder_in(root)
    with open_writer(folder, format) as writer:
        if basis is not None and not _holds(folder / CODEC_NAME, basis):
            write_bytes_atomically(folder / CODEC_NAME, basis)
        plan = writer.plan(_wanted(frames, crops.listed), view_groups(views))
        rows_in = {block: plan.rows_in(block) for block in {unit.block for unit in plan.units}}
        blocks: dict[int, list[UnitTask]] = {}
        for unit in plan.units:
            blocks.setdefault(unit.block, []).append(UnitTask(unit, rows_in[unit.block], unit in writer.damaged))
        source = UnitSource(
            folder=folder,
            arrays=format.arrays,
            block_rows=writer.block_rows,
            crops_folder=crops.folder,
            crops_revision=crops.revision,
            views=views,
            view_px=view_px,
            make_extractor=make_extractor,
            codec=codec,
            exact=exact,
        )
        if executor is None:
            failed = _write_here(writer, source, blocks, step)
        else:
            failed = _write_by_workers(writer, source, blocks, executor, step)
        raise_failures(failed, num_all=len(blocks), what=f"blocks of {folder}")
        used = {"folder": crops.folder.name, "revision": crops.revision}
        fidelity = measured_fidelity(folder, codec, plan, format.document)
        made_with = {**provenance, "crops": used, "fidelity": fidelity, "versions": versions()}
        writer.publish(plan, provenance=made_with)
    return open_cache(folder)


def view_groups(views: ViewConfig) -> list[str]:
    """Groups of the views, in their order."""
    return [view_group(view) for view in range(views.num_views)]


def measured_fidelity(folder: Path, codec: Codec, plan: Plan, document: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of a lossy profile: the mean relative L2 error a map over up to 256 of its frames, clean.

    And, where it was measured for this FAN (`benchmarks/fidelity.py`), what the profile costs in F1.
    """
    specs = {spec.name: spec for spec in codec.arrays}
    if RELATIVE_L2 not in specs:
        return {"relative_l2": dict.fromkeys(codec.inputs, 0.0), "f1": None}
    rows = plan.index.loc[plan.index["row"] != NO_ROW, "row"].to_numpy()[:_FIDELITY_ROWS]
    blocks, slots = np.divmod(rows, plan.block_rows)
    losses = np.empty((len(rows), *specs[RELATIVE_L2].row_shape), np.float32)
    for block in np.unique(blocks).tolist():
        at = np.flatnonzero(blocks == block)
        read_shard(
            shard_path(folder, Unit(block, view_group(0)), specs[RELATIVE_L2]),
            slots[at],
            spec=specs[RELATIVE_L2],
            block_rows=plan.block_rows,
            out=losses,
            at=at,
        )
    means = losses.mean(0, dtype=np.float64).tolist() if len(rows) else []
    measured = json.loads(FIDELITY_FILE.read_bytes()).get(document["features"]["sha256"], {})
    return {
        "relative_l2": dict(zip(specs[RELATIVE_L2].attributes["of"], means, strict=False)),
        "num_frames": len(rows),
        "f1": measured.get(codec.profile),
    }


def _wanted(frames: pd.DataFrame, crops: pd.DataFrame) -> pd.DataFrame:
    """The table that the store plans from: each frame with its crop's key and status."""
    wanted = frames[["frame_id", "part"]].merge(crops[["frame_id", "key", "status"]], on="frame_id", how="left")
    without = wanted.loc[wanted["key"].isna(), "frame_id"]
    if len(without):
        raise DataError(f"{len(without)} frames, such as {without.iloc[0]}, have no crop; refresh the crops first")
    return wanted[["frame_id", "key", "part", "status"]]


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


_Blocks = Mapping[int, list[UnitTask]]


def _write_here(
    writer: StoreWriter, source: UnitSource, blocks: _Blocks, step: ProgressCallback
) -> dict[str, Exception]:
    """Returns the blocks that failed, by name."""
    failed: dict[str, Exception] = {}
    last_of = {tasks[-1].unit for tasks in blocks.values()}
    tasks = (task for tasks in blocks.values() for task in tasks)
    for (task, unit), committed in prefetch_map(partial(_commit, writer), source.staged(tasks), num_threads=1):
        committed.result()
        if isinstance(unit, Exception):
            failed[_name(task.unit.block)] = unit
            continue
        step(len(task.rows), _name(task.unit.block) if task.unit in last_of else "")
    return failed


def _commit(writer: StoreWriter, staged: tuple[UnitTask, StagedUnit | Exception]) -> None:
    if isinstance(staged[1], StagedUnit):
        writer.commit_unit(staged[1])


def _discard(staged: StagedUnit | Exception) -> None:
    if isinstance(staged, StagedUnit):
        staged.discard()


def _write_by_workers(
    writer: StoreWriter, source: UnitSource, blocks: _Blocks, executor: Executor, step: ProgressCallback
) -> dict[str, Exception]:
    """A block's tasks go to one worker, which stages its shards; this process alone gives them their names."""
    failed: dict[str, Exception] = {}
    for tasks, staged in outcomes(partial(_stage_block, pickle.dumps(source)), blocks.values(), executor):
        name = _name(tasks[0].unit.block)
        if isinstance(staged, Exception):
            failed[name] = staged
            continue
        for unit in staged:
            writer.commit_unit(unit)
        step(sum(len(task.rows) for task in tasks), name)
    return failed


def _name(block: int) -> str:
    return f"block {block}"


_unpickled = lru_cache(maxsize=1)(pickle.loads)
"""A worker keeps the last source, and so its network, from block to block."""


def _stage_block(pickled_source: bytes, tasks: list[UnitTask]) -> list[StagedUnit]:
    source: UnitSource = _unpickled(pickled_source)
    staged: list[StagedUnit] = []
    try:
        for _, unit in source.staged(tasks):
            if isinstance(unit, Exception):
                raise unit
            staged.append(unit)
    except BaseException:
        for unit in staged:  # on a full disk they would be in the way
            unit.discard()
        raise
    return staged

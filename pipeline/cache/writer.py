"""Bringing a feature cache up to date: render the views of the faces that changed, extract, write, publish."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from pipeline.cache.codecs import LOSS, Codec, encode_rows
from pipeline.cache.format import CODEC_NAME, PARAMS, view_group, view_number
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.config import ViewConfig
from pipeline.crops import CropReader
from pipeline.errors import CacheError, DataError
from pipeline.files import write_bytes_atomically
from pipeline.progress import Step
from pipeline.store.plan import NO_ROW, Plan, Unit
from pipeline.store.reader import readable_rows
from pipeline.store.revisions import shard_path
from pipeline.store.shards import ArraySpec, read_shard
from pipeline.store.writer import StagedUnit, StoreFormat, StoreWriter, open_writer, plan_store, stage_unit
from pipeline.views import render_view, view_params

Extractor = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Images RGB uint8 (n, S, S, 3) to what the codec stores of their maps, (n, *row_shape) by array name."""

FIDELITY_FILE = Path(__file__).with_name("fidelity.json")

_FIDELITY_ROWS = 256
_ORPHAN_CHECK_S = 1.0


@dataclass(frozen=True)
class UnitTask:
    """A unit to compute: its rows of the plan, and whether some may still be good in its damaged shards."""

    unit: Unit
    rows: pd.DataFrame
    is_damaged: bool


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

    def computed(self, tasks: Iterable[UnitTask]) -> Iterator[tuple[UnitTask, dict[str, np.ndarray]]]:
        """Each task's arrays; its inputs are read and rendered one task ahead. A block's tasks follow each other."""
        inputs = _UnitInputs(self)
        extractor: Extractor | None = None
        for task, kept, maps, images in _one_ahead(inputs.of, tasks):
            arrays: Mapping[str, np.ndarray] = {}
            if maps is not None:
                arrays = encode_rows(self.codec, maps)
            elif len(images):
                extractor = extractor or self.make_extractor()
                arrays = extractor(images)
            yield task, self._merged(task, arrays, kept)

    def _merged(
        self, task: UnitTask, computed: Mapping[str, np.ndarray], kept: tuple[np.ndarray, Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """A unit's arrays from the rows that are kept, where the mask says so, and the computed others."""
        is_kept, old = kept
        merged = {}
        for spec in self.arrays:
            merged[spec.name] = np.empty((len(is_kept), *spec.row_shape), spec.dtype)
            if is_kept.any():
                merged[spec.name][is_kept] = old[spec.name][is_kept]
            if spec.name != PARAMS and not is_kept.all():
                merged[spec.name][~is_kept] = computed[spec.name]
        view = view_number(task.unit.group)
        for i in np.flatnonzero(~is_kept):
            merged[PARAMS][i] = view_params(task.rows["frame_id"].iloc[i], view, self.views).as_row()
        return merged


class _UnitInputs:
    """Reads what a unit is computed from; a block's crops are read once for all its views."""

    def __init__(self, source: UnitSource) -> None:
        self._source = source
        self._crops = CropReader(source.crops_folder, revision=source.crops_revision)
        self._crop_row = self._crops.index.set_index("frame_id")["row"]
        self._exact = None if source.exact is None else open_cache(source.exact)
        self._exact_rows = None
        if self._exact is not None:
            self._exact_rows = self._exact.index.set_index(["frame_id", "key"])["row"]
        self._loaded: tuple[list[str], np.ndarray] | None = None

    def of(
        self, task: UnitTask
    ) -> tuple[UnitTask, tuple[np.ndarray, dict[str, np.ndarray]], dict[str, np.ndarray] | None, np.ndarray]:
        """The task, good rows of its damaged shards with their mask, and exact maps or images of the others."""
        is_kept = np.zeros(len(task.rows), bool)
        kept: dict[str, np.ndarray] = {}
        if task.is_damaged:
            task, is_kept, kept = self._salvaged(task)
        todo = task.rows[~is_kept]
        maps = self._exact_maps(todo, view_number(task.unit.group))
        images = np.empty(0) if maps is not None or todo.empty else self._images(todo, view_number(task.unit.group))
        return task, (is_kept, kept), maps, images

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
        names = todo["frame_id"].tolist()
        if self._loaded is None or self._loaded[0] != names:
            self._loaded = names, self._crops.read_crops(self._crop_row.loc[names].to_numpy())
        source = self._source
        params = [view_params(name, view, source.views) for name in names]
        crops = zip(self._loaded[1], params, strict=True)
        return np.stack([render_view(crop, each, view_px=source.view_px) for crop, each in crops])


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
    num_workers: int = 1,
    provenance: Mapping[str, Any] = MappingProxyType({}),
    step: Step = lambda _: None,
) -> CacheReader:
    """Bring the cache of `format` below `root` up to date, and return a reader of its newest revision.

    frames: frame_id, part. A frame is computed if it is new, if its image or box changed, if its shard is damaged, or
    for views that it lacks. A killed refresh goes on where it was; one that finds nothing to do publishes nothing. With
    several workers, processes compute and stage whole blocks and this one publishes them; the bytes are the same.
    `step` is told of views of frames as they are done. Raises `CacheError` if another process writes this cache.
    """
    folder = format.folder_in(root)
    with open_writer(folder, format) as writer:
        if basis is not None and not _holds(folder / CODEC_NAME, basis):
            write_bytes_atomically(folder / CODEC_NAME, basis)
        plan = writer.plan(_wanted(frames, crops.listed), view_groups(views))
        rows_of = {block: plan.rows_of(block) for block in {unit.block for unit in plan.units}}
        tasks = [UnitTask(unit, rows_of[unit.block], unit in writer.damaged) for unit in plan.units]
        source = UnitSource(
            folder=folder, arrays=format.arrays, block_rows=writer.block_rows, crops_folder=crops.folder,
            crops_revision=crops.revision, views=views, view_px=view_px, make_extractor=make_extractor, codec=codec,
            exact=exact,
        )
        if tasks and num_workers > 1:
            _write_by_workers(writer, source, tasks, num_workers, step)
        elif tasks:
            _write_here(writer, source, tasks, step)
        used = {"folder": crops.folder.name, "revision": crops.revision}
        fidelity = stated_fidelity(folder, codec, plan, format.document)
        writer.publish(plan, provenance={**provenance, "crops": used, "fidelity": fidelity})
    return open_cache(folder)


def view_groups(views: ViewConfig) -> list[str]:
    """Groups of the views, in their order."""
    return [view_group(view) for view in range(views.num_views)]


def stated_fidelity(folder: Path, codec: Codec, plan: Plan, document: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of a lossy profile: the mean relative L2 error a map over up to 256 of its frames, clean.

    And, where it was measured for this FAN (`benchmarks/fidelity.py`), what the profile costs in F1.
    """
    specs = {spec.name: spec for spec in codec.arrays}
    if LOSS not in specs:
        return {"relative_l2": dict.fromkeys(codec.inputs, 0.0), "f1": None}
    rows = plan.index.loc[plan.index["row"] != NO_ROW, "row"].to_numpy()[:_FIDELITY_ROWS]
    blocks, slots = np.divmod(rows, plan.block_rows)
    losses = np.empty((len(rows), *specs[LOSS].row_shape), np.float32)
    for block in np.unique(blocks).tolist():
        at = np.flatnonzero(blocks == block)
        read_shard(shard_path(folder, Unit(block, view_group(0)), specs[LOSS]), slots[at], spec=specs[LOSS],
                   block_rows=plan.block_rows, out=losses, at=at)
    means = losses.mean(0, dtype=np.float64).tolist() if len(rows) else []
    measured = json.loads(FIDELITY_FILE.read_bytes()).get(document["features"]["sha256"], {})
    return {"relative_l2": dict(zip(specs[LOSS].attributes["of"], means, strict=False)), "num_frames": len(rows),
            "f1": measured.get(codec.profile)}


def _wanted(frames: pd.DataFrame, crops: pd.DataFrame) -> pd.DataFrame:
    """The table that the store plans from: each frame with its crop's key and status."""
    wanted = frames[["frame_id", "part"]].merge(crops[["frame_id", "key", "status"]], on="frame_id", how="left")
    without = wanted.loc[wanted["key"].isna(), "frame_id"]
    if len(without):
        raise DataError(f"{len(without)} frames, such as {without.iloc[0]}, have no crop; refresh the crops first")
    return wanted[["frame_id", "key", "part", "status"]]


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def _write_here(writer: StoreWriter, source: UnitSource, tasks: list[UnitTask], step: Step) -> None:
    with ThreadPoolExecutor(1) as disk:  # writes one unit while the next is extracted
        writing: Future[None] | None = None
        for task, arrays in source.computed(tasks):
            if writing is not None:
                writing.result()
            writing = disk.submit(writer.write_unit, task.unit, task.rows, arrays)
            step(len(task.rows))
        if writing is not None:
            writing.result()


def _write_by_workers(
    writer: StoreWriter, source: UnitSource, tasks: list[UnitTask], num_workers: int, step: Step
) -> None:
    """A block's tasks go to one process, which stages its shards; this process alone gives them their names."""
    blocks: dict[int, list[UnitTask]] = {}
    for task in tasks:
        blocks.setdefault(task.unit.block, []).append(task)
    num_threads = max(1, (os.cpu_count() or 1) // num_workers)
    before = set(active_children())
    pool = ProcessPoolExecutor(
        min(num_workers, len(blocks)), mp_context=get_context("spawn"), initializer=_start_worker,
        initargs=(source, num_threads, os.getpid()),
    )
    try:
        for future in as_completed([pool.submit(_stage_block, block) for block in blocks.values()]):
            for staged in future.result():
                writer.commit_unit(staged)
                step(len(staged.frame_ids))
    except BrokenProcessPool:
        for worker in set(active_children()) - before:  # one that started as another died would wait for ever
            worker.kill()
        raise CacheError(
            f"a worker process of {source.folder} died, perhaps for lack of memory; what was finished is kept: "
            "run this again, with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_worker_source: UnitSource | None = None


def _start_worker(source: UnitSource, num_threads: int, parent: int) -> None:
    global _worker_source  # noqa: PLW0603 - a worker process has one source for its whole life
    _worker_source = source
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """A coordinator that is killed takes its workers along; until then they can only stage, never publish."""
    while os.getppid() == parent:
        time.sleep(_ORPHAN_CHECK_S)
    os._exit(1)


def _stage_block(tasks: list[UnitTask]) -> list[StagedUnit]:
    source = _worker_source
    assert source is not None
    return [
        stage_unit(source.folder, source.arrays, task.unit, task.rows, arrays, block_rows=source.block_rows)
        for task, arrays in source.computed(tasks)
    ]


_In = TypeVar("_In")
_Out = TypeVar("_Out")


def _one_ahead(function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """`map`, a thread ahead by one item."""
    with ThreadPoolExecutor(1) as pool:
        coming: Future[_Out] | None = None
        for item in items:
            ready, coming = coming, pool.submit(function, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()

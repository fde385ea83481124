"""Build a feature cache or bring it up to date: plan, compute the missing units, commit them, publish a revision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cache.codecs import RELATIVE_L2, Codec
from pipeline.cache.crops import CropReader
from pipeline.cache.format import CODEC_NAME, view_group
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.cache.units import Extractor, UnitSpec, UnitTask, UnitWorker, stage_block
from pipeline.config import ViewConfig
from pipeline.errors import DataError
from pipeline.fingerprint import versions
from pipeline.runtime.atomic import write_bytes_atomically
from pipeline.runtime.executors import LocalWorkers, Result, WorkerPool, Workers, close, raise_failures
from pipeline.runtime.prefetch import prefetch_map
from pipeline.runtime.progress import ProgressCallback, no_progress
from pipeline.store.format import StoreFormat
from pipeline.store.plan import NO_ROW, Plan, Unit
from pipeline.store.revisions import shard_path
from pipeline.store.shards import read_shard
from pipeline.store.writer import StagedUnit, StoreWriter, open_writer, plan_store

FIDELITY_FILE = Path(__file__).with_name("fidelity.json")

_FIDELITY_ROWS = 256

_Blocks = Mapping[int, list[UnitTask]]
"""The tasks of each block."""
_Staged = Result[list[UnitTask], list[StagedUnit]]


@dataclass(frozen=True, kw_only=True)
class CacheBuild:
    """A feature cache and how its values are computed.

    root: folder of the data set's caches. view_px: side of a view, the FAN's input. make_extractor: called once per
    process, if there is anything to extract. basis: bytes of the basis file of the profile compact. exact: folder of a
    cache with the same settings in the profile exact, whose maps are encoded instead of running the FAN. provenance:
    what the manifest records beside counts and versions.
    """

    root: Path
    format: StoreFormat
    codec: Codec
    views: ViewConfig
    view_px: int
    make_extractor: Callable[[], Extractor]
    basis: bytes | None = None
    exact: Path | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The cache's folder, named by its fingerprint."""
        return self.format.folder_in(self.root)

    @property
    def groups(self) -> list[str]:
        """Groups of the views, in their order."""
        return [view_group(view) for view in range(self.views.num_views)]

    def plan(self, frames: pd.DataFrame, crops: pd.DataFrame) -> Plan:
        """Return what `run` would keep, compute and drop; changes nothing.

        frames: frame_id, part. crops: frame_id, key and status of all crops, as `CropReader.listed` has them.
        """
        plan = plan_store(self.folder, self.format, _wanted(frames, crops), self.groups)
        return replace(plan, is_new=plan.is_new or not self._holds_basis)

    def run(
        self,
        frames: pd.DataFrame,
        crops: CropReader,
        *,
        workers: Workers = LocalWorkers(),  # noqa: B008 - frozen
        on_progress: ProgressCallback = no_progress,
    ) -> CacheReader:
        """Compute what is missing, publish it as a revision and return a reader of the newest one.

        frames: frame_id, part. A frame is computed if it is new, if its image or box changed, if its shard is damaged,
        and for views that it lacks. A killed build resumes; one that finds nothing to do publishes nothing. `workers`
        compute and stage whole blocks, and this process commits them; the bytes are the same. Raises `StoreError` if
        another process writes this cache, and, once all other blocks are committed, for blocks that failed: then
        nothing is published, and finished work is kept.
        """
        folder = self.folder
        with open_writer(folder, self.format) as writer:
            if self.basis is not None and not self._holds_basis:
                write_bytes_atomically(folder / CODEC_NAME, self.basis)
            plan = writer.plan(_wanted(frames, crops.listed), self.groups)
            blocks = _tasks_by_block(plan, writer.damaged)
            worker = UnitWorker(self._unit_spec(writer.block_rows, crops))
            with workers.open(worker, num_tasks=len(blocks)) as pool:
                failed = _commit_all(writer, worker, blocks, pool, on_progress)
            raise_failures(failed, num_all=len(blocks), what=f"blocks of {folder}")
            provenance = {
                **self.provenance,
                "crops": {"folder": crops.folder.name, "revision": crops.revision},
                "versions": versions(),
                "fidelity": measure_fidelity(folder, self.codec, plan, self.format.document),
            }
            writer.publish(plan, provenance=provenance)
        return open_cache(folder)

    @property
    def _holds_basis(self) -> bool:
        """Whether the cache's folder holds the basis, or needs none."""
        path = self.folder / CODEC_NAME
        return self.basis is None or (path.is_file() and path.read_bytes() == self.basis)

    def _unit_spec(self, block_rows: int, crops: CropReader) -> UnitSpec:
        return UnitSpec(
            folder=self.folder,
            arrays=self.format.arrays,
            block_rows=block_rows,
            crops_folder=crops.folder,
            crops_revision=crops.revision,
            views=self.views,
            view_px=self.view_px,
            make_extractor=self.make_extractor,
            codec=self.codec,
            exact=self.exact,
        )


def _tasks_by_block(plan: Plan, damaged: set[Unit]) -> _Blocks:
    rows = {block: plan.rows_in(block) for block in {unit.block for unit in plan.units}}
    blocks: dict[int, list[UnitTask]] = {}
    for unit in plan.units:
        blocks.setdefault(unit.block, []).append(UnitTask(unit, rows[unit.block], unit in damaged))
    return blocks


def _commit_all(
    writer: StoreWriter,
    worker: UnitWorker,
    blocks: _Blocks,
    pool: WorkerPool[UnitWorker] | None,
    on_progress: ProgressCallback,
) -> dict[str, Exception]:
    """Commit units on a thread while further ones are staged; return the error of each failed block by its name."""
    failed: dict[str, Exception] = {}
    last_units = {tasks[-1].unit for tasks in blocks.values()}  # a block is named in the log once it is complete

    def commit(result: _Staged) -> None:
        for unit in result.value or ():
            writer.commit_unit(unit)

    staged = _stage_all(worker, blocks, pool)
    try:
        for result, committed in prefetch_map(commit, staged, num_threads=1):
            committed.result()
            last = result.task[-1]
            if result.error is not None:
                failed[_block_name(last)] = result.error
                continue
            num_rows = sum(len(task.rows) for task in result.task)
            on_progress(num_rows, _block_name(last) if last.unit in last_units else "")
    finally:
        close(staged)
    return failed


def _stage_all(worker: UnitWorker, blocks: _Blocks, pool: WorkerPool[UnitWorker] | None) -> Iterator[_Staged]:
    """Stage unit by unit in this process, or block by block in a pool."""
    if pool is not None:
        yield from pool.run(stage_block, blocks.values())
        return
    for result in worker.stage_all(task for tasks in blocks.values() for task in tasks):
        yield Result([result.task], None if result.value is None else [result.value], result.error)


def _block_name(task: UnitTask) -> str:
    return f"block {task.unit.block}"


def measure_fidelity(folder: Path, codec: Codec, plan: Plan, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest states of a lossy profile: each map's mean relative L2 error, over up to 256 clean rows.

    Where it was measured for this FAN (`benchmarks/fidelity.py`), also what the profile costs in F1.
    """
    specs = {spec.name: spec for spec in codec.arrays}
    if RELATIVE_L2 not in specs:
        return {"relative_l2": dict.fromkeys(codec.inputs, 0.0), "f1": None}
    rows = plan.index.loc[plan.index["row"] != NO_ROW, "row"].to_numpy()[:_FIDELITY_ROWS]
    blocks, slots = np.divmod(rows, plan.block_rows)
    errors = np.empty((len(rows), *specs[RELATIVE_L2].row_shape), np.float32)
    for block in np.unique(blocks).tolist():
        at = np.flatnonzero(blocks == block)
        path = shard_path(folder, Unit(block, view_group(0)), specs[RELATIVE_L2])
        read_shard(path, slots[at], spec=specs[RELATIVE_L2], block_rows=plan.block_rows, out=errors, at=at)
    means = errors.mean(0, dtype=np.float64).tolist() if len(rows) else []
    measured = json.loads(FIDELITY_FILE.read_bytes()).get(document["features"]["sha256"], {})
    return {
        "relative_l2": dict(zip(specs[RELATIVE_L2].attributes["of"], means, strict=False)),
        "num_frames": len(rows),
        "f1": measured.get(codec.profile),
    }


def _wanted(frames: pd.DataFrame, crops: pd.DataFrame) -> pd.DataFrame:
    """Join each frame with its crop's key and status: the table that the store plans from."""
    wanted = frames[["frame_id", "part"]].merge(crops[["frame_id", "key", "status"]], on="frame_id", how="left")
    without = wanted.loc[wanted["key"].isna(), "frame_id"]
    if len(without):
        raise DataError(f"{len(without)} frames, such as {without.iloc[0]}, have no crop; refresh the crops first")
    return wanted[["frame_id", "key", "part", "status"]]

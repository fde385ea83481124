"""One unit of a feature cache, in three steps: load its inputs, compute its arrays, stage its shards.

A unit is one view of one block of frames. `UnitSpec` says how units are computed and travels to other processes;
`UnitWorker` computes them there. Committing is the writer's part, see `pipeline.cache.build`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.cache.codecs import Codec, encode_rows
from pipeline.cache.crops import CropReader
from pipeline.cache.format import PARAMS, view_number
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.config import ViewConfig
from pipeline.faces.views import render_views, view_params
from pipeline.runtime.executors import Result, apply_step
from pipeline.store.plan import Unit
from pipeline.store.reader import readable_rows
from pipeline.store.shards import ArraySpec
from pipeline.store.writer import StagedUnit, stage_unit

Extractor = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Images RGB uint8 (n, S, S, 3) -> stored arrays (n, *row_shape) by name."""

_MAX_BYTES_AHEAD = 2**30
_MAX_LOADED_BLOCKS = 2


@dataclass(frozen=True)
class UnitTask:
    """A unit to compute: its rows of the plan, and whether its damaged shards may still have good rows."""

    unit: Unit
    rows: pd.DataFrame
    is_damaged: bool

    @property
    def view(self) -> int:
        """The unit's view."""
        return view_number(self.unit.group)


class UnitInput(NamedTuple):
    """What a unit is computed from.

    rows: the task's rows, and dead rows that are still good in a damaged shard. is_kept: (n,) bool, rows whose
    stored arrays `kept` are good. For the other rows `maps` has exact maps, or, if it is None, `images` the views.
    """

    rows: pd.DataFrame
    is_kept: np.ndarray
    kept: Mapping[str, np.ndarray]
    maps: dict[str, np.ndarray] | None
    images: np.ndarray


class UnitValues(NamedTuple):
    """A unit's rows and its arrays (n, *row_shape) by name."""

    rows: pd.DataFrame
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class UnitSpec:
    """Everything that a process needs in order to compute units of one cache.

    make_extractor: called once per process, if there is anything to extract. exact: folder of a cache with the same
    settings in the profile exact; its maps are encoded where it has them, and the FAN does not run.
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


class UnitWorker:
    """Computes units; opens crops, exact cache and network when it first needs them. Threads may share it."""

    def __init__(self, spec: UnitSpec) -> None:
        self.spec = spec
        self._opening = RLock()  # threads share what is opened once
        self._loaded: dict[tuple[str, ...], np.ndarray] = {}

    def __reduce__(self) -> tuple[type[UnitWorker], tuple[UnitSpec]]:
        return UnitWorker, (self.spec,)  # open files and networks stay in their process

    def compute_all(self, tasks: Iterable[UnitTask]) -> Iterator[Result[UnitTask, UnitValues]]:
        """Load and compute tasks in order; threads load ahead. Tasks of one block should be neighbours."""
        loaded = apply_step(
            lambda task, _: self.load(task), (Result(task) for task in tasks), num_threads=self._num_threads
        )
        return apply_step(self.compute, loaded)

    def stage_all(self, tasks: Iterable[UnitTask]) -> Iterator[Result[UnitTask, StagedUnit]]:
        """Load, compute and stage tasks in order; threads load ahead and stage behind, so a GPU waits for neither."""
        return apply_step(
            self.stage, self.compute_all(tasks), num_threads=self._num_threads, discard=StagedUnit.discard
        )

    @property
    def _num_threads(self) -> int:
        """Units to load ahead, and as many to stage behind."""
        unit_bytes = self.spec.block_rows * sum(array.row_bytes for array in self.spec.arrays)
        return max(1, min(os.cpu_count() or 1, _MAX_BYTES_AHEAD // unit_bytes))

    # ------------------------------------------------------------------------------------------------------------ load

    def load(self, task: UnitTask) -> UnitInput:
        """Read a unit's inputs: good rows of damaged shards, then exact maps or rendered views of the other rows."""
        rows, is_kept = task.rows, np.zeros(len(task.rows), bool)
        kept: dict[str, np.ndarray] = {}
        if task.is_damaged:
            rows, is_kept, kept = self._salvage(task)
        todo = rows[~is_kept]
        maps = self._exact_maps(todo, task.view)
        images = np.empty(0) if maps is not None or todo.empty else self._render(todo, task.view)
        return UnitInput(rows, is_kept, kept, maps, images)

    def _salvage(self, task: UnitTask) -> tuple[pd.DataFrame, np.ndarray, dict[str, np.ndarray]]:
        """Find all readable rows of a damaged unit, dead ones included: older revisions may list them."""
        spec = self.spec
        first = task.unit.block * spec.block_rows
        dead = np.setdiff1d(np.arange(spec.block_rows), task.rows["row"].to_numpy() - first)
        is_good, _ = readable_rows(spec.folder, spec.arrays, task.unit, dead, block_rows=spec.block_rows)
        nameless = pd.DataFrame({"frame_id": "", "key": "", "row": first + dead[is_good]})
        rows = pd.concat([task.rows[["frame_id", "key", "row"]], nameless]).sort_values("row", ignore_index=True)
        slots = rows["row"].to_numpy() - first
        return rows, *readable_rows(spec.folder, spec.arrays, task.unit, slots, block_rows=spec.block_rows)

    def _exact_maps(self, todo: pd.DataFrame, view: int) -> dict[str, np.ndarray] | None:
        """Read the fp16 maps of all rows; None if the exact cache lacks one of them."""
        with self._opening:
            exact = self._exact
        if exact is None or todo.empty or view >= exact[0].num_views:
            return None
        cache, row_by_frame = exact
        rows = row_by_frame.reindex(pd.MultiIndex.from_frame(todo[["frame_id", "key"]]))
        return None if rows.isna().any() else cache.read(rows.to_numpy(np.int64), view=view)

    def _render(self, todo: pd.DataFrame, view: int) -> np.ndarray:
        """Render a view of each row's crop: RGB uint8 (n, S, S, 3)."""
        frame_ids = tuple(todo["frame_id"])
        crops = self._read_crops(frame_ids)
        return render_views(crops, frame_ids, view=view, settings=self.spec.views, view_px=self.spec.view_px)

    def _read_crops(self, frame_ids: tuple[str, ...]) -> np.ndarray:
        """Read crops (n, S, S, 3); a block's crops are kept for its other views."""
        with self._opening:
            crops, row_by_frame = self._crops
            if frame_ids not in self._loaded:
                if len(self._loaded) == _MAX_LOADED_BLOCKS:
                    del self._loaded[next(iter(self._loaded))]
                self._loaded[frame_ids] = crops.read_crops(row_by_frame.loc[list(frame_ids)].to_numpy())
            return self._loaded[frame_ids]

    @cached_property
    def _crops(self) -> tuple[CropReader, pd.Series]:
        crops = CropReader(self.spec.crops_folder, revision=self.spec.crops_revision)
        return crops, crops.index.set_index("frame_id")["row"]

    @cached_property
    def _exact(self) -> tuple[CacheReader, pd.Series] | None:
        if self.spec.exact is None:
            return None
        cache = open_cache(self.spec.exact)
        return cache, cache.index.set_index(["frame_id", "key"])["row"]

    # --------------------------------------------------------------------------------------------------------- compute

    def compute(self, task: UnitTask, loaded: UnitInput) -> UnitValues:
        """Extract or encode the rows that need it, and put them beside the rows that are kept."""
        arrays: Mapping[str, np.ndarray] = {}
        if loaded.maps is not None:
            arrays = encode_rows(self.spec.codec, loaded.maps)
        elif len(loaded.images):
            with self._opening:
                extract = self._extractor
            arrays = extract(loaded.images)
        return UnitValues(loaded.rows, self._merge(task, arrays, loaded))

    @cached_property
    def _extractor(self) -> Extractor:
        return self.spec.make_extractor()

    def _merge(self, task: UnitTask, computed: Mapping[str, np.ndarray], loaded: UnitInput) -> Mapping[str, np.ndarray]:
        is_kept = loaded.is_kept
        if is_kept.all():
            return loaded.kept
        frame_ids = loaded.rows.loc[~is_kept, "frame_id"]
        params = [view_params(frame_id, task.view, self.spec.views).as_row() for frame_id in frame_ids]
        new = {**computed, PARAMS: np.stack(params)}
        if not is_kept.any():
            return new
        merged = {}
        for array in self.spec.arrays:
            merged[array.name] = np.empty((len(is_kept), *array.row_shape), array.dtype)
            merged[array.name][is_kept] = loaded.kept[array.name][is_kept]
            merged[array.name][~is_kept] = new[array.name]
        return merged

    # ----------------------------------------------------------------------------------------------------------- stage

    def stage(self, task: UnitTask, values: UnitValues) -> StagedUnit:
        """Write a unit's shards under temporary names; the writer renames them when it commits the unit."""
        spec = self.spec
        return stage_unit(spec.folder, spec.arrays, task.unit, values.rows, values.arrays, block_rows=spec.block_rows)


def stage_block(worker: UnitWorker, tasks: list[UnitTask]) -> list[StagedUnit]:
    """Stage all units of a block, in a worker of a pool; if one fails, none is left behind."""
    staged: list[StagedUnit] = []
    try:
        for result in worker.stage_all(tasks):
            staged.append(result.unwrap())
    except BaseException:
        for unit in staged:  # they would take space on a full disk
            unit.discard()
        raise
    return staged

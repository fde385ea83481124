"""Bringing a feature cache up to date: render the views of the faces that changed, extract, write, publish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cache.format import FEATURES, PARAMS, view_group, view_number
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.config import ViewConfig
from pipeline.crops import CropReader
from pipeline.errors import DataError
from pipeline.progress import Step
from pipeline.store.plan import Plan, Unit
from pipeline.store.writer import StoreFormat, open_writer, plan_store
from pipeline.views import ViewParams, render_view, view_params

Extractor = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Images RGB uint8 (n, S, S, 3) to the stored `FEATURES`, each fp16 (n, C, H, W)."""


def plan_refresh(
    root: Path, frames: pd.DataFrame, crops: CropReader, *, format: StoreFormat, views: ViewConfig
) -> Plan:
    """What `refresh` would keep, compute and drop, and how many bytes it would write; changes nothing."""
    return plan_store(format.folder_in(root), format, _wanted(frames, crops), _groups(views))


def refresh(
    root: Path,
    frames: pd.DataFrame,
    crops: CropReader,
    extractor: Extractor,
    *,
    format: StoreFormat,
    views: ViewConfig,
    view_px: int,
    provenance: Mapping[str, Any] = MappingProxyType({}),
    step: Step = lambda _: None,
) -> CacheReader:
    """Bring the cache of `format` below `root` up to date, and return a reader of its newest revision.

    frames: frame_id, part. A frame is computed if it is new, if its image or box changed, or for views that it lacks. A
    killed refresh goes on where it was; one that finds nothing to do publishes nothing. `step` is told of views
    of frames as they are extracted. Raises `CacheError` if another process writes this cache.
    """
    folder = format.folder_in(root)
    with open_writer(folder, format) as writer:
        plan = writer.plan(_wanted(frames, crops), _groups(views))
        frame_ids = {block: plan.rows_of(block)["frame_id"] for block in {unit.block for unit in plan.units}}
        with ThreadPoolExecutor(1) as disk:  # writes one unit while the next is extracted
            writing: Future[None] | None = None
            for unit, images, params in _rendered(plan.units, frame_ids, crops, views=views, view_px=view_px):
                features = extractor(images)
                arrays = {name: features[name] for name in FEATURES}
                arrays[PARAMS] = np.stack([each.as_row() for each in params])
                if writing is not None:
                    writing.result()
                writing = disk.submit(writer.write_unit, plan, unit, arrays)
                step(len(images))
            if writing is not None:
                writing.result()
        used = {"folder": crops.folder.name, "revision": crops.revision}
        writer.publish(plan, provenance={**provenance, "crops": used})
    return open_cache(folder)


def _wanted(frames: pd.DataFrame, crops: CropReader) -> pd.DataFrame:
    """The table that the store plans from: each frame with its crop's key and status."""
    wanted = frames[["frame_id", "part"]].merge(crops.listed[["frame_id", "key", "status"]], on="frame_id", how="left")
    without = wanted.loc[wanted["key"].isna(), "frame_id"]
    if len(without):
        raise DataError(
            f"{len(without)} frames, such as {without.iloc[0]}, are not in {crops.folder}; refresh the crops first"
        )
    return wanted[["frame_id", "key", "part", "status"]]


def _groups(views: ViewConfig) -> list[str]:
    return [view_group(view) for view in range(views.num_views)]


def _rendered(
    units: Iterable[Unit], frame_ids: Mapping[int, pd.Series], crops: CropReader, *, views: ViewConfig, view_px: int
) -> Iterator[tuple[Unit, np.ndarray, list[ViewParams]]]:
    """Each unit's views, one unit ahead of the extractor; a block's crops are read once for all its views."""
    crop_row = crops.index.set_index("frame_id")["row"]
    loaded: tuple[int, np.ndarray] | None = None

    def render(unit: Unit) -> tuple[Unit, np.ndarray, list[ViewParams]]:
        nonlocal loaded
        names = frame_ids[unit.block]
        if loaded is None or loaded[0] != unit.block:
            loaded = unit.block, crops.read_crops(crop_row.loc[names].to_numpy())
        params = [view_params(name, view_number(unit.group), views) for name in names]
        images = [render_view(crop, each, view_px=view_px) for crop, each in zip(loaded[1], params, strict=True)]
        return unit, np.stack(images), params

    with ThreadPoolExecutor(1) as pool:
        coming = None
        for unit in units:
            ready, coming = coming, pool.submit(render, unit)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()

"""Bring a data set's feature cache up to date: index, detect, crop, extract. Each stage keeps what stands."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial, wraps
from typing import Any, Concatenate, ParamSpec

import pandas as pd
import torch

from pipeline.cache import crops
from pipeline.cache.writer import plan_refresh
from pipeline.cache.writer import refresh as refresh_features
from pipeline.datasets import index as frames
from pipeline.errors import ConfigError
from pipeline.faces.detect import VALUE_COLUMNS, detect_frames, fill_gaps, load_detector
from pipeline.faces.views import check_context
from pipeline.refresh.job import (
    RefreshJob,
    crop_format,
    crop_reader,
    feature_storage,
    find_exact_cache,
    make_extractor,
    prepare_refresh,
    remember_rate,
)
from pipeline.runtime.atomic import TEMP_PREFIX
from pipeline.runtime.executors import outcomes, raise_failures, worker_processes
from pipeline.runtime.progress import ProgressCallback, no_progress, track
from pipeline.runtime.text import listed
from pipeline.store.lock import writer_lock
from pipeline.tables import BOX_COLUMNS, Status, read_table, read_table_if_intact, write_table

logger = logging.getLogger("fantrans")

DETECTION_CHUNK_FRAMES = 512


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """What a stage kept and did."""

    stage: str
    num_kept: int
    num_done: int
    num_dropped: int = 0
    note: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        """One line for people."""
        dropped = f", {self.num_dropped:,} dropped" if self.num_dropped else ""
        done = f"{self.num_done:,} new" if self.num_done else "nothing to do"
        return f"{self.stage}: {done}, {self.num_kept:,} kept{dropped}{self.note and '; ' + self.note}"


def refresh_cache(dataset: str, **settings: Any) -> list[StageSummary]:
    """All four stages; see `job.prepare_refresh` for the settings."""
    job = prepare_refresh(dataset, **settings)
    return [stage(job) for stage in (index_frames, detect_faces, crop_faces, extract_features)]


_P = ParamSpec("_P")
_Stage = Callable[Concatenate[RefreshJob, _P], StageSummary]


def _said(stage: _Stage[_P]) -> _Stage[_P]:
    """The stage, alone at work on its data set, and saying its summary in the log when it ends.

    Raises `StoreError` if another process is at work there.
    """

    @wraps(stage)
    def run(job: RefreshJob, *args: _P.args, **kwargs: _P.kwargs) -> StageSummary:
        with writer_lock(job.work):
            for left in (*job.work.glob(f"{TEMP_PREFIX}*"), *job.work.glob(f"*.parts/{TEMP_PREFIX}*")):
                left.unlink()
            started = time.monotonic()
            summary = replace(stage(job, *args, **kwargs), seconds=time.monotonic() - started)
        logger.info("%s", summary)
        return summary

    return run


def index_layout(job: RefreshJob) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The frame index as the layout says now, and as it was left if it was.

    Raises `ConfigError` for a limit that would shrink it: a frame that leaves the index leaves every cache of the data
    set at its next refresh, and a try must not do that.
    """
    table = frames.index_frames(job.entry.root, job.entry.raw_layout, job.entry.rules, limit=job.limit)
    before = read_table_if_intact(job.catalog.index_path(job.dataset))
    if job.limit is not None and before is not None and len(before) > len(table):
        raise ConfigError(
            f"{job.dataset} has {len(before):,} frames indexed, and --limit {job.limit} would drop "
            f"{len(before) - len(table):,} of them from its caches; leave --limit out, or try in other places: set "
            "FANTRANS_WORK and FANTRANS_CACHE"
        )
    return table, before


@_said
def index_frames(job: RefreshJob) -> StageSummary:
    """Raw layout to `frames.parquet`; a table that would say the same is left alone."""
    table, before = index_layout(job)
    if before is not None and before.equals(table):
        return StageSummary(stage="index", num_kept=len(table), num_done=0)
    frames.write_index(job.work, table)
    counts = frames.summarise(table, job.entry.rules).to_string(index=False, float_format="{:.0f}".format)
    logger.info("frames, and percent positive among known labels:\n%s", counts)
    return StageSummary(stage="index", num_kept=0, num_done=len(table))


@_said
def detect_faces(job: RefreshJob, executor: Executor | None = None) -> StageSummary:
    """Frames to boxes, a chunk at a time; a killed run keeps whole chunks, a changed image is looked at anew.

    With an executor its workers detect, by default `num_workers` processes; the boxes are the same.
    """
    table = frames.read_index(job.work, dataset=job.dataset)
    path, parts = job.boxes_path, job.boxes_path.with_suffix(".parts")
    found, sources = known_boxes(job, table)
    left = table[~table["frame_id"].isin(found["frame_id"])]
    if len(left):
        started = time.monotonic()
        starts = range(0, len(left), DETECTION_CHUNK_FRAMES)
        chunks = {f"frames from {left['frame_id'].iloc[i]}": left.iloc[i : i + DETECTION_CHUNK_FRAMES] for i in starts}
        workers = _workers(job, executor, num_pieces=len(chunks))
        with track("detect faces", total=len(left), unit="frames") as step, workers as pool:
            source_of, num_parts = sources.set_index("frame_id"), len(list(parts.glob("*.parquet")))
            detected = []
            for number, chunk in enumerate(_detected(job, chunks, pool, step), num_parts):
                write_table(parts / f"{number:06d}.parquet", chunk.join(source_of, on="frame_id"))
                detected.append(chunk)
        found = pd.concat([found, *detected] if len(found) else detected, ignore_index=True)
        remember_rate(job, "detect", len(left), seconds=time.monotonic() - started)
    boxes = found.set_index("frame_id").loc[table["frame_id"]].reset_index().merge(sources)
    boxes = fill_gaps(table, without_filled_gaps(boxes), max_gap_frames=job.config.detector.max_gap_frames)
    before = read_table_if_intact(path)
    if before is None or not before.equals(boxes):
        write_table(path, boxes)
    shutil.rmtree(parts, ignore_errors=True)
    return StageSummary(stage="detect", num_kept=len(table) - len(left), num_done=len(left), note=missed_faces(boxes))


def _workers(job: RefreshJob, executor: Executor | None, *, num_pieces: int) -> AbstractContextManager[Executor | None]:
    return worker_processes(min(job.num_workers, num_pieces)) if executor is None else nullcontext(executor)


_Chunks = dict[str, pd.DataFrame]


def _detected(
    job: RefreshJob, chunks: _Chunks, executor: Executor | None, step: ProgressCallback
) -> Iterator[pd.DataFrame]:
    """Boxes of chunks as they finish; raises `StoreError` at the end if some failed."""
    if executor is None:
        for name, chunk in chunks.items():
            yield _detect_chunk(job, chunk, step=step)
            step(0, name)
        return
    failed: dict[str, Exception] = {}
    for (name, chunk), boxes in outcomes(partial(_detect_named, job), chunks.items(), executor):
        if isinstance(boxes, Exception):
            failed[name] = boxes
            continue
        yield boxes
        step(len(chunk), name)
    raise_failures(failed, num_all=len(chunks), what=f"pieces of {job.dataset}")


def _detect_named(job: RefreshJob, named: tuple[str, pd.DataFrame]) -> pd.DataFrame:
    return _detect_chunk(job, named[1])


_detector = lru_cache(maxsize=1)(load_detector)
"""A worker keeps its network from chunk to chunk."""


def _detect_chunk(job: RefreshJob, chunk: pd.DataFrame, *, step: ProgressCallback = no_progress) -> pd.DataFrame:
    device = torch.device(job.device)
    detector = _detector(job.catalog.get_weights(job.config.detector.weights), device)
    return detect_frames(chunk, job.entry.root, detector, settings=job.config.detector, device=device, step=step)


def known_boxes(job: RefreshJob, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Boxes, finished or of a killed run, whose images are unchanged; and what each frame's image is now."""
    path, parts = job.boxes_path, job.boxes_path.with_suffix(".parts")
    read = (read_table_if_intact(file) for file in (path, *sorted(parts.glob("*.parquet"))))
    known = [boxes for boxes in read if boxes is not None]
    columns = [*BOX_COLUMNS, *crops.SOURCE_COLUMNS]
    found = pd.concat(known, ignore_index=True) if known else pd.DataFrame(columns=columns)
    found = found.reindex(columns=columns).drop_duplicates("frame_id", keep="last")
    hashes = crops.source_hashes(job.entry.root, table["source_file"], known=found)
    sources = table[["frame_id", "source_file"]].join(hashes, on="source_file")
    is_unchanged = found["frame_id"].map(sources.set_index("frame_id")["source_sha256"]) == found["source_sha256"]
    has_source = set(table.loc[table["source_file"] != "", "frame_id"])
    is_retried = (found["status"] == Status.UNREADABLE) & found["frame_id"].isin(has_source)
    return found[is_unchanged & ~is_retried][list(BOX_COLUMNS)], sources


def without_filled_gaps(boxes: pd.DataFrame) -> pd.DataFrame:
    """Boxes as the detector left them: what an earlier refresh interpolated is without a face again."""
    boxes = boxes.copy()
    is_filled = boxes["status"] == Status.INTERPOLATED
    boxes.loc[is_filled, VALUE_COLUMNS] = float("nan")
    boxes.loc[is_filled, "status"] = Status.NO_FACE.value
    return boxes


def missed_faces(boxes: pd.DataFrame) -> str:
    """The frames without a face of their own, each with its status (the first fifty; boxes.parquet has all)."""
    missed = boxes[boxes["status"] != Status.OK]
    if missed.empty:
        return "a face in every frame"
    counts = ", ".join(f"{count} {status}" for status, count in missed["status"].value_counts().items())
    names = listed(f"{name} {status}" for name, status in zip(missed["frame_id"], missed["status"], strict=True))
    return f"{counts} of {len(boxes):,}: {names}"


@_said
def crop_faces(job: RefreshJob) -> StageSummary:
    """Boxes to crops."""
    table, boxes = _tables(job)
    format = crop_format(job)
    plan = crops.plan_crops(job.catalog.crops_dir(job.dataset), table, boxes, images_root=job.entry.root, format=format)
    if plan.is_new:
        started = time.monotonic()
        with track("cut crops", total=plan.num_computed, unit="faces") as step:
            crops.refresh_crops(
                job.catalog.crops_dir(job.dataset),
                table,
                boxes,
                images_root=job.entry.root,
                settings=job.config.crop,
                format=format,
                provenance=_provenance(job),
                step=step,
            )
        remember_rate(job, "crop", plan.num_computed, seconds=time.monotonic() - started)
    return StageSummary(stage="crop", num_kept=plan.num_kept, num_done=plan.num_computed, num_dropped=plan.num_dropped)


def _tables(job: RefreshJob) -> tuple[pd.DataFrame, pd.DataFrame]:
    table = frames.read_index(job.work, dataset=job.dataset)
    boxes = read_table(job.boxes_path, columns=BOX_COLUMNS, made_by=f"fantrans refresh {job.dataset}")
    return table, boxes


def _provenance(job: RefreshJob) -> dict[str, Any]:
    """What made the bytes, beside the fingerprint; the store adds versions."""
    return {"dataset": job.dataset, "device": job.device}


@_said
def extract_features(job: RefreshJob, executor: Executor | None = None) -> StageSummary:
    """Crops to cached features: the only stage that runs the FAN, and not for what an exact cache holds already.

    With an executor its workers extract, by default `num_workers` processes; the bytes are the same.
    """
    table, reader, cache = frames.read_index(job.work, dataset=job.dataset), crop_reader(job), feature_storage(job)
    check_context(job.config.crop, job.config.views)
    root, views = job.catalog.cache_dir(job.dataset), job.config.views
    plan = plan_refresh(root, table, reader.listed, format=cache.format, views=views)
    if plan.is_new:
        exact = find_exact_cache(job)
        num_images = sum(len(plan.rows_in(unit.block)) for unit in plan.units)
        started = time.monotonic()
        workers = _workers(job, executor, num_pieces=max(1, len({unit.block for unit in plan.units})))
        with track("extract features", total=num_images, unit="views") as step, workers as pool:
            refresh_features(
                root,
                table,
                reader,
                partial(make_extractor, job),
                format=cache.format,
                codec=cache.codec,
                basis=cache.basis,
                views=views,
                view_px=job.config.crop.size_px,
                exact=exact,
                executor=pool,
                provenance=_provenance(job),
                step=step,
            )
        remember_rate(job, "extract" if exact is None else "encode", num_images, seconds=time.monotonic() - started)
    return StageSummary(
        stage="extract", num_kept=plan.num_kept, num_done=plan.num_computed, num_dropped=plan.num_dropped
    )

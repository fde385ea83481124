"""Boxes of a job: which are known, which are missing, and the detection of the missing ones in chunks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch

from pipeline.datasets.sources import SOURCE_COLUMNS, source_hashes
from pipeline.faces.detect import VALUE_COLUMNS, detect_frames, fill_gaps, load_detector
from pipeline.refresh.job import RefreshJob
from pipeline.runtime.executors import WorkerPool, Workers, raise_failures
from pipeline.runtime.progress import ProgressCallback, no_progress, track
from pipeline.runtime.text import join_first
from pipeline.tables import BOX_COLUMNS, Status, read_table_if_intact, write_table

if TYPE_CHECKING:
    from models.retinaface import RetinaFace

CHUNK_FRAMES = 512

_Chunks = dict[str, pd.DataFrame]
"""Frames by the name of their chunk."""


class KnownBoxes(NamedTuple):
    """Boxes whose images are unchanged, and what each frame's image is now.

    found: `BOX_COLUMNS`. sources: frame_id and `SOURCE_COLUMNS`, one row per frame of the index.
    """

    found: pd.DataFrame
    sources: pd.DataFrame

    def missing(self, frames: pd.DataFrame) -> pd.DataFrame:
        """Return the frames without a known box."""
        return frames[~frames["frame_id"].isin(self.found["frame_id"])]


def find_known_boxes(job: RefreshJob, frames: pd.DataFrame) -> KnownBoxes:
    """Read the boxes of finished and killed refreshes, but not of changed, new and unreadable images."""
    path, parts = job.boxes_path, job.boxes_path.with_suffix(".parts")
    read = (read_table_if_intact(file) for file in (path, *sorted(parts.glob("*.parquet"))))
    known = [boxes for boxes in read if boxes is not None]
    columns = [*BOX_COLUMNS, *SOURCE_COLUMNS]
    found = pd.concat(known, ignore_index=True) if known else pd.DataFrame(columns=columns)
    found = found.reindex(columns=columns).drop_duplicates("frame_id", keep="last")
    hashes = source_hashes(job.entry.root, frames["source_file"], known=found)
    sources = frames[["frame_id", "source_file"]].join(hashes, on="source_file")
    is_unchanged = found["frame_id"].map(sources.set_index("frame_id")["source_sha256"]) == found["source_sha256"]
    is_absent = (found["status"] == Status.UNREADABLE) & (found["source_sha256"] == "")
    found["status"] = found["status"].mask(is_absent, Status.NO_SOURCE.value)  # as earlier versions did not say
    is_retried = found["status"] == Status.UNREADABLE
    return KnownBoxes(found[is_unchanged & ~is_retried][list(BOX_COLUMNS)], sources)


def expected_boxes(job: RefreshJob, frames: pd.DataFrame, known: KnownBoxes) -> pd.DataFrame:
    """Return the boxes to plan with: a frame without a known box is expected to have a face."""
    seen = frames[frames["frame_id"].isin(known.found["frame_id"])]
    boxes = frames[["frame_id"]].merge(_filled(job, seen, known.found), on="frame_id", how="left")
    return boxes.assign(status=boxes["status"].fillna(Status.OK.value))


def detect_missing(job: RefreshJob, frames: pd.DataFrame, known: KnownBoxes, *, workers: Workers) -> pd.DataFrame:
    """Detect faces in the frames without a known box, write the table of all boxes and return it.

    After a kill, finished chunks are reused. Raises `StoreError` at the end if chunks failed.
    """
    path, parts = job.boxes_path, job.boxes_path.with_suffix(".parts")
    missing, found = known.missing(frames), known.found
    if len(missing):
        starts = range(0, len(missing), CHUNK_FRAMES)
        chunks = {f"frames from {missing['frame_id'].iloc[i]}": missing.iloc[i : i + CHUNK_FRAMES] for i in starts}
        worker = DetectionWorker(job)
        pooled = workers.open(worker, num_tasks=len(chunks))
        with track("detect faces", total=len(missing), unit="frames") as on_progress, pooled as pool:
            source_by_frame, num_parts = known.sources.set_index("frame_id"), len(list(parts.glob("*.parquet")))
            detected = []
            for number, boxes in enumerate(_detect_all(worker, chunks, pool, on_progress), num_parts):
                write_table(parts / f"{number:06d}.parquet", boxes.join(source_by_frame, on="frame_id"))
                detected.append(boxes)
        found = pd.concat([found, *detected] if len(found) else detected, ignore_index=True)
    boxes = _filled(job, frames, found).merge(known.sources)
    before = read_table_if_intact(path)
    if before is None or not before.equals(boxes):
        write_table(path, boxes)
    shutil.rmtree(parts, ignore_errors=True)
    return boxes


class DetectionWorker:
    """Detects faces in chunks of frames; loads its network when it first needs it."""

    def __init__(self, job: RefreshJob) -> None:
        self._job = job

    def detect(self, frames: pd.DataFrame, *, on_progress: ProgressCallback = no_progress) -> pd.DataFrame:
        """Return boxes (`BOX_COLUMNS`), one row per frame."""
        job = self._job
        detector, device = self._detector
        return detect_frames(
            frames, job.entry.root, detector, settings=job.config.detector, device=device, on_progress=on_progress
        )

    @cached_property
    def _detector(self) -> tuple[RetinaFace, torch.device]:
        device = torch.device(self._job.device)
        return load_detector(self._job.catalog.get_weights(self._job.config.detector.weights), device), device


def _detect_all(
    worker: DetectionWorker, chunks: _Chunks, pool: WorkerPool[DetectionWorker] | None, on_progress: ProgressCallback
) -> Iterator[pd.DataFrame]:
    """Yield the boxes of chunks as they finish; raises `StoreError` at the end if some failed."""
    if pool is None:
        for name, chunk in chunks.items():
            yield worker.detect(chunk, on_progress=on_progress)
            on_progress(0, name)
        return
    failed: dict[str, Exception] = {}
    for result in pool.run(_detect_chunk, chunks.items()):
        name, chunk = result.task
        if result.error is not None:
            failed[name] = result.error
            continue
        yield result.unwrap()
        on_progress(len(chunk), name)
    raise_failures(failed, num_all=len(chunks), what="chunks of frames")


def _detect_chunk(worker: DetectionWorker, named: tuple[str, pd.DataFrame]) -> pd.DataFrame:
    return worker.detect(named[1])


def _filled(job: RefreshJob, frames: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Return the frames' boxes in the order of the index, with short gaps filled.

    Faces that an earlier refresh interpolated count as missed, and are interpolated again.
    """
    boxes = found.set_index("frame_id").loc[frames["frame_id"]].reset_index()
    is_filled = boxes["status"] == Status.INTERPOLATED
    boxes.loc[is_filled, VALUE_COLUMNS] = float("nan")
    boxes.loc[is_filled, "status"] = Status.NO_FACE.value
    return fill_gaps(frames, boxes, max_gap_frames=job.config.detector.max_gap_frames)


def describe_missed(boxes: pd.DataFrame) -> str:
    """Return a sentence on the frames without a detected face: their counts by status, and the first fifty names."""
    missed = boxes[boxes["status"] != Status.OK]
    if missed.empty:
        return "a face in every frame"
    counts = ", ".join(f"{count} {status}" for status, count in missed["status"].value_counts().items())
    names = join_first(f"{name} {status}" for name, status in zip(missed["frame_id"], missed["status"], strict=True))
    return f"{counts} of {len(boxes):,}: {names}"

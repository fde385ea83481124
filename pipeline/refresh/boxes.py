"""Faces and boxes of a job: which are known, which are missing, and the detection of the missing ones in chunks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch

from pipeline.config import DetectorConfig
from pipeline.datasets.sources import SOURCE_COLUMNS, source_hashes
from pipeline.faces.detect import detect_frames, load_detector
from pipeline.faces.subjects import subject_boxes
from pipeline.refresh.job import RefreshJob
from pipeline.runtime.executors import WorkerPool, Workers, raise_failures
from pipeline.runtime.progress import ProgressCallback, no_progress, track
from pipeline.runtime.text import join_first
from pipeline.tables import BOX_COLUMNS, FACE_COLUMNS, Status, read_table_if_intact, write_table

if TYPE_CHECKING:
    from models.retinaface import RetinaFace

CHUNK_FRAMES = 512

_Chunks = dict[str, pd.DataFrame]
"""Frames by the name of their chunk."""


class KnownFaces(NamedTuple):
    """Faces in images that are unchanged, and what each frame's image is now.

    found: `FACE_COLUMNS`. sources: frame_id and `SOURCE_COLUMNS`, one row per frame of the index.
    """

    found: pd.DataFrame
    sources: pd.DataFrame

    def missing(self, frames: pd.DataFrame) -> pd.DataFrame:
        """Return the frames whose faces are not known."""
        return frames[~frames["frame_id"].isin(self.found["frame_id"])]


def find_known_faces(job: RefreshJob, frames: pd.DataFrame) -> KnownFaces:
    """Read the faces of finished and killed refreshes, but not of changed images, nor of unreadable ones."""
    columns = [*FACE_COLUMNS, *SOURCE_COLUMNS]
    newest_first: list[pd.DataFrame] = []
    seen: set[str] = set()
    for file in (*sorted(job.faces_path.with_suffix(".parts").glob("*.parquet"), reverse=True), job.faces_path):
        faces = read_table_if_intact(file)
        if faces is not None:
            newest_first.append(faces.reindex(columns=columns)[~faces["frame_id"].isin(seen)])
            seen.update(faces["frame_id"])
    found = pd.concat(newest_first[::-1], ignore_index=True) if newest_first else pd.DataFrame(columns=columns)
    hashes = source_hashes(job.entry.root, frames["source_file"], known=found)
    sources = frames[["frame_id", "source_file"]].join(hashes, on="source_file")
    is_unchanged = found["frame_id"].map(sources.set_index("frame_id")["source_sha256"]) == found["source_sha256"]
    has_source = set(frames.loc[frames["source_file"] != "", "frame_id"])
    is_retried = (found["status"] == Status.UNREADABLE) & found["frame_id"].isin(has_source)
    return KnownFaces(found[is_unchanged & ~is_retried][list(FACE_COLUMNS)], sources)


def expected_boxes(job: RefreshJob, frames: pd.DataFrame, known: KnownFaces) -> pd.DataFrame:
    """Return the boxes to plan with: a frame whose faces are not known is expected to show the subject."""
    boxes = _current_boxes(job, frames, known)
    if boxes is None:
        seen = frames[frames["frame_id"].isin(known.found["frame_id"])].reset_index(drop=True)
        boxes = frames[["frame_id"]].merge(_choose(job, seen, known.found), on="frame_id", how="left")
    return boxes.assign(status=boxes["status"].fillna(Status.OK.value))


def detect_missing(job: RefreshJob, frames: pd.DataFrame, known: KnownFaces, *, workers: Workers) -> pd.DataFrame:
    """Detect the faces that are missing, write the tables of all faces and all boxes, and return the boxes.

    After a kill, finished chunks are reused. Raises `StoreError` at the end if chunks failed.
    """
    path, parts = job.faces_path, job.faces_path.with_suffix(".parts")
    missing, found = known.missing(frames), known.found
    if len(missing):
        starts = range(0, len(missing), CHUNK_FRAMES)
        chunks = {f"frames from {missing['frame_id'].iloc[i]}": missing.iloc[i : i + CHUNK_FRAMES] for i in starts}
        worker = DetectionWorker(job)
        pooled = workers.open(worker, num_tasks=len(chunks))
        with track("detect faces", total=len(missing), unit="frames") as on_progress, pooled as pool:
            source_by_frame, num_parts = known.sources.set_index("frame_id"), len(list(parts.glob("*.parquet")))
            detected = []
            for number, faces in enumerate(_detect_all(worker, chunks, pool, on_progress), num_parts):
                write_table(parts / f"{number:06d}.parquet", faces.join(source_by_frame, on="frame_id"))
                detected.append(faces)
        found = pd.concat([found, *detected] if len(found) else detected, ignore_index=True)
    faces = frames[["frame_id"]].merge(found, on="frame_id").merge(known.sources, on="frame_id")
    boxes = _current_boxes(job, frames, known)
    if boxes is None:
        boxes = _choose(job, frames, found).merge(known.sources[["frame_id", "source_sha256"]], on="frame_id")
    _write_if_changed(path, faces)
    _write_if_changed(job.boxes_path, boxes)
    shutil.rmtree(parts, ignore_errors=True)
    return boxes


def _choose(job: RefreshJob, frames: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Return the boxes (`BOX_COLUMNS`) of the subjects in `frames`."""
    faces = found[found["frame_id"].isin(frames["frame_id"])]
    return subject_boxes(frames, faces, job.config.detector)


def _current_boxes(job: RefreshJob, frames: pd.DataFrame, known: KnownFaces) -> pd.DataFrame | None:
    """Return the boxes on disk if they are those of all known faces: of the same frames with the same images."""
    if len(known.missing(frames)):
        return None
    boxes = read_table_if_intact(job.boxes_path)
    if boxes is None or not {*BOX_COLUMNS, "source_sha256"} <= set(boxes.columns):
        return None
    columns = ["frame_id", "source_sha256"]
    return boxes if boxes[columns].equals(known.sources[columns]) else None


def _write_if_changed(path: Path, table: pd.DataFrame) -> None:
    before = read_table_if_intact(path)
    if before is None or not before.equals(table):
        write_table(path, table)


class DetectionWorker:
    """Detects faces in chunks of frames; loads its network when it first needs it."""

    def __init__(self, job: RefreshJob) -> None:
        self._job = job

    def detect(self, frames: pd.DataFrame, *, on_progress: ProgressCallback = no_progress) -> pd.DataFrame:
        """Return faces (`FACE_COLUMNS`)."""
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
    """Yield the faces of chunks as they finish; raises `StoreError` at the end if some failed."""
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


def describe_boxes(boxes: pd.DataFrame, settings: DetectorConfig) -> str:
    """Return a sentence on the boxes: frames without the subject's face by status, with names, and `face_notes`."""
    return "; ".join([_describe_missed(boxes), *face_notes(boxes, settings)])


def _describe_missed(boxes: pd.DataFrame) -> str:
    missed = boxes[boxes["status"] != Status.OK]
    if missed.empty:
        return "a face in every frame"
    counts = ", ".join(f"{count} {status}" for status, count in missed["status"].value_counts().items())
    reasons = [f" ({flaw})" if flaw else "" for flaw in missed["flaw"]]
    named = zip(missed["frame_id"], missed["status"], reasons, strict=True)
    return f"{counts} of {len(boxes):,}: " + join_first(f"{name} {status}{reason}" for name, status, reason in named)


def face_notes(boxes: pd.DataFrame, settings: DetectorConfig) -> list[str]:
    """Return what to know about the choice of faces, as counts: several faces, flaws, switches, shrunk frames.

    boxes: `BOX_COLUMNS`. A count of 0 is left out.
    """
    flaws = boxes.loc[boxes["flaw"] != "", "flaw"].value_counts()
    of_flaws = ", ".join(f"{count:,} {flaw}" for flaw, count in flaws.items())
    num_tracks = boxes[boxes["track"] >= 0].groupby(boxes["frame_id"].str.rpartition("/")[0])["track"].nunique()
    is_shrunk = boxes[["width_px", "height_px"]].max(axis=1) > settings.max_side_px
    notes = [
        ((boxes["num_faces"] > 1).sum(), "frames with several faces"),
        (flaws.sum(), f"frames with a flaw ({of_flaws})"),
        ((num_tracks - 1).sum(), f"switches to another track in {(num_tracks > 1).sum():,} sequences"),
        (is_shrunk.sum(), f"frames shrunk to {settings.max_side_px:,} px before detection"),
    ]
    return [f"{count:,} {note}" for count, note in notes if count]

"""Predict inputs into a file that a killed run resumes, to a stream, or into a table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from pipeline.datasets.files import printable
from pipeline.datasets.videos import describe_video
from pipeline.errors import DataError, UsageError
from pipeline.predict.chunks import ChunkFolder, open_chunks, read_chunk
from pipeline.predict.inputs import Source
from pipeline.predict.model import FaceReader, Model
from pipeline.predict.rows import (
    ROWS_VERSION,
    Format,
    formatter,
    replay_tracks,
    to_fantrans,
    to_rows,
    write_csv,
    write_output,
)
from pipeline.predict.stream import (
    Frame,
    FrameFaces,
    Options,
    image_frames,
    read_chunks,
    video_frames,
)
from pipeline.runtime.allocator import return_freed_memory, tune_allocator
from pipeline.runtime.atomic import put_in_place, stage_file
from pipeline.runtime.executors import LocalWorkers, raise_failures
from pipeline.runtime.progress import ProgressCallback, no_progress, track
from pipeline.runtime.text import counted
from pipeline.tables import Status

logger = logging.getLogger("fantrans")

_IMAGES_PER_JOB = 64


@dataclass(frozen=True)
class Job:
    """What one process predicts at once: one video, or up to 64 images. number: place in the output."""

    number: int
    sources: tuple[Source, ...]

    @property
    def is_video(self) -> bool:
        """Whether it is a video."""
        return self.sources[0].is_video


@dataclass
class Summary:
    """What was predicted."""

    num_inputs: int
    num_frames: int = 0
    num_faces: int = 0
    num_frames_without_face: int = 0
    num_frames_unreadable: int = 0
    _readable: set[str] = field(default_factory=set, repr=False)
    _damaged: set[str] = field(default_factory=set, repr=False)

    def add(self, rows: pd.DataFrame) -> None:
        """Count the rows of a chunk."""
        frames = rows.drop_duplicates(["input", "frame"])
        is_unreadable = frames["status"] == Status.UNREADABLE
        self.num_frames += len(frames)
        self.num_faces += int((rows["status"] == Status.OK).sum())
        self.num_frames_without_face += int((frames["status"] == Status.NO_FACE).sum())
        self.num_frames_unreadable += int(is_unreadable.sum())
        self._readable.update(frames.loc[~is_unreadable, "input"])
        self._damaged.update(frames.loc[is_unreadable, "input"])

    @property
    def unreadable(self) -> list[str]:
        """Inputs of which no frame could be read."""
        return sorted(self._damaged - self._readable)

    def sentence(self) -> str:
        """Return the counts in one sentence."""
        return (
            f"{counted(self.num_faces, 'face')} in {counted(self.num_frames, 'frame')} of "
            f"{counted(self.num_inputs, 'input')}; {counted(self.num_frames_without_face, 'frame')} without a face, "
            f"{self.num_frames_unreadable:,} unreadable"
        )


def split_jobs(sources: Sequence[Source]) -> list[Job]:
    """Return the jobs of the sources, in their order."""
    groups: list[list[Source]] = []
    for source in sources:
        is_joined = groups and not source.is_video and not groups[-1][0].is_video and len(groups[-1]) < _IMAGES_PER_JOB
        if is_joined:
            groups[-1].append(source)
        else:
            groups.append([source])
    return [Job(number, tuple(group)) for number, group in enumerate(groups)]


def count_frames(sources: Iterable[Source], options: Options) -> int:
    """Return the expected number of frames, for the progress; logs a warning per video that does not open."""
    total = 0
    for source in sources:
        try:
            num_frames = describe_video(source.path).num_frames if source.is_video else 1
        except DataError as error:
            logger.warning("%s", error)
            num_frames = 1
        total += -(-num_frames // options.every)
    return total


def count_distinct_frames(rows: pd.DataFrame) -> int:
    """Return the number of frames of a table of rows."""
    return len(rows.drop_duplicates(["input", "frame"]))


class JobWorker:
    """Predicts jobs with one model on one device; loads the networks when it first needs them."""

    def __init__(self, model: Model, device: str, options: Options) -> None:
        self.model, self.device, self.options = model, device, options

    def __reduce__(self) -> tuple[type[JobWorker], tuple[Model, str, Options]]:
        return JobWorker, (self.model, self.device, self.options)

    @cached_property
    def _reader(self) -> FaceReader:
        tune_allocator()
        return FaceReader(self.model, self.device)

    def predict(self, job: Job) -> Iterator[pd.DataFrame]:
        """Yield the rows of a job in chunks."""
        return self._rows(self._frames(job, start=0))

    def predict_images(self, images: Iterable[tuple[str, np.ndarray]]) -> Iterator[pd.DataFrame]:
        """Yield the rows of images in memory, RGB uint8 (H, W, 3) by name, in chunks."""
        return self._rows(Frame(name, 0, np.nan, image) for name, image in images)

    def finish(self, chunks: ChunkFolder, job: Job, on_progress: ProgressCallback = no_progress) -> None:
        """Write the chunks of a job that are not finished yet."""
        files = chunks.files(job.number) if job.is_video or chunks.is_finished(job.number) else []
        on_progress(len(files) * self.options.chunk_frames if job.is_video else len(files) * len(job.sources))
        if chunks.is_finished(job.number):
            return
        tracker = replay_tracks(map(read_chunk, files), self.model.detector.tracks)
        start = int(read_chunk(files[-1])["frame"].iloc[-1]) + 1 if files else 0
        for number, rows in enumerate(self._rows(self._frames(job, start=start), tracker=tracker), len(files)):
            chunks.write(job.number, number, rows)
            on_progress(count_distinct_frames(rows))
        chunks.finish(job.number)

    def _frames(self, job: Job, *, start: int) -> Iterator[Frame]:
        if job.is_video:
            return video_frames(job.sources[0], every=self.options.every, start=start)
        return image_frames(job.sources)

    def _rows(self, frames: Iterable[Frame], **more: Any) -> Iterator[pd.DataFrame]:
        model = self.model
        read: Iterator[list[FrameFaces]] = read_chunks(frames, self._reader, self.options, **more)
        for chunk in read:
            yield to_rows(chunk, model.aus, model.threshold_A)
            return_freed_memory()


def predict_table(
    worker: JobWorker, sources: Sequence[Source], images: Sequence[tuple[str, np.ndarray]] = ()
) -> pd.DataFrame:
    """Return the rows of all sources, then of images in memory, with the columns of the format fantrans."""
    for source in sources:
        if source.is_video:
            count_frames([source], worker.options)  # logs why one cannot be read
    rows = chain(chain.from_iterable(map(worker.predict, split_jobs(sources))), worker.predict_images(images))
    tables = [to_fantrans(table) for table in rows]
    if not tables:
        return to_fantrans(to_rows([], worker.model.aus, worker.model.threshold_A))
    return pd.concat(tables, ignore_index=True)


def predict_to_stream(worker: JobWorker, sources: Sequence[Source], file: IO[str], *, format: Format) -> Summary:
    """Write the rows of all sources as CSV to a stream, each chunk when it is finished."""
    convert = formatter(format, has_landmarks=worker.model.has_landmarks)
    summary = Summary(len(sources))

    def tables() -> Iterator[pd.DataFrame]:
        with track("predict", total=count_frames(sources, worker.options), unit="frames") as on_progress:
            for rows in chain.from_iterable(map(worker.predict, split_jobs(sources))):
                summary.add(rows)
                yield convert(rows)
                on_progress(count_distinct_frames(rows))

    write_csv(tables(), file)
    return summary


def predict_to_file(
    worker: JobWorker,
    sources: Sequence[Source],
    out: Path,
    *,
    format: Format,
    num_workers: int = 1,
    force: bool = False,
    draw: Callable[[Source, Iterator[pd.DataFrame]], object] | None = None,
) -> Summary:
    """Write the rows of all sources to `out`, CSV or Parquet by its suffix, atomically.

    Finished chunks are kept beside it, so that the same call after a kill continues, with an equal file. num_workers:
    processes, each of which predicts a video or a group of images at once. force: whether an existing output, or an
    unfinished one of other inputs, is replaced. draw: called with each source and its rows before the file is written.
    Raises `UsageError` for an existing output, `StoreError` if jobs failed; their finished chunks are kept.
    """
    if out.exists() and not force:
        raise UsageError(f"{out} exists; pass --force to replace it, or name another file with --out")
    jobs = split_jobs(sources)
    record = {
        "version": ROWS_VERSION,
        "model": dict(worker.model.document),
        "options": asdict(worker.options),
        "device": worker.device,
        "inputs": [_file_record(source) for source in sources],
    }
    convert = formatter(format, has_landmarks=worker.model.has_landmarks)
    summary = Summary(len(sources))
    with open_chunks(out, record, force=force) as chunks:
        with track("predict", total=count_frames(sources, worker.options), unit="frames") as on_progress:
            _finish_all(worker, chunks, jobs, num_workers, on_progress)
        if draw is not None:
            for job in jobs:
                _draw_job(draw, job, chunks)

        def tables() -> Iterator[pd.DataFrame]:
            for rows in chain.from_iterable(chunks.read(job.number) for job in jobs):
                summary.add(rows)
                yield convert(rows)

        staged = chunks.path / out.name  # beside the chunks, so that a kill leaves no file that is not removed later
        put_in_place(stage_file(staged, lambda temp: write_output(temp, out.suffix.lower(), tables())), out)
    return summary


def _finish_all(
    worker: JobWorker, chunks: ChunkFolder, jobs: Sequence[Job], num_workers: int, on_progress: ProgressCallback
) -> None:
    with LocalWorkers(num_workers).open(worker, num_tasks=len(jobs)) as pool:
        if pool is None:
            for job in jobs:
                worker.finish(chunks, job, on_progress)
            return
        failed: dict[str, Exception] = {}
        for result in pool.run(partial(_finish_job, chunks), jobs):
            if result.error is not None:
                failed[result.task.sources[0].name] = result.error
                continue
            on_progress(result.unwrap())
        raise_failures(failed, num_all=len(jobs), what="groups of inputs")


def _finish_job(chunks: ChunkFolder, worker: JobWorker, job: Job) -> int:
    """Finish a job in a worker of a pool; return its number of frames."""
    num_frames = 0

    def count_up(num_done: int, piece: str = "") -> None:  # noqa: ARG001
        nonlocal num_frames
        num_frames += num_done

    worker.finish(chunks, job, count_up)
    return num_frames


def _draw_job(draw: Callable[[Source, Iterator[pd.DataFrame]], object], job: Job, chunks: ChunkFolder) -> None:
    if job.is_video:
        draw(job.sources[0], chunks.read(job.number))
        return
    rows = pd.concat(chunks.read(job.number), ignore_index=True)
    for source in job.sources:
        draw(source, iter([rows[rows["input"] == source.name]]))


def _file_record(source: Source) -> dict[str, Any]:
    status = source.path.stat()
    return {"path": printable(str(source.path.absolute())), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def with_batch_size(options: Options, device: str, batch_size: int | None) -> Options:
    """Return the options with a batch size: the given one, else one that suits the device."""
    return replace(options, batch_size=batch_size or (8 if device == "cpu" else 32))

"""Videos as prediction reads them: whether they open, how long they are, and their frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


@dataclass(frozen=True)
class VideoFrame:
    number: int
    time_s: float
    image: np.ndarray | None


def iterate_video(path: Path, *, start: int = 0) -> Iterator[VideoFrame]:
    try:
        with av.open(str(path)) as video:
            video.streams.video[0].thread_type = "AUTO"
            for number, frame in enumerate(video.decode(video=0)):
                if number >= start:
                    yield VideoFrame(number, float(frame.time or 0), frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError):
        return


@dataclass(frozen=True)
class VideoInfo:
    """What the header of a video tells: the expected number of frames (0 if unknown), frames per second, size in px."""

    num_frames: int
    rate: float
    codec: str


def probe_video(path: Path) -> VideoInfo | str:
    """Return what the header tells, or in a few words why the file cannot be read as a video."""
    try:
        with av.open(str(path)) as video:
            if not video.streams.video:
                return "it has no video stream"
            stream = video.streams.video[0]
            if stream.codec_context is None:
                return "its codec is not supported"
            rate = float(stream.average_rate or 0)
            seconds = float(video.duration or 0) / av.time_base
            return VideoInfo(stream.frames or round(rate * seconds), rate, stream.codec_context.name)
    except (av.FFmpegError, OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


def can_open(path: Path) -> bool:
    """Return whether a file can be read as a video."""
    return isinstance(probe_video(path), VideoInfo)

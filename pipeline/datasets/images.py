"""Read the images of an index's frames, from image files and videos."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd

from pipeline.runtime.prefetch import prefetch_map

_NUM_THREADS = max(4, os.cpu_count() or 1)
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_MAX_TRAILER_BYTES = 1024


def read_frames(root: Path, frames: pd.DataFrame) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yield each row's 0-based position in `frames` and its image, RGB uint8 (H, W, 3), or None if it cannot be read.

    Image files come first, in the table's order, decoded on threads a few ahead. Then each video is decoded once, up to
    its last wanted frame; so pass all rows of a video in one call. Missing, damaged and truncated files and frames
    beyond a video's end yield None. Needs the columns `source_file` (relative to `root`) and `source_frame`.
    """
    files = frames["source_file"].to_numpy()
    numbers = frames["source_frame"].to_numpy()
    is_image = numbers < 0
    paths = ((position, root / files[position]) for position in np.flatnonzero(is_image).tolist())
    for (position, _), image in prefetch_map(lambda item: read_image(item[1]), paths, num_threads=_NUM_THREADS):
        yield position, image.result()
    for file in pd.unique(files[~is_image]):
        positions = np.flatnonzero(~is_image & (files == file))
        yield from _read_video(root / file, positions, numbers[positions])


def read_image(path: Path) -> np.ndarray | None:
    """Read an image file as RGB uint8 (H, W, 3); None if it is missing, damaged or truncated."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    is_truncated = data.startswith(_JPEG_START) and _JPEG_END not in data[-_MAX_TRAILER_BYTES:]
    if not data or is_truncated:  # the decoder fills a truncated JPEG with grey, without an error
        return None
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _read_video(path: Path, positions: np.ndarray, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yield position and image of each row of one video, ordered by the 0-based frame numbers `numbers`."""
    order = np.argsort(numbers, kind="stable")
    wanted = deque(zip(numbers[order].tolist(), positions[order].tolist(), strict=True))
    try:
        for number, image in _decoded(path, {number for number, _ in wanted}):
            while wanted and wanted[0][0] == number:
                yield wanted.popleft()[1], image
    except av.FFmpegError:
        pass  # frames after the damage are yielded as None below
    for _, position in wanted:
        yield position, None


def _decoded(path: Path, numbers: set[int]) -> Iterator[tuple[int, np.ndarray]]:
    if not path.is_file():
        return
    with av.open(str(path)) as video:
        if not video.streams.video:
            return
        video.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(video.decode(video=0)):
            if number in numbers:
                yield number, frame.to_ndarray(format="rgb24")
            if number >= max(numbers):
                return

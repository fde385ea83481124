"""Read the images of an index's frames, from image files and videos."""

from __future__ import annotations

import errno
import logging
import os
import re
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import simplejpeg

from pipeline.datasets.videos import read_video_frames
from pipeline.errors import DataError, DataNotFoundError
from pipeline.runtime.atomic import open_regular
from pipeline.runtime.prefetch import prefetch_map
from pipeline.runtime.text import counted, join_first
from pipeline.tables import Status

logger = logging.getLogger("fantrans")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # libtiff's lines on damage that we name ourselves

MAX_PIXELS = 2**28
"""Larger images count as unreadable: damaged headers claim such sizes."""
_NUM_THREADS = max(4, os.cpu_count() or 1)
_MAX_NAMED = 10
_JPEG_START = b"\xff\xd8"
_MAX_PADDING_BYTES = 16
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def read_frames(
    root: Path, frames: pd.DataFrame, *, on_unreadable: Callable[[int, str], object] | None = None
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yield each row's 0-based position in `frames` and its image, RGB uint8 (H, W, 3), or None if it cannot be read.

    Image files come first, in the table's order, decoded on threads a few ahead. Then each video is decoded once, up to
    its last wanted frame; so pass all rows of a video in one call. Missing, damaged and truncated files, and numbers
    that a video lacks, yield None, after `on_unreadable` is called with position and reason. The log gets one warning
    with the reasons, without the frames that have no file. Needs the columns `source_file` (relative to `root`, empty
    for none) and `source_frame`.
    """
    files = frames["source_file"].to_numpy()
    numbers = frames["source_frame"].to_numpy()
    reasons: list[str] = []

    def explain(position: int, reason: str, *, has_source: bool = True) -> tuple[int, None]:
        if on_unreadable is not None:
            on_unreadable(position, reason)
        if has_source:
            reasons.append(reason)
        return position, None

    def unread(position: int, error: DataError) -> tuple[int, None]:
        return explain(position, str(error), has_source=not isinstance(error, DataNotFoundError))

    is_image = numbers < 0
    paths = ((position, root / files[position]) for position in np.flatnonzero(is_image).tolist())
    for (position, _), image in prefetch_map(lambda item: load_image(item[1]), paths, num_threads=_NUM_THREADS):
        error = _data_error(image)
        yield (position, image.result()) if error is None else unread(position, error)
    for file in pd.unique(files[~is_image]):
        rows = np.flatnonzero(~is_image & (files == file))
        positions: dict[int, list[int]] = {}
        for position, number in zip(rows.tolist(), numbers[rows].tolist(), strict=True):
            positions.setdefault(number, []).append(position)
        try:
            for frame in read_video_frames(root / file, set(positions)):
                for position in positions.pop(frame.number):
                    reason = f"frame {frame.number} of {root / file}: {frame.reason}"
                    yield explain(position, reason) if frame.image is None else (position, frame.image)
        except DataError as error:
            for position in (position for left in positions.values() for position in left):
                yield unread(position, error)
    if reasons:
        named = join_first(dict.fromkeys(reasons), _MAX_NAMED, separator="; ")
        logger.warning("%s cannot be read: %s", counted(len(reasons), "frame"), named)


def _data_error(result: Future[np.ndarray]) -> DataError | None:
    error = result.exception()
    return error if isinstance(error, DataError) else None


def unread_statuses(root: Path, frames: pd.DataFrame) -> np.ndarray:
    """Return each frame's status should it have no image, str (n,): no_source without a file, else unreadable."""
    names = pd.unique(frames["source_file"])
    status_by_name = {
        name: (Status.UNREADABLE if name and (root / name).is_file() else Status.NO_SOURCE).value for name in names
    }
    return frames["source_file"].map(status_by_name).to_numpy(object)


def read_image(path: Path) -> np.ndarray | None:
    """Read an image file like `load_image`; None for one that cannot be read."""
    try:
        return load_image(path)
    except DataError:
        return None


def load_image(path: Path) -> np.ndarray:
    """Read an image file as RGB uint8 (H, W, 3), turned and mirrored as its EXIF says.

    Grey, palette, CMYK and 16-bit images are converted; alpha is dropped. Raises `DataNotFoundError` if there is no
    such file, and `DataError`, with the reason, for one that is damaged, truncated or above `MAX_PIXELS`.
    """
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        if error.errno in _ABSENT:
            raise DataNotFoundError(f"{path} is not a file; check the path of the image") from None
        raise DataError(f"{path} cannot be read: {error.strerror}; check the disk and its permissions") from None
    try:
        return _decode_jpeg(data) if data.startswith(_JPEG_START) else _decode_other(data)
    except ValueError as error:
        raise DataError(f"{path} is not an image that can be decoded: {error}; copy it again from its source") from None


def _decode_jpeg(data: bytes) -> np.ndarray:
    """Decode a JPEG; raises `ValueError` with the decoder's reason, also for damage that it could decode to grey."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # a rare kind of JPEG, or none: -1 is its colour space
        return _decode_other(data)
    if height * width > MAX_PIXELS:
        raise ValueError(f"its header claims {width:,} x {height:,} px")
    is_ink = space in ("CMYK", "YCCK")
    convert = {"colorspace": "CMYK" if is_ink else "RGB", "fastdct": False, "fastupsample": False}
    try:
        image: np.ndarray = simplejpeg.decode_jpeg(data, **convert)
    except ValueError as error:
        if not _is_harmless(str(error)):
            raise
        image = simplejpeg.decode_jpeg(data, **convert, strict=False)
    return _decode_other(data) if is_ink else _upright(image, _exif_orientation(data))


def _is_harmless(warning: str) -> bool:
    """Whether libjpeg warns of what leaves all pixels whole: padding before the end, a newer header."""
    padding = re.search(r"(\d+) extraneous bytes before marker 0xd9", warning)
    return "JFIF revision" in warning or (padding is not None and int(padding[1]) <= _MAX_PADDING_BYTES)


def _decode_other(data: bytes) -> np.ndarray:
    """Decode PNG, WebP, BMP, TIFF and rare JPEGs; raises `ValueError` for what cannot be decoded."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    except cv2.error as error:
        raise ValueError(error.err or "the decoder gave up") from None
    if image is None:
        raise ValueError("its data is damaged or truncated, or of no known format" if data else "it is empty")
    return image


def _exif_orientation(data: bytes) -> int:
    """Return a JPEG's EXIF orientation, 1 to 8; 1 (upright) without a valid one."""
    at = len(_JPEG_START)
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # segments, up to the pixels' data
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + size]
        if data[at + 1] == 0xE1 and body.startswith(b"Exif\0\0"):
            try:
                return _tiff_orientation(body[6:])
            except struct.error:
                return 1
        at += 2 + size
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    order = "<" if tiff.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    (num_entries,) = struct.unpack_from(f"{order}H", tiff, directory)
    for entry in range(directory + 2, directory + 2 + 12 * num_entries, 12):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
        if tag == 0x0112:
            return value if 1 <= value <= 8 else 1
    return 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an image (H, W, 3) by its EXIF orientation: the stored first row and column, as displayed."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    flip_rows = -1 if orientation in (3, 4, 7, 8) else 1
    flip_columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::flip_rows, ::flip_columns])

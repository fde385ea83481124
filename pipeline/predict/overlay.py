"""Draw predictions on images and videos: boxes with the faces' numbers, landmarks, and a bar per action unit."""

# P landmarks
from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd

from models.maps import NUM_LANDMARKS
from pipeline.datasets.images import read_image
from pipeline.datasets.videos import describe_video, iterate_video
from pipeline.errors import DataError
from pipeline.predict.inputs import Source
from pipeline.predict.rows import split_frames
from pipeline.runtime.atomic import TEMP_PREFIX, write_atomically
from pipeline.tables import Status, au_column, probability_column

_PRESENT, _ABSENT, _BOX, _POINT, _TEXT = (70, 200, 90), (150, 150, 150), (255, 190, 40), (60, 220, 255), (255, 255, 255)
"""Colours, RGB."""
_BAR_ROW_PX, _BAR_PX = 13, 60
_TIME_BASE = Fraction(1, 90_000)


def draw_rows(image: np.ndarray, rows: pd.DataFrame, aus: Sequence[int]) -> np.ndarray:
    """Return a copy of an image, RGB uint8 (H, W, 3), with the rows of its faces drawn on it.

    Sizes grow with the image. The bars of a face stand at the right of its box, or at the left where they do not fit.
    """
    drawn = image.copy()
    for _, row in rows[rows["status"] == Status.OK].iterrows():
        _draw_face(drawn, row, aus)
    return drawn


def _draw_face(image: np.ndarray, row: pd.Series, aus: Sequence[int]) -> None:
    scale = max(1.0, min(image.shape[:2]) / 480)
    line = max(1, round(scale))
    x1, y1, x2, y2 = (round(float(row[name])) for name in ("x1", "y1", "x2", "y2"))
    cv2.rectangle(image, (x1, y1), (x2, y2), _BOX, line)
    _write(image, f"face {row['face_id']}  {row['score']:.2f}", (x1, y1 - round(4 * scale)), scale)
    points = row[[f"{axis}_{i}" for axis in "xy" for i in range(NUM_LANDMARKS)]].to_numpy(np.float32).reshape(2, -1).T
    for x, y in points[np.isfinite(points).all(1)]:
        cv2.circle(image, (round(float(x)), round(float(y))), line, _POINT, -1, cv2.LINE_AA)
    _draw_bars(image, row, aus, (x1, y1, x2), scale)


def _draw_bars(image: np.ndarray, row: pd.Series, aus: Sequence[int], box: tuple[int, int, int], scale: float) -> None:
    x1, top, x2 = box
    row_px, bar_px, text_px = (round(each * scale) for each in (_BAR_ROW_PX, _BAR_PX, 38))
    gap, width = round(6 * scale), bar_px + text_px
    height, image_width = image.shape[:2]
    left = x2 + gap if x2 + gap + width <= image_width else x1 - gap - width
    left = min(max(0, left), max(0, image_width - width))
    top = min(max(0, top), max(0, height - row_px * len(aus)))
    panel = image[top : top + row_px * len(aus), left : left + width]
    panel[:] = panel // 3  # dark, so that bars and words are read on any background
    for i, au in enumerate(aus):
        y = top + i * row_px
        colour = _PRESENT if row[au_column(au)] == 1 else _ABSENT
        end = left + text_px + round(bar_px * float(row[probability_column(au)]))
        cv2.rectangle(image, (left + text_px, y + 2), (end, y + row_px - 2), colour, -1)
        _write(image, f"AU{au:02d}", (left + 2, y + row_px - round(3 * scale)), scale)


def _write(image: np.ndarray, text: str, corner: tuple[int, int], scale: float) -> None:
    x, y = max(0, corner[0]), max(round(10 * scale), corner[1])
    for colour, thickness in (((0, 0, 0), 3), (_TEXT, 1)):  # dark edge below bright letters
        width = max(1, round(thickness * scale))
        cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.36 * scale, colour, width, cv2.LINE_AA)


def write_overlay(source: Source, rows: Iterator[pd.DataFrame], aus: Sequence[int], path: Path) -> None:
    """Write an image or video with its rows drawn on it, atomically; nothing for an input that cannot be read.

    Removes what a killed run left of the same file.
    """
    for leftover in path.parent.glob(f"{TEMP_PREFIX}*-{glob.escape(path.name)}"):
        leftover.unlink()
    if source.is_video:
        with suppress(DataError):  # not a video that can be read, which its row tells
            describe_video(source.path)
            write_atomically(path, lambda temp: _write_video(source, rows, aus, temp))
        return
    image = read_image(source.path)
    if image is not None:
        data = cv2.imencode(".png", draw_rows(image, pd.concat(rows), aus)[..., ::-1])[1].tobytes()
        write_atomically(path, lambda temp: temp.write_bytes(data))


def _write_video(source: Source, rows: Iterator[pd.DataFrame], aus: Sequence[int], path: Path) -> None:
    """Write every frame at its own time, in H.264 without sound; frames that were not predicted show the last rows."""
    rate = Fraction(describe_video(source.path).fps).limit_denominator(1001)
    by_frame = chain.from_iterable(map(split_frames, rows))
    following = next(by_frame, None)
    shown = pd.DataFrame({"status": []})
    with av.open(str(path), "w", format="mp4") as video:
        stream = None
        last_pts = -1
        for frame in iterate_video(source.path):
            while following is not None and following[0] <= frame.number:
                shown, following = following[1], next(by_frame, None)
            if frame.image is None:
                continue
            height, width = (side - side % 2 for side in frame.image.shape[:2])  # H.264 halves the colours
            if stream is None:
                stream = video.add_stream("libx264", rate=rate, options={"crf": "20"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.time_base = _TIME_BASE
            drawn = av.VideoFrame.from_ndarray(draw_rows(frame.image, shown, aus)[:height, :width], format="rgb24")
            last_pts = max(last_pts + 1, round(frame.time_s / _TIME_BASE))
            drawn.pts, drawn.time_base = last_pts, _TIME_BASE
            video.mux(stream.encode(drawn))
        if stream is not None:
            video.mux(stream.encode(None))

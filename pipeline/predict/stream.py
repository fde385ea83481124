"""From frames to faces with action units, streamed: memory depends on the size of a frame, not on their number.

A thread decodes, one detects and cuts views, others run FAN and head; bounded queues are between them. A frame's result
depends on no later frame, and on earlier ones only through the tracks.
"""

# N faces of a frame, A action units, P landmarks
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

import numpy as np

from pipeline.datasets.images import read_image
from pipeline.datasets.videos import iterate_video
from pipeline.errors import DataError
from pipeline.faces.detect import faces_in
from pipeline.faces.geometry import cut_crop, frame_from_crop, transform_points
from pipeline.faces.tracks import Tracker, scene_thumbnail
from pipeline.faces.views import ViewParams, crop_side_px, render_view
from pipeline.predict.inputs import Source
from pipeline.predict.model import FaceReader
from pipeline.runtime.device import map_batches
from pipeline.runtime.prefetch import prefetch_map, read_ahead
from pipeline.tables import Status

Faces = Literal["all", "largest"]

_MAX_BATCH_PX = 2**25
"""Pixels of the frames of a batch: four frames in 4K."""
_BATCHES_AHEAD = 2
_DECODING_THREADS = 4
_GROUP_FACES = 64
"""Faces that FAN and head get together; the FAN pads them to whole batches, so many of them waste little."""


@dataclass(frozen=True)
class Options:
    """What is predicted.

    every: each N-th frame of a video. min_score: faces below it are left out; faces below the detector's threshold
    always are. batch_size: frames that the detector gets at once. chunk_frames: frames that are finished together; no
    batch spans two chunks, so a resumed run computes the same.
    """

    faces: Faces = "all"
    every: int = 1
    min_score: float = 0.0
    batch_size: int = 8
    chunk_frames: int = 256


@dataclass(frozen=True)
class Frame:
    """An image or a frame of a video before detection. image: RGB uint8 (H, W, 3), None if it cannot be read."""

    name: str
    number: int
    time_s: float
    image: np.ndarray | None
    is_video: bool = False


@dataclass
class FrameFaces:
    """A frame's faces. Boxes and landmarks are px of the frame; views are dropped once they are read."""

    name: str
    number: int
    time_s: float
    status: Status
    boxes_N4: np.ndarray
    scores_N: np.ndarray
    ids_N: np.ndarray
    thumbnail: np.ndarray | None = None
    affines: Sequence[np.ndarray] = ()
    views: Sequence[np.ndarray] = ()
    flipped: Sequence[np.ndarray] = ()
    probabilities_NA: np.ndarray | None = None
    landmarks_NP2: np.ndarray | None = None


def image_frames(sources: Iterable[Source]) -> Iterator[Frame]:
    """Yield the images, decoded on threads a few ahead."""
    for source, image in prefetch_map(lambda source: read_image(source.path), sources, num_threads=_DECODING_THREADS):
        yield Frame(source.name, 0, math.nan, image.result())


def video_frames(source: Source, *, every: int, start: int = 0) -> Iterator[Frame]:
    """Yield each `every`-th frame of a video from the number `start` on; damaged frames have no image.

    A file that is not a video yields one frame without an image.
    """
    try:
        for frame in iterate_video(source.path, start=start):
            if frame.number % every == 0:
                yield Frame(source.name, frame.number, frame.time_s, frame.image, is_video=True)
    except DataError:  # `job.count_frames` has logged it
        yield Frame(source.name, 0, math.nan, None, is_video=True)


def read_chunks(
    frames: Iterable[Frame], reader: FaceReader, options: Options, *, tracker: Tracker | None = None
) -> Iterator[list[FrameFaces]]:
    """Yield the faces of the frames, in order, in chunks of `options.chunk_frames`; the last one may be shorter.

    tracker: of the video's earlier frames; default: none were before. Frames of images get no tracks: their faces are
    numbered from the best one on.
    """
    device = reader.device
    tracker = Tracker(reader.model.detector.tracks) if tracker is None else tracker
    batches = read_ahead(_batches(frames, options), num_ahead=_BATCHES_AHEAD)
    detected = map_batches(lambda batch: _detect(batch, reader, options), batches, device)
    tracked = (_track(each, tracker) for batch in read_ahead(detected, num_ahead=_BATCHES_AHEAD) for each in batch)
    read = map_batches(lambda group: _read(group, reader), _groups(tracked, _GROUP_FACES), device)
    return _chunked(chain.from_iterable(read), options.chunk_frames)


def _chunked(frames: Iterator[FrameFaces], num_frames: int) -> Iterator[list[FrameFaces]]:
    while chunk := list(islice(frames, num_frames)):
        yield chunk


def _batches(frames: Iterable[Frame], options: Options) -> Iterator[list[Frame]]:
    """Yield batches of frames of one size; none spans two chunks."""
    batch: list[Frame] = []
    shape: tuple[int, ...] | None = None
    for position, frame in enumerate(frames):
        here = None if frame.image is None else frame.image.shape
        most = options.batch_size if shape is None else max(1, _MAX_BATCH_PX // (shape[0] * shape[1]))
        is_full = len(batch) >= min(options.batch_size, most)
        is_other = None not in (here, shape) and here != shape
        if batch and (is_full or is_other or position % options.chunk_frames == 0):
            yield batch
            batch, shape = [], None
        batch.append(frame)
        shape = here or shape
    if batch:
        yield batch


def _detect(batch: list[Frame], reader: FaceReader, options: Options) -> list[FrameFaces]:
    """Detect the faces of a batch and cut their views."""
    images = [frame.image for frame in batch if frame.image is not None]
    settings, device = reader.model.detector, reader.device
    found = iter(faces_in(images, reader.detector, settings=settings, device=device) if images else ())
    return [
        _unread(frame) if frame.image is None else _cut(frame, *next(found)[:2], reader, options) for frame in batch
    ]


def _unread(frame: Frame) -> FrameFaces:
    none = np.empty(0, np.float32)
    return FrameFaces(
        frame.name, frame.number, frame.time_s, Status.UNREADABLE, none.reshape(0, 4), none, np.empty(0, np.int32)
    )


def _cut(frame: Frame, boxes_N4: np.ndarray, scores_N: np.ndarray, reader: FaceReader, options: Options) -> FrameFaces:
    assert frame.image is not None
    is_sure = scores_N >= options.min_score
    boxes_N4, scores_N = boxes_N4[is_sure], scores_N[is_sure]
    if options.faces == "largest" and len(boxes_N4):
        largest = [int(np.argmax((boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1)))]
        boxes_N4, scores_N = boxes_N4[largest], scores_N[largest]
    crop = reader.model.crop
    affines = [frame_from_crop(box, crop) for box in boxes_N4]
    crops = [cut_crop(frame.image, affine, crop) for affine in affines]
    is_averaged = reader.model.averages_flip
    return FrameFaces(
        frame.name,
        frame.number,
        frame.time_s,
        Status.OK if len(boxes_N4) else Status.NO_FACE,
        boxes_N4,
        scores_N,
        np.arange(len(boxes_N4), dtype=np.int32),
        thumbnail=scene_thumbnail(frame.image) if frame.is_video else None,
        affines=affines,
        views=[render_view(each, ViewParams(), view_px=crop.size_px) for each in crops],
        flipped=[render_view(each, ViewParams(is_flipped=True), view_px=crop.size_px) for each in crops]
        if is_averaged
        else (),
    )


def _track(frame: FrameFaces, tracker: Tracker) -> FrameFaces:
    """Replace the faces' numbers by those of their tracks."""
    if frame.thumbnail is not None:
        frame.ids_N = tracker.update(frame.boxes_N4, frame.scores_N, frame=frame.number, thumbnail=frame.thumbnail)
    return frame


def _groups(frames: Iterable[FrameFaces], num_faces: int) -> Iterator[list[FrameFaces]]:
    """Yield consecutive frames with `num_faces` faces or more together, or as many frames with fewer."""
    group: list[FrameFaces] = []
    count = 0
    for frame in frames:
        group.append(frame)
        count += len(frame.scores_N)
        if count >= num_faces or len(group) >= 4 * num_faces:
            yield group
            group, count = [], 0
    if group:
        yield group


def _read(group: list[FrameFaces], reader: FaceReader) -> list[FrameFaces]:
    """Read the action units of all faces of a group."""
    views = [view for frame in group for view in frame.views]
    if not views:
        return group
    flipped = [view for frame in group for view in frame.flipped]
    probabilities, landmarks = reader.read(np.stack(views), np.stack(flipped) if flipped else None)
    crop = reader.model.crop
    margin_px = (crop_side_px(crop) - crop.size_px) / 2
    start = 0
    for frame in group:
        stop = start + len(frame.scores_N)
        frame.probabilities_NA = probabilities[start:stop]
        if landmarks is not None:
            pairs = zip(landmarks[start:stop], frame.affines, strict=True)
            in_frame = [transform_points(points + margin_px, affine) for points, affine in pairs]
            frame.landmarks_NP2 = np.array(in_frame, np.float32).reshape(-1, *landmarks.shape[1:])
        frame.views = frame.flipped = frame.affines = ()
        start = stop
    return group

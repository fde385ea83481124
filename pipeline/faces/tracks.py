"""Which faces of a sequence belong to one person: tracks, linked frame by frame, and cuts between scenes."""

# N faces of a frame, T tracks
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.config import TrackConfig

THUMBNAIL_PX = 16
"""Side of the grey thumbnail, to which a frame is squeezed, that shows cuts."""
_MAX_PAN_PX = 3
"""Largest move of the camera between two frames, in px of the thumbnail."""
_MIN_CONTRAST = 4.0
"""Standard deviation below which a thumbnail counts as even, in grey levels."""
_VELOCITY_WEIGHT = 0.5
"""Weight of the newest move in a track's velocity."""


class Tracker:
    """Links the faces of one sequence into tracks, one frame after the other; one track is one person.

    A face continues the track whose expected box it overlaps most, else the nearest one of its size; tracks move on
    with their velocity while their face is missed. The pairs of a frame are chosen together: the largest sum of
    overlaps, then the smallest sum of distances. A cut ends all tracks.
    """

    def __init__(self, settings: TrackConfig) -> None:
        self._settings = settings
        self._tracks: list[_Track] = []
        self._num_tracks = 0
        self._frame: int | None = None
        self._thumbnail: np.ndarray | None = None
        self.scene = 0
        """Number of cuts so far."""

    def update(
        self, boxes_N4: np.ndarray, scores_N: np.ndarray, *, frame: int, thumbnail: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the track of each face of the next frame, int32 (N,): numbers from 0 that are never used again.

        boxes_N4: xyxy in full-frame px. scores_N: 0..1; new tracks are numbered from the best face on, so the order of
        the faces does not matter. frame: its number, larger than that of the last call, else `ValueError`. thumbnail:
        of `scene_thumbnail`; without it, no cut is seen at this frame.
        """
        if self._frame is not None and frame <= self._frame:
            raise ValueError(f"frame {frame} follows frame {self._frame}; pass the frames of a sequence in their order")
        self._frame = frame
        if thumbnail is not None:
            if self._thumbnail is not None and is_cut(self._thumbnail, thumbnail, self._settings.min_cut_difference):
                self._tracks.clear()
                self.scene += 1
            self._thumbnail = thumbnail
        oldest = frame - self._settings.max_missed_frames - 1
        self._tracks = [track for track in self._tracks if track.frame >= oldest]

        ids = np.empty(len(boxes_N4), np.int32)
        order = np.lexsort((*np.asarray(boxes_N4).reshape(-1, 4).T, -np.asarray(scores_N)))
        faces = {int(i): _Box(*boxes_N4[i].tolist()) for i in order}
        tracks = {track.number: track for track in self._tracks}
        for closeness in (self._overlap, self._nearness):
            for number, i in _best_pairs(tracks, faces, closeness, frame=frame):
                tracks.pop(number).move_to(faces.pop(i), frame=frame)
                ids[i] = number
        for i, box in faces.items():
            self._tracks.append(_Track(self._num_tracks, box, frame))
            ids[i] = self._num_tracks
            self._num_tracks += 1
        return ids

    def _overlap(self, expected: _Box, face: _Box) -> float:
        iou = expected.iou(face)
        return iou if iou >= self._settings.min_iou else -math.inf

    def _nearness(self, expected: _Box, face: _Box) -> float:
        moved_sides = expected.distance(face) / expected.side
        size_ratio = max(expected.side / face.side, face.side / expected.side)
        is_near = moved_sides <= self._settings.max_move_sides and size_ratio <= self._settings.max_size_ratio
        return -moved_sides if is_near else -math.inf


@dataclass(frozen=True, slots=True)
class _Box:
    """A box in px; plain numbers, because most frames have one face, for which arrays are slow."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    @property
    def side(self) -> float:
        """Side of the square of the same area, 1 px or more."""
        return max(1.0, math.sqrt(max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)))

    def moved(self, x: float, y: float) -> _Box:
        return _Box(self.x1 + x, self.y1 + y, self.x2 + x, self.y2 + y)

    def distance(self, other: _Box) -> float:
        return math.dist(self.centre, other.centre)

    def iou(self, other: _Box) -> float:
        width = max(0.0, min(self.x2, other.x2) - max(self.x1, other.x1))
        height = max(0.0, min(self.y2, other.y2) - max(self.y1, other.y1))
        shared = width * height
        return shared / max(self.side**2 + other.side**2 - shared, 1.0)


class _Track:
    """Where a person was last seen, and how the face moved, in px per frame."""

    def __init__(self, number: int, box: _Box, frame: int) -> None:
        self.number, self.box, self.frame = number, box, frame
        self._velocity = (0.0, 0.0)

    def move_to(self, box: _Box, *, frame: int) -> None:
        num_frames = frame - self.frame
        moves = (new - old for new, old in zip(box.centre, self.box.centre, strict=True))
        x, y = (
            (1 - _VELOCITY_WEIGHT) * old + _VELOCITY_WEIGHT * move / num_frames
            for old, move in zip(self._velocity, moves, strict=True)
        )
        self.box, self.frame, self._velocity = box, frame, (x, y)

    def expected_box(self, frame: int) -> _Box:
        """Return the box moved on with the velocity, by its side at most."""
        num_frames = frame - self.frame
        x, y = self._velocity
        share = min(1.0, self.box.side / max(math.hypot(x, y) * num_frames, 1e-6))
        return self.box.moved(x * num_frames * share, y * num_frames * share)


def _best_pairs(
    tracks: dict[int, _Track], faces: dict[int, _Box], closeness: Callable[[_Box, _Box], float], *, frame: int
) -> list[tuple[int, int]]:
    """Return pairs (track, face) of finite closeness, with the largest sum among all choices of most pairs."""
    if not tracks or not faces:
        return []
    expected = [track.expected_box(frame) for track in tracks.values()]
    close_TN = np.array([[closeness(box, face) for face in faces.values()] for box in expected])
    is_possible_TN = np.isfinite(close_TN)
    if not is_possible_TN.any():
        return []
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - a third of a second

    chosen = zip(*linear_sum_assignment(np.where(is_possible_TN, close_TN, -1e6), maximize=True), strict=True)
    numbers, positions = list(tracks), list(faces)
    return [(numbers[t], positions[n]) for t, n in chosen if is_possible_TN[t, n]]


# ---------------------------------------------------------------------------------------------------------------- cuts


def scene_thumbnail(image: np.ndarray) -> np.ndarray:
    """Return the grey thumbnail (16, 16) uint8 of an image, RGB uint8 (H, W, 3)."""
    small = cv2.resize(image, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)


def is_cut(before: np.ndarray, after: np.ndarray, min_difference: float) -> bool:
    """Return whether two thumbnails (16, 16) uint8 show different scenes.

    Compares them after removing brightness and contrast, as the mean absolute difference in standard deviations: 0 for
    one scene in another light, around 1 for unrelated scenes. A camera that moves by up to 3 px of the thumbnail
    shows the same scene.
    """
    if _difference(before, after) < min_difference:  # most frames
        return False
    reach = range(-_MAX_PAN_PX, _MAX_PAN_PX + 1)
    return all(
        _difference(_shifted(before, x, y), _shifted(after, -x, -y)) >= min_difference for x in reach for y in reach
    )


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(_even_light(a) - _even_light(b)).sum()) / a.size


def _even_light(thumbnail: np.ndarray) -> np.ndarray:
    grey = thumbnail.astype(np.float64)
    grey -= grey.sum() / grey.size
    even: np.ndarray = grey / max(math.sqrt(np.vdot(grey, grey) / grey.size), _MIN_CONTRAST)
    return even


def _shifted(thumbnail: np.ndarray, x: int, y: int) -> np.ndarray:
    """Return the part that stays in view when the thumbnail moves by x and y px."""
    height, width = thumbnail.shape
    return thumbnail[max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)]

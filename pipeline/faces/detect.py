"""From frames to faces: all faces of each frame, or why it has none."""

# B frames of one size, N rows, H height, W width
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import torch

from pipeline.catalog import WeightsEntry
from pipeline.config import DetectorConfig
from pipeline.datasets.images import read_frames
from pipeline.errors import WeightsError
from pipeline.faces.tracks import scene_thumbnail
from pipeline.faces.weights import load_weights
from pipeline.runtime.device import map_batches
from pipeline.runtime.progress import ProgressCallback, no_progress
from pipeline.tables import FACE_COLUMNS, VALUE_COLUMNS, Status

if TYPE_CHECKING:
    from models.retinaface import Faces, RetinaFace

BACKBONES = {"retinaface-mobilenet": "mobilenet0.25", "retinaface-resnet50": "resnet50"}
_SURE_SCORE = 0.9
"""A frame whose best face scores less is looked at from its other three sides, too..."""
_TURNED_GAIN = 2.0
"""...and is turned if a face of a sure score appears there, whose score x area is so many times as large."""
_MAX_WAITING_BATCHES = 4


def load_detector(entry: WeightsEntry, device: torch.device) -> RetinaFace:
    """Load a RetinaFace with its weights, in evaluation mode on `device`.

    Raises `WeightsError` for weights that are missing, changed, or of another network.
    """
    from models.retinaface import RetinaFace  # noqa: PLC0415 - imports torchvision: over a second

    if entry.family not in BACKBONES:
        raise WeightsError(
            f"weights {entry.path} have the family {entry.family!r}; a detector needs one of {', '.join(BACKBONES)}"
        )
    detector = RetinaFace(BACKBONES[entry.family])
    load_weights(detector, entry, expected=entry.family, fix="`family` or `path`")
    return detector.eval().to(device).to(memory_format=torch.channels_last)


def detect_frames(
    frames: pd.DataFrame,
    root: Path,
    detector: RetinaFace,
    *,
    settings: DetectorConfig,
    device: torch.device,
    batch_size: int = 8,
    on_progress: ProgressCallback = no_progress,
) -> pd.DataFrame:
    """Return `FACE_COLUMNS`: all faces of each frame in the order of `frames`, the best one first.

    `on_progress` is called as frames finish. `subjects.subject_boxes` chooses the subject's faces, once all frames of a
    sequence are detected.
    """
    found: list[_FacesOfFrame] = [_NO_FACES] * len(frames)
    statuses = np.full(len(frames), Status.UNREADABLE.value, object)
    sizes, turns = np.zeros((len(frames), 2), np.int32), np.zeros(len(frames), np.int32)
    thumbnails = np.full(len(frames), b"", object)

    around = partial(faces_in, detector=detector, settings=settings, device=device)

    def detect(batch: _Batch) -> tuple[list[int], list[_FacesOfFrame], list[int], list[bytes], tuple[int, ...]]:
        positions, images = batch
        faces = around(images + images[-1:] * (batch_size - len(images)))[: len(images)]  # as in `pad_batch`
        turned = [_turned_deg(image, of_frame, around) for image, of_frame in zip(images, faces, strict=True)]
        return positions, faces, turned, [scene_thumbnail(image).tobytes() for image in images], images[0].shape

    batches = _batches(root, frames, batch_size, on_progress)
    for positions, faces, turned, seen, (height, width, _) in map_batches(detect, batches, device):
        sizes[positions], turns[positions] = (width, height), turned
        for position, of_frame, thumbnail in zip(positions, faces, seen, strict=True):
            found[position], thumbnails[position] = of_frame, thumbnail
            statuses[position] = (Status.OK if len(of_frame[1]) else Status.NO_FACE).value
        on_progress(len(positions))

    num_faces = np.array([len(scores) for _, scores, _ in found], int)
    rows = np.repeat(np.arange(len(frames)), np.maximum(num_faces, 1))
    values = np.full((len(rows), len(VALUE_COLUMNS)), np.nan, np.float32)
    if num_faces.any():
        values[num_faces[rows] > 0] = np.concatenate([_as_rows(faces) for faces in found])
    nth = np.arange(len(rows)) - np.searchsorted(rows, rows)
    table = pd.DataFrame(values, columns=list(VALUE_COLUMNS)).assign(
        frame_id=frames["frame_id"].to_numpy()[rows],
        face=np.where(num_faces[rows] > 0, nth, -1).astype(np.int32),
        status=pd.Series(statuses[rows], dtype=str),
        width_px=sizes[rows, 0],
        height_px=sizes[rows, 1],
        thumbnail=thumbnails[rows],
        turned_deg=turns[rows],
    )
    return table[list(FACE_COLUMNS)]


_Batch = tuple[list[int], list[np.ndarray]]
"""Positions in a table of frames and their images, all of one size."""
_FacesOfFrame = tuple[np.ndarray, np.ndarray, np.ndarray]
_NO_FACES: _FacesOfFrame = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32)


def _as_rows(faces: _FacesOfFrame) -> np.ndarray:
    """Return the faces of a frame in `VALUE_COLUMNS`: (n, 15)."""
    boxes, scores, points = faces
    return np.concatenate([boxes, scores[:, None], points.reshape(-1, 10)], axis=1)


def _turned_deg(
    image: np.ndarray, faces: _FacesOfFrame, faces_in_images: Callable[[list[np.ndarray]], list[_FacesOfFrame]]
) -> int:
    """Return by how much an image (H, W, 3) is turned clockwise: 0, 90, 180, 270.

    Looks from the other sides unless a face has a sure score, one image at a time, so that batches do not matter.
    """
    if (faces[1] >= _SURE_SCORE).any():
        return 0
    others = [faces_in_images([np.ascontiguousarray(np.rot90(image, quarters))])[0] for quarters in (1, 2, 3)]
    evidence = [_evidence(other, min_score=_SURE_SCORE) for other in others]
    best = int(np.argmax(evidence))
    return 90 * (best + 1) if evidence[best] > _TURNED_GAIN * _evidence(faces, min_score=0.0) else 0


def _evidence(faces: _FacesOfFrame, *, min_score: float) -> float:
    """Return the largest score x area."""
    boxes, scores, _ = faces
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return float((scores * areas)[scores >= min_score].max(initial=0.0))


def _batches(root: Path, frames: pd.DataFrame, batch_size: int, on_progress: ProgressCallback) -> Iterator[_Batch]:
    """Yield the readable images of a table in batches of one image size; calls `on_progress` for unreadable ones."""
    waiting: dict[tuple[int, ...], _Batch] = {}
    for position, image in read_frames(root, frames):
        if image is None:
            on_progress(1)
            continue
        positions, images = waiting.setdefault(image.shape, ([], []))
        positions.append(position)
        images.append(image)
        is_crowded = sum(len(batch[0]) for batch in waiting.values()) >= _MAX_WAITING_BATCHES * batch_size
        if len(positions) == batch_size or is_crowded:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape][0])))
    yield from waiting.values()


@torch.inference_mode()
def faces_in(
    images: list[np.ndarray], detector: RetinaFace, *, settings: DetectorConfig, device: torch.device
) -> list[_FacesOfFrame]:
    """Detect the faces of each image, best first: boxes (n, 4), scores (n,), points (n, 5, 2), float32, full-frame px.

    images: RGB uint8 (H, W, 3), all of one size; the detector gets them shrunk to `max_side_px` at most.
    """
    height, width = images[0].shape[:2]
    shrink = min(1.0, settings.max_side_px / max(height, width))
    small_width, small_height = max(1, round(width * shrink)), max(1, round(height * shrink))
    if shrink < 1:
        images = [cv2.resize(image, (small_width, small_height), interpolation=cv2.INTER_AREA) for image in images]
    batch_BHW3 = torch.from_numpy(np.stack(images))
    if device.type == "cuda":
        batch_BHW3 = batch_BHW3.pin_memory()
    batch_B3HW = batch_BHW3.to(device, non_blocking=True).permute(0, 3, 1, 2)
    found = detector(batch_B3HW, score_threshold=settings.score_threshold, nms_iou=settings.nms_iou)
    px = np.array([width / small_width, height / small_height], np.float32)
    return [_in_full_frame(faces, px) for faces in found]


def _in_full_frame(faces: Faces, px: np.ndarray) -> _FacesOfFrame:
    """Multiply coordinates by `px` (x, y); 0 is the centre of the first pixel before and after."""

    def enlarge(xy: np.ndarray) -> np.ndarray:
        enlarged: np.ndarray = (xy + 0.5) * px - 0.5
        return enlarged

    boxes, scores, points = (values.cpu().numpy() for values in faces)
    return enlarge(boxes.reshape(-1, 2, 2)).reshape(-1, 4), scores, enlarge(points)

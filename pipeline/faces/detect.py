"""From frames to boxes: the best face of each frame, or why it has none."""

# B frames of one size, N rows, H height, W width
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import torch

from pipeline.catalog import WeightsEntry
from pipeline.config import DetectorConfig
from pipeline.datasets.images import read_frames, unread_statuses
from pipeline.errors import WeightsError
from pipeline.faces.weights import load_weights
from pipeline.runtime.device import map_batches
from pipeline.runtime.progress import ProgressCallback, no_progress
from pipeline.tables import BOX_COLUMNS, Status

if TYPE_CHECKING:
    from models.retinaface import Faces, RetinaFace

BACKBONES = {"retinaface-mobilenet": "mobilenet0.25", "retinaface-resnet50": "resnet50"}
VALUE_COLUMNS = list(BOX_COLUMNS[1:-2])
"""Box, score and points: the columns that are NaN without a face."""
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
    done: pd.DataFrame | None = None,
    on_progress: ProgressCallback = no_progress,
) -> pd.DataFrame:
    """Return `BOX_COLUMNS`, one row per frame in the order of `frames`: box, score and points of the best-scoring face.

    Coordinates are in full-frame px. `status` is ok, no_face, unreadable or no_source; `fill_gaps` fills gaps once all
    chunks of a sequence are detected. `done`: rows of an earlier call, which are reused. `on_progress` is called as
    frames finish.
    """
    if done is not None:
        left = frames[~frames["frame_id"].isin(done["frame_id"])]
        new = detect_frames(
            left, root, detector, settings=settings, device=device, batch_size=batch_size, on_progress=on_progress
        )
        return pd.concat([done, new]).set_index("frame_id").loc[frames["frame_id"]].reset_index()

    values = np.full((len(frames), len(VALUE_COLUMNS)), np.nan, np.float32)
    num_faces = np.zeros(len(frames), np.int32)
    statuses = unread_statuses(root, frames)

    def detect(batch: _Batch) -> tuple[list[int], list[_FacesOfFrame]]:
        return batch[0], faces_in(batch[1], detector, settings=settings, device=device)

    for positions, found in map_batches(detect, _batches(root, frames, batch_size, on_progress), device):
        for position, (boxes, scores, points) in zip(positions, found, strict=True):
            num_faces[position] = len(scores)
            statuses[position] = (Status.OK if len(scores) else Status.NO_FACE).value
            if len(scores):
                values[position] = np.concatenate([boxes[0], scores[:1], points[0].ravel()])
        on_progress(len(positions))

    table = pd.DataFrame(values, columns=VALUE_COLUMNS)
    table.insert(0, "frame_id", frames["frame_id"].to_numpy())
    return table.assign(num_faces=num_faces, status=pd.Series(statuses, dtype=str))[list(BOX_COLUMNS)]


_Batch = tuple[list[int], list[np.ndarray]]
"""Positions in a table of frames and their images, all of one size."""
_FacesOfFrame = tuple[np.ndarray, np.ndarray, np.ndarray]


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


def fill_gaps(frames: pd.DataFrame, boxes: pd.DataFrame, *, max_gap_frames: int) -> pd.DataFrame:
    """Return `boxes` with short runs without a face interpolated linearly between two detected faces of a sequence.

    A run is filled, and its status becomes interpolated, if at most `max_gap_frames` frame numbers lie between its two
    neighbours of the same subject and task. Scores stay NaN; unreadable frames stay unchanged. Both tables must list
    the same frames in the same order.
    """
    assert (frames["frame_id"].to_numpy() == boxes["frame_id"].to_numpy()).all()
    columns = [name for name in VALUE_COLUMNS if name != "score"]
    values, statuses = boxes[columns].to_numpy(copy=True), boxes["status"].to_numpy(copy=True)
    numbers = frames["frame"].to_numpy()
    for rows in frames.groupby(["subject", "task"], sort=False).indices.values():
        is_ok = statuses[rows] == Status.OK
        if is_ok.sum() < 2:
            continue
        ok_rows = rows[is_ok][np.argsort(numbers[rows[is_ok]])]
        ok_numbers = numbers[ok_rows]
        after = np.searchsorted(ok_numbers, numbers[rows])
        is_between = (after > 0) & (after < len(ok_rows))
        gap_frames = np.diff(ok_numbers, prepend=ok_numbers[0])[np.minimum(after, len(ok_rows) - 1)] - 1
        filled = rows[(statuses[rows] == Status.NO_FACE) & is_between & (gap_frames <= max_gap_frames)]
        for column in range(len(columns)):
            values[filled, column] = np.interp(numbers[filled], ok_numbers, values[ok_rows, column])
        statuses[filled] = Status.INTERPOLATED.value
    return boxes.assign(**dict(zip(columns, values.T, strict=True)), status=statuses)

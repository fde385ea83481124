"""Cut crops from frames: the face with the context that every view needs, and the crop's affine to the frame.

The store (pipeline/store) has the arrays `crops` (RGB uint8) and `affines` (crop px to frame px), one row per face in
the order of the frame index. Frames without a face and unreadable frames are listed with their status and have no row.
Pixel centres are whole numbers, x to the right, y down.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from pipeline.config import CropConfig
from pipeline.datasets.images import read_frames
from pipeline.datasets.sources import SOURCE_COLUMNS, source_hashes
from pipeline.errors import DataError
from pipeline.faces.geometry import cut_crop, frame_from_crop
from pipeline.faces.views import crop_side_px
from pipeline.fingerprint import versions
from pipeline.runtime.progress import ProgressCallback, no_progress
from pipeline.store.format import DEFAULT_BLOCK_ROWS, StoreFormat
from pipeline.store.hashing import canonical_json
from pipeline.store.plan import Plan, Unit
from pipeline.store.reader import StoreReader
from pipeline.store.revisions import load_revision, read_fingerprint
from pipeline.store.shards import ArraySpec
from pipeline.store.writer import open_writer, plan_store
from pipeline.tables import Status

HAS_FACE = (Status.OK, Status.INTERPOLATED)
_BOX = ["x1", "y1", "x2", "y2"]
_ROOT_GROUP = ""


class CropReader(StoreReader):
    """Crops of one revision."""

    def read_crops(self, rows: np.ndarray) -> np.ndarray:
        """Return crops (n, S, S, 3), RGB uint8."""
        return self.read_rows("crops", rows)

    def read_affines(self, rows: np.ndarray) -> np.ndarray:
        """Return affines (n, 2, 3) float64, crop px to frame px."""
        return self.read_rows("affines", rows)


def crops_format(
    document: Mapping[str, Any], settings: CropConfig, *, block_rows: int = DEFAULT_BLOCK_ROWS
) -> StoreFormat:
    """Return the format of a store of crops."""
    side = crop_side_px(settings)
    return StoreFormat(
        document=document,
        arrays=(
            ArraySpec(
                name="crops",
                row_shape=(side, side, 3),
                dtype="uint8",
                axes=("y", "x", "rgb"),
                attributes={"colour": "RGB", "outside_frame": 0},
            ),
            ArraySpec(
                name="affines",
                row_shape=(2, 3),
                dtype="float64",
                axes=("xy", "column"),
                attributes={"maps": "crop px to frame px", "pixel_centres": "whole numbers"},
            ),
        ),
        attributes={"kind": "crops", "document": json.loads(canonical_json(document))},
        is_shuffled=False,
        block_rows=block_rows,
    )


def plan_crops(
    folder_root: Path, frames: pd.DataFrame, boxes: pd.DataFrame, *, images_root: Path, format: StoreFormat
) -> Plan:
    """Return what `refresh_crops` would do; changes nothing.

    Reads only images whose size or modification time differs from the newest revision's.
    """
    folder = format.folder_in(folder_root)
    return plan_store(folder, format, _wanted(frames, boxes, images_root, folder), [_ROOT_GROUP])


def refresh_crops(
    folder_root: Path,
    frames: pd.DataFrame,
    boxes: pd.DataFrame,
    *,
    images_root: Path,
    settings: CropConfig,
    format: StoreFormat,
    provenance: Mapping[str, Any] = MappingProxyType({}),
    on_progress: ProgressCallback = no_progress,
) -> CropReader:
    """Bring the crops of `frames` up to date and return a reader of the newest revision.

    frames: `FRAME_COLUMNS`. boxes: `BOX_COLUMNS`, one row per frame in the same order. A face is cut again if its box
    or the bytes of its image changed. A killed refresh resumes. `on_progress` is called after each face. Raises
    `DataError` if the tables list different frames, `StoreError` if another process writes these crops.
    """
    if not frames["frame_id"].equals(boxes["frame_id"]):
        raise DataError(
            "boxes.parquet and frames.parquet list different frames; run `fantrans refresh` to detect again"
        )
    folder = format.folder_in(folder_root)
    with open_writer(folder, format) as writer:
        plan = writer.plan(_wanted(frames, boxes, images_root, folder), [_ROOT_GROUP])
        box_by_frame = dict(zip(boxes["frame_id"], boxes[_BOX].to_numpy(), strict=True))
        rows_in = {unit: plan.rows_in(unit.block) for unit in plan.units}
        frame_ids = {unit: rows["frame_id"].tolist() for unit, rows in rows_in.items()}
        unit_by_frame = {frame_id: unit for unit, ids in frame_ids.items() for frame_id in ids}
        todo = frames[frames["frame_id"].isin(unit_by_frame.keys())]
        todo_ids = todo["frame_id"].tolist()
        unfinished: dict[Unit, dict[str, _Cut | None]] = {}  # one or two: images are read in the order of the index
        for position, image in read_frames(images_root, todo):
            frame_id = todo_ids[position]
            unit = unit_by_frame[frame_id]
            cuts = unfinished.setdefault(unit, {})
            cuts[frame_id] = None if image is None else _cut(image, box_by_frame[frame_id], settings)
            if len(cuts) == len(frame_ids[unit]):
                in_order = [cuts[frame_id] for frame_id in frame_ids[unit]]
                is_present = np.array([cut is not None for cut in in_order])
                writer.write_unit(unit, rows_in[unit], _stacked(in_order, format.arrays), is_present=is_present)
                del unfinished[unit]
            on_progress(1)
        writer.publish(
            plan, provenance={**provenance, "versions": versions()}, absent_as={"status": Status.UNREADABLE.value}
        )
    return CropReader(folder)


_Cut = dict[str, np.ndarray]


def _cut(image: np.ndarray, box_xyxy: np.ndarray, settings: CropConfig) -> _Cut:
    affine = frame_from_crop(box_xyxy, settings)
    return {"crops": cut_crop(image, affine, settings), "affines": affine}


def _stacked(cuts: list[_Cut | None], specs: tuple[ArraySpec, ...]) -> dict[str, np.ndarray]:
    found = [cut for cut in cuts if cut is not None]
    return {s.name: np.array([cut[s.name] for cut in found], s.dtype).reshape(-1, *s.row_shape) for s in specs}


def _wanted(frames: pd.DataFrame, boxes: pd.DataFrame, images_root: Path, folder: Path) -> pd.DataFrame:
    """Return the table that the store plans from: key ("" without a face), part, status and source per frame."""
    revision = load_revision(folder)
    known = None if revision is None else revision.index
    sources = source_hashes(images_root, frames["source_file"], known=known)
    wanted = pd.DataFrame(
        {
            "frame_id": frames["frame_id"],
            "key": "",
            "part": "",
            "status": boxes["status"].astype(str),
            "source_file": frames["source_file"],
        }
    )
    wanted[list(SOURCE_COLUMNS[1:])] = sources.loc[frames["source_file"]].to_numpy()
    was_unreadable = _was_unreadable(wanted, known)
    is_missing = (wanted["source_sha256"] == "").to_numpy()
    has_face = boxes["status"].isin(HAS_FACE).to_numpy()
    wanted.loc[has_face & was_unreadable, "status"] = Status.UNREADABLE.value
    wanted.loc[has_face & is_missing, "status"] = Status.NO_SOURCE.value
    has_key = has_face & ~was_unreadable & ~is_missing
    boxes_xyxy = boxes[_BOX].to_numpy(np.float32)
    values = zip(wanted["source_sha256"], frames["source_frame"], boxes_xyxy, has_key, strict=True)
    wanted["key"] = [_crop_key(sha, int(number), box) if has else "" for sha, number, box, has in values]
    return wanted.astype({"source_bytes": np.int64, "source_mtime_ns": np.int64})


def _was_unreadable(wanted: pd.DataFrame, known: pd.DataFrame | None) -> np.ndarray:
    """Return which frames, bool (n,), have an image that an earlier refresh could not read and that has not changed."""
    if known is None:
        return np.zeros(len(wanted), bool)
    unreadable = known[known["status"] == Status.UNREADABLE.value]
    pairs = set(zip(unreadable["frame_id"], unreadable["source_sha256"], strict=True))
    return np.array([pair in pairs for pair in zip(wanted["frame_id"], wanted["source_sha256"], strict=True)], bool)


def _crop_key(source_sha256: str, source_frame: int, box_xyxy: np.ndarray) -> str:
    """Return the hash, 32 hex digits, of what decides a crop beside the fingerprint."""
    content = f"{source_sha256}/{source_frame}/".encode() + box_xyxy.astype("<f4").tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def stored_crops_format(folder: Path) -> StoreFormat:
    """Return the format of an existing store of crops."""
    document = read_fingerprint(folder)
    return crops_format(document, CropConfig.model_validate(document["crop"]))

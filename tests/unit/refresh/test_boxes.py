"""Which boxes of earlier refreshes are known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from pipeline.faces.detect import VALUE_COLUMNS
from pipeline.refresh.boxes import find_known_boxes
from pipeline.runtime.atomic import file_sha256
from pipeline.tables import BOX_COLUMNS


def box_rows(rows):
    """Boxes of (frame_id, status, source_file, sha256)."""
    table = pd.DataFrame(rows, columns=["frame_id", "status", "source_file", "source_sha256"])
    return table.assign(num_faces=1, source_bytes=-1, source_mtime_ns=-1, **dict.fromkeys(VALUE_COLUMNS, np.float32(1)))


def test_unreadable_frames_are_tried_again_and_absent_ones_once_they_are_there(tmp_path):
    for name in ("kept", "damaged", "new"):
        (tmp_path / name).write_text(name)
    rows = [
        ("a", "ok", "kept", file_sha256(tmp_path / "kept")),
        ("b", "unreadable", "damaged", file_sha256(tmp_path / "damaged")),
        ("c", "no_source", "gone", ""),
        ("d", "unreadable", "", ""),  # as earlier versions wrote it
        ("e", "no_source", "new", ""),
    ]
    box_rows(rows).to_parquet(tmp_path / "boxes.parquet")
    job = SimpleNamespace(boxes_path=tmp_path / "boxes.parquet", entry=SimpleNamespace(root=tmp_path))
    frames = pd.DataFrame([(row[0], row[2]) for row in rows], columns=["frame_id", "source_file"])
    known = find_known_boxes(job, frames)
    assert dict(zip(known.found["frame_id"], known.found["status"], strict=True)) == {
        "a": "ok",
        "c": "no_source",
        "d": "no_source",
    }
    assert known.missing(frames)["frame_id"].tolist() == ["b", "e"]
    assert list(known.found.columns) == list(BOX_COLUMNS)

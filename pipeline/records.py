"""The tables that stages hand over: their columns, and Parquet files that are whole or absent."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import pandas as pd

from pipeline.errors import DataError
from pipeline.files import write_atomically

UNKNOWN = -1
"""Label of an action unit that nobody coded."""

FRAME_COLUMNS = ("frame_id", "subject", "task", "frame", "source_file", "source_frame", "part")
"""`frames.parquet`, followed by `au_01`... (Int8: 0, 1, -1 unknown) and, where coded, `int_01`... (Int8: 0..5, -1).

`source_file` is relative to the dataset's root; `source_frame` is the 0-based frame of a video, -1 for an image.
"""

BOX_COLUMNS = ("frame_id", "x1", "y1", "x2", "y2", "score",
               *(f"p{i}{axis}" for i in range(5) for axis in "xy"), "num_faces", "status")
"""`boxes.parquet`: box and five points in full-frame px; missing values are NaN, never zero."""


class Status(StrEnum):
    """What became of a frame in detection."""

    OK = "ok"
    NO_FACE = "no_face"
    UNREADABLE = "unreadable"
    INTERPOLATED = "interpolated"


def au_column(au: int) -> str:
    """Column of an action unit's presence: `au_column(1) == "au_01"`."""
    return f"au_{au:02d}"


def intensity_column(au: int) -> str:
    """Column of an action unit's intensity: `intensity_column(1) == "int_01"`."""
    return f"int_{au:02d}"


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, whole or not at all."""
    write_atomically(path, lambda temp: table.to_parquet(temp, index=False))


def read_table(path: Path, *, columns: tuple[str, ...], made_by: str) -> pd.DataFrame:
    """Read a Parquet table that must have `columns`; `made_by` is the command that makes it anew."""
    if not path.is_file():
        raise DataError(f"{path} is not there; run `{made_by}` to make it")
    table = pd.read_parquet(path)
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; run `{made_by}` to make it anew")
    return table

"""Tables that stages pass on: their columns, and atomic reading and writing of Parquet and JSON files."""

from __future__ import annotations

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.errors import DataError, DataNotFoundError
from pipeline.runtime.atomic import write_atomically
from pipeline.runtime.parquet import parse_parquet
from pipeline.runtime.version import FILE_METADATA_KEY, file_metadata

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("fantrans")

UNKNOWN = -1
"""Label of an action unit that is not coded."""

FRAME_COLUMNS = ("frame_id", "subject", "task", "frame", "source_file", "source_frame", "part")
"""`frames.parquet`, followed by `au_01`... (Int8: 0, 1, -1 unknown) and, where coded, `int_01`... (Int8: 0..5, -1).

`source_file` is relative to the data set's root; `source_frame` is the 0-based frame of a video, -1 for an image.
"""

VALUE_COLUMNS = ("x1", "y1", "x2", "y2", "score", *(f"p{i}{axis}" for i in range(5) for axis in "xy"))
"""Box, score and five points of a face: float32, in full-frame px; NaN without a face, never zero."""

FACE_COLUMNS = ("frame_id", "face", "status", "width_px", "height_px", "thumbnail", "turned_deg", *VALUE_COLUMNS)
"""`faces.parquet`: one row per detected face, `face` 0, 1... from the best score on.

A frame without a face has one row, with `face` -1 and `status` no_face or unreadable. The size of the frame, its grey
thumbnail (16 x 16 px as bytes), and how far it is turned clockwise (0, 90, 180, 270) are in each of its rows.
"""

BOX_COLUMNS = ("frame_id", *VALUE_COLUMNS, "num_faces", "status", "track", "flaw", "width_px", "height_px")
"""`boxes.parquet`: one row per frame, with the face of its subject.

`num_faces` counts all faces of the frame. `track` is the number of the face's track in its sequence, -1 without one.
`flaw` is what makes the box implausible (`Flaw`), "" for nothing. The size is that of the frame, 0 if unreadable.
"""


class Status(StrEnum):
    """Whether a frame has a face, and if not, why."""

    OK = "ok"
    NO_FACE = "no_face"
    UNREADABLE = "unreadable"
    """There is a file, and it or its frame cannot be decoded."""
    NO_SOURCE = "no_source"
    """The frame has no image file or video. Tables of earlier versions call such frames unreadable."""
    INTERPOLATED = "interpolated"
    IMPLAUSIBLE = "implausible"


class Flaw(StrEnum):
    """What makes a box implausible as the box of a whole, upright face."""

    SMALL = "small"
    OUTSIDE = "outside"
    POINTS = "points"
    TURNED = "turned"


def au_column(au: int) -> str:
    """Return the column name of an action unit's presence: `au_column(1) == "au_01"`."""
    return f"au_{au:02d}"


def intensity_column(au: int) -> str:
    """Return the column name of an action unit's intensity: `intensity_column(1) == "int_01"`."""
    return f"int_{au:02d}"


def probability_column(au: int) -> str:
    """Return the column name of an action unit's probability: `probability_column(1) == "p_01"`."""
    return f"p_{au:02d}"


def write_table(path: Path, table: pd.DataFrame, *, schema: int | None = None) -> None:
    """Write a table as Parquet, atomically; with a `schema`, its metadata name that and the version of this package."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - most commands write no table

    arrow = as_arrow(table, schema=schema)
    write_atomically(path, lambda temp: pq.write_table(arrow, temp))


def as_arrow(table: pd.DataFrame, *, schema: int | None = None) -> pa.Table:
    """Return a table without its index for Parquet, with the metadata of `write_table`."""
    import pyarrow as pa  # noqa: PLC0415

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    if schema is None:
        return arrow
    return arrow.replace_schema_metadata({**arrow.schema.metadata, FILE_METADATA_KEY: file_metadata(schema)})


def read_table(path: Path, *, columns: tuple[str, ...], made_by: str) -> pd.DataFrame:
    """Read a Parquet table that must have `columns`.

    made_by: the command that creates it, for messages. Raises `DataNotFoundError`, or `DataError` for a damaged file.
    """
    if not path.is_file():
        raise DataNotFoundError(f"{path} does not exist; run `{made_by}` to create it")
    table = _parquet(path)
    if table is None:
        raise DataError(f"{path} is damaged; delete it, and run `{made_by}` to rebuild it")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; run `{made_by}` to rebuild it")
    return table


def read_table_if_intact(path: Path) -> pd.DataFrame | None:
    """Read a Parquet table; None if it does not exist, or, with a warning, if it is damaged: the caller rebuilds it."""
    if not path.is_file():
        return None
    table = _parquet(path)
    if table is None:
        logger.warning("%s is damaged and will be rebuilt", path)
    return table


def _parquet(path: Path) -> pd.DataFrame | None:
    try:
        return parse_parquet(path.read_bytes())
    except ValueError:
        return None
    except OSError as error:
        if error.errno is not None:  # from the file system, not from pyarrow's own checks
            raise
        return None


def read_record(path: Path, *, keys: tuple[str, ...], made_by: str) -> dict[str, Any]:
    """Read a JSON file that must have `keys`.

    made_by: the command that creates it, for messages. Raises `DataNotFoundError`, or `DataError` for a damaged file.
    """
    if not path.is_file():
        raise DataNotFoundError(f"{path} does not exist; run `{made_by}` to create it")
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        record = None
    if not isinstance(record, dict) or not record.keys() >= set(keys):
        raise DataError(
            f"{path} is damaged: expected JSON with {', '.join(keys)}; delete it, and run `{made_by}` to rebuild it"
        )
    return record

"""The tables of predictions: the rows of a chunk, and the columns of each output format."""

# N faces of a frame, A action units, P landmarks
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from models.maps import NUM_LANDMARKS
from pipeline.config import TrackConfig
from pipeline.faces.tracks import THUMBNAIL_PX, Tracker
from pipeline.predict.stream import FrameFaces
from pipeline.tables import Status, as_arrow, au_column, probability_column

ROWS_VERSION = 1
"""Increased when the same inputs, model and options give other rows or columns."""

Format = Literal["fantrans", "py-feat", "openface"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES = (".csv", ".parquet")

FACE_COLUMNS = ("input", "frame", "timestamp_s", "face_id", "x1", "y1", "x2", "y2", "score", "status")
"""First columns of the format fantrans; `p_01`... and `au_01`... follow."""
_BOX = ["x1", "y1", "x2", "y2"]
_LANDMARKS = [f"{axis}_{i}" for axis in "xy" for i in range(NUM_LANDMARKS)]
_THUMBNAIL = "thumbnail"
"""Column of chunks alone: the scene's thumbnail, from which a resumed run continues its tracks."""


def to_rows(frames: Iterable[FrameFaces], aus: Sequence[int], threshold_A: np.ndarray) -> pd.DataFrame:
    """Return one row per face, in the order of its number, and one per frame without a face.

    Columns: `FACE_COLUMNS`, probabilities float32, presence Int8 (missing without a face), landmarks `x_0`... in px of
    the frame, and the thumbnail as bytes in the first row of a video's frame.
    """
    heads: list[tuple[Any, ...]] = []
    probabilities, landmarks = [], []
    for frame in frames:
        thumbnail = None if frame.thumbnail is None else frame.thumbnail.tobytes()
        for i in np.argsort(frame.ids_N, kind="stable").tolist() or [None]:
            box = [np.nan] * 4 if i is None else frame.boxes_N4[i].tolist()
            face_id, score = (None, np.nan) if i is None else (int(frame.ids_N[i]), float(frame.scores_N[i]))
            heads.append((frame.name, frame.number, frame.time_s, face_id, *box, score, frame.status.value, thumbnail))
            probabilities.append(_values(frame.probabilities_NA, i, len(aus)))
            points = None if frame.landmarks_NP2 is None else frame.landmarks_NP2.transpose(0, 2, 1)
            landmarks.append(_values(points, i, len(_LANDMARKS)))
            thumbnail = None
    dtypes = {"input": "str", "frame": "int64", "timestamp_s": "float64", "face_id": "Int64", "status": "str"}
    dtypes |= dict.fromkeys([*_BOX, "score"], "float32")
    table = pd.DataFrame(heads, columns=[*FACE_COLUMNS, _THUMBNAIL]).astype(dtypes)
    found = np.array(probabilities, np.float32).reshape(len(table), len(aus))
    is_present = pd.DataFrame(found >= threshold_A, columns=[au_column(au) for au in aus]).astype("Int8")
    is_present[np.isnan(found).any(1)] = pd.NA
    parts = [
        table[list(FACE_COLUMNS)],
        pd.DataFrame(found, columns=[probability_column(au) for au in aus]),
        is_present,
        pd.DataFrame(np.array(landmarks, np.float32).reshape(len(table), -1), columns=_LANDMARKS),
        table[[_THUMBNAIL]],
    ]
    return pd.concat(parts, axis=1)


def _values(values: np.ndarray | None, i: int | None, num: int) -> np.ndarray:
    return np.full(num, np.nan, np.float32) if values is None or i is None else values[i].ravel()


def split_frames(chunk: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    """Yield number and rows of each frame of a video's chunk, in order."""
    for number, rows in chunk.groupby("frame", sort=True):
        yield int(str(number)), rows


def replay_tracks(chunks: Iterable[pd.DataFrame], settings: TrackConfig) -> Tracker:
    """Return the tracker of a video in the state after these chunks."""
    tracker = Tracker(settings)
    for chunk in chunks:
        for number, rows in split_frames(chunk):
            if rows["status"].iloc[0] == Status.UNREADABLE:
                continue
            faces = rows[rows["status"] == Status.OK]
            thumbnail = np.frombuffer(rows[_THUMBNAIL].iloc[0], np.uint8).reshape(THUMBNAIL_PX, THUMBNAIL_PX)
            boxes, scores = faces[_BOX].to_numpy(np.float32), faces["score"].to_numpy(np.float32)
            tracker.update(boxes, scores, frame=number, thumbnail=thumbnail)
    return tracker


# ------------------------------------------------------------------------------------------------------------- formats


def to_fantrans(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of the format fantrans: all but landmarks and thumbnails."""
    return rows.drop(columns=[*_LANDMARKS, _THUMBNAIL])


def _aus(rows: pd.DataFrame) -> list[int]:
    return [int(name.removeprefix("au_")) for name in map(str, rows) if name.startswith("au_")]


def _known_landmarks(rows: pd.DataFrame, has_landmarks: bool) -> pd.DataFrame:
    return rows[_LANDMARKS] if has_landmarks else rows[[]]


def to_pyfeat(rows: pd.DataFrame, *, has_landmarks: bool) -> pd.DataFrame:
    """Return py-feat's columns: FaceRectX..., FaceScore, landmarks, AU01... (probabilities), input, frame, Identity."""
    table = pd.DataFrame(
        {
            "FaceRectX": rows["x1"],
            "FaceRectY": rows["y1"],
            "FaceRectWidth": rows["x2"] - rows["x1"],
            "FaceRectHeight": rows["y2"] - rows["y1"],
            "FaceScore": rows["score"],
        }
    )
    probabilities = {f"AU{au:02d}": rows[probability_column(au)] for au in _aus(rows)}
    identity = "Person_" + rows["face_id"].astype("string")
    last = {"input": rows["input"], "frame": rows["frame"], "approx_time": rows["timestamp_s"], "Identity": identity}
    parts = [table, _known_landmarks(rows, has_landmarks), pd.DataFrame(probabilities), pd.DataFrame(last)]
    return pd.concat(parts, axis=1)


def to_openface(rows: pd.DataFrame, *, has_landmarks: bool) -> pd.DataFrame:
    """Return OpenFace's columns: frame (from 1), face_id, timestamp, confidence, success, landmarks, AU01_c...

    AU01_r, the intensity, is not known and left out; `input` is added at the end. Without a face, confidence and
    success are 0 and AU01_c is missing.
    """
    is_found = rows["status"] == Status.OK
    table = pd.DataFrame(
        {
            "frame": rows["frame"] + 1,
            "face_id": rows["face_id"],
            "timestamp": rows["timestamp_s"].fillna(0),
            "confidence": rows["score"].fillna(0),
            "success": is_found.astype(int),
        }
    )
    presence = pd.DataFrame({f"AU{au:02d}_c": rows[au_column(au)] for au in _aus(rows)})
    return pd.concat([table, _known_landmarks(rows, has_landmarks), presence, rows[["input"]]], axis=1)


def formatter(name: Format, *, has_landmarks: bool) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Return the function from the rows of a chunk to the columns of a format."""
    if name == "fantrans":
        return to_fantrans
    convert = {"py-feat": to_pyfeat, "openface": to_openface}[name]
    return lambda rows: convert(rows, has_landmarks=has_landmarks)


def write_csv(tables: Iterable[pd.DataFrame], file: IO[str]) -> None:
    """Write tables below one another as CSV with one header; missing values are empty."""
    for number, table in enumerate(tables):
        table.to_csv(file, index=False, header=number == 0, float_format="%.7g")


def write_output(path: Path, suffix: str, tables: Iterable[pd.DataFrame]) -> None:
    """Write tables below one another, as CSV or Parquet by the suffix; holds one of them at a time.

    The metadata of a Parquet file name `ROWS_VERSION` and the version of this package.
    """
    if suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            write_csv(tables, file)
        return
    writer: pq.ParquetWriter | None = None
    try:
        for rows in tables:
            table = as_arrow(rows, schema=ROWS_VERSION)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()

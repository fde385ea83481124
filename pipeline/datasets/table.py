"""One table of any data set to index rows: CSV or Parquet, one row per frame; the catalog names the columns."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.codes import OddCodes
from pipeline.datasets.files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    describe_missing_file,
    find_child,
    split_suffix,
)
from pipeline.datasets.layout import Layout, RawData
from pipeline.datasets.settings import TableSettings
from pipeline.errors import DataError, DataNotFoundError
from pipeline.protocols import PARTS, Protocol, presence_from_intensity, presence_from_occurrence
from pipeline.runtime.text import unknown_name
from pipeline.tables import UNKNOWN, au_column, intensity_column, read_table_if_intact

_ONLY_TASK = "all"


def index_rows(raw: RawData, rules: Protocol) -> pd.DataFrame:
    """Return one row per row of the table, with its part if the table has one; `source_file` is empty without a file.

    Raises `DataError` with file and row for a missing column, subject or frame, a frame below 1 or given twice, and a
    label that is not a whole number.
    """
    names, path = _names(raw), raw.root / _names(raw).file
    table = _read(path)
    for column in _columns(names):
        if column not in table.columns:
            raise DataError(f"{path}: {unknown_name('column', column, [str(each) for each in table.columns])}")
    subjects = _texts(path, table[names.subject])
    tasks = _texts(path, table[names.task]) if names.task is not None else pd.Series(_ONLY_TASK, index=table.index)
    subjects, tasks = subjects.map(rules.find_subject), tasks.map(rules.find_task)
    frames = _numbers(path, table[names.frame], unknown=())
    _refuse(path, frames.astype(str).rename(names.frame), frames < 1, "a frame number from 1 up")
    rows = pd.DataFrame(
        {
            "frame_id": subjects + "/" + tasks + "/" + frames.astype(str),
            "subject": subjects,
            "task": tasks,
            "frame": frames,
            "source_file": _files(raw, table[names.source_file]),
            "source_frame": _positions(path, table, names),
        }
    )
    twice = rows["frame_id"].duplicated(keep=False)
    if twice.any():
        first, second = rows.index[rows["frame_id"] == rows["frame_id"][twice].iloc[0]][:2]
        raise DataError(f"{path} codes a frame twice: rows {first} and {second}; remove one of them")
    if names.part is not None:
        rows["part"] = _parts(path, table[names.part])
    return rows.assign(**_labels(path, table, names, rules)).reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    """Return the table, its cells as text or as Parquet has them; its index is the row in the file, from 1."""
    if path.suffix.lower() == ".parquet":
        found = read_table_if_intact(path)
        if found is None:
            raise DataError(f"{path} is not a Parquet table; fetch the file again")
        table = found.set_axis(range(1, len(found) + 1))
    else:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, skipinitialspace=True)
                rows = [(reader.line_num, cells) for cells in reader if cells]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is not a CSV table in UTF-8: {error}; save it again") from None
        (_, header), *lines = rows or [(0, [])]
        columns = [name.strip() for name in header]
        other = next((mark for mark in (";", "\t", "|") if mark in "".join(columns)), None)
        if len(columns) == 1 and other is not None:
            raise DataError(f"{path} separates its columns with {other!r}, expected ','; save it again with commas")
        for number, cells in lines:
            if len(cells) != len(header):
                raise DataError(f"{path}, row {number}: expected {len(header)} values, found {len(cells)}; fix the row")
        table = pd.DataFrame([cells for _, cells in lines], columns=columns, index=[n for n, _ in lines], dtype=str)
    if table.empty:
        raise DataError(f"{path} has no rows; expected one per frame")
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise DataError(f"{path} has two columns named {twice!r}; rename one of them")
    return table


def _columns(names: TableSettings) -> list[str]:
    optional = (names.task, names.source_frame, names.part)
    return [names.subject, names.frame, names.source_file, *(n for n in optional if n is not None), *names.aus.values()]


def _stripped(column: pd.Series) -> pd.Series:
    """Return the cells as text without blanks around, "" for an empty one."""
    texts = [str(cell).strip() if filled else "" for cell, filled in zip(column, column.notna(), strict=True)]
    return pd.Series(texts, index=column.index, name=column.name, dtype=object)


def _refuse(path: Path, cells: pd.Series, wrong: pd.Series, expected: str, *, fix: str = "fix the row") -> None:
    """Raise `DataError` for the first cell that is wrong, if there is one."""
    if wrong.any():
        row = wrong.index[wrong][0]
        found = repr(cells[row]) if cells[row] else "nothing"
        raise DataError(f"{path}, row {row}, column {cells.name}: expected {expected}, found {found}; {fix}")


def _texts(path: Path, column: pd.Series) -> pd.Series:
    """Return names; `DataError` for an empty cell or one with a slash."""
    texts = _stripped(column)
    _refuse(path, texts, (texts == "") | texts.str.contains("/", regex=False), "a name")
    return texts


def _numbers(path: Path, column: pd.Series, *, unknown: Sequence[int], is_label: bool = False) -> pd.Series:
    """Return the cells as int64, those in `unknown` and empty labels as `UNKNOWN`; `DataError` for any other cell."""
    cells = _stripped(column)
    is_empty = cells == ""
    numbers = pd.to_numeric(cells.mask(is_empty & is_label, str(UNKNOWN)), errors="coerce").astype(float)
    _refuse(path, cells, numbers.isna() | (numbers % 1 != 0), "a whole number")
    values = numbers.to_numpy(np.int64)
    return pd.Series(np.where(np.isin(values, unknown), UNKNOWN, values), index=cells.index)


def _files(raw: RawData, column: pd.Series) -> pd.Series:
    """Return each frame's file, "" where it does not exist."""
    files = _stripped(column)  # any text: os.path raises for none
    exists = {name: name != "" and os.path.isfile(raw.root / name) for name in files.unique()}  # noqa: PTH113
    return pd.Series([name if exists[name] else "" for name in files], index=files.index, dtype=object)


def _positions(path: Path, table: pd.DataFrame, names: TableSettings) -> pd.Series:
    """Return each frame's place in its video, -1 for an image; `DataError` for a place that its file cannot have."""
    files = _stripped(table[names.source_file])
    suffixes = files.map(lambda name: split_suffix(name)[1])
    is_image, is_video = suffixes.isin(IMAGE_SUFFIXES), suffixes.isin(VIDEO_SUFFIXES)
    if names.source_frame is None:
        fix = "name the column of a frame's place in its video in the catalog, `source_frame`"
        _refuse(path, files, is_video, "an image", fix=fix)
        return pd.Series(-1, index=table.index)
    cells = _stripped(table[names.source_frame])
    positions = _numbers(path, cells.mask(cells == "", "-1").rename(names.source_frame), unknown=())
    _refuse(path, cells, is_image & (positions != -1), "an empty cell, since the file is an image")
    _refuse(path, cells, is_video & (positions < 0), "a frame from 0 up, since the file is a video")
    _refuse(path, cells, positions < -1, "a frame from 0 up")
    return positions


def _parts(path: Path, column: pd.Series) -> pd.Series:
    parts = _stripped(column)
    _refuse(path, parts, ~parts.isin(PARTS), f"one of {', '.join(PARTS)}")
    return parts


def _labels(path: Path, table: pd.DataFrame, names: TableSettings, rules: Protocol) -> dict[str, np.ndarray]:
    has_intensity = names.values == "intensity"
    odd = OddCodes((UNKNOWN, 0, 1, 2, 3, 4, 5) if has_intensity else (UNKNOWN, 0, 1))
    columns = {}
    for au in rules.aus:
        values = _numbers(path, table[names.aus[au]], unknown=names.unknown, is_label=True)
        odd.add(path, values.to_frame(str(au)))
        codes = values.to_numpy()
        if has_intensity:
            columns[au_column(au)] = presence_from_intensity(codes, min_positive=names.min_positive)
            columns[intensity_column(au)] = np.where((codes >= 0) & (codes <= 5), codes, UNKNOWN).astype(np.int8)
        else:
            columns[au_column(au)] = presence_from_occurrence(codes)
    odd.log("labels")
    return {**{n: v for n, v in columns.items() if n.startswith("au")}, **columns}


def _names(raw: RawData) -> TableSettings:
    names = raw.settings.table
    assert names is not None, "the catalog requires it"
    if not (raw.root / names.file).is_file():
        folder, name = (raw.root / names.file).parent, names.file.name
        near = find_child(folder, name)
        if near == name:
            raise DataError(f"{folder / name} is not a file; fix `table: {{file}}`")
        hint = f"; there is {near}" if near else ""
        raise DataNotFoundError(
            describe_missing_file(folder, [names.file.stem], what=f"table {name}") + f"{hint}; fix `table: {{file}}`"
        )
    return names


def _source_hint(raw: RawData, row: pd.Series) -> str:
    names = _names(raw)
    path, frame = raw.root / names.file, row["frame"]
    return f"{path}, column {names.source_file}: no file, or no frame of a video, for frame {frame} exists"


def _label_files(raw: RawData) -> list[Path]:
    return [_names(raw).file]


LAYOUT = Layout(
    name="table",
    folders=lambda _: {},
    index_rows=index_rows,
    label_files=_label_files,
    source_hint=_source_hint,
    source_pattern=None,
    own_keys=frozenset({"table"}),
    has_intensity=None,
)

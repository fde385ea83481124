"""Public lists of frames: `F001/T1/2440.jpg`, `SN001/0.png`, padded or not, as text, CSV or Parquet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.datasets.files import read_number
from pipeline.errors import DataError, DataNotFoundError
from pipeline.runtime.text import join_first
from pipeline.tables import read_table_if_intact

logger = logging.getLogger("fantrans")

_COLUMNS = ["subject", "task", "frame"]


def keep_listed(frames: pd.DataFrame, lists: Sequence[Path], *, start: int) -> pd.DataFrame:
    """Return the rows of the index that the lists name.

    frames: with subject, task and frame. start: number that the lists give to the first frame, which the index numbers
    1. A name without a task belongs to the subject's only task. Subjects and tasks that the index lacks are skipped and
    logged. Raises `DataError` for a name that is not one of a frame, that no task of the index has, or given twice.
    """
    named = pd.concat([_read_list(path) for path in lists], ignore_index=True)
    named["frame"] += 1 - start
    tasks = frames[["subject", "task"]].drop_duplicates()
    for column in ("subject", "task"):
        by_case = {name.casefold(): name for name in tasks[column]}
        named[column] = [by_case.get(name.casefold(), name) for name in named[column]]
    named = _fill_tasks(named, tasks)
    twice = named[named.duplicated(_COLUMNS)]
    if len(twice):
        raise DataError(f"{twice['where'].iloc[0]} names a frame that was named before; remove one of the lines")
    found = named.merge(frames[_COLUMNS].assign(is_coded=True), on=_COLUMNS, how="left")
    unknown = found[found["is_coded"].isna()]
    is_elsewhere = pd.MultiIndex.from_frame(unknown[["subject", "task"]]).isin(pd.MultiIndex.from_frame(tasks))
    wrong = unknown[is_elsewhere]
    if len(wrong):
        first, other = wrong.iloc[0], 1 - start
        raise DataError(
            f"{first['where']} names frame {first['frame'] - 1 + start} of {first['subject']}/{first['task']}, which "
            f"is not coded, like {len(wrong):,} of the {len(named):,} names; if the list counts from {other}, "
            f"set `frames_start: {other}` in the catalog"
        )
    if len(unknown):
        logger.warning(
            "%s of %s listed frames belong to subjects or tasks that have no labels here: %s",
            f"{len(unknown):,}",
            f"{len(named):,}",
            join_first((unknown["subject"] + "/" + unknown["task"]).unique(), 5),
        )
    is_listed = pd.MultiIndex.from_frame(frames[_COLUMNS]).isin(pd.MultiIndex.from_frame(named[_COLUMNS]))
    if not is_listed.any():
        raise DataError(f"{join_first(map(str, lists), 3)}: none of the {len(named):,} names is a coded frame")
    return frames[is_listed]


def _fill_tasks(named: pd.DataFrame, tasks: pd.DataFrame) -> pd.DataFrame:
    """Give names without a task that of their subject."""
    num_tasks = tasks.groupby("subject")["task"].nunique()
    only = tasks[~tasks["subject"].duplicated()].set_index("subject")["task"]
    is_open = named["task"] == ""
    several = named[is_open & (named["subject"].map(num_tasks) > 1)]
    if len(several):
        raise DataError(
            f"{several['where'].iloc[0]} names no task, and subject {several['subject'].iloc[0]} has several"
        )
    # a list of folders, such as images/SN001/0.png: what stands before the subject is not one
    is_folder = ~is_open & ~named["subject"].isin(tasks["subject"]) & named["task"].isin(only.index)
    named.loc[is_folder, "subject"] = named.loc[is_folder, "task"]
    filled = named["subject"].map(only).fillna("")
    named["task"] = named["task"].where(~(is_open | is_folder), filled)
    return named


def _read_list(path: Path) -> pd.DataFrame:
    """Return subject, task ("" where the name has none), frame and where it stands, one row per name."""
    if not path.is_file():
        raise DataNotFoundError(f"{path} does not exist; put the list of frames there, or fix `frames` in the catalog")
    if path.suffix.lower() == ".parquet":
        table = read_table_if_intact(path)
        if table is None or not {"subject", "frame"} <= set(table.columns):
            raise DataError(f"{path} is not a list of frames: expected Parquet with subject, task and frame")
        if not pd.api.types.is_integer_dtype(table["frame"]):
            raise DataError(f"{path}: the column frame has {table['frame'].dtype} values; expected whole numbers")
        task = table["task"].astype(str) if "task" in table.columns else ""
        where = [f"{path}, row {number}" for number in range(1, len(table) + 1)]
        return pd.DataFrame(
            {
                "subject": table["subject"].astype(str),
                "task": task,
                "frame": table["frame"].astype("int64"),
                "where": where,
            }
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a list of frames: it is not UTF-8 text") from None
    rows = [(*_read_name(path, number, line), f"{path}, line {number}") for number, line in _names(lines)]
    if not rows:
        raise DataError(f"{path} names no frame; expected one name per line, such as F001/T1/2440.jpg")
    return pd.DataFrame(rows, columns=[*_COLUMNS, "where"])


def _names(lines: Sequence[str]) -> list[tuple[int, str]]:
    """Return number and text of each line that is not blank, without a header: a first line that has no digit."""
    filled = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    is_header = bool(filled) and not any(character.isdigit() for character in filled[0][1])
    return filled[is_header:]


def _read_name(path: Path, number: int, line: str) -> tuple[str, str, int]:
    """Return subject, task and frame of `F001/T1/2440.jpg 0 1 0`, `SN001/0.png` or `F001,T1,2440`."""
    cells = [cell.strip().strip("\"'") for cell in line.replace("\t", ",").replace(";", ",").split(",")]
    parts = cells[:3]
    if "/" in cells[0] or "\\" in cells[0]:
        parts = cells[0].split()[0].replace("\\", "/").split("/")[-3:]
    stem = parts[-1].partition(".")[0].rpartition("_")[2]
    frame = read_number(stem)
    if len(parts) < 2 or frame is None or not all(parts):
        raise DataError(f"{path}, line {number}: expected a name such as F001/T1/2440.jpg, found {line[:60]!r}")
    return parts[-2] if len(parts) == 2 else parts[0], "" if len(parts) == 2 else parts[1], frame

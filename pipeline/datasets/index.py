"""The frame index: one row per coded frame with its source, its part and its labels."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pipeline.datasets.layout import Layout
from pipeline.errors import DataError, DataNotFoundError
from pipeline.protocols import PARTS, Protocol
from pipeline.tables import FRAME_COLUMNS, UNKNOWN, au_column, read_table, write_table

INDEX_NAME = "frames.parquet"


def index_frames(root: Path, layout: Layout, rules: Protocol, *, limit: int | None = None) -> pd.DataFrame:
    """Index a data set in its raw layout: `FRAME_COLUMNS`, then labels; known bad frames are left out.

    limit: number of frames to keep, sampled from all (default: all). Raises `DataError` for a missing folder, a file
    out of format or a subject outside the protocol.
    """
    missing = layout.missing_folders(root)
    if missing:
        raise DataNotFoundError(f"{missing[0]} does not exist; run `fantrans catalog check` to see what is missing")
    rows = layout.index_rows(root, rules)
    is_bad = [rules.is_bad_frame(s, f) for s, f in zip(rows["subject"], rows["frame"], strict=True)]
    rows = rows[~pd.Series(is_bad, index=rows.index)]
    if (rows["source_file"] == "").all():
        raise DataError(
            f"none of the {len(rows):,} coded frames in {root} has its image or video; expected "
            f"{root / layout.source_pattern}"
        )
    part_by_subject = {subject: rules.get_part(subject) for subject in rows["subject"].unique()}
    rows.insert(len(FRAME_COLUMNS) - 1, "part", rows["subject"].map(part_by_subject))
    rows = rows.sort_values(["subject", "task", "frame"], ignore_index=True)
    if limit is not None and limit < len(rows):
        rows = rows.sample(limit, random_state=0).sort_index().reset_index(drop=True)
    return rows


def write_index(folder: Path, frames: pd.DataFrame) -> Path:
    """Write `frames.parquet` into `folder`; return its path."""
    write_table(folder / INDEX_NAME, frames)
    return folder / INDEX_NAME


def read_index(folder: Path, *, dataset: str, experiment: str = "EXPERIMENT") -> pd.DataFrame:
    """Read `frames.parquet` of a data set; errors name the command with `experiment` that creates it."""
    made_by = f"fantrans refresh {dataset} --experiment {experiment}"
    return read_table(folder / INDEX_NAME, columns=FRAME_COLUMNS, made_by=made_by)


def summarise(frames: pd.DataFrame, rules: Protocol) -> pd.DataFrame:
    """Return one row per part and one for all: subjects, frames, frames without a source, percent positive per AU.

    Percentages are among the known labels.
    """
    groups = [(part, frames[frames["part"] == part]) for part in PARTS] + [("all", frames)]
    return pd.DataFrame([_summary_row(name, group, rules) for name, group in groups])


def _summary_row(name: str, group: pd.DataFrame, rules: Protocol) -> dict[str, object]:
    labels = group[[au_column(au) for au in rules.aus]].astype("Float64")
    rates = labels.mask(labels == UNKNOWN).mean() * 100
    return {
        "part": name,
        "subjects": group["subject"].nunique(),
        "frames": len(group),
        "no_source": int((group["source_file"] == "").sum()),
        **{f"AU{au}": rates[au_column(au)] for au in rules.aus},
    }

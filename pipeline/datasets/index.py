"""The frame index: one row per coded frame with its source, its part and its labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pipeline.datasets.files import describe_missing
from pipeline.datasets.frame_list import keep_listed
from pipeline.datasets.layout import Layout, RawData
from pipeline.datasets.settings import DatasetSettings
from pipeline.datasets.video_counts import VideoCounts, drop_sources_beyond_end
from pipeline.errors import DataError, DataNotFoundError
from pipeline.protocols import PARTS, Protocol
from pipeline.tables import FRAME_COLUMNS, UNKNOWN, au_column, read_table, write_table

INDEX_NAME = "frames.parquet"
_TEXT_COLUMNS = ("frame_id", "subject", "task", "source_file", "part")

logger = logging.getLogger("fantrans")


def index_frames(
    root: Path,
    layout: Layout,
    rules: Protocol,
    settings: DatasetSettings | None = None,
    *,
    limit: int | None = None,
    counts: VideoCounts | None = None,
) -> pd.DataFrame:
    """Index a data set in its raw layout: `FRAME_COLUMNS`, then labels; known bad frames are left out.

    settings: the data set's keys in the catalog (default: none given). limit: number of frames to keep, sampled from
    all (default: all). counts: of videos (default: all are counted). Logs how many frames have no image or video.
    Raises `DataError` for a missing folder, a file out of format or a subject outside the protocol.
    """
    raw = layout.open(root, settings)
    if not raw.folders and not root.is_dir():
        raise DataNotFoundError(f"{describe_missing(root)}; bring its disk back, or fix `root` in the catalog")
    for role in raw.folders:
        raw.folder(role)
    rows = layout.index_rows(raw, rules)
    rows = drop_sources_beyond_end(rows, counts or VideoCounts(root), is_whole=layout.labels_whole_videos)
    if raw.settings.frames:
        rows = keep_listed(rows, raw.settings.frames, start=raw.settings.frames_start)
    if rules.bad_frames:
        is_bad = [rules.is_bad_frame(s, f) for s, f in zip(rows["subject"], rows["frame"], strict=True)]
        rows = rows[~pd.Series(is_bad, index=rows.index)]
    _check_sources(rows, layout, raw)
    if "part" not in rows.columns:
        rows = rows.assign(part=rows["subject"].map({name: rules.get_part(name) for name in rows["subject"].unique()}))
    rows.insert(len(FRAME_COLUMNS) - 1, "part", rows.pop("part"))
    rows = rows.sort_values(["subject", "task", "frame"], ignore_index=True)
    if limit is not None and limit < len(rows):
        rows = rows.sample(limit, random_state=0).sort_index().reset_index(drop=True)
    return rows.astype(dict.fromkeys(_TEXT_COLUMNS, "str"))  # as Parquet gives them: whatever a layout makes is equal


def _check_sources(rows: pd.DataFrame, layout: Layout, raw: RawData) -> None:
    """Log how many frames have no image or video, and where the first should be; `DataError` if none has one."""
    missing = rows[rows["source_file"] == ""]
    if missing.empty:
        return
    hint = describe_no_source(missing, layout, raw)
    if len(missing) == len(rows):
        expected = "" if layout.source_pattern is None else f"expected {raw.root / layout.source_pattern}; "
        raise DataError(
            f"none of the {len(rows):,} coded frames in {raw.root} has its image or video; {expected}{hint}; bring "
            "the files there (is a disk away?), or fix `root` or the names in the catalog"
        )
    logger.warning("%s of %s coded frames have no image or video; %s", f"{len(missing):,}", f"{len(rows):,}", hint)


def describe_no_source(missing: pd.DataFrame, layout: Layout, raw: RawData) -> str:
    """Return the name of the first frame in `missing` and where its image or video should be."""
    first = missing.iloc[0]
    return f"the first is {first['frame_id']}: {layout.source_hint(raw, first)}"


def write_index(folder: Path, frames: pd.DataFrame) -> Path:
    """Write `frames.parquet` into `folder`; return its path."""
    write_table(folder / INDEX_NAME, frames)
    return folder / INDEX_NAME


def read_index(folder: Path, *, dataset: str, experiment: str = "EXPERIMENT") -> pd.DataFrame:
    """Read `frames.parquet` of a data set; errors name the command with `experiment` that creates it."""
    made_by = f"fantrans refresh {dataset} --experiment {experiment}"
    return read_table(folder / INDEX_NAME, columns=FRAME_COLUMNS, made_by=made_by)


class Coverage(NamedTuple):
    """How much of a protocol's data set an index holds."""

    num_subjects: int
    num_expected: int | None
    """None if the protocol lists no subjects."""
    missing_subjects: tuple[str, ...]
    num_tasks: int
    num_expected_tasks: int | None
    """Recordings of all subjects; None if the protocol lists no tasks."""

    @property
    def is_complete(self) -> bool:
        """Whether all subjects and tasks that the protocol lists are there."""
        has_tasks = self.num_expected_tasks is None or self.num_tasks >= self.num_expected_tasks
        return not self.missing_subjects and has_tasks

    def __str__(self) -> str:
        """Such as "12 of 41 subjects, 96 of 328 tasks"."""
        expected = "" if self.num_expected is None else f" of {self.num_expected}"
        expected_tasks = "" if self.num_expected_tasks is None else f" of {self.num_expected_tasks}"
        return f"{self.num_subjects}{expected} subjects, {self.num_tasks}{expected_tasks} tasks"


def coverage(frames: pd.DataFrame, rules: Protocol) -> Coverage:
    """Return how many of the protocol's subjects and tasks have frames in the index."""
    found, expected = set(frames["subject"]), list(rules.subject_parts)
    return Coverage(
        num_subjects=len(found),
        num_expected=len(expected) or None,
        missing_subjects=tuple(name for name in expected if name not in found),
        num_tasks=len(frames[["subject", "task"]].drop_duplicates()),
        num_expected_tasks=len(expected) * len(rules.tasks) or None,
    )


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

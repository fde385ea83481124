"""Examine a data set before its first refresh: what is there, what is expected, and whether it is ready."""

# N frames, A action units
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from models.losses import class_weights
from pipeline.datasets import index
from pipeline.datasets.images import read_frames
from pipeline.errors import FantransError
from pipeline.faces.weights import find_weights_faults
from pipeline.protocols import PARTS, Protocol, check_subject_exclusive, train_parts
from pipeline.refresh.caches import free_bytes
from pipeline.refresh.estimate import frame_bytes
from pipeline.refresh.job import RefreshJob
from pipeline.runtime.progress import track
from pipeline.runtime.text import join_first
from pipeline.tables import au_column

NUM_SAMPLED = 200
"""Frames that are decoded, unless all are."""
_MANY_UNREADABLE = 0.1
"""Share of the decoded frames above which a data set is not ready."""
_FAR_POINTS = 3.0
"""A base rate that differs by more from the published one is named."""


@dataclass(kw_only=True)
class Examination:
    """What is known of a data set's raw files, labels, weights and disk.

    faults: what must be fixed before a refresh, one sentence each. notes: what a reader of its reports must know.
    coverage: such as "12 of 41 subjects, 96 of 328 tasks". parts: subjects, frames and frames without a source, one row
    per part and one for all. aus: one row per action unit: its number, percent positive among known labels per part, of
    all, and as published (NaN if unknown), positive labels per part, class weight per tested part. num_decoded: frames
    that were decoded. needed_bytes: of crops and features, if none exist. free_bytes: the least among their disks.
    """

    dataset: str
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    coverage: str | None = None
    parts: pd.DataFrame | None = None
    aus: pd.DataFrame | None = None
    num_decoded: int = 0
    needed_bytes: int | None = None
    free_bytes: int | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a refresh can start."""
        return not self.faults


def examine(job: RefreshJob, *, is_deep: bool) -> Examination:
    """Examine a job's data set, all weights and the disk; writes nothing.

    is_deep: decode all frames, not `NUM_SAMPLED` of them.
    """
    found = Examination(dataset=job.dataset)
    found.faults += [*job.catalog.find_faults(job.dataset), *find_weights_faults(job.catalog)]
    if job.entry.missing_folders():
        return found
    rules = job.entry.rules
    try:
        job.entry.count_unrendered()  # raises if the faces there were rendered with other settings
        frames = index.index_frames(job.entry.root, job.entry.raw_layout, rules, job.entry)
        found.coverage = str(index.coverage(frames, rules))
        check_subject_exclusive(frames)
    except FantransError as error:
        found.faults.append(str(error))
        return found
    _note_missing(found, frames, rules)
    _examine_labels(found, frames, rules)
    _examine_images(found, job, frames, is_deep=is_deep)
    _examine_disk(found, job, len(frames))
    return found


def _note_missing(found: Examination, frames: pd.DataFrame, rules: Protocol) -> None:
    coverage = index.coverage(frames, rules)
    if not coverage.is_complete:
        names = f"; missing: {join_first(coverage.missing_subjects)}" if coverage.missing_subjects else ""
        found.notes.append(f"there are {coverage}{names}")
    num_missing = int((frames["source_file"] == "").sum())
    if num_missing:
        found.notes.append(f"{num_missing:,} of {len(frames):,} coded frames have no image or video, and no features")


def _examine_labels(found: Examination, frames: pd.DataFrame, rules: Protocol) -> None:
    summary = index.summarise(frames, rules).set_index("part")
    names, columns = [f"AU{au}" for au in rules.aus], [au_column(au) for au in rules.aus]
    found.parts = summary[["subjects", "frames", "no_source"]].reset_index()
    aus = pd.DataFrame({"au": rules.aus}, index=names)
    for part in (*PARTS, "all"):
        aus[f"percent_{part}"] = summary.loc[part, names].astype(float)
    aus["percent_published"] = pd.Series({f"AU{au}": percent for au, percent in rules.positive_percent.items()})
    far = aus.index[(aus["percent_all"] - aus["percent_published"]).abs() > _FAR_POINTS]
    if len(far):
        found.notes.append(
            f"{', '.join(far)}: the percentage of positive labels differs from the published one by more than "
            f"{_FAR_POINTS:.0f} points"
        )
    for part in PARTS:
        aus[f"num_positive_{part}"] = (frames.loc[frames["part"] == part, columns] == 1).sum().to_numpy()
    for part in PARTS:
        labels_NA = frames.loc[frames["part"].isin(train_parts(part)), columns].to_numpy(np.int8, copy=True)
        try:
            aus[f"weight_test_{part}"] = class_weights(torch.from_numpy(labels_NA), aus=rules.aus).numpy()
        except ValueError as error:
            found.notes.append(f"the fold that tests {part} cannot be trained: {error}")
            aus[f"weight_test_{part}"] = np.nan
    found.aus = aus.reset_index(drop=True)


def _examine_images(found: Examination, job: RefreshJob, frames: pd.DataFrame, *, is_deep: bool) -> None:
    chosen = frames[frames["source_file"] != ""].reset_index(drop=True)
    if not is_deep:  # the first frames of each recording: a video is decoded from its start
        nth = chosen.groupby(["subject", "task"]).cumcount()
        chosen = chosen.loc[nth.sort_values(kind="stable").index[:NUM_SAMPLED]].reset_index(drop=True)
    reasons: dict[int, str] = {}
    with track("decode", total=len(chosen), unit="frames") as on_progress:
        for _ in read_frames(job.entry.root, chosen, on_unreadable=reasons.__setitem__):
            on_progress(1)
    found.num_decoded = len(chosen)
    if reasons:
        names = chosen["frame_id"].iloc[sorted(reasons)].sort_values()
        sentence = (
            f"{len(reasons):,} of {len(chosen):,} decoded frames cannot be read, and get no features: "
            f"{join_first(names)}; the first: {reasons[int(names.index[0])]}"
        )
        if len(reasons) > _MANY_UNREADABLE * len(chosen):
            found.faults.append(f"{sentence} (more than {100 * _MANY_UNREADABLE:.0f} % are a fault)")
        else:
            found.notes.append(sentence)


def _examine_disk(found: Examination, job: RefreshJob, num_frames: int) -> None:
    found.needed_bytes = num_frames * frame_bytes(job)
    found.free_bytes = min(free_bytes(root) for root in (job.catalog.roots.work, job.catalog.roots.cache))
    if found.needed_bytes > found.free_bytes:
        found.notes.append(
            f"crops and features take about {found.needed_bytes / 1e9:,.1f} GB, and {found.free_bytes / 1e9:,.1f} GB "
            "are free; choose another disk with FANTRANS_CACHE, fewer views or the profile compact, or keep what exists"
        )

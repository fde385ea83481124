"""Examine a data set before its first refresh: what is there and what is expected, and whether it is ready."""

# N frames, A action units
from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from models.losses import class_weights
from pipeline.cache.crops import HAS_FACE
from pipeline.datasets import index
from pipeline.datasets.images import read_frames
from pipeline.errors import FantransError
from pipeline.faces.weights import find_weights_faults
from pipeline.protocols import PARTS, Protocol, check_subject_exclusive, train_parts
from pipeline.refresh.job import RefreshJob, cache_build, crop_format
from pipeline.runtime.progress import track
from pipeline.runtime.text import join_first
from pipeline.tables import au_column

NUM_SAMPLED = 200
"""Frames that are decoded unless every one is."""
_FAR_FROM_PUBLISHED = 3.0
"""Difference of base rates, in percent, from which on it is said."""


@dataclass(kw_only=True)
class Examination:
    """What is known of a data set's raw files, labels, weights and disk.

    faults: sentences on what must be fixed first. notes: sentences on what a report must be read with. coverage: such
    as "12 of 41 subjects". labels: one row per part, one for all and, where known, one that is published: frames, and
    percent positive per action unit. num_positive: one row per part. class_weights: one row per tested part, float.
    needed_bytes, free_bytes: of crops and cache, by root.
    """

    dataset: str
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    coverage: str | None = None
    num_frames: int = 0
    labels: pd.DataFrame | None = None
    num_positive: pd.DataFrame | None = None
    class_weights: pd.DataFrame | None = None
    num_decoded: int = 0
    needed_bytes: dict[Path, int] = field(default_factory=dict)
    free_bytes: dict[Path, int] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        """Whether a refresh can start."""
        return not self.faults


def examine(job: RefreshJob, *, is_deep: bool) -> Examination:
    """Examine a job's data set, weights and disk; writes nothing.

    is_deep: decode every frame, and not a sample of `NUM_SAMPLED`.
    """
    found = Examination(dataset=job.dataset)
    found.faults += job.catalog.find_faults(job.dataset)
    found.faults += find_weights_faults(job.catalog)
    if job.entry.missing_folders():
        return found
    rules = job.entry.rules
    try:
        frames = index.index_frames(job.entry.root, job.entry.raw_layout, rules, job.entry)
    except FantransError as error:
        found.faults.append(str(error))
        return found
    found.num_frames = len(frames)
    _examine_subjects(found, frames, rules)
    _examine_labels(found, frames, rules)
    _examine_images(found, job, frames, is_deep=is_deep)
    _examine_disk(found, job, len(frames))
    return found


def _examine_subjects(found: Examination, frames: pd.DataFrame, rules: Protocol) -> None:
    coverage = index.coverage(frames, rules)
    found.coverage = str(coverage)
    if not coverage.is_complete:
        missing = f": {join_first(coverage.missing_subjects)} are missing" if coverage.missing_subjects else ""
        found.notes.append(f"only {coverage} are there{missing}; reports will say so")
    try:
        check_subject_exclusive(frames)
    except FantransError as error:
        found.faults.append(str(error))


def _examine_labels(found: Examination, frames: pd.DataFrame, rules: Protocol) -> None:
    columns = [au_column(au) for au in rules.aus]
    found.labels = index.summarise(frames, rules)
    published = rules.published_rates
    if published:
        row = {f"AU{au}": published[au] for au in rules.aus if au in published}
        here = found.labels[found.labels["part"] == "all"].iloc[0]
        found.labels = pd.concat([found.labels, pd.DataFrame([{"part": "published", **row}])], ignore_index=True)
        far = [name for name, rate in row.items() if not abs(here[name] - rate) <= _FAR_FROM_PUBLISHED]
        if far:
            found.notes.append(
                f"base rates of {', '.join(far)} differ from the published ones by more than "
                f"{_FAR_FROM_PUBLISHED:.0f} points; check labels and subjects"
            )
    found.num_positive = (frames[columns] == 1).groupby(frames["part"]).sum().reset_index()
    rows = []
    for part in PARTS:
        labels_NA = torch.from_numpy(frames.loc[frames["part"].isin(train_parts(part)), columns].to_numpy("int8"))
        try:
            rows.append([part, *class_weights(labels_NA, aus=rules.aus).tolist()])
        except ValueError as error:
            found.notes.append(f"the fold that tests {part} cannot be trained: {error}")
    found.class_weights = pd.DataFrame(rows, columns=["test_part", *columns])


def _examine_images(found: Examination, job: RefreshJob, frames: pd.DataFrame, *, is_deep: bool) -> None:
    has_source = frames[frames["source_file"] != ""]
    num_missing = len(frames) - len(has_source)
    if num_missing:
        found.notes.append(f"{num_missing:,} of {len(frames):,} coded frames have no image or video; they are left out")
    chosen = has_source if is_deep else _sample(has_source)
    found.num_decoded = len(chosen)
    with track("decode", total=len(chosen), unit="frames") as on_progress:
        unreadable = []
        for position, image in read_frames(job.entry.root, chosen):
            if image is None:
                unreadable.append(chosen["frame_id"].iloc[position])
            on_progress(1)
    if unreadable:
        found.notes.append(
            f"{len(unreadable):,} of {len(chosen):,} decoded frames are unreadable: {join_first(unreadable)}; fetch "
            "these files again, or refresh without them"
        )


def _sample(frames: pd.DataFrame) -> pd.DataFrame:
    """Return frames of as many recordings as possible: the first ones of each, since a video is decoded from its start."""
    order = frames.groupby(["subject", "task"]).cumcount()
    return frames.loc[order.sort_values(kind="stable").index[:NUM_SAMPLED]].sort_index().reset_index(drop=True)


def _examine_disk(found: Examination, job: RefreshJob, num_frames: int) -> None: ...

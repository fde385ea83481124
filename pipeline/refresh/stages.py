"""The stages of a refresh: render, index, detect, crop, extract.

Each stage plans what it would keep, compute and drop, and runs its plan. A dry run only plans; a refresh, with or
without Prefect, makes the same plans and runs them, one stage after the other.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import pandas as pd

from pipeline.cache import crops
from pipeline.cache.build import CacheBuild
from pipeline.datasets import index
from pipeline.datasets.lost import refuse_lost
from pipeline.datasets.origin import Origin, changed_keys, describe_origin, read_origin, write_origin
from pipeline.datasets.video_counts import VideoCounts
from pipeline.errors import ConfigError
from pipeline.faces.views import check_context
from pipeline.refresh.boxes import KnownFaces, describe_boxes, detect_missing, expected_boxes, find_known_faces
from pipeline.refresh.estimate import frame_bytes, view_bytes, warn_if_full
from pipeline.refresh.job import (
    RefreshJob,
    cache_build,
    crop_format,
    crop_reader,
    prepare_refresh,
)
from pipeline.refresh.plan import Duration, StagePlan, StageSummary, Tables
from pipeline.refresh.rates import expected_duration, remember_rate
from pipeline.refresh.summary import write_summary
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.atomic import TEMP_PREFIX
from pipeline.runtime.executors import Workers
from pipeline.runtime.progress import track
from pipeline.store.lock import writer_lock
from pipeline.store.plan import Plan
from pipeline.store.revisions import load_revision
from pipeline.tables import BOX_COLUMNS, read_table, read_table_if_intact

logger = logging.getLogger("fantrans")

_P = TypeVar("_P", bound=StagePlan)

_ON_DISK = Tables()
"""No table is given: all are read from disk."""


class Stage(Protocol[_P]):
    """One step of a refresh."""

    name: str
    uses_workers: bool
    """Whether `run` spreads its work over `workers`."""

    def plan(self, job: RefreshJob, tables: Tables = _ON_DISK) -> _P:
        """Return what `run` would do; changes nothing.

        tables: what the plans of earlier stages expect, for a dry run; a table that is None is read from disk.
        """

    def run(self, job: RefreshJob, plan: _P, workers: Workers) -> StageSummary:
        """Do what was planned from the tables on disk."""


# -------------------------------------------------------------------------------------------------------------- render


class RenderStage:
    """Render the missing raw data of a rendered data set."""

    name, uses_workers = "render", False

    def plan(self, job: RefreshJob, tables: Tables = _ON_DISK) -> StagePlan:
        """Count the frames of subjects that are not rendered yet."""
        num_missing, num_all = job.entry.count_unrendered()
        return StagePlan(
            stage=self.name,
            num_kept=num_all - num_missing,
            num_computed=num_missing,
            duration=expected_duration(job, self.name, num_missing),
            is_current=num_missing == 0,
        )

    def run(self, job: RefreshJob, plan: StagePlan, workers: Workers) -> StageSummary:
        """Render the missing subjects, on all cores."""
        job.entry.render()
        return StageSummary(stage=self.name, num_kept=plan.num_kept, num_computed=plan.num_computed)


# --------------------------------------------------------------------------------------------------------------- index


@dataclass(frozen=True, kw_only=True)
class IndexPlan(StagePlan):
    """A plan with what the index is made from; None if that is recorded already."""

    origin: Origin | None


class IndexStage:
    """Read the raw layout and write `frames.parquet`, and what it was made from."""

    name, uses_workers = "index", False

    def plan(self, job: RefreshJob, tables: Tables = _ON_DISK) -> IndexPlan:
        """Compare the raw layout with the index on disk.

        Raises `ConfigError` for a limit that would shrink the index: every cache of the data set would drop those
        frames at its next refresh, and a trial must not do that. Raises `DataError` if too many frames lost their image
        or video, unless the job allows it.
        """
        entry, known = job.entry, read_origin(job.work)
        # before the labels are read: a file that changes meanwhile differs from its record
        origin = describe_origin(entry.root, entry.raw_layout, entry, protocol=entry.protocol, known=known)
        counts = VideoCounts(entry.root, None if known is None else known.get("videos"))
        frames = index.index_frames(entry.root, entry.raw_layout, entry.rules, entry, limit=job.limit, counts=counts)
        origin = {**origin, "videos": counts.document()}
        before = read_table_if_intact(job.catalog.index_path(job.dataset))
        if job.limit is not None and before is not None and len(before) > len(frames):
            raise ConfigError(
                f"{job.dataset} has {len(before):,} frames indexed, and --limit {job.limit} would drop "
                f"{len(before) - len(frames):,} of them from its caches; leave --limit out, or try in other folders: "
                "set FANTRANS_WORK and FANTRANS_CACHE"
            )
        if before is not None and not job.allow_lost:
            is_same = job.limit is None and known is not None and not changed_keys(known, origin)
            raw = entry.raw_layout.open(entry.root, entry)
            refuse_lost(
                before, frames, layout=entry.raw_layout, raw=raw, dataset=job.dataset, is_same_selection=is_same
            )
        is_current = before is not None and before.equals(frames)
        num_kept = len(frames) if is_current else _count_equal_rows(before, frames)
        return IndexPlan(
            stage=self.name,
            num_kept=num_kept,
            num_computed=len(frames) - num_kept,
            num_dropped=0 if before is None else len(set(before["frame_id"]) - set(frames["frame_id"])),
            is_current=is_current,
            expected=Tables(frames=frames),
            origin=None if origin == known else origin,
        )

    def run(self, job: RefreshJob, plan: IndexPlan, workers: Workers) -> StageSummary:
        """Write the index if it changed, and log its counts."""
        frames, rules = plan.expected.frames, job.entry.rules
        assert frames is not None
        if not plan.is_current:
            index.write_index(job.work, frames)
            counts = index.summarise(frames, rules).to_string(index=False, float_format="{:.0f}".format)
            logger.info("frames, and percent positive among known labels:\n%s", counts)
        if plan.origin is not None:
            write_origin(job.work, plan.origin)
        found = index.coverage(frames, rules)
        return StageSummary(
            stage=self.name,
            num_kept=plan.num_kept,
            num_computed=plan.num_computed,
            num_dropped=plan.num_dropped,
            note="" if found.is_complete else str(found),
        )


def _count_equal_rows(before: pd.DataFrame | None, frames: pd.DataFrame) -> int:
    """Return the number of frames that an earlier index lists with the same values."""
    if before is None or list(before.columns) != list(frames.columns) or (before.dtypes != frames.dtypes).any():
        return 0
    return len(frames.merge(before))


# -------------------------------------------------------------------------------------------------------------- detect


@dataclass(frozen=True, kw_only=True)
class DetectPlan(StagePlan):
    """A plan with the faces that are known."""

    known: KnownFaces


class DetectStage:
    """Detect faces in new and changed frames and choose the subjects'; after a kill, finished chunks are reused."""

    name, uses_workers = "detect", True

    def plan(self, job: RefreshJob, tables: Tables = _ON_DISK) -> DetectPlan:
        """Find the known faces. A frame whose faces are not known is expected to show the subject."""
        frames = _frames(job, tables)
        known = find_known_faces(job, frames)
        num_missing = len(known.missing(frames))
        return DetectPlan(
            stage=self.name,
            num_kept=len(frames) - num_missing,
            num_computed=num_missing,
            duration=expected_duration(job, self.name, num_missing),
            is_current=False,  # choosing boxes is cheap, and its settings may have changed
            expected=Tables(frames=frames, boxes=expected_boxes(job, frames, known)),
            known=known,
        )

    def run(self, job: RefreshJob, plan: DetectPlan, workers: Workers) -> StageSummary:
        """Detect the missing faces and choose the boxes, which do not depend on the workers."""
        frames = plan.expected.frames
        assert frames is not None
        warn_if_full(job, plan.num_computed * frame_bytes(job), what="crops and features")
        boxes = detect_missing(job, frames, plan.known, workers=workers)
        note = describe_boxes(boxes, job.config.detector)
        return StageSummary(stage=self.name, num_kept=plan.num_kept, num_computed=plan.num_computed, note=note)


# ---------------------------------------------------------------------------------------------------------------- crop


class CropStage:
    """Cut crops for new and changed boxes."""

    name, uses_workers = "crop", False

    def plan(self, job: RefreshJob, tables: Tables = _ON_DISK) -> StagePlan:
        """Compare boxes and images with the crops on disk."""
        frames, boxes = _frames(job, tables), _boxes(job, tables)
        plan = crops.plan_crops(job.crops_root, frames, boxes, images_root=job.entry.root, format=crop_format(job))
        return _from_store(
            self.name,
            plan,
            num_bytes=plan.num_bytes,
            duration=expected_duration(job, self.name, plan.num_computed),
            expected=Tables(frames=frames, boxes=boxes, crops=plan.index),
        )

    def run(self, job: RefreshJob, plan: StagePlan, workers: Workers) -> StageSummary:
        """Cut the crops that are new or changed."""
        if not plan.is_current:
            with track("cut crops", total=plan.num_computed, unit="faces") as on_progress:
                crops.refresh_crops(
                    job.crops_root,
                    _frames(job, plan.expected),
                    _boxes(job, plan.expected),
                    images_root=job.entry.root,
                    settings=job.config.crop,
                    format=crop_format(job),
                    provenance=job.provenance,
                    on_progress=on_progress,
                )
        return _summarise(plan)


# ------------------------------------------------------------------------------------------------------------- extract


@dataclass(frozen=True, kw_only=True)
class ExtractPlan(StagePlan):
    """A plan with the number of views to compute."""

    num_views: int


class ExtractStage:
    """Compute cached features from crops. Only this stage runs the FAN, and not for maps that an exact cache has."""

    name, uses_workers = "extract", True

    def plan(self, job: RefreshJob, tables: Tables = _ON_DISK) -> ExtractPlan:
        """Compare crops and settings with the cache on disk.

        Bytes are estimated from the cache's present size per frame; for a new cache, from the profile's usual ratio.
        """
        check_context(job.config.crop, job.config.views)
        frames = _frames(job, tables)
        listed = crop_reader(job).listed if tables.crops is None else tables.crops
        build = cache_build(job)
        plan = build.plan(frames, listed)
        num_views = sum(len(plan.rows_in(unit.block)) for unit in plan.units)
        name = self.name if build.exact is None else "encode"  # has a rate of its own: it does not run the FAN
        common = _from_store(
            name,
            plan,
            num_bytes=round(plan.num_bytes * _packing(job, build)),
            duration=expected_duration(job, name, num_views),
            expected=Tables(frames=frames, crops=listed),
        )
        return ExtractPlan(**vars(common), num_views=num_views)

    def run(self, job: RefreshJob, plan: ExtractPlan, workers: Workers) -> StageSummary:
        """Compute the missing views; the bytes do not depend on the workers."""
        if not plan.is_current:
            warn_if_full(job, plan.num_bytes or 0, what="features")
            with track("extract features", total=plan.num_views, unit="views") as on_progress:
                cache_build(job).run(
                    _frames(job, plan.expected), crop_reader(job), workers=workers, on_progress=on_progress
                )
        return replace(_summarise(plan), stage=self.name)


def _packing(job: RefreshJob, build: CacheBuild) -> float:
    """Return bytes on disk per byte of values: those of the existing cache, or what the profile usually takes."""
    view = sum(spec.row_bytes for spec in build.format.arrays)
    revision = load_revision(build.folder)
    if revision is None or not revision.manifest["num_rows"]:
        return view_bytes(job) / view
    row_bytes = view * len(revision.groups)
    packing: float = revision.manifest["num_bytes"] / (revision.manifest["num_rows"] * row_bytes)
    return packing


# ------------------------------------------------------------------------------------------------------------- refresh


def job_stages(job: RefreshJob) -> tuple[Stage[Any], ...]:
    """Return the stages of a job, in order, up to its last one."""
    stages = (RenderStage(), IndexStage(), DetectStage(), CropStage(), ExtractStage())
    names = [stage.name for stage in stages]
    return stages[0 if job.entry.is_rendered else 1 : names.index(job.until) + 1]


def plan_refresh(job: RefreshJob) -> list[StagePlan]:
    """Return the plan of each stage, as a refresh would make them; writes nothing.

    While faces are still to be rendered, later stages cannot be planned and are left out.
    """
    plans: list[StagePlan] = []
    tables = _ON_DISK
    for stage in job_stages(job):
        plan = stage.plan(job, tables)
        plans.append(plan)
        if stage.name == RenderStage.name and not plan.is_current:
            break
        tables = plan.expected
    return plans


def refresh_cache(dataset: str, **settings: Any) -> list[StageSummary]:
    """Bring a data set's cache up to date and write the summary; see `job.prepare_refresh` for the settings."""
    job = prepare_refresh(dataset, **settings)
    summaries = [run_stage(stage, job, job.workers) for stage in job_stages(job)]
    write_summary(job, summaries)
    return summaries


def run_stage(stage: Stage[Any], job: RefreshJob, workers: Workers) -> StageSummary:
    """Plan a stage and run it, while this process alone works on the data set; log the summary.

    Raises `StoreError` if another process holds the data set's lock.
    """
    tune_allocator()
    with writer_lock(job.work):
        for leftover in (*job.work.glob(f"{TEMP_PREFIX}*"), *job.work.glob(f"*.parts/{TEMP_PREFIX}*")):
            leftover.unlink()
        started = time.monotonic()
        plan = stage.plan(job)
        planned = time.monotonic()
        summary = stage.run(job, plan, workers)
        ended = time.monotonic()
        if stage.name != IndexStage.name:  # reading the raw layout is planning, and has no rate
            remember_rate(job, plan.stage, _num_rated(plan), seconds=ended - planned)
    summary = replace(summary, seconds=ended - started)
    logger.info("%s", summary)
    return summary


def _num_rated(plan: StagePlan) -> int:
    """Return the items that a stage's rate counts: views of an extraction, frames of other stages."""
    return plan.num_views if isinstance(plan, ExtractPlan) else plan.num_computed


def _frames(job: RefreshJob, tables: Tables) -> pd.DataFrame:
    return index.read_index(job.work, dataset=job.dataset) if tables.frames is None else tables.frames


def _boxes(job: RefreshJob, tables: Tables) -> pd.DataFrame:
    if tables.boxes is not None:
        return tables.boxes
    return read_table(job.boxes_path, columns=BOX_COLUMNS, made_by=f"fantrans refresh {job.dataset}")


def _from_store(stage: str, plan: Plan, *, num_bytes: int, duration: Duration, expected: Tables) -> StagePlan:
    """Return the plan of a stage that fills a store."""
    return StagePlan(
        stage=stage,
        num_kept=plan.num_kept,
        num_computed=plan.num_computed,
        num_dropped=plan.num_dropped,
        num_bytes=num_bytes,
        duration=duration,
        is_current=not plan.is_new,
        expected=expected,
    )


def _summarise(plan: StagePlan) -> StageSummary:
    return StageSummary(
        stage=plan.stage, num_kept=plan.num_kept, num_computed=plan.num_computed, num_dropped=plan.num_dropped
    )

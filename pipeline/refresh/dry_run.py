"""What a refresh would do: keep, compute, drop, bytes and time of each stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.cache import crops
from pipeline.cache.writer import plan_refresh
from pipeline.refresh.job import RefreshJob, crop_format, feature_storage, find_exact_cache, seconds_for
from pipeline.refresh.stages import index_layout, known_boxes
from pipeline.store.format import StoreFormat
from pipeline.store.plan import Plan
from pipeline.store.revisions import load_revision
from pipeline.tables import BOX_COLUMNS, Status, read_table_if_intact


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What a stage would do; `num_bytes` to write and `seconds` to take are None where nothing is known."""

    stage: str
    num_kept: int
    num_computed: int
    num_dropped: int = 0
    num_bytes: int | None = None
    seconds: float | None = None


def plan_job(job: RefreshJob) -> list[StagePlan]:
    """What `refresh_cache` would do, stage by stage; writes nothing.

    A frame that has not been looked at yet counts as one with a face. Bytes are by what the cache's frames take now,
    else before compression; times by the rates of the last refresh.
    """
    table, before = index_layout(job)
    is_same = before is not None and before.equals(table)
    gone = 0 if before is None else len(set(before["frame_id"]) - set(table["frame_id"]))
    plans = [
        StagePlan(
            stage="index",
            num_kept=len(table) if is_same else 0,
            num_computed=0 if is_same else len(table),
            num_dropped=gone,
        )
    ]
    found, _ = known_boxes(job, table)
    num_left = len(table) - int(table["frame_id"].isin(found["frame_id"]).sum())
    plans.append(
        StagePlan(
            stage="detect",
            num_kept=len(table) - num_left,
            num_computed=num_left,
            seconds=seconds_for(job, "detect", num_left),
        )
    )
    boxes = table[["frame_id"]].merge(found, on="frame_id", how="left")
    filled = read_table_if_intact(job.boxes_path)
    if filled is not None:  # gaps that were filled stay filled
        filled = filled[list(BOX_COLUMNS)]
        filled = filled[(filled["status"] == Status.INTERPOLATED) & filled["frame_id"].isin(found["frame_id"])]
        boxes = filled.set_index("frame_id").combine_first(boxes.set_index("frame_id")).reindex(boxes["frame_id"])
        boxes = boxes.reset_index()
    boxes["status"] = boxes["status"].fillna(Status.OK.value)
    cut = crops.plan_crops(job.work / "crops", table, boxes, images_root=job.entry.root, format=crop_format(job))
    plans.append(_stage_plan("crop", cut, seconds=seconds_for(job, "crop", cut.num_computed)))
    features, root = feature_storage(job), job.catalog.cache_dir(job.dataset)
    extracted = plan_refresh(root, table, cut.index, format=features.format, views=job.config.views)
    num_images = sum(len(extracted.rows_in(unit.block)) for unit in extracted.units)
    stage = "extract" if find_exact_cache(job) is None else "encode"
    num_bytes = round(extracted.num_bytes * _packing(features.format.folder_in(root), features.format))
    plans.append(_stage_plan(stage, extracted, seconds=seconds_for(job, stage, num_images), num_bytes=num_bytes))
    return plans


def _stage_plan(stage: str, plan: Plan, *, seconds: float | None, num_bytes: int | None = None) -> StagePlan:
    return StagePlan(
        stage=stage,
        num_kept=plan.num_kept,
        num_computed=plan.num_computed,
        num_dropped=plan.num_dropped,
        num_bytes=plan.num_bytes if num_bytes is None else num_bytes,
        seconds=seconds,
    )


def _packing(folder: Path, format: StoreFormat) -> float:
    """Bytes on disk over bytes of values in a cache that is there; 1 without one."""
    revision = load_revision(folder)
    if revision is None or not revision.manifest["num_rows"]:
        return 1.0
    row_bytes = sum(spec.row_bytes for spec in format.arrays) * len(revision.groups)
    return revision.manifest["num_bytes"] / (revision.manifest["num_rows"] * row_bytes)

"""Bring a data set's feature cache up to date: index, detect, crop, extract. Each stage keeps what stands.

    {work}/{dataset}/frames.parquet
    {work}/{dataset}/boxes-{detector fingerprint}.parquet, and .parts/ while it is being made
    {work}/{dataset}/crops/{crop fingerprint}/
    {cache}/{dataset}/{cache fingerprint}/
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import ValidationError

from pipeline import crops, fingerprint, frames
from pipeline.cache.format import features_format
from pipeline.cache.writer import plan_refresh
from pipeline.cache.writer import refresh as refresh_features
from pipeline.catalog import Catalog, DatasetEntry, load_catalog
from pipeline.config import CacheConfig, CropConfig, first_fault, load_experiment
from pipeline.detect import VALUE_COLUMNS, detect_frames, fill_gaps, load_detector
from pipeline.device import checked_device
from pipeline.errors import ConfigError
from pipeline.features import extract_features as extract_maps
from pipeline.features import feature_shapes, load_fan
from pipeline.progress import track
from pipeline.records import BOX_COLUMNS, Status, read_table, write_table
from pipeline.views import check_context

logger = logging.getLogger("fantrans")

DETECTION_CHUNK_FRAMES = 2048
MAX_LISTED = 50


@dataclass(frozen=True, kw_only=True)
class RefreshJob:
    """One data set and everything that decides its cache."""

    dataset: str
    catalog: Catalog
    config: CacheConfig
    limit: int | None
    device: str

    @property
    def entry(self) -> DatasetEntry:
        """The data set's entry in the catalog."""
        return self.catalog.dataset(self.dataset)

    @property
    def work(self) -> Path:
        """Folder of the data set's index, boxes and crops."""
        return self.catalog.work_of(self.dataset)

    @property
    def boxes_path(self) -> Path:
        """Boxes of the job's detector."""
        document = fingerprint.boxes_document(self.config, self.catalog)
        return self.work / f"boxes-{fingerprint.fingerprint(document)}.parquet"


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """What a stage kept and did."""

    stage: str
    num_kept: int
    num_done: int
    num_dropped: int = 0
    note: str = ""

    def __str__(self) -> str:
        """One line for people."""
        dropped = f", {self.num_dropped:,} dropped" if self.num_dropped else ""
        done = f"{self.num_done:,} new" if self.num_done else "nothing to do"
        return f"{self.stage}: {done}, {self.num_kept:,} kept{dropped}{self.note and '; ' + self.note}"


def prepare_refresh(
    dataset: str,
    *,
    config: str = "fan_trans",
    profile: str | None = None,
    num_views: int | None = None,
    limit: int | None = None,
    device: str = "cpu",
) -> RefreshJob:
    """Settings of a refresh: the experiment's, with what the caller overrides."""
    settings = load_experiment(config).cache
    document = settings.model_dump()
    if profile is not None:
        document["features"]["profile"] = profile
    if num_views is not None:
        document["views"]["num_views"] = num_views
    catalog = load_catalog()
    catalog.dataset(dataset)
    checked_device(device)
    try:
        cache = CacheConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(first_fault(error)) from None
    catalog.weights_of(cache.detector.weights)
    family = catalog.weights_of(cache.features.weights).family
    if family != "fan":
        raise ConfigError(
            f"features come from a FAN, and {cache.features.weights} is a {family}; name another in {config}"
        )
    return RefreshJob(dataset=dataset, catalog=catalog, config=cache, limit=limit, device=device)


def refresh_cache(dataset: str, **settings: Any) -> list[StageSummary]:
    """All four stages; see `prepare_refresh` for the settings."""
    job = prepare_refresh(dataset, **settings)
    return [stage(job) for stage in (index_frames, detect_faces, crop_faces, extract_features)]


def _said(stage: Callable[[RefreshJob], StageSummary]) -> Callable[[RefreshJob], StageSummary]:
    """The stage, saying its summary in the log when it ends."""

    @wraps(stage)
    def run(job: RefreshJob) -> StageSummary:
        summary = stage(job)
        logger.info("%s", summary)
        return summary

    return run


@_said
def index_frames(job: RefreshJob) -> StageSummary:
    """Raw layout to `frames.parquet`; a table that would say the same is left alone."""
    table = frames.index_frames(job.entry, limit=job.limit)
    path = job.work / frames.FILE_NAME
    if path.is_file() and pd.read_parquet(path).equals(table):
        return StageSummary(stage="index", num_kept=len(table), num_done=0)
    frames.write_index(job.work, table)
    counts = frames.summarise(table, job.entry.rules).to_string(index=False, float_format="{:.0f}".format)
    logger.info("frames, and percent positive among known labels:\n%s", counts)
    return StageSummary(stage="index", num_kept=0, num_done=len(table))


@_said
def detect_faces(job: RefreshJob) -> StageSummary:
    """Frames to boxes, a chunk at a time; a killed run keeps whole chunks, a changed image is looked at anew."""
    table = frames.read_index(job.work, dataset=job.dataset)
    path, parts = job.boxes_path, job.boxes_path.with_suffix(".parts")
    known = [pd.read_parquet(p) for p in (path, *sorted(parts.glob("*.parquet"))) if p.is_file()]
    columns = [*BOX_COLUMNS, *crops.SOURCE_COLUMNS]
    found = pd.concat(known, ignore_index=True) if known else pd.DataFrame(columns=columns)
    found = found.reindex(columns=columns).drop_duplicates("frame_id", keep="last")
    hashes = crops.source_hashes(job.entry.root, table["source_file"], known=found)
    sources = table[["frame_id", "source_file"]].join(hashes, on="source_file")
    is_unchanged = found["frame_id"].map(sources.set_index("frame_id")["source_sha256"]) == found["source_sha256"]
    has_source = set(table.loc[table["source_file"] != "", "frame_id"])
    is_retried = (found["status"] == Status.UNREADABLE) & found["frame_id"].isin(has_source)
    found = found[is_unchanged & ~is_retried][list(BOX_COLUMNS)]
    left = table[~table["frame_id"].isin(found["frame_id"])]
    if len(left):
        detector = load_detector(job.catalog.weights_of(job.config.detector.weights), torch.device(job.device))
        with track("detect faces", total=len(left), unit="frames") as step:
            for start in range(0, len(left), DETECTION_CHUNK_FRAMES):
                chunk = detect_frames(
                    left.iloc[start : start + DETECTION_CHUNK_FRAMES], job.entry.root, detector,
                    settings=job.config.detector, device=torch.device(job.device), step=step,
                )
                write_table(parts / f"{len(list(parts.glob('*.parquet'))):06d}.parquet", chunk.merge(sources))
                found = pd.concat([found, chunk], ignore_index=True) if len(found) else chunk
    boxes = found.set_index("frame_id").loc[table["frame_id"]].reset_index().merge(sources)
    boxes = fill_gaps(table, without_filled_gaps(boxes), max_gap_frames=job.config.detector.max_gap_frames)
    if not path.is_file() or not pd.read_parquet(path).equals(boxes):
        write_table(path, boxes)
    shutil.rmtree(parts, ignore_errors=True)
    return StageSummary(stage="detect", num_kept=len(table) - len(left), num_done=len(left), note=missed_faces(boxes))


def without_filled_gaps(boxes: pd.DataFrame) -> pd.DataFrame:
    """Boxes as the detector left them: what an earlier refresh interpolated is without a face again."""
    boxes = boxes.copy()
    is_filled = boxes["status"] == Status.INTERPOLATED
    boxes.loc[is_filled, VALUE_COLUMNS] = float("nan")
    boxes.loc[is_filled, "status"] = Status.NO_FACE.value
    return boxes


def missed_faces(boxes: pd.DataFrame) -> str:
    """The frames without a face of their own, each with its status (the first fifty; boxes.parquet has all)."""
    missed = boxes[boxes["status"] != Status.OK]
    if missed.empty:
        return "a face in every frame"
    counts = ", ".join(f"{count} {status}" for status, count in missed["status"].value_counts().items())
    first = missed.head(MAX_LISTED)
    names = ", ".join(f"{name} {status}" for name, status in zip(first["frame_id"], first["status"], strict=True))
    return f"{counts} of {len(boxes):,}: {names}{'...' if len(missed) > MAX_LISTED else ''}"


@_said
def crop_faces(job: RefreshJob) -> StageSummary:
    """Boxes to crops."""
    table, boxes = _tables(job)
    format = crops.crops_format(*_crop_settings(job))
    plan = crops.plan_crops(job.work / "crops", table, boxes, images_root=job.entry.root, format=format)
    if plan.is_new:
        with track("cut crops", total=plan.num_computed, unit="faces") as step:
            crops.refresh_crops(
                job.work / "crops", table, boxes, images_root=job.entry.root, settings=job.config.crop, format=format,
                provenance=_provenance(job), step=step,
            )
    return StageSummary(stage="crop", num_kept=plan.num_kept, num_done=plan.num_computed, num_dropped=plan.num_dropped)


def _crop_settings(job: RefreshJob) -> tuple[dict[str, Any], CropConfig]:
    return fingerprint.crops_document(job.config, job.catalog), job.config.crop


def _tables(job: RefreshJob) -> tuple[pd.DataFrame, pd.DataFrame]:
    table = frames.read_index(job.work, dataset=job.dataset)
    boxes = read_table(job.boxes_path, columns=BOX_COLUMNS, made_by=f"fantrans refresh {job.dataset}")
    return table, boxes


def _provenance(job: RefreshJob) -> dict[str, Any]:
    """What made the bytes, beside the fingerprint; the store adds versions."""
    return {"dataset": job.dataset, "device": job.device}


@_said
def extract_features(job: RefreshJob) -> StageSummary:
    """Crops to cached features: the only stage that runs the FAN."""
    settings = job.config.features
    table = frames.read_index(job.work, dataset=job.dataset)
    reader = crops.CropReader(crops.crops_format(*_crop_settings(job)).folder_in(job.work / "crops"))
    entry = job.catalog.weights_of(settings.weights)
    assert entry.width is not None
    format = features_format(
        fingerprint.cache_document(job.config, job.catalog), feature_shapes(entry.width, profile=settings.profile)
    )
    check_context(job.config.crop, job.config.views)
    root, views = job.catalog.caches_of(job.dataset), job.config.views
    plan = plan_refresh(root, table, reader, format=format, views=views)
    if plan.is_new:
        fan = load_fan(entry, job.device)
        num_images = sum(len(plan.rows_of(unit.block)) for unit in plan.units)
        with track("extract features", total=num_images, unit="views") as step:
            refresh_features(
                root, table, reader,
                partial(extract_maps, fan, profile=settings.profile, precision=settings.precision),
                format=format, views=views, view_px=job.config.crop.size_px, provenance=_provenance(job), step=step,
            )
    return StageSummary(stage="extract", num_kept=plan.num_kept, num_done=plan.num_computed,
                        num_dropped=plan.num_dropped)

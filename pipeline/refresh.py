"""Bring a data set's feature cache up to date: index, detect, crop, extract. Each stage keeps what stands.

    {work}/{dataset}/frames.parquet
    {work}/{dataset}/boxes-{detector fingerprint}.parquet, and .parts/ while it is being made
    {work}/{dataset}/crops/{crop fingerprint}/
    {cache}/{dataset}/{cache fingerprint}/
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from pydantic import ValidationError

from models.fan import map_shapes
from pipeline import crops, fingerprint, frames
from pipeline.cache.codecs import Codec, make_codec
from pipeline.cache.format import features_format
from pipeline.cache.writer import Extractor, plan_refresh
from pipeline.cache.writer import refresh as refresh_features
from pipeline.catalog import Catalog, DatasetEntry, load_catalog
from pipeline.config import CacheConfig, CropConfig, first_fault, load_experiment
from pipeline.detect import VALUE_COLUMNS, detect_frames, fill_gaps, load_detector
from pipeline.device import checked_device
from pipeline.errors import ConfigError
from pipeline.features import extract_features as extract_maps
from pipeline.features import load_fan
from pipeline.files import TEMP_PREFIX, write_bytes_atomically
from pipeline.progress import track
from pipeline.records import BOX_COLUMNS, Status, read_table, write_table
from pipeline.store.lock import writer_lock
from pipeline.store.plan import Plan
from pipeline.store.revisions import load_revision
from pipeline.store.writer import StoreFormat
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
    num_workers: int = 1

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
    num_workers: int = 1,
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
    return RefreshJob(dataset=dataset, catalog=catalog, config=cache, limit=limit, device=device,
                      num_workers=num_workers)


def refresh_cache(dataset: str, **settings: Any) -> list[StageSummary]:
    """All four stages; see `prepare_refresh` for the settings."""
    job = prepare_refresh(dataset, **settings)
    return [stage(job) for stage in (index_frames, detect_faces, crop_faces, extract_features)]


def _said(stage: Callable[[RefreshJob], StageSummary]) -> Callable[[RefreshJob], StageSummary]:
    """The stage, alone at work on its data set, and saying its summary in the log when it ends.

    Raises `CacheError` if another process is at work there.
    """

    @wraps(stage)
    def run(job: RefreshJob) -> StageSummary:
        with writer_lock(job.work):
            for left in (*job.work.glob(f"{TEMP_PREFIX}*"), *job.work.glob(f"*.parts/{TEMP_PREFIX}*")):
                left.unlink()
            summary = stage(job)
        logger.info("%s", summary)
        return summary

    return run


def _indexed(job: RefreshJob) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The frame index as it is now and as it was left, if it was; `ConfigError` for a limit that would shrink it.

    A frame that leaves the index leaves every cache of the data set at its next refresh, and a try must not do that.
    """
    table = frames.index_frames(job.entry, limit=job.limit)
    path = job.work / frames.FILE_NAME
    before = pd.read_parquet(path) if path.is_file() else None
    if job.limit is not None and before is not None and len(before) > len(table):
        raise ConfigError(
            f"{job.dataset} has {len(before):,} frames indexed, and --limit {job.limit} would drop "
            f"{len(before) - len(table):,} of them from its caches; leave --limit out, or try in other places: set "
            "FANTRANS_WORK and FANTRANS_CACHE"
        )
    return table, before


@_said
def index_frames(job: RefreshJob) -> StageSummary:
    """Raw layout to `frames.parquet`; a table that would say the same is left alone."""
    table, before = _indexed(job)
    if before is not None and before.equals(table):
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
    found, sources = _known_boxes(job, table)
    left = table[~table["frame_id"].isin(found["frame_id"])]
    if len(left):
        started = time.monotonic()
        detector = load_detector(job.catalog.weights_of(job.config.detector.weights), torch.device(job.device))
        with track("detect faces", total=len(left), unit="frames") as step:
            for start in range(0, len(left), DETECTION_CHUNK_FRAMES):
                chunk = detect_frames(
                    left.iloc[start : start + DETECTION_CHUNK_FRAMES], job.entry.root, detector,
                    settings=job.config.detector, device=torch.device(job.device), step=step,
                )
                write_table(parts / f"{len(list(parts.glob('*.parquet'))):06d}.parquet", chunk.merge(sources))
                found = pd.concat([found, chunk], ignore_index=True) if len(found) else chunk
        _remember_rate(job, "detect", len(left) / (time.monotonic() - started))
    boxes = found.set_index("frame_id").loc[table["frame_id"]].reset_index().merge(sources)
    boxes = fill_gaps(table, without_filled_gaps(boxes), max_gap_frames=job.config.detector.max_gap_frames)
    if not path.is_file() or not pd.read_parquet(path).equals(boxes):
        write_table(path, boxes)
    shutil.rmtree(parts, ignore_errors=True)
    return StageSummary(stage="detect", num_kept=len(table) - len(left), num_done=len(left), note=missed_faces(boxes))


def _known_boxes(job: RefreshJob, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Boxes, finished or of a killed run, whose images are unchanged; and what each frame's image is now."""
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
    return found[is_unchanged & ~is_retried][list(BOX_COLUMNS)], sources


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
        started = time.monotonic()
        with track("cut crops", total=plan.num_computed, unit="faces") as step:
            crops.refresh_crops(
                job.work / "crops", table, boxes, images_root=job.entry.root, settings=job.config.crop, format=format,
                provenance=_provenance(job), step=step,
            )
        if plan.num_computed:
            _remember_rate(job, "crop", plan.num_computed / (time.monotonic() - started))
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
    """Crops to cached features: the only stage that runs the FAN, and not for what an exact cache holds already."""
    table, reader, cache = frames.read_index(job.work, dataset=job.dataset), crop_reader(job), features_of(job)
    check_context(job.config.crop, job.config.views)
    root, views = job.catalog.caches_of(job.dataset), job.config.views
    plan = plan_refresh(root, table, reader.listed, format=cache.format, views=views)
    if plan.is_new:
        exact = exact_beside(job)
        num_images = sum(len(plan.rows_of(unit.block)) for unit in plan.units)
        started = time.monotonic()
        with track("extract features", total=num_images, unit="views") as step:
            refresh_features(
                root, table, reader, partial(make_extractor, job), format=cache.format, codec=cache.codec,
                basis=cache.basis, views=views, view_px=job.config.crop.size_px, exact=exact,
                num_workers=job.num_workers, provenance=_provenance(job), step=step,
            )
        if num_images:
            stage = "extract" if exact is None else "encode"
            _remember_rate(job, stage, num_images / (time.monotonic() - started))
    return StageSummary(stage="extract", num_kept=plan.num_kept, num_done=plan.num_computed,
                        num_dropped=plan.num_dropped)


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
    table, before = _indexed(job)
    is_same = before is not None and before.equals(table)
    gone = 0 if before is None else len(set(before["frame_id"]) - set(table["frame_id"]))
    plans = [StagePlan(stage="index", num_kept=len(table) if is_same else 0, num_computed=0 if is_same else len(table),
                       num_dropped=gone)]
    found, _ = _known_boxes(job, table)
    num_left = len(table) - int(table["frame_id"].isin(found["frame_id"]).sum())
    plans.append(StagePlan(stage="detect", num_kept=len(table) - num_left, num_computed=num_left,
                           seconds=_seconds(job, "detect", num_left)))
    boxes = table[["frame_id"]].merge(found, on="frame_id", how="left")
    if job.boxes_path.is_file():  # gaps that were filled stay filled
        filled = pd.read_parquet(job.boxes_path, columns=list(BOX_COLUMNS))
        filled = filled[(filled["status"] == Status.INTERPOLATED) & filled["frame_id"].isin(found["frame_id"])]
        boxes = filled.set_index("frame_id").combine_first(boxes.set_index("frame_id")).reindex(boxes["frame_id"])
        boxes = boxes.reset_index()
    boxes["status"] = boxes["status"].fillna(Status.OK.value)
    cut = crops.plan_crops(job.work / "crops", table, boxes, images_root=job.entry.root,
                           format=crops.crops_format(*_crop_settings(job)))
    plans.append(_stage_plan("crop", cut, seconds=_seconds(job, "crop", cut.num_computed)))
    features, root = features_of(job), job.catalog.caches_of(job.dataset)
    extracted = plan_refresh(root, table, cut.index, format=features.format, views=job.config.views)
    num_images = sum(len(extracted.rows_of(unit.block)) for unit in extracted.units)
    stage = "extract" if exact_beside(job) is None else "encode"
    num_bytes = round(extracted.num_bytes * _packing(features.format.folder_in(root), features.format))
    plans.append(_stage_plan(stage, extracted, seconds=_seconds(job, stage, num_images), num_bytes=num_bytes))
    return plans


def _stage_plan(stage: str, plan: Plan, *, seconds: float | None, num_bytes: int | None = None) -> StagePlan:
    return StagePlan(stage=stage, num_kept=plan.num_kept, num_computed=plan.num_computed, num_dropped=plan.num_dropped,
                     num_bytes=plan.num_bytes if num_bytes is None else num_bytes, seconds=seconds)


def _packing(folder: Path, format: StoreFormat) -> float:
    """Bytes on disk over bytes of values in a cache that is there; 1 without one."""
    revision = load_revision(folder)
    if revision is None or not revision.manifest["num_rows"]:
        return 1.0
    row_bytes = sum(spec.row_bytes for spec in format.arrays) * len(revision.groups)
    return revision.manifest["num_bytes"] / (revision.manifest["num_rows"] * row_bytes)


_RATES_NAME = "rates.json"


def _rates(job: RefreshJob) -> dict[str, float]:
    """Units of work a second of each stage, when it last ran: for the time that a plan states."""
    path = job.work / _RATES_NAME
    return json.loads(path.read_bytes()) if path.is_file() else {}


def _remember_rate(job: RefreshJob, stage: str, per_second: float) -> None:
    write_bytes_atomically(job.work / _RATES_NAME, json.dumps({**_rates(job), stage: per_second}).encode())


def _seconds(job: RefreshJob, stage: str, num: int) -> float | None:
    rate = _rates(job).get(stage)
    return 0.0 if num == 0 else num / rate if rate else None


class Features(NamedTuple):
    """How a job's features are stored."""

    format: StoreFormat
    codec: Codec
    basis: bytes | None


def features_of(job: RefreshJob) -> Features:
    """The format and codec of the job's cache, with the basis that the catalog names for its FAN."""
    settings = job.config.features
    width = job.catalog.weights_of(settings.weights).width
    assert width is not None
    file = fingerprint.codec_of(job.config, job.catalog) if settings.profile == "compact" else None
    basis = None if file is None else file.checked_path().read_bytes()
    codec = make_codec(settings.profile, map_shapes(width), basis=basis)
    return Features(features_format(fingerprint.cache_document(job.config, job.catalog), codec), codec, basis)


def crop_reader(job: RefreshJob) -> crops.CropReader:
    """The job's crops, as the crop stage left them."""
    return crops.CropReader(crops.crops_format(*_crop_settings(job)).folder_in(job.work / "crops"))


def make_extractor(job: RefreshJob) -> Extractor:
    """The job's FAN, giving what its codec stores."""
    settings = job.config.features
    fan = load_fan(job.catalog.weights_of(settings.weights), job.device)
    return partial(extract_maps, fan, encode=features_of(job).codec.encode, precision=settings.precision)


def exact_beside(job: RefreshJob) -> Path | None:
    """The cache of the same settings in the profile exact, from which another is encoded; None if there is none."""
    if job.config.features.profile == "exact":
        return None
    features = job.config.features.model_copy(update={"profile": "exact"})
    exact = replace(job, config=job.config.model_copy(update={"features": features}))
    folder = features_of(exact).format.folder_in(job.catalog.caches_of(job.dataset))
    return folder if load_revision(folder) is not None else None

"""Bring a data set's feature cache up to date: index, detect, crop, extract; rendered faces where they lack."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flows.tasks import fantrans_flow, fantrans_task
from pipeline import refresh as stages
from pipeline.config import PositiveInt, Profile
from pipeline.job import RefreshJob, prepare_refresh
from pipeline.refresh import StageSummary
from pipeline.render import render_dataset


@fantrans_task()
def render_faces(dataset: str) -> None:
    """The raw data set, if it is a rendered one and not there yet."""
    render_dataset(dataset)


@fantrans_task()
def index_frames(job: RefreshJob) -> StageSummary:
    """Raw layout to frame index."""
    return stages.index_frames(job)


@fantrans_task()
def detect_faces(job: RefreshJob) -> StageSummary:
    """Frames to boxes."""
    return stages.detect_faces(job)


@fantrans_task()
def crop_faces(job: RefreshJob) -> StageSummary:
    """Boxes to crops."""
    return stages.crop_faces(job)


@fantrans_task()
def extract_features(job: RefreshJob) -> StageSummary:
    """Crops to cached features."""
    return stages.extract_features(job)


@fantrans_flow(name="refresh-cache")
def refresh_cache(
    dataset: str,
    config: str | None = None,
    base: str | None = None,
    profile: Profile | None = None,
    num_views: Annotated[int, Field(ge=2)] | None = None,
    limit: PositiveInt | None = None,
    device: str = "cpu",
    num_workers: PositiveInt = 1,
) -> list[StageSummary]:
    """Compute what is missing, keep the rest; returns what each stage kept and did."""
    render_faces(dataset)
    job = prepare_refresh(dataset, config=config, base=base, profile=profile, num_views=num_views, limit=limit,
                          device=device, num_workers=num_workers)
    return [index_frames(job), detect_faces(job), crop_faces(job), extract_features(job)]

"""Bring a data set's feature cache up to date: index, detect, crop, extract; rendered faces where they lack."""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from flows.cluster import Cluster, cluster_workers
from flows.tasks import artifact_key, fantrans_flow, fantrans_task
from pipeline.catalog import load_catalog
from pipeline.config import PositiveInt, Profile
from pipeline.refresh import stages
from pipeline.refresh.job import RefreshJob, prepare_refresh
from pipeline.refresh.stages import StageSummary
from pipeline.refresh.summary import write_summary


@fantrans_task()
def render_faces(dataset: str) -> None:
    """The raw data set, if it is a rendered one and not there yet."""
    load_catalog().dataset(dataset).render()


@fantrans_task()
def index_frames(job: RefreshJob) -> StageSummary:
    """Raw layout to frame index."""
    return stages.index_frames(job)


@fantrans_task()
def detect_faces(job: RefreshJob, *, on_cluster: bool = False) -> StageSummary:
    """Frames to boxes."""
    with _workers(job, on_cluster=on_cluster) as executor:
        return stages.detect_faces(job, executor)


@fantrans_task()
def crop_faces(job: RefreshJob) -> StageSummary:
    """Boxes to crops."""
    return stages.crop_faces(job)


@fantrans_task()
def extract_features(job: RefreshJob, *, on_cluster: bool = False) -> StageSummary:
    """Crops to cached features."""
    with _workers(job, on_cluster=on_cluster) as executor:
        return stages.extract_features(job, executor)


def _workers(job: RefreshJob, *, on_cluster: bool) -> AbstractContextManager[Executor | None]:
    return cluster_workers(job.device) if on_cluster else nullcontext()


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
    cluster: Cluster | None = None,
) -> list[StageSummary]:
    """Compute what is missing, keep the rest; returns what each stage kept and did.

    With a cluster, its workers detect and extract in place of `num_workers` processes here.
    """
    render_faces(dataset)
    job = prepare_refresh(
        dataset,
        config=config,
        base=base,
        profile=profile,
        num_views=num_views,
        limit=limit,
        device=device,
        check_device=cluster is None,
        num_workers=num_workers,
    )
    if cluster is None:
        done = [index_frames(job), detect_faces(job), crop_faces(job), extract_features(job)]
    else:
        with cluster.task_runner() as runner:
            done = [index_frames(job)]
            done.append(runner.submit(detect_faces, {"job": job, "on_cluster": True}).result())
            done.append(crop_faces(job))
            done.append(runner.submit(extract_features, {"job": job, "on_cluster": True}).result())
    markdown, page = write_summary(job, done)
    create_markdown_artifact(
        f"{markdown}\n[This page]({page.as_uri()})\n",
        key=artifact_key("refresh", dataset),
        description=f"What the refresh of {dataset} did",
    )
    return done

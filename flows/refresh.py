"""Bring a data set's feature cache up to date, stage by stage, with a task per stage."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from flows.cluster import Cluster
from flows.pages import write_refreshed_page
from flows.tasks import artifact_key, fantrans_flow, fantrans_task
from pipeline.config import PositiveInt, Profile
from pipeline.refresh import stages
from pipeline.refresh.job import RefreshJob, StageName, prepare_refresh
from pipeline.refresh.plan import StageSummary
from pipeline.refresh.summary import write_summary
from pipeline.runtime.device import AUTO, choose_device

if TYPE_CHECKING:
    from prefect_dask.task_runners import DaskTaskRunner


@fantrans_task(task_run_name="{name} {job.dataset}")
def run_stage(name: str, job: RefreshJob, *, on_cluster: bool = False) -> StageSummary:
    """Plan a stage and run it, here or on the cluster's workers."""
    stage = next(stage for stage in stages.job_stages(job) if stage.name == name)
    if not on_cluster:
        return stages.run_stage(stage, job, job.workers)
    from flows.cluster_workers import ClusterWorkers  # noqa: PLC0415 - takes half a second

    return stages.run_stage(stage, job, ClusterWorkers(job.device))


@fantrans_flow("refresh-cache", verb="refresh")
def refresh_cache(
    dataset: str,
    experiment: str | None = None,
    base: str | None = None,
    overrides: list[str] | None = None,
    profile: Profile | None = None,
    num_views: Annotated[int, Field(ge=2)] | None = None,
    limit: PositiveInt | None = None,
    device: str = "auto",
    num_workers: PositiveInt = 1,
    cluster: Cluster | None = None,
    allow_lost: bool = False,
    until: StageName = "extract",
) -> list[StageSummary]:
    """Compute what is missing, keep the rest; returns what each stage kept and did.

    With a cluster, its workers detect and extract in place of `num_workers` processes here, and the device "auto" is
    CUDA where `cluster.cuda` is set, else the CPU. allow_lost, until: as the options of
    `fantrans refresh`.
    """
    if cluster is None:
        device = choose_device(device)
    elif device == AUTO:
        device = "cuda" if cluster.cuda else "cpu"
    job = prepare_refresh(
        dataset,
        experiment=experiment,
        base=base,
        overrides=overrides or (),
        profile=profile,
        num_views=num_views,
        limit=limit,
        device=device,
        check_device=cluster is None,
        num_workers=num_workers,
        allow_lost=allow_lost,
        until=until,
    )
    with nullcontext() if cluster is None else cluster.task_runner() as runner:
        summaries = [_run(stage, job, runner) for stage in stages.job_stages(job)]
    markdown, _ = write_summary(job, summaries)
    write_refreshed_page(job)
    create_markdown_artifact(
        markdown,
        key=artifact_key("refresh", dataset),
        description=f"What the refresh of {dataset} did",
    )
    return summaries


def _run(stage: stages.Stage[Any], job: RefreshJob, runner: DaskTaskRunner | None) -> StageSummary:
    """Run a stage as a task with its name: on the cluster, if one is given and the stage uses workers."""
    task = run_stage.with_options(name=stage.name)
    if runner is None or not stage.uses_workers:
        return task(stage.name, job)
    return runner.submit(task, {"name": stage.name, "job": job, "on_cluster": True}).result()

"""The whole main job: rendered faces where the catalog asks for them, cache, folds, report."""

from __future__ import annotations

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.refresh import refresh_cache
from flows.report import report
from flows.train import train_folds
from pipeline.catalog import load_catalog
from pipeline.render import render_dataset
from pipeline.report import Report


@task(cache_policy=NO_CACHE)
def render_faces(dataset: str) -> None:
    """The raw data set, if it is a rendered one and not there yet."""
    render_dataset(dataset)


@flow(name="main-job")
def main_job(dataset: str, config: str | None = None, device: str = "cpu") -> Report:
    """Raw frames to per-AU F1."""
    render_faces(dataset)
    config = config or load_catalog().dataset(dataset).experiment
    refresh_cache(dataset, config=config, device=device)
    (run,) = train_folds(config, dataset=dataset, device=device)
    return report(run)

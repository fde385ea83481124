"""Aggregate the folds of a run into one F1 report."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from pipeline.report import Report, write_report


@task(cache_policy=NO_CACHE)
def aggregate(run_folder: Path) -> Report:
    """Counts of every fold to one report beside them."""
    return write_report(run_folder)


@flow(name="report")
def report(run_folder: Path) -> Report:
    """The F1 table as files in the run's folder and as an artifact of the flow run."""
    result = aggregate(run_folder)
    create_markdown_artifact(result.markdown(), key="f1-report", description=f"F1 of {run_folder.name}")
    return result

"""The main job: cache, folds, report."""

from __future__ import annotations

from flows.refresh import refresh_cache
from flows.report import report
from flows.tasks import fantrans_flow
from flows.train import train_folds
from pipeline.catalog import load_catalog
from pipeline.report.run import Report
from pipeline.runtime.device import choose_device


@fantrans_flow("main-job", verb="main job on")
def main_job(dataset: str, experiment: str | None = None, device: str = "auto") -> Report:
    """Refresh, train and report: from raw frames to F1 per AU."""
    experiment, device = experiment or load_catalog().get_dataset(dataset).experiment, choose_device(device)
    refresh_cache(dataset, experiment=experiment, device=device)
    train_folds(dataset, experiment, device=device)
    result = report(dataset, experiment)
    assert isinstance(result, Report)
    return result

"""The main job: cache, folds, report."""

from __future__ import annotations

from flows.refresh import refresh_cache
from flows.report import report
from flows.tasks import fantrans_flow
from flows.train import train_folds
from pipeline.catalog import load_catalog
from pipeline.report.run import Report


@fantrans_flow(name="main-job")
def main_job(dataset: str, config: str | None = None, device: str = "cpu") -> Report:
    """Refresh, train and report: from raw frames to F1 per AU."""
    config = config or load_catalog().get_dataset(dataset).experiment
    refresh_cache(dataset, config=config, device=device)
    train_folds(config, dataset=dataset, device=device)
    result = report(config, dataset=dataset)
    assert isinstance(result, Report)
    return result

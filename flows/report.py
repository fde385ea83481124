"""Aggregate what was trained into an F1 table: of one experiment's folds, or of a set's runs."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact

from flows.tasks import fantrans_flow, fantrans_task
from pipeline.catalog import load_catalog
from pipeline.report import Report, write_report
from pipeline.report.tables import SetTable, write_set_report
from pipeline.runs import runs_of


@fantrans_task()
def aggregate(config: str, *, dataset: str, base: str | None, init_from: str | None) -> Report | SetTable:
    """Counts of every fold to one report beside them, or a set's finished runs to one table."""
    if len(load_catalog().experiments_of(dataset, config, base=base).experiments) == 1:
        (run,) = runs_of(config, dataset=dataset, base=base, init_from=init_from)
        return write_report(run.folder)
    table, _ = write_set_report(config, dataset=dataset, base=base, init_from=init_from)
    return table


@fantrans_flow(name="report")
def report(config: str, dataset: str, base: str | None = None, init_from: str | None = None) -> Report | SetTable:
    """The F1 table as files below the runs root and as an artifact of the flow run."""
    result = aggregate(config, dataset=dataset, base=base, init_from=init_from)
    create_markdown_artifact(result.markdown(), key="f1-report", description=f"F1 of {config} on {dataset}")
    return result

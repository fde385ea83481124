"""Report trained heads as an F1 table: the folds of one experiment, or the runs of a set."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import create_table_artifact

from flows.tasks import artifact_key, fantrans_flow, fantrans_task
from pipeline.catalog import load_catalog
from pipeline.experiments import resolve
from pipeline.report.provenance import describe_gaps, describe_missing_subjects
from pipeline.report.run import Report, write_report
from pipeline.report.sets import SetTable, write_set_report
from pipeline.training.runs import resolve_runs


@fantrans_task(task_run_name="report {dataset}")
def aggregate(
    experiment: str, *, dataset: str, base: str | None, init_from: str | None, overrides: Sequence[str]
) -> tuple[Report | SetTable, Path]:
    """Write the report of an experiment's run, or the table of a set's finished runs; returns it and its HTML page."""
    if len(resolve(load_catalog(), dataset, experiment, base=base, overrides=overrides).experiments) == 1:
        (run,) = resolve_runs(experiment, dataset=dataset, base=base, init_from=init_from, overrides=overrides)
        return write_report(run.folder), run.folder / "report.html"
    table, path = write_set_report(experiment, dataset=dataset, base=base, init_from=init_from, overrides=overrides)
    return table, path.with_suffix(".html")


@fantrans_flow("report", verb="report")
def report(
    dataset: str,
    experiment: str | None = None,
    base: str | None = None,
    init_from: str | None = None,
    overrides: list[str] | None = None,
) -> Report | SetTable:
    """Write the F1 table as files below the runs root, and as an artifact with a history under one key.

    The default experiment is the data set's own.
    """
    experiment = experiment or load_catalog().get_dataset(dataset).experiment
    result, page = aggregate(experiment, dataset=dataset, base=base, init_from=init_from, overrides=overrides or ())
    create_table_artifact(
        json.loads(result.table().round(3).to_json(orient="records")),
        key=artifact_key("f1", dataset, Path(experiment).stem),
        description="\n\n".join(_description(result, page)),
    )
    return result


def _description(result: Report | SetTable, page: Path) -> list[str]:
    """Return what stands above the table: what the numbers are, what the data lacks, where the page is."""
    name, dataset = (result.experiment if isinstance(result, Report) else result.name), result.dataset
    gaps = describe_gaps(result.folder) if isinstance(result, Report) else []
    return [
        f"F1 of {name} on {dataset}, in percent. {result.legend()}",
        " ".join([*gaps, *describe_missing_subjects(load_catalog(), dataset)]),
        f"The page of this report is the file `{page}` on {platform.node()}.",
    ]

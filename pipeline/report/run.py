"""The F1 report of a run over its finished folds: terminal, JSON, CSV, Markdown and HTML."""

from __future__ import annotations

import errno
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from pipeline.catalog import load_catalog
from pipeline.errors import DataNotFoundError, WriteError
from pipeline.report.agreement import ECE, ROC_AUC
from pipeline.report.page import Page, describe_data, published_scores, write_page
from pipeline.report.page_content import AP_PERCENT, measures_json, metrics_json
from pipeline.report.rows import read_row
from pipeline.report.scored import CALIBRATED, Scored, read_scored
from pipeline.runtime.atomic import write_atomically, write_bytes_atomically, write_json
from pipeline.runtime.version import written_by
from pipeline.training.metrics import THRESHOLD, Scores, compute_scores
from pipeline.training.run_files import finished_folds, read_counts, read_history, read_run

logger = logging.getLogger("fantrans")

SCHEMA = 1
"""Of report.json and of a set's .json."""
AVERAGES = "mean over folds of each part's F1, then mean over action units"


@dataclass(frozen=True)
class Report:
    """Scores of a run's finished folds; every F1 in percent."""

    folder: Path
    experiment: str
    dataset: str
    parts: tuple[str, ...]
    scores: Scores
    gaps: str | None = None
    """What of the data set the run had, such as "12 of 41 subjects"; None if it had all."""

    @cached_property
    def scored(self) -> Scored:
        """All measures, beside the paper's F1 on the real data set of this layout; reads the predictions once."""
        row = read_row(self.folder.name, [self.folder], published=None)
        return read_scored(row, published=published_scores(load_catalog(), self.dataset))

    def table(self) -> pd.DataFrame:
        """Return one row per action unit and one for their mean, in percent and counts.

        F1 of each part, averaged F1 with interval, pooled F1, F1 of always predicting "present", and label counts.
        """
        scores = self.scores
        by_part = scores.folds.pivot_table("f1_percent", "au", "part", dropna=False)[list(self.parts)]
        aus = scores.aus.set_index("au")
        rows = pd.concat([by_part, aus], axis=1).loc[aus.index]
        rows.index = pd.Index([f"AU{au}" for au in rows.index], name="au")
        rows.loc["mean"] = {
            **{part: by_part[part].mean() for part in self.parts},
            **{name: getattr(scores, name) for name in aus.columns if name.endswith("_percent")},
            **{name: aus[name].sum() for name in aus.columns if name.startswith("num_")},
        }
        return rows.astype({"num_positive": int, "num_known": int, "num_undefined": int}).reset_index()

    def wide_table(self) -> pd.DataFrame:
        """Return `table` with AP, calibrated F1, AUC and ECE in percent, as far as predictions can be read."""
        table = self.table()
        metrics = metrics_json(self.scored)
        rows = [*metrics.get("action_units", []), metrics.get("mean")]
        if CALIBRATED in self.scored.measures:
            values = self.scored.measures[CALIBRATED].row.values
            assert values is not None
            table["calibrated_f1_percent"] = values[0]
        names = [name for name in (AP_PERCENT, ROC_AUC, ECE) if metrics]
        return table.assign(**{name: [row[name] for row in rows] for name in names})

    def as_json(self) -> dict[str, Any]:
        """Return all scores and settings, with undefined scores as None."""
        return {
            "run": self.folder.name,
            "experiment": self.experiment,
            "dataset": self.dataset,
            "tested_parts": list(self.parts),
            "threshold": THRESHOLD,
            "average": AVERAGES,
            "mean_f1_percent": _or_none(self.scores.f1_percent),
            "interval_95_percent": [_or_none(self.scores.low_percent), _or_none(self.scores.high_percent)],
            "pooled_f1_percent": _or_none(self.scores.pooled_percent),
            "always_positive_f1_percent": _or_none(self.scores.always_positive_percent),
            "num_undefined": self.scores.num_undefined,
            "gaps": self.gaps,
            "action_units": _records(self.scores.aus),
            "folds": _records(self.scores.folds),
        }

    def is_like(self, other: Report) -> bool:
        """Return whether two runs are of the same data set and action units."""
        return self.dataset == other.dataset and list(self.scores.aus["au"]) == list(other.scores.aus["au"])

    def document(self) -> dict[str, Any]:
        """Return `as_json` with all measures, which are read from the predictions."""
        return self.as_json() | {"measures": measures_json(self.scored), "metrics": metrics_json(self.scored)}

    def legend(self) -> str:
        """Return sentences on what the numbers are, without those of the columns that the terminal lacks."""
        return _legend(self, is_on_terminal=True)

    def markdown(self) -> str:
        """Return the table with its legend."""
        wide = self.wide_table()
        further = {name: titled for name, titled in _FURTHER.items() if name in wide}
        legend = " ".join([_legend(self), *(f"{title}: {meaning}." for title, meaning in further.values())])
        lines = [f"# F1 of {self.folder.name}", "", legend, ""]
        cells = [map(_percent, wide[name].astype(float)) for name in further]
        rows = [[*row, *more] for row, *more in zip(_display_rows(self), *cells, strict=True)]
        lines += markdown_table([*_display_columns(self.parts), *(title for title, _ in further.values())], rows)
        return "\n".join(lines) + "\n"

    def rich_table(self) -> Table:
        """Return the table for the terminal, without the columns that do not fit 80 characters."""
        table = Table(
            title=f"F1 in percent: {self.experiment} on {self.dataset}",
            caption=self.legend(),
            title_justify="left",
            caption_justify="left",
        )
        columns = [name for name in _display_columns(self.parts) if name not in _NOT_ON_TERMINAL]
        for name in columns:
            table.add_column(
                name, justify="left" if name == "AU" else "right", style="bold" if name == "F1" else "", no_wrap=True
            )
        rows = [
            [cell for name, cell in zip(_display_columns(self.parts), cells, strict=True) if name in columns]
            for cells in _display_rows(self)
        ]
        for cells in rows[:-1]:
            table.add_row(*cells)
        table.add_section()
        table.add_row(*rows[-1], style="bold")
        return table


def read_report(folder: Path) -> Report:
    """Return the report of the finished folds in a run's folder; `DataNotFoundError` if there is none."""
    record = read_run(folder)
    done = finished_folds(folder)
    if not done:
        raise DataNotFoundError(f"{folder} has no finished fold; run `fantrans train` with the same settings")
    for fold in done.values():
        read_history(fold)  # raises if the fold's result is damaged
    counts = [read_counts(fold) for fold in done.values()]
    scores = compute_scores(pd.concat(counts))
    return Report(folder, record["experiment"], record["dataset"], tuple(done), scores, record.get("gaps"))


def write_report(folder: Path) -> Report:
    """Write report.json, .csv, .md and .html into a run's folder and return the report; raises as `read_report`."""
    report = read_report(folder)
    write_files(report)
    return report


def write_files(report: Report, *, others: Sequence[Report] = (), shows_images: bool | None = None) -> Path:
    """Write report.json, .csv, .md and .html into the folder of the report's run; return the path of the .md.

    others: reports of runs that the page compares with this one, except those of another data set or other action
    units. shows_images: whether faces are on the page, None for rendered ones only.
    """
    folder = report.folder
    write_json(folder / "report.json", {**written_by(SCHEMA), **report.document()})
    write_atomically(folder / "report.csv", lambda temp: report.wide_table().to_csv(temp, index=False))
    write_bytes_atomically(folder / "report.md", report.markdown().encode())
    catalog = load_catalog()
    page = Page(
        title=f"{report.experiment} on {report.dataset}",
        dataset=report.dataset,
        what_data=describe_data(catalog, report.dataset) + (f", {report.gaps}" if report.gaps else ""),
        every=[each.scored for each in (report, *others) if each.is_like(report)],
        legend=report.legend(),
        shows_images=shows_images,
        published="Of FAN-Trans in the paper, on the real data set whose layout the run's data has.",
    )
    write_page(folder / "report.html", page, catalog)
    return folder / "report.md"


def written_unless_read_only(write: Callable[[], Path]) -> Path | None:
    """Return the path from `write()`; None, with a warning, if it may not write: a report can be shown without files.

    Raises any other `WriteError`, such as that of a full disk.
    """
    try:
        return write()
    except WriteError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        logger.warning("the files of the report are not written: %s", error)
        return None


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


_NOT_ON_TERMINAL = ("pooled", "of")
"""Columns that do not fit 80 characters."""
_FURTHER = {
    AP_PERCENT: ("AP", "average precision"),
    "calibrated_f1_percent": ("calibrated F1", "at a threshold per action unit, chosen on the other folds"),
    ROC_AUC: ("AUC", "area under the ROC curve"),
    ECE: ("ECE", "expected calibration error"),
}
"""Columns of `Report.wide_table` that report.md shows, with their titles and meanings."""


def _legend(report: Report, *, is_on_terminal: bool = False) -> str:
    undefined = report.scores.num_undefined
    note = f" {undefined} pairs of fold and AU are undefined (0/0) and left out." if undefined else ""
    note += f" Data: {report.gaps}." if report.gaps else ""
    pooled = "" if is_on_terminal else " Pooled: F1 of summed counts."
    known = "" if is_on_terminal else " Of: known labels."
    return (
        f"{', '.join(report.parts)}: F1 on that part, trained on the others. F1: averaged over folds. 95 %: bootstrap "
        f"over subjects; seed-to-seed variation is not included.{pooled} Always: F1 of always predicting "
        f'"present". Positive: labels "present".{known} Threshold {THRESHOLD}, last epoch.{note}'
    )


def _display_columns(parts: tuple[str, ...]) -> list[str]:
    return ["AU", *parts, "F1", "95 %", "pooled", "always", "positive", "of"]


def _display_rows(report: Report) -> list[list[str]]:
    return [
        [
            row["au"],
            *(_percent(row[part]) for part in report.parts),
            _percent(row["f1_percent"]),
            f"{_percent(row['low_percent'])}-{_percent(row['high_percent'])}",
            _percent(row["pooled_percent"]),
            _percent(row["always_positive_percent"]),
            f"{row['num_positive']:,}",
            f"{row['num_known']:,}",
        ]
        for row in report.table().to_dict("records")
    ]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    return records

"""Tables of many runs: a set of experiments beside the published numbers.

A row averages over its seeds; see pipeline/report/rows.py for the intervals.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
import shlex
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table

from pipeline.catalog import load_catalog
from pipeline.errors import DataError
from pipeline.experiments import resolve
from pipeline.report.compare import read_member
from pipeline.report.page import Page, describe_data, write_page
from pipeline.report.page_content import measures_json, metrics_json, over_first_json
from pipeline.report.published import read_published
from pipeline.report.rows import Difference, Row, corrected, difference
from pipeline.report.run import SCHEMA, markdown_table
from pipeline.report.scored import Scored, read_scored
from pipeline.report.training_chance import ASSUMED_FREE, ASSUMED_SD_POINTS
from pipeline.runtime.atomic import write_atomically, write_bytes_atomically, write_json
from pipeline.runtime.version import written_by
from pipeline.training.intervals import ERROR_RATE
from pipeline.training.run_files import read_run
from pipeline.training.runs import Runs

logger = logging.getLogger("fantrans")


class Orderings(NamedTuple):
    """Pairs of rows (better, worse) as published, by our result at 95 %: the same order, unclear, or reversed."""

    alike: tuple[tuple[str, str], ...]
    unclear: tuple[tuple[str, str], ...]
    reverse: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class SetTable:
    """The rows of a set, of which the first is the reference of the others; `what_data` describes the data in words."""

    name: str
    dataset: str
    what_data: str
    rows: tuple[Row, ...]
    num_seeds: int
    published: pd.DataFrame
    """Rows of the set's published table: method, au, f1_percent; empty if it has none."""
    is_set: bool = True
    """False for one experiment with one seed, read as a set of one."""
    file: Path = Path("table.md")
    """Where `write_set_files` writes it."""
    commands: tuple[str, ...] = ()
    """What trains and reports the set."""

    def table(self) -> pd.DataFrame:
        """Return one row per member: seeds, F1 of each AU and mean, interval, difference to the first, published."""
        return pd.DataFrame([self._record(row) for row in self.rows])

    def _record(self, row: Row) -> dict[str, object]:
        record: dict[str, object] = {"member": row.name, "seeds": len(row.folders)}
        if row.values is not None:
            record |= {f"AU{au}": value for au, value in zip(row.aus, row.values[0], strict=False)}
            low, high = row.interval(self.rows)
            record |= {
                "f1_percent": row.values[0, -1],
                "std": row.std,
                "low_percent": low,
                "high_percent": high,
                "num_undefined": row.num_undefined,
                "train_f1_percent": row.train_percent,
            }
            if row.name in self._over_first:
                gap = self._over_first[row.name]
                record |= {"over_first": gap.points[-1], "over_first_low": gap.low[-1], "over_first_high": gap.high[-1]}
                record |= {"over_first_p": gap.p_values[-1]}
        published = self._published(row)
        if published is not None:
            record["published_percent"] = published
            if row.values is not None:
                record["minus_published"] = row.values[0, -1] - published
            base = self._published(self.rows[0])
            if base is not None and row is not self.rows[0]:
                record["published_over_first"] = published - base
        return record

    @cached_property
    def _over_first(self) -> dict[str, Difference]:
        """Differences of the other rows to the first, by name, corrected for their number."""
        first, *others = self.rows
        if first.values is None:
            return {}
        gaps = corrected([difference(row, first, beside=self.rows) for row in others if row.values is not None])
        return {gap.ours: gap for gap in gaps}

    @cached_property
    def scored(self) -> dict[str, Scored]:
        """All measures of the rows that have runs, by name; reads their predictions once."""
        finished = [row for row in self.rows if row.values is not None]
        return {row.name: read_scored(row, published=self.published_scores(row), beside=self.rows) for row in finished}

    def measures_json(self, row: Row) -> list[dict[str, Any]]:
        """Return all measures of a row as docs/cli.md describes them; empty without runs."""
        return measures_json(self.scored[row.name], self._gaps) if row.name in self.scored else []

    @cached_property
    def _gaps(self) -> Mapping[str, Mapping[str, Mapping[str, float | None]]]:
        return over_first_json(list(self.scored.values())) if self.rows[0].name in self.scored else {}

    def metrics_json(self, row: Row) -> dict[str, Any]:
        """Return `page_content.metrics_json` of a row; {} for a row without runs."""
        return metrics_json(self.scored[row.name]) if row.name in self.scored else {}

    def published_scores(self, row: Row) -> dict[str, float]:
        """Return the published F1 of a row in percent by "AU1"... and "AVG"; empty if there is none."""
        found = self.published[self.published["method"] == row.published]
        return {str(au): float(percent) for au, percent in zip(found["au"], found["f1_percent"], strict=True)}

    def _published(self, row: Row, au: str = "AVG") -> float | None:
        return self.published_scores(row).get(au)

    def as_json(self) -> dict[str, Any]:
        """Return the table and the orderings as docs/cli.md describes them; undefined numbers are NaN."""
        rows = []
        for row in self.rows:
            record = self._record(row)
            rows.append(
                {
                    "member": row.name,
                    "num_seeds": record["seeds"],
                    **{key: record.get(name) for key, name in _JSON_NAMES.items()},
                    "action_units": [
                        {
                            "au": au,
                            "f1_percent": record[f"AU{au}"],
                            "published_percent": self._published(row, f"AU{au}"),
                        }
                        for au in row.aus
                    ],
                    "measures": self.measures_json(row),
                    "metrics": self.metrics_json(row),
                    "runs": [folder.name for folder in row.folders],
                }
            )
        orderings = [
            {"better": better, "worse": worse, "found": found}
            for found, pairs in self.orderings()._asdict().items()
            for better, worse in pairs
        ]
        return {
            "set": self.name,
            "dataset": self.dataset,
            "measured_on": self.what_data,
            "rows": rows,
            "orderings": orderings,
        }

    def orderings(self) -> Orderings:
        """Return the pairs of rows whose published means differ, by whether ours differ in the same direction.

        At 95 %, corrected by Holm's method for the number of pairs.
        """
        known = [
            (row, value) for row in self.rows if row.values is not None and (value := self._published(row)) is not None
        ]
        gaps = corrected(
            [
                difference(*((one, other) if one_percent > other_percent else (other, one)), beside=self.rows)
                for (one, one_percent), (other, other_percent) in itertools.combinations(known, 2)
                if one_percent != other_percent
            ]
        )
        found: dict[str, list[tuple[str, str]]] = {"alike": [], "unclear": [], "reverse": []}
        for gap in gaps:
            kind = "unclear" if not gap.is_distinguishable else "alike" if gap.points[-1] > 0 else "reverse"
            found[kind].append((gap.ours, gap.theirs))
        return Orderings(**{kind: tuple(pairs) for kind, pairs in found.items()})

    def legend(self) -> str:
        """Return sentences on what the numbers are and which of the published orderings they reproduce."""
        sentences = self._description()
        orderings = self.orderings()
        if any(orderings):
            alike, unclear, reverse = map(len, orderings)
            sentences += (
                f" Of the {alike + unclear + reverse} pairs of rows that the paper orders, {alike} have the same order "
                f"here and {reverse} the reverse order at 95 %, after Holm's correction for the number of pairs; "
                f"{unclear} are not distinguishable."
            )
        if orderings.reverse:
            pairs = "; ".join(f"{worse} above {better}" for better, worse in orderings.reverse)
            sentences += f" Reversed: {pairs}."
        return sentences

    def _description(self) -> str:
        over_first = (
            f" Over first: paired difference to {self.rows[0].name}; * differs from it at 95 % after Holm's correction "
            f"for {len(self._over_first)} comparisons."
            if self._over_first
            else ""
        )
        undefined = ", ".join(f"{row.name} {row.num_undefined}" for row in self.rows if row.num_undefined)
        left_out = f" Pairs of fold and AU that are undefined (0/0) and left out: {undefined}." if undefined else ""
        is_published = any(self._published(row) is not None for row in self.rows)
        published = " Published numbers are for the real data set." if is_published else ""
        seeds = (
            f", averaged over up to {self.num_seeds} seeds. sd: standard deviation over seeds"
            if self.num_seeds > 1
            else ", one seed"
        )
        return (
            f"F1 in percent, averaged over parts and action units, threshold 0.5, last epoch. Ours: on "
            f"{self.what_data}{seeds}.{published} 95 %: over subjects and trainings; {self._how_trainings_vary()}."
            f"{over_first}{left_out}"
        )

    def _how_trainings_vary(self) -> str:
        """Return how the variation from training to training in the intervals is known."""
        num_free = sum(len(row.folders) - 1 for row in self.rows if row.folders)
        if num_free >= ASSUMED_FREE:
            return "how far trainings vary is measured on the rows with several seeds"
        how = "partly assumed" if num_free else "assumed, since each row has one seed"
        return f"how far trainings vary ({ASSUMED_SD_POINTS} points of mean F1 per run) is {how}"

    def rich_table(self) -> Table:
        """Return the table for the terminal, without empty columns and those that do not fit 80 characters."""
        table = Table(
            title=f"{self.name} on {self.dataset}",
            caption=self.legend(),
            title_justify="left",
            caption_justify="left",
            box=SIMPLE,
            padding=(0, 1, 0, 0),
        )
        all_cells = self._cells()
        is_filled = [any(cells[i] for cells in all_cells) for i in range(len(_COLUMNS))]
        shown = [i for i, name in enumerate(_COLUMNS) if is_filled[i] and name not in _NOT_ON_TERMINAL]
        for i in shown:
            table.add_column(
                _COLUMNS[i].replace(" first", "\nfirst"),
                justify="left" if i == 0 else "right",
                no_wrap=i > 0,
                overflow="fold",
            )
        for row, cells in zip(self.rows, all_cells, strict=True):
            missing = self.num_seeds - len(row.folders)
            name = f"{row.name} ({missing} missing)" if missing else row.name
            table.add_row(name, *(cells[i] for i in shown[1:]))
        return table

    def markdown(self) -> str:
        """Return the summary and, in the layout of the paper, all action units: each row, then its published one."""
        lines = [f"# {self.name} on {self.dataset}", "", f"{self.legend()} train: F1 on what is trained on.", ""]
        lines += markdown_table(_COLUMNS, self._cells())
        aus = next((row.aus for row in self.rows if row.values is not None), ())
        if aus:
            cells = []
            for row in self.rows:
                values = [math.nan] * (len(aus) + 1) if row.values is None else row.values[0]
                ours = ["-" if math.isnan(value) else f"{value:.1f}" for value in values]
                cells.append([row.name, *ours])
                theirs = [self._published(row, name) for name in (*(f"AU{au}" for au in aus), "AVG")]
                if any(value is not None for value in theirs):
                    cells.append(["*published*", *("" if value is None else f"{value:.1f}" for value in theirs)])
            lines += ["", *markdown_table(["member", *(f"AU{au}" for au in aus), "mean"], cells)]
        return "\n".join(lines) + "\n"

    def _cells(self) -> list[list[str]]:
        return [
            [
                record["member"],
                f"{record['seeds']}",
                _number(record, "f1_percent"),
                _number(record, "std"),
                _span(record, "low_percent", "high_percent", ".1f"),
                _number(record, "train_f1_percent"),
                _number(record, "published_percent"),
                _number(record, "minus_published", "+.1f"),
                _number(record, "over_first", "+.1f") + ("*" if record.get("over_first_p", 1.0) <= ERROR_RATE else ""),
                _span(record, "over_first_low", "over_first_high", "+.1f"),
                _number(record, "published_over_first", "+.1f"),
            ]
            for record in self.table().to_dict("records")
        ]


_NOT_ON_TERMINAL = ("seeds", "train", "diff.")
"""Columns that do not fit 80 characters."""

_JSON_NAMES = {
    "f1_percent": "f1_percent",
    "std_points": "std",
    "low_percent": "low_percent",
    "high_percent": "high_percent",
    "num_undefined": "num_undefined",
    "train_f1_percent": "train_f1_percent",
    "over_first_points": "over_first",
    "over_first_low_points": "over_first_low",
    "over_first_high_points": "over_first_high",
    "over_first_p_value": "over_first_p",
    "published_percent": "published_percent",
    "published_over_first_points": "published_over_first",
}
"""Keys of a row in JSON, and the columns of the table that they are."""

_COLUMNS = ["member", "seeds", "F1", "sd", "95 %", "train", "publ.", "diff.", "over first", "95 %", "publ."]


def write_set_report(experiment: str, *, dataset: str, **more: Any) -> tuple[SetTable, Path]:
    """Write the table of `read_set_report`, see `write_set_files`; return it and the path of the .md."""
    table = read_set_report(experiment, dataset=dataset, **more)
    return table, write_set_files(table)


def read_set_report(
    experiment: str,
    *,
    dataset: str,
    base: str | None = None,
    init_from: str | None = None,
    overrides: Sequence[str] = (),
) -> SetTable:
    """Return the table of a set's finished runs.

    The arguments are those of `train_folds`. A run counts if all its folds are finished. Raises `DataError` if no run
    is, `ConfigError` for an unknown set or published table.
    """
    catalog = load_catalog()
    entry = catalog.get_dataset(dataset)
    chosen = resolve(catalog, dataset, experiment, base=base, overrides=overrides)
    runs = Runs(catalog, dataset, init_from=init_from)
    rows = tuple(read_member(member, runs) for member in chosen.members)
    more = (f" --base {base}" if base else "") + (f" --init-from {init_from}" if init_from else "")
    more += "".join(f" --set {shlex.quote(each)}" for each in overrides)
    commands = tuple(f"fantrans {command} {dataset} --experiment {experiment}{more}" for command in ("train", "report"))
    if all(row.values is None for row in rows):
        raise DataError(f"no run of {experiment} on {dataset} is finished; run `{commands[0]}`")
    published = read_published(chosen, layout=entry.layout)
    what = describe_data(catalog, dataset)
    gaps = dict.fromkeys(read_run(folder).get("gaps") for row in rows for folder in row.folders)
    what += "".join(f", {each}" for each in gaps if each)
    if init_from:
        what += f", heads initialised from {init_from}"
    num_seeds = max(len(member.experiments) for member in chosen.members)
    is_set = chosen.is_derived or len(rows) > 1 or num_seeds > 1
    started = f"-from-{init_from}" if init_from else ""
    stem = re.sub(r"[^\w.=,+-]+", "_", f"{chosen.name}-{dataset}{f'-{base}' if base else ''}{started}")
    file = catalog.roots.runs / "tables" / f"{stem}.md"
    return SetTable(chosen.name, dataset, what, rows, num_seeds, published, is_set=is_set, file=file, commands=commands)


def write_set_files(table: SetTable, *, shows_images: bool | None = None) -> Path:
    """Write a table of `read_set_report` as .md, .html, .csv and .json below the runs root; return the .md's path.

    shows_images: whether faces are on the page, None for rendered ones only.
    """
    md, csv, as_json = (table.file.with_name(f"{table.file.stem}.{kind}") for kind in ("md", "csv", "json"))
    records = json.loads(table.table().to_json(orient="records"))
    for record, row in zip(records, table.rows, strict=True):
        record["runs"] = [folder.name for folder in row.folders]
        record["measures"] = table.measures_json(row)
        record["metrics"] = table.metrics_json(row)
    what = {**written_by(SCHEMA), "set": table.name, "dataset": table.dataset, "measured_on": table.what_data}
    write_json(as_json, {**what, "rows": records, "orderings": table.orderings()._asdict()})
    write_atomically(csv, lambda temp: table.table().to_csv(temp, index=False))
    write_bytes_atomically(md, table.markdown().encode())
    page = Page(
        title=f"{table.name} on {table.dataset}",
        dataset=table.dataset,
        what_data=table.what_data,
        every=list(table.scored.values()),
        legend=table.legend(),
        commands=table.commands,
        shows_images=shows_images,
        published="Of the row of the paper's table that the member stands for, on the real data set.",
    )
    write_page(md.with_suffix(".html"), page, load_catalog())
    return md


def _number(record: dict[Hashable, Any], name: str, form: str = ".1f") -> str:
    value = record.get(name, math.nan)
    return "" if math.isnan(value) else f"{value:{form}}"


def _span(record: dict[Hashable, Any], low: str, high: str, form: str) -> str:
    ends = [_number(record, name, form) for name in (low, high)]
    return "..".join(ends) if all(ends) else ""

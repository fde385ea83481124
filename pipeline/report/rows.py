"""Rows of runs that differ by seed only, and the paired difference of two rows with its confidence interval.

Intervals come from a paired bootstrap over subjects and, where a row has several seeds, over its runs. With one seed,
seed-to-seed variation is not included.
"""

# R resamples, A action units, S runs (one per seed), V values
from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from pipeline.errors import DataError
from pipeline.protocols import PARTS
from pipeline.training.metrics import NUM_RESAMPLES, interval_percent, mean_of_defined, resampled_percent
from pipeline.training.run_files import finished_folds, read_counts


@dataclass(frozen=True)
class Row:
    """Runs that differ by seed only.

    name: as shown. published: the method's name in the published table, if any. folders: of the runs. values: F1 in
    percent (1 + R, A + 1), see `metrics.resampled_percent`, averaged over the runs and, in each resample, over runs
    drawn for it; None without runs. aus: action units, in order. tested: part, subject, action unit, number of known
    and of positive frames.
    """

    name: str
    published: str | None
    folders: tuple[Path, ...]
    values: np.ndarray | None
    aus: tuple[int, ...] = ()
    tested: frozenset[tuple[str, str, int, int, int]] = frozenset()
    percents: tuple[float, ...] = ()
    """F1 of each run, averaged over folds and action units."""
    num_undefined: int = 0
    """Number of pairs of fold and action unit, in all runs, whose F1 is undefined (0/0)."""

    @property
    def subjects(self) -> set[tuple[str, str]]:
        """Tested subjects, as (part, subject)."""
        return {(part, subject) for part, subject, *_ in self.tested}

    @property
    def std(self) -> float:
        """Standard deviation of F1 over the seeds, in points; NaN for a single run."""
        return float(np.std(self.percents, ddof=1)) if len(self.percents) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean over action units, in percent; the row must have runs."""
        assert self.values is not None
        low, high = interval_percent(self.values[1:])
        return float(low[-1]), float(high[-1])


@dataclass(frozen=True)
class Difference:
    """`ours` minus `theirs` in points of F1, (A + 1,) with the mean last, and the ends of the 95 % intervals."""

    ours: str
    theirs: str
    aus: tuple[int, ...]
    num_subjects: int
    num_runs: tuple[int, int]
    points: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def sentence(self) -> str:
        """Return the conclusion on the mean F1, as one sentence."""
        points, low, high = self.points[-1], self.low[-1], self.high[-1]
        runs = (
            "one run each; seed-to-seed variation is not included"
            if self.num_runs == (1, 1)
            else "{} and {} runs".format(*self.num_runs)
        )
        numbers = (
            f"{points:+.2f} points of mean F1 (95 % {low:+.2f} to {high:+.2f}, {self.num_subjects} subjects, {runs})"
        )
        if low <= 0 <= high:
            return f"{self.ours} and {self.theirs} are not distinguishable at 95 %: {numbers}"
        return f"{self.ours} is {'better' if points > 0 else 'worse'} than {self.theirs}: {numbers}"

    def as_json(self) -> dict[str, Any]:
        """Return the difference as docs/cli.md describes it; undefined numbers are NaN."""
        rows = [
            {
                "points": float(points),
                "low_points": float(low),
                "high_points": float(high),
                "is_distinguishable": bool(low > 0 or high < 0),
            }
            for points, low, high in zip(self.points, self.low, self.high, strict=True)
        ]
        return {
            "ours": self.ours,
            "theirs": self.theirs,
            "num_subjects": self.num_subjects,
            "num_runs_ours": self.num_runs[0],
            "num_runs_theirs": self.num_runs[1],
            "mean": rows[-1],
            "action_units": [{"au": int(au), **row} for au, row in zip(self.aus, rows[:-1], strict=True)],
            "sentence": self.sentence(),
        }

    def rich_table(self) -> Table:
        """Return a table for the terminal, one row per action unit."""
        table = Table(title=f"{self.ours} minus {self.theirs}, points of F1", title_justify="left")
        for name in ("AU", "difference", "95 %"):
            table.add_column(name, justify="left" if name == "AU" else "right")
        for name, *numbers in zip(
            [*(f"AU{au}" for au in self.aus), "mean"], self.points, self.low, self.high, strict=True
        ):
            table.add_row(name, f"{numbers[0]:+.1f}", f"{numbers[1]:+.1f} to {numbers[2]:+.1f}")
        return table


def read_row(name: str, folders: Sequence[Path], *, published: str | None, parts: Collection[str] = PARTS) -> Row:
    """Return the row of finished runs, given by their folders, over the finished folds of `parts`.

    Raises `DataError` if the runs were tested on different frames or labels.
    """
    tables = [
        pd.concat([read_counts(fold) for part, fold in finished_folds(folder).items() if part in parts])
        for folder in folders
    ]
    return row_from_counts(name, tables, folders=tuple(folders), published=published)


def row_from_counts(
    name: str,
    tables: Sequence[pd.DataFrame],
    *,
    folders: tuple[Path, ...] = (),
    published: str | None = None,
) -> Row:
    """Return the row of runs given by their counts (`metrics.COUNT_COLUMNS`), one table per run.

    folders: of the runs, if they have any. Raises `DataError` if the runs were tested on different frames or labels.
    """
    if not tables:
        return Row(name, published, (), None)
    tested = [_tested(table) for table in tables]
    if len(set(tested)) > 1:
        raise DataError(
            f"the runs of {name} were tested on different frames or labels; compare runs of the same folds and labels"
        )
    values_SRV = np.stack([resampled_percent(table, num_resamples=NUM_RESAMPLES) for table in tables])
    aus, percents = tuple(sorted(tables[0]["au"].unique())), tuple(map(float, values_SRV[:, 0, -1]))
    num_undefined = sum(
        int((table.groupby(["part", "au"])[["tp", "fp", "fn"]].sum() == 0).all(axis=1).sum()) for table in tables
    )
    return Row(name, published, folders, average_over_runs(values_SRV), aus, tested[0], percents, num_undefined)


def average_over_runs(values_SRV: np.ndarray) -> np.ndarray:
    """Return values (S, 1 + R, V) averaged over runs, (1 + R, V): over all S in row 0, over drawn ones in the others.

    Each resample draws S - 1 runs with replacement: the spread of such means is that of the mean of S runs. The draws
    depend on S only, so that rows with the same seeds are resampled together.
    """
    num_runs, num_resamples = len(values_SRV), values_SRV.shape[1] - 1
    if num_runs == 1:
        only_RV: np.ndarray = values_SRV[0]
        return only_RV
    drawn_RS = np.random.default_rng(num_runs).integers(num_runs, size=(num_resamples, num_runs - 1))
    resampled_RV = values_SRV[drawn_RS, np.arange(1, num_resamples + 1)[:, None]].mean(1)
    return np.concatenate((values_SRV[:, 0].mean(0, keepdims=True), resampled_RV))


def _tested(counts: pd.DataFrame) -> frozenset[tuple[str, str, int, int, int]]:
    positive = counts["tp"] + counts["fn"]
    known = positive + counts["fp"] + counts["tn"]
    return frozenset(zip(counts["part"], counts["subject"], counts["au"], known, positive, strict=True))


def difference(ours: Row, theirs: Row) -> Difference:
    """Return the paired difference of two rows; its mean is over the action units that are defined in both.

    Raises `DataError` if a row has no runs, or if the two were not tested on the same frames and labels.
    """
    for row in (ours, theirs):
        if row.values is None:
            raise DataError(f"no run of {row.name} is finished; train it first")
    if ours.tested != theirs.tested:
        raise DataError(
            f"{ours.name} and {theirs.name} were not tested on the same frames and labels ({len(ours.subjects)} and "
            f"{len(theirs.subjects)} subjects); compare runs of the same data and folds"
        )
    assert ours.values is not None
    assert theirs.values is not None
    gaps_RA = (ours.values - theirs.values)[:, :-1]
    gaps = np.column_stack((gaps_RA, mean_of_defined(gaps_RA, axis=1)))
    num_runs = (len(ours.percents), len(theirs.percents))
    return Difference(
        ours.name, theirs.name, ours.aus, len(ours.subjects), num_runs, gaps[0], *interval_percent(gaps[1:])
    )

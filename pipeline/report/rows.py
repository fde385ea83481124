"""Rows of tables: runs that differ by seed alone, averaged over the seeds, and the difference of two rows.

Intervals come from resampling subjects, the same ones for every row, so differences are paired, and with them the runs
of a row, for the chance in training. Of a single run's chance they say nothing.
"""

# R resamples, A action units
from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from pipeline.errors import DataError
from pipeline.protocols import PARTS
from pipeline.training.metrics import interval_percent, mean_of_defined, resampled_percent
from pipeline.training.runs import done_folds, read_counts

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """Runs that differ by seed alone.

    values: F1 in percent (1 + R, A + 1), see `metrics.resampled_percent`, meant over the runs and, in a resample, over
    runs drawn with it; None where none is done. tested: part, subject, action unit, known and positive frames.
    """

    name: str
    published: str | None
    folders: tuple[Path, ...]
    values: np.ndarray | None
    aus: tuple[int, ...] = ()
    tested: frozenset[tuple[str, str, int, int, int]] = frozenset()
    percents: tuple[float, ...] = ()
    """F1 of each run."""
    num_undefined: int = 0
    """Pairs of fold and action unit, over the runs, without F1 (0/0)."""

    @property
    def subjects(self) -> set[tuple[str, str]]:
        """The tested ones, with their parts."""
        return {(part, subject) for part, subject, *_ in self.tested}

    @property
    def std(self) -> float:
        """Standard deviation of a run's F1 over the seeds; NaN for a single run."""
        return float(np.std(self.percents, ddof=1)) if len(self.percents) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Of the mean over action units."""
        assert self.values is not None
        low, high = interval_percent(self.values[1:])
        return float(low[-1]), float(high[-1])


@dataclass(frozen=True)
class Difference:
    """Points of `ours` minus `theirs`: each AU's, last the mean's, with 95 % intervals (A + 1,)."""

    ours: str
    theirs: str
    aus: tuple[int, ...]
    num_subjects: int
    num_runs: tuple[int, int]
    points: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def sentence(self) -> str:
        """What may be said of the means."""
        points, low, high = self.points[-1], self.low[-1], self.high[-1]
        runs = (
            "a run each, whose chance is not in it"
            if self.num_runs == (1, 1)
            else "{} and {} runs".format(*self.num_runs)
        )
        numbers = (
            f"{points:+.2f} points of mean F1 (95 % {low:+.2f} to {high:+.2f}, {self.num_subjects} subjects, {runs})"
        )
        if low <= 0 <= high:
            return f"{self.ours} and {self.theirs} are not distinguishable at 95 %: {numbers}"
        return f"{self.ours} is {'better' if points > 0 else 'worse'} than {self.theirs}: {numbers}"

    def rich_table(self) -> Table:
        """A row an action unit, for a terminal."""
        table = Table(title=f"{self.ours} minus {self.theirs}, points of F1", title_justify="left")
        for name in ("AU", "difference", "95 %"):
            table.add_column(name, justify="left" if name == "AU" else "right")
        for name, *numbers in zip(
            [*(f"AU{au}" for au in self.aus), "mean"], self.points, self.low, self.high, strict=True
        ):
            table.add_row(name, f"{numbers[0]:+.1f}", f"{numbers[1]:+.1f} to {numbers[2]:+.1f}")
        return table


def read_row(name: str, folders: Sequence[Path], *, published: str | None, parts: Collection[str] = PARTS) -> Row:
    """The mean of runs over their finished folds of `parts`; `DataError` if they were tested on different frames."""
    tables = [
        pd.concat([read_counts(fold) for part, fold in done_folds(folder).items() if part in parts])
        for folder in folders
    ]
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
    return Row(name, published, tuple(folders), _over_runs(values_SRV), aus, tested[0], percents, num_undefined)


def _over_runs(values_SRV: np.ndarray) -> np.ndarray:
    """Means over S runs (1 + R, V): of all of them, then, in each resample, of S - 1 drawn with replacement.

    One fewer than there are, so that the spread of the drawn means is that of a mean of S. The draws depend on S alone:
    rows with the same seeds are resampled together.
    """
    num_runs, num_resamples = len(values_SRV), values_SRV.shape[1] - 1
    if num_runs == 1:
        return values_SRV[0]
    drawn_RS = np.random.default_rng(num_runs).integers(num_runs, size=(num_resamples, num_runs - 1))
    resampled_RV = values_SRV[drawn_RS, np.arange(1, num_resamples + 1)[:, None]].mean(1)
    return np.concatenate((values_SRV[:, 0].mean(0, keepdims=True), resampled_RV))


def _tested(counts: pd.DataFrame) -> frozenset[tuple[str, str, int, int, int]]:
    positive = counts["tp"] + counts["fn"]
    known = positive + counts["fp"] + counts["tn"]
    return frozenset(zip(counts["part"], counts["subject"], counts["au"], known, positive, strict=True))


def difference(ours: Row, theirs: Row) -> Difference:
    """Paired difference, its mean over the action units that both define; `DataError` where the tests were others."""
    for row in (ours, theirs):
        if row.values is None:
            raise DataError(f"no run of {row.name} is done; train it first")
    if ours.tested != theirs.tested:
        raise DataError(
            f"{ours.name} and {theirs.name} were not tested on the same frames and labels ({len(ours.subjects)} and "
            f"{len(theirs.subjects)} subjects); compare runs of the same data and folds"
        )
    assert ours.values is not None
    assert theirs.values is not None
    gaps_RA = (ours.values - theirs.values)[:, :-1]
    gaps = np.column_stack((gaps_RA, mean_of_defined(gaps_RA, axis=1)))
    num_runs = (len(ours.folders), len(theirs.folders))
    return Difference(
        ours.name, theirs.name, ours.aus, len(ours.subjects), num_runs, gaps[0], *interval_percent(gaps[1:])
    )

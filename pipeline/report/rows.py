"""Rows of runs that differ by seed only, and the paired difference of two rows with its confidence interval.

An interval holds the chance of the tested subjects, from a paired bootstrap, and that of a training, see
pipeline/report/training_chance.py. docs/experiments.md says why, benchmarks/intervals.py how often it holds the truth.
"""

# R resamples, A action units, S runs (one per seed), V values
from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from pipeline.errors import DataError
from pipeline.protocols import PARTS
from pipeline.report.training_chance import TrainingChance, chance_for, measured_chance
from pipeline.training.intervals import (
    ERROR_RATE,
    Interval,
    holm,
    subjects_bias,
    subjects_free,
    subjects_variance,
    t_interval,
)
from pipeline.training.metrics import (
    NUM_RESAMPLES,
    mean_of_defined,
    num_tested,
    resampled_percent,
    subjects_interval,
)
from pipeline.training.run_files import finished_folds, read_counts, read_history


@dataclass(frozen=True)
class Row:
    """Runs that differ by seed only.

    name: as shown. published: the method's name in the published table, if any. folders: of the runs. values: F1 in
    percent (1 + R, A + 1), see `metrics.resampled_percent`, averaged over the runs; None without runs. aus: action
    units, in order. tested: part, subject, action unit, number of known and of positive frames. chance: what the runs
    show of the chance of a training; None without runs.
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
    chance: TrainingChance | None = None

    @property
    def subjects(self) -> set[tuple[str, str]]:
        """Tested subjects, as (part, subject)."""
        return {(part, subject) for part, subject, *_ in self.tested}

    @property
    def std(self) -> float:
        """Standard deviation of F1 over the seeds, in points; NaN for a single run."""
        return float(np.std(self.percents, ddof=1)) if len(self.percents) > 1 else math.nan

    @property
    def train_percent(self) -> float:
        """F1 on the batches of the last epochs, as trained on, over runs and folds; NaN where a history lacks it."""
        folds = [fold for folder in self.folders for fold in finished_folds(folder).values()]
        found = [read_history(fold).get("f1_train_percent", pd.Series([math.nan])).iloc[-1] for fold in folds]
        return float(np.mean(found)) if found else math.nan

    def interval(self, beside: Collection[Row] = ()) -> tuple[float, float]:
        """Return the 95 % interval of the mean over action units, in percent; the row must have runs.

        It is that of the row's settings, over subjects and trainings. beside: rows of the same set.
        """
        low, high = self.intervals(beside)
        return float(low[-1]), float(high[-1])

    def intervals(self, beside: Collection[Row] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends (V,) of such intervals of each action unit and of their mean."""
        assert self.values is not None
        unbiased = self.values - subjects_bias(self.values)
        low_V, high_V, _ = _interval(unbiased, (self,), beside, share=1 / len(self.percents))
        return np.maximum(low_V, 0.0), np.minimum(high_V, 100.0)

    @property
    def subjects_interval(self) -> tuple[float, float]:
        """The 95 % interval of these very heads, as in a run's report: over subjects alone."""
        low, high = self.subjects_intervals
        return float(low[-1]), float(high[-1])

    @property
    def subjects_intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """The ends (V,) of such intervals of each action unit and of their mean."""
        assert self.values is not None
        return subjects_interval(self.values, **_num_tested(self.tested))


@dataclass(frozen=True)
class Difference:
    """`ours` minus `theirs` in points of F1, (A + 1,) with the mean last, and the ends of the 95 % intervals.

    p_values: of a difference that is zero in truth; those of the action units are corrected for their number, that of
    the mean for `num_compared` pairs of rows, see `corrected`. training_sd: standard deviation of the mean F1 of a run
    over seeds, in points, of which the share `assumed_share` (0..1) is assumed, not measured.
    """

    ours: str
    theirs: str
    aus: tuple[int, ...]
    num_subjects: int
    num_runs: tuple[int, int]
    points: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_values: np.ndarray
    training_sd: float
    assumed_share: float
    num_compared: int = 1

    @property
    def is_distinguishable(self) -> bool:
        """Whether the mean F1 differs at 95 %, after the correction for `num_compared` pairs."""
        return bool(self.p_values[-1] <= ERROR_RATE)

    def sentence(self) -> str:
        """Return the conclusion on the mean F1, as one sentence; it says so if it rests on an assumption."""
        points, low, high = self.points[-1], self.low[-1], self.high[-1]
        runs = "one run each" if self.num_runs == (1, 1) else "{} and {} runs".format(*self.num_runs)
        others = f", corrected for {self.num_compared} comparisons" if self.num_compared > 1 else ""
        numbers = (
            f"{points:+.2f} points of mean F1 (95 % {low:+.2f} to {high:+.2f}, {self.num_subjects} subjects, "
            f"{runs}{others})"
        )
        assumed = self._assumption()
        if not self.is_distinguishable:
            return f"{self.ours} and {self.theirs} are not distinguishable at 95 %: {numbers}{assumed}"
        better, worse = ("scored higher", "scored lower") if assumed else ("is better", "is worse")
        return f"{self.ours} {better if points > 0 else worse} than {self.theirs}: {numbers}{assumed}"

    def _assumption(self) -> str:
        """Return what so few runs can and cannot show; nothing if the runs show the chance of a training."""
        if not self.assumed_share:
            return ""
        few = "one run each shows" if self.num_runs == (1, 1) else "so few runs show"
        how = "assumed" if self.assumed_share == 1 else "in part assumed"
        return (
            f"; {few} which heads score higher, but not how far two trainings of the same settings differ: that a run "
            f"varies by {self.training_sd:.2f} points is {how}; train three seeds of each to measure it"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the difference as docs/cli.md describes it; undefined numbers are NaN."""
        rows = [
            {
                "points": float(points),
                "low_points": float(low),
                "high_points": float(high),
                "is_distinguishable": bool(low > 0 or high < 0),
                "p_value": float(p_value),
            }
            for points, low, high, p_value in zip(self.points, self.low, self.high, self.p_values, strict=True)
        ]
        return {
            "ours": self.ours,
            "theirs": self.theirs,
            "num_subjects": self.num_subjects,
            "num_runs_ours": self.num_runs[0],
            "num_runs_theirs": self.num_runs[1],
            "training_sd_points": self.training_sd,
            "training_sd_assumed_frac": self.assumed_share,
            "mean": rows[-1],
            "action_units": [{"au": int(au), **row} for au, row in zip(self.aus, rows[:-1], strict=True)],
            "sentence": self.sentence(),
        }

    def rich_table(self) -> Table:
        """Return a table for the terminal, one row per action unit."""
        table = Table(title=f"{self.ours} minus {self.theirs}, points of F1", title_justify="left")
        for name in ("AU", "difference", "95 %", "p (Holm)"):
            table.add_column(name, justify="left" if name == "AU" else "right")
        names = [*(f"AU{au}" for au in self.aus), "mean"]
        for name, points, low, high, p_value in zip(
            names, self.points, self.low, self.high, self.p_values, strict=True
        ):
            table.add_row(name, f"{points:+.1f}", f"{low:+.1f} to {high:+.1f}", f"{p_value:.3f}")
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
    num_undefined = sum(
        int((table.groupby(["part", "au"])[["tp", "fp", "fn"]].sum() == 0).all(axis=1).sum()) for table in tables
    )
    row = Row(name, published, folders, None, tuple(sorted(tables[0]["au"].unique())), tested[0])
    return replace(with_values(row, values_SRV), num_undefined=num_undefined)


def with_values(row: Row, values_SRV: np.ndarray) -> Row:
    """Return the row with the values of its S runs, each (1 + R, A + 1) in percent as `metrics.resampled_percent`."""
    chance = measured_chance(values_SRV, **_num_tested(row.tested))
    percents = tuple(map(float, values_SRV[:, 0, -1]))
    return replace(row, values=values_SRV.mean(0), percents=percents, chance=chance)


def _tested(counts: pd.DataFrame) -> frozenset[tuple[str, str, int, int, int]]:
    positive = counts["tp"] + counts["fn"]
    known = positive + counts["fp"] + counts["tn"]
    columns = (counts["part"], counts["subject"], counts["au"], known, positive)
    return frozenset(zip(*(column.tolist() for column in columns), strict=True))


def _num_tested(tested: Collection[tuple[str, str, int, int, int]]) -> dict[str, int]:
    return num_tested((part for part, *_ in tested), (subject for _, subject, *_ in tested))


def _interval(values_RV: np.ndarray, own: Collection[Row], beside: Collection[Row], *, share: float) -> Interval:
    """Return the interval of values (1 + R, V) that `share` of the variance of one run enters, see `TrainingChance`."""
    sizes = _num_tested(next(iter(own)).tested)
    chance = _chance(own, beside)
    subjects_V = subjects_variance(values_RV[1:], **sizes)
    return t_interval(
        values_RV[0],
        np.stack((subjects_V, share * chance.runs_V)),
        np.stack((np.full(len(subjects_V), subjects_free(**sizes)), chance.num_free_V)),
        subjects_V + share * chance.beyond_subjects,
    )


def _chance(own: Collection[Row], beside: Collection[Row]) -> TrainingChance:
    aus, folders = next(iter(own)).aus, {folder for row in own for folder in row.folders}
    others = [
        row
        for row in beside
        if row.aus == aus and not folders & set(row.folders) and not any(row is each for each in own)
    ]
    measured, lent = ([row.chance for row in rows if row.chance is not None] for rows in (own, others))
    return chance_for(measured, lent)


def difference(ours: Row, theirs: Row, *, beside: Collection[Row] = ()) -> Difference:
    """Return the paired difference of two rows; its mean is over the action units that are defined in both.

    beside: rows of the same set, whose runs help to tell how far trainings vary; these two may be among them. Raises
    `DataError` if a row has no runs, or if the two were not tested on the same frames and labels.
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
    gaps_RV = np.column_stack((gaps_RA, mean_of_defined(gaps_RA, axis=1)))
    num_runs = (len(ours.percents), len(theirs.percents))
    num_common = len(set(ours.folders) & set(theirs.folders))
    share = max(1 / num_runs[0] + 1 / num_runs[1] - 2 * num_common / (num_runs[0] * num_runs[1]), 0.0)
    low, high, p_values = _interval(gaps_RV, (ours, theirs), beside, share=share)
    chance = _chance((ours, theirs), beside)
    return Difference(
        ours.name,
        theirs.name,
        ours.aus,
        len(ours.subjects),
        num_runs,
        gaps_RV[0],
        low,
        high,
        np.append(holm(p_values[:-1]), p_values[-1]),
        training_sd=float(np.sqrt(chance.runs_V[-1])),
        assumed_share=float(chance.assumed_V[-1]) if share else 0.0,
    )


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Return differences whose p of the mean is corrected by Holm's method for the number of them."""
    p_values = holm(np.array([each.p_values[-1] for each in differences]))
    return [
        replace(each, p_values=np.append(each.p_values[:-1], p_value), num_compared=len(differences))
        for each, p_value in zip(differences, p_values, strict=True)
    ]

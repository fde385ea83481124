"""A run, or runs that differ by seed only, with all that the page of a report shows of it.

Three measures, each in percent, averaged over folds and runs: F1 at threshold 0.5, average precision (AP), and
calibrated F1, for which the threshold of each action unit is chosen on the predictions of the other folds.
"""

# N frames, A action units, G thresholds of the grid, R resamples, S runs
from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import DataError
from pipeline.report.agreement import agreement
from pipeline.report.rows import Row, row_from_counts, with_values
from pipeline.report.thresholds import (
    arrays,
    calibrated_counts,
    chosen_thresholds,
    make_curve,
    resampled_ap_percent,
)
from pipeline.tables import au_column, probability_column, read_table
from pipeline.training.metrics import compute_scores, f1_percent, mean_of_defined
from pipeline.training.run_files import PREDICTIONS_NAME, finished_folds, read_counts

logger = logging.getLogger("fantrans")

F1, AP, CALIBRATED = "F1", "AP", "calibrated F1"
GRID = np.arange(101) / 100
"""Thresholds of the explorer."""

MAX_CURVE_POINTS = 200
_MAX_SEARCHED = 200
"""Frames that are searched for one of another recording, per frame that is wanted."""


@dataclass(frozen=True)
class Measure:
    """One measure of a run or member.

    row: values with resamples. ends: of the 95 % intervals, (A + 1,) each. folds: (A,) by part. floor_A: without a
    head.
    """

    row: Row
    ends: tuple[np.ndarray, np.ndarray]
    folds: Mapping[str, np.ndarray]
    floor_A: np.ndarray


@dataclass(frozen=True)
class Scored:
    """A run, or a member of a set with its finished runs, and its scores.

    measures: by name; without predictions that can be read, F1 alone. agreement: (A,) by name, see
    `agreement`, averaged over runs; empty without predictions. published: F1 in percent by "AU1"... and "AVG".
    labels: one row per part and action unit, with the number of positive, negative and unknown labels. predictions,
    curves, thresholds: of the first run, by tested part; curves hold recall and precision per action unit. grid: F1,
    precision and recall (A, G) in percent at the thresholds `GRID`, averaged over folds and runs.
    """

    name: str
    folders: tuple[Path, ...]
    aus: tuple[int, ...]
    parts: tuple[str, ...]
    measures: Mapping[str, Measure]
    published: Mapping[str, float]
    labels: pd.DataFrame
    predictions: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    curves: Mapping[str, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    thresholds: Mapping[str, np.ndarray] = field(default_factory=dict)
    grid: Mapping[str, np.ndarray] = field(default_factory=dict)
    agreement: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class _FromPredictions:
    """What the predictions of one run give."""

    predictions: Mapping[str, pd.DataFrame]
    ap_RV: np.ndarray
    fold_ap: Mapping[str, np.ndarray]
    thresholds: Mapping[str, np.ndarray]
    counts: pd.DataFrame | None
    grid: Mapping[str, np.ndarray]
    curves: Mapping[str, list[tuple[np.ndarray, np.ndarray]]]
    agreement: Mapping[str, np.ndarray]


def read_scored(row: Row, *, published: Mapping[str, float], beside: Collection[Row] | None = None) -> Scored:
    """Return the scores of a row's runs, over the folds that the row has.

    beside: rows of the set that the row belongs to; then intervals are those of the row's settings, over subjects and
    trainings (of AP and calibrated F1 from the row's own runs), else those of its very heads, over subjects. Raises
    `DataError` if counts are damaged; predictions that cannot be read cost, with a warning, what is computed from them.
    """

    def ends(of: Row) -> tuple[np.ndarray, np.ndarray]:
        return of.subjects_intervals if beside is None else of.intervals(beside if of is row else ())

    name, folders, parts = row.name, row.folders, {part for part, _ in row.subjects}
    folds_by_run = [
        {part: fold for part, fold in finished_folds(folder).items() if part in parts} for folder in folders
    ]
    counts = [pd.concat([read_counts(fold) for fold in folds.values()]) for folds in folds_by_run]
    labels = compute_scores(counts[0], num_resamples=1).folds
    labels = labels.assign(num_positive=labels["tp"] + labels["fn"], num_negative=labels["fp"] + labels["tn"])
    scored = Scored(
        name,
        folders,
        row.aus,
        tuple(folds_by_run[0]),
        {F1: _from_counts(row, counts, ends(row))},
        published,
        labels[["part", "au", "num_positive", "num_negative", "unknown"]],
    )
    try:
        runs = [_from_predictions(folds, row.aus) for folds in folds_by_run]
    except DataError as error:
        logger.warning("%s: AP, thresholds and frames are not shown: %s", name, error)
        return scored
    of_ap = with_values(row, np.stack([run.ap_RV for run in runs]))
    measures = {**scored.measures, AP: _ap_measure(of_ap, runs, labels, ends(of_ap))}
    tables = [run.counts for run in runs if run.counts is not None]
    if len(tables) == len(runs):
        calibrated = row_from_counts(name, tables, folders=folders)
        measures[CALIBRATED] = _from_counts(calibrated, tables, ends(calibrated))
    first = runs[0]
    return replace(
        scored,
        measures=measures,
        predictions=first.predictions,
        curves=first.curves,
        thresholds=first.thresholds,
        grid=_averaged([run.grid for run in runs]),
        agreement=_averaged([run.agreement for run in runs]),
    )


def _averaged(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: mean_of_defined(np.stack([run[name] for run in runs]), axis=0) for name in runs[0]}


def _from_counts(row: Row, tables: Sequence[pd.DataFrame], ends: tuple[np.ndarray, np.ndarray]) -> Measure:
    """The measure of a row, with F1 by fold averaged over its runs."""
    scores = [compute_scores(table, num_resamples=1) for table in tables]
    by_part = [each.folds.pivot_table("f1_percent", "part", "au", dropna=False) for each in scores]
    folds = {
        str(part): mean_of_defined(np.stack([table.loc[part].to_numpy(float) for table in by_part]), axis=0)
        for part in by_part[0].index
    }
    return Measure(row, ends, folds, scores[0].aus["always_positive_percent"].to_numpy())


def _ap_measure(
    row: Row, runs: Sequence[_FromPredictions], labels: pd.DataFrame, ends: tuple[np.ndarray, np.ndarray]
) -> Measure:
    share = 100 * labels["num_positive"] / (labels["num_positive"] + labels["num_negative"])
    floor = share.where(labels["num_positive"] > 0).groupby(labels["au"]).mean()
    folds = {part: mean_of_defined(np.stack([run.fold_ap[part] for run in runs]), axis=0) for part in runs[0].fold_ap}
    return Measure(row, ends, folds, floor.to_numpy())


def _from_predictions(folds: Mapping[str, Path], aus: tuple[int, ...]) -> _FromPredictions:
    predictions = {part: _read(fold, aus) for part, fold in folds.items()}
    fold_ap: dict[str, np.ndarray] = {}
    curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    at_grid: dict[str, list[np.ndarray]] = {"f1": [], "precision": [], "recall": []}
    for part, table in predictions.items():
        labels_NA, probabilities_NA = arrays(table, aus)
        found = [make_curve(labels_NA[:, i], probabilities_NA[:, i]) for i in range(len(aus))]
        fold_ap[part] = 100 * np.array([curve.average_precision for curve in found])
        curves[part] = [curve.thinned(MAX_CURVE_POINTS) for curve in found]
        tp_AG, fp_AG, fn_AG = (np.stack(each) for each in zip(*(curve.counts_at(GRID) for curve in found), strict=True))
        with np.errstate(invalid="ignore"):
            at_grid["f1"].append(f1_percent(tp_AG, fp_AG, fn_AG))
            at_grid["precision"].append(100 * tp_AG / (tp_AG + fp_AG))
            at_grid["recall"].append(100 * tp_AG / (tp_AG + fn_AG))
    thresholds = chosen_thresholds(predictions, aus)
    return _FromPredictions(
        predictions,
        resampled_ap_percent(predictions, aus),
        fold_ap,
        thresholds,
        calibrated_counts(predictions, thresholds, aus) if thresholds else None,
        {kind: mean_of_defined(np.stack(each), axis=0) for kind, each in at_grid.items()},
        curves,
        agreement(predictions, aus),
    )


def _read(fold: Path, aus: Sequence[int]) -> pd.DataFrame:
    columns = ("frame_id", "subject", *map(probability_column, aus), *map(au_column, aus))
    return read_table(fold / PREDICTIONS_NAME, columns=columns, made_by="fantrans train")


def worst_frames(scored: Scored, *, num_frames: int) -> pd.DataFrame:
    """Return up to `num_frames` frames per action unit with the largest loss, one per recording.

    Columns: au, rank, frame_id, part, label, probability, loss (binary cross-entropy). Of the first run.
    """
    if not scored.predictions:
        return pd.DataFrame()
    every = pd.concat([table.assign(part=part) for part, table in scored.predictions.items()])
    labels_NA, probabilities_NA = arrays(every, scored.aus)
    of_label_NA = np.where(labels_NA == 1, probabilities_NA, 1 - probabilities_NA)
    frame_ids_N, parts_N = (every[name].to_numpy(object) for name in ("frame_id", "part"))
    found = []
    for i, au in enumerate(scored.aus):
        order = np.flatnonzero(labels_NA[:, i] >= 0)
        order = order[np.argsort(of_label_NA[order, i], kind="stable")][: _MAX_SEARCHED * num_frames]
        _, first = np.unique([frame_id.rpartition("/")[0] for frame_id in frame_ids_N[order]], return_index=True)
        chosen = order[np.sort(first)[:num_frames]]
        columns = {
            "au": au,
            "rank": np.arange(len(chosen)),
            "frame_id": frame_ids_N[chosen],
            "part": parts_N[chosen],
            "label": labels_NA[chosen, i],
            "probability": probabilities_NA[chosen, i],
            "loss": -np.log(np.maximum(of_label_NA[chosen, i], 1e-7)),
        }
        found.append(pd.DataFrame(columns))
    return pd.concat(found, ignore_index=True)

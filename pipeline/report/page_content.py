"""What the page of a report shows, as plain values: tables for the template, numbers for its charts.

Every number is rounded to what is shown, and undefined ones are None: the page holds all of them as JSON.
"""

# N frames, A action units
from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.report.provenance import describe_gaps, describe_run, read_histories, repeat_commands
from pipeline.report.relations import co_occurrences, correlation_distance, correlations
from pipeline.report.rendering import Cell, number_cell
from pipeline.report.rows import corrected, difference
from pipeline.report.scored import AP, CALIBRATED, F1, GRID, Measure, Scored
from pipeline.report.settings import run_settings
from pipeline.report.thresholds import arrays
from pipeline.training.metrics import THRESHOLD
from pipeline.training.run_files import read_run

AP_PERCENT = "ap_percent"
_MAX_EPOCHS = 200
"""Greatest number of points per training curve."""

LEGENDS = {
    F1: f"F1 at threshold {THRESHOLD}, in percent, averaged over folds. Floor: F1 of always predicting “present”.",
    AP: "Average precision, in percent, averaged over folds: precision averaged over the steps of recall, at no "
    "single threshold. Floor: share of positive frames, which is the AP of a constant prediction.",
    CALIBRATED: "F1 at a threshold per action unit that is chosen on the predictions of the other folds only: for the "
    "fold that tests P1, on the predictions of the folds that test P2 and P3. No prediction on the tested part has a "
    "share in the choice. Floor: F1 of always predicting “present”.",
}


def _interval_cell(low: float, high: float, form: str = ".1f") -> Cell:
    return Cell("-") if math.isnan(low) else Cell(f"{low:{form}} to {high:{form}}", float(low))


def rounded(values: np.ndarray, digits: int = 2) -> Any:
    """Return numbers as nested lists with None for undefined ones."""
    if values.ndim > 1:
        return [rounded(each, digits) for each in values]
    return [None if math.isnan(value) else round(float(value), digits or None) for value in values]


def au_names(scored: Scored) -> list[str]:
    """Return the names of the columns of every measure: "AU1"..., then "mean"."""
    return [*(f"AU{au}" for au in scored.aus), "mean"]


def score_table(scored: Scored) -> tuple[list[str], list[list[Cell]]]:
    """Return the names of the columns and one row per action unit, and one for their mean."""
    f1 = scored.measures[F1]
    columns = ["AU", *(f"{F1} {part}" for part in f1.folds)]
    by_column = [_with_mean(values_A) for values_A in f1.folds.values()]
    cells = [[number_cell(value) for value in values] for values in by_column]
    for name, measure in scored.measures.items():
        assert measure.row.values is not None
        low, high = measure.ends
        columns += [name, f"{name}, 95 %"]
        cells.append([number_cell(value) for value in measure.row.values[0]])
        cells.append([_interval_cell(*ends) for ends in zip(low, high, strict=True)])
    columns.append("always present")
    cells.append([number_cell(value) for value in _with_mean(f1.floor_A)])
    if scored.published:
        columns.append("published F1")
        named = [*(f"AU{au}" for au in scored.aus), "AVG"]
        cells.append([number_cell(scored.published.get(name, math.nan)) for name in named])
    sums = scored.labels.groupby("au")[["num_positive", "num_negative", "unknown"]].sum().loc[list(scored.aus)]
    for column, kind in (("positive", "num_positive"), ("negative", "num_negative"), ("unknown", "unknown")):
        columns.append(column)
        counts = [*sums[kind], sums[kind].sum()]
        cells.append([Cell(f"{count:,}", float(count)) for count in counts])
    ordered = [*((Cell(f"AU{au}", float(au))) for au in scored.aus), Cell("mean")]
    return columns, [list(row) for row in zip(ordered, *cells, strict=True)]


def member_table(every: Sequence[Scored]) -> tuple[list[str], list[list[Cell]]]:
    """Return the names of the columns and one row per run or member: means over action units, and F1 over the first."""
    names = list(dict.fromkeys(name for scored in every for name in scored.measures))
    columns = ["name", "runs", *itertools.chain.from_iterable((name, f"{name}, 95 %") for name in names)]
    columns += ["sd of F1", "published F1", "F1 over first", "over first, 95 %"]
    rows = []
    for i, scored in enumerate(every):
        row = [Cell(scored.name, float(i)), Cell(str(len(scored.folders)), float(len(scored.folders)))]
        for name in names:
            measure = scored.measures.get(name)
            if measure is None:
                row += [Cell("-"), Cell("-")]
                continue
            assert measure.row.values is not None
            row += [number_cell(measure.row.values[0, -1]), _interval_cell(*(end[-1] for end in measure.ends))]
        row += [number_cell(scored.measures[F1].row.std), number_cell(scored.published.get("AVG", math.nan))]
        rows.append(row + (_over_first(scored, every) if i else [Cell(""), Cell("")]))
    filled = [i for i in range(len(columns)) if any(row[i].value is not None for row in rows)]
    kept = [i for i, name in enumerate(columns) if i in filled or name.removesuffix(", 95 %") in names]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _over_first(scored: Scored, every: Sequence[Scored]) -> list[Cell]:
    rows = [each.measures[F1].row for each in every]
    try:
        gap = difference(scored.measures[F1].row, rows[0], beside=rows)
    except DataError:  # other frames or labels; the section Compare names the reason
        return [Cell("-"), Cell("-")]
    return [number_cell(gap.points[-1], "+.1f"), _interval_cell(gap.low[-1], gap.high[-1], "+.1f")]


def threshold_table(scored: Scored) -> tuple[list[str], list[list[Cell]]]:
    """Return the calibrated threshold of each action unit, one column per tested part; no row without them."""
    if CALIBRATED not in scored.measures:
        return [], []
    columns = ["AU", *(f"threshold for {part}" for part in scored.thresholds)]
    rows = [
        [Cell(f"AU{au}", float(au)), *(number_cell(found_A[i], ".3f") for found_A in scored.thresholds.values())]
        for i, au in enumerate(scored.aus)
    ]
    return columns, rows


def part_table(scored: Scored) -> tuple[list[str], list[list[Cell]]]:
    """Return one row per tested part: subjects, frames, and the share of positive labels of each action unit."""
    labels = scored.labels.set_index(["part", "au"])
    columns = ["part", "subjects", *(f"AU{au}" for au in scored.aus)]
    rows = []
    for part in scored.parts:
        of_part = labels.loc[part]
        num_known = of_part["num_positive"] + of_part["num_negative"]
        shares = (100 * of_part["num_positive"] / num_known.where(num_known > 0)).loc[list(scored.aus)]
        subjects = sum(name == part for name, _ in scored.measures[F1].row.subjects)
        rows.append([Cell(part), Cell(str(subjects), float(subjects)), *(number_cell(share) for share in shares)])
    return columns, rows


def run_facts(folder: Path) -> dict[str, Any]:
    """Return what the page shows of one run: provenance, changed settings, commands."""
    record = read_run(folder)
    changed = run_settings(record, only_changed=True)
    settings = {name: _plain(value) for name, value in changed.items()}
    return {"facts": describe_run(folder), "settings": settings, "commands": repeat_commands(record, folder)}


def measures_json(scored: Scored, gaps: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return all measures as docs/cli.md describes them; undefined numbers are None.

    gaps: of the set that the member belongs to, see `over_first_json`.
    """
    found = []
    for name, measure in scored.measures.items():
        assert measure.row.values is not None
        low, high = measure.ends
        numbers = zip(measure.row.values[0], low, high, _with_mean(measure.floor_A), strict=True)
        keys = ("percent", "low_percent", "high_percent", "floor_percent")
        *by_au, mean = (dict(zip(keys, map(_or_none, map(float, each)), strict=True)) for each in numbers)
        units = [{"au": int(au)} | each for au, each in zip(scored.aus, by_au, strict=True)]
        record = {"measure": name, "mean": mean, "action_units": units}
        found.append(record if gaps is None else record | {"over_first": gaps.get(scored.name, {}).get(name)})
    return found


def over_first_json(every: Sequence[Scored]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return each measure's paired difference of the mean to the first member, by member and measure.

    p values are corrected for the number of members. A measure that a member lacks is left out.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {scored.name: {} for scored in every}
    for name in every[0].measures if every else ():
        rows = [scored.measures[name].row for scored in every if name in scored.measures]
        for gap in corrected([difference(row, rows[0], beside=rows) for row in rows[1:]]):
            found[gap.ours][name] = {
                "points": _or_none(float(gap.points[-1])),
                "low_points": _or_none(float(gap.low[-1])),
                "high_points": _or_none(float(gap.high[-1])),
                "p_value": _or_none(float(gap.p_values[-1])),
            }
    return found


def metrics_json(scored: Scored) -> dict[str, Any]:
    """Return AP and the measures of `agreement` as docs/cli.md describes them; {} without predictions."""
    if not scored.agreement:
        return {}
    values = scored.measures[AP].row.values
    assert values is not None
    columns = {AP_PERCENT: values[0, :-1], **scored.agreement}
    mean = {name: _or_none(_with_mean(column)[-1]) for name, column in columns.items()}
    units = [
        {"au": int(au)} | {name: _or_none(float(column[i])) for name, column in columns.items()}
        for i, au in enumerate(scored.aus)
    ]
    return {"mean": mean, "action_units": units}


def gaps(scored: Scored) -> list[str]:
    """Return sentences on what the runs lack of their data, each once."""
    return list(dict.fromkeys(itertools.chain.from_iterable(describe_gaps(folder) for folder in scored.folders)))


def chart_data(scored: Scored, *, num_points: int) -> dict[str, Any]:
    """Return the numbers of a run's or member's charts. num_points: greatest number of points per curve."""
    return {
        "name": scored.name,
        "parts": list(scored.parts),
        "measures": {name: _measure_data(measure) for name, measure in scored.measures.items()},
        "published": [_or_none(scored.published.get(f"AU{au}")) for au in scored.aus]
        + [_or_none(scored.published.get("AVG"))],
        "grid": {kind: rounded(values_AG, 1) for kind, values_AG in scored.grid.items()},
        "curves": {
            part: [[rounded(_thinned(values, num_points), 3) for values in curve] for curve in found]
            for part, found in scored.curves.items()
        },
        "thresholds": {part: rounded(found_A, 3) for part, found_A in scored.thresholds.items()},
        "maps": _maps(scored),
        "losses": [_loss_data(folder) for folder in scored.folders],
    }


def _measure_data(measure: Measure) -> dict[str, Any]:
    assert measure.row.values is not None
    low, high = measure.ends
    return {
        "values": rounded(measure.row.values[0]),
        "low": rounded(low),
        "high": rounded(high),
        "floor": rounded(_with_mean(measure.floor_A)),
        "folds": {part: rounded(_with_mean(values_A)) for part, values_A in measure.folds.items()},
        "runs": rounded(np.array(measure.row.percents)),
    }


def _maps(scored: Scored) -> dict[str, Any]:
    """Correlation and co-occurrence (A, A) of labels and predictions, in percent, of the first run's tested frames."""
    if not scored.predictions:
        return {}
    each = [arrays(table, scored.aus) for table in scored.predictions.values()]
    labels_NA, probabilities_NA = (np.concatenate(list(found)) for found in zip(*each, strict=True))
    known_NA = np.where(labels_NA < 0, np.nan, labels_NA)
    predicted_NA = np.where(np.isnan(known_NA), np.nan, probabilities_NA >= THRESHOLD)
    of_labels, of_predictions = correlations(known_NA), correlations(probabilities_NA)
    return {
        "correlation": {
            "labels": rounded(100 * of_labels, 0),
            "predictions": rounded(100 * of_predictions, 0),
            "distance": _or_none(round(correlation_distance(of_labels, of_predictions), 4)),
        },
        "co-occurrence": {
            "labels": rounded(100 * co_occurrences(known_NA), 0),
            "predictions": rounded(100 * co_occurrences(predicted_NA), 0),
        },
    }


def _loss_data(folder: Path) -> dict[str, Any]:
    found = {}
    for part, history in read_histories(folder).items():
        kept = history.iloc[_thinned(np.arange(len(history)), _MAX_EPOCHS)]
        columns = [name for name in ("loss", "loss_cls", "loss_kd", "lr", "f1_train_percent") if name in kept.columns]
        found[part] = {"epoch": [int(epoch) + 1 for epoch in kept["epoch"]]} | {
            name: [_or_none(float(f"{value:.4g}")) for value in kept[name].astype(float)] for name in columns
        }
    return {"run": folder.name, "folds": found}


def paired_differences(every: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """Return the paired differences of each pair, by "I-J" and measure, as I minus J; a sentence if not comparable."""
    found: dict[str, dict[str, Any]] = {}
    for (i, ours), (j, theirs) in itertools.combinations(enumerate(every), 2):
        pair: dict[str, Any] = {}
        for name in ours.measures.keys() & theirs.measures.keys():
            try:
                beside = [each.measures[name].row for each in every if name in each.measures]
                gap = difference(ours.measures[name].row, theirs.measures[name].row, beside=beside)
            except DataError as error:
                pair[name] = {"fault": str(error)}
                continue
            pair[name] = {
                "points": rounded(gap.points),
                "low": rounded(gap.low),
                "high": rounded(gap.high),
                "subjects": gap.num_subjects,
                "runs": list(gap.num_runs),
            }
        found[f"{i}-{j}"] = pair
    return found


def grid_thresholds() -> list[float]:
    """Return the thresholds of the explorer."""
    return [round(float(value), 2) for value in GRID]


def _thinned(values: np.ndarray, num_points: int) -> np.ndarray:
    """At most `num_points` of the values, evenly spaced, with the last one."""
    return values[:: -max(1, math.ceil(len(values) / num_points))][::-1]


def _with_mean(values_A: np.ndarray) -> np.ndarray:
    known = values_A[~np.isnan(values_A)]
    return np.append(values_A, known.mean() if len(known) else math.nan)


def _or_none(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)

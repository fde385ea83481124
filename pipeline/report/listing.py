"""All runs below the runs root as one table, its filters, and runs by name."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import ConfigError, DataError
from pipeline.protocols import PARTS
from pipeline.training.metrics import f1_percent
from pipeline.training.run_files import RECORD_NAME, RESULT_NAME, finished_folds, read_counts, read_run
from pipeline.training.run_lock import is_in_training

STATES = ("finished", "partial", "started", "damaged")
"""All folds of the experiment are finished, some are, none is; or a file of the run cannot be read."""

COLUMNS = (
    "run",
    "dataset",
    "experiment",
    "seed",
    "state",
    "in_training",
    "num_finished",
    "num_folds",
    "f1_percent",
    "low_percent",
    "high_percent",
    "finished_at",
    "age_s",
    "cache",
    "init_from",
    "size_bytes",
    "device",
    "folder",
)
_DESCENDING = ("f1_percent", "low_percent", "high_percent", "size_bytes", "finished_at")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def list_runs(root: Path, *, now: datetime | None = None, is_quick: bool = False) -> pd.DataFrame:
    """Return one row per run below `root`, in order of their names, with the columns `COLUMNS`.

    `num_finished` of `num_folds` folds are finished. `f1_percent` is averaged over them and the action units as in a
    report; its 95 % interval is known if a report of these folds was written. `finished_at` (UTC) is that of the last
    finished fold; `age_s` is the time since then, or since the start for a run without one. `cache` is a fingerprint.
    Undefined values are missing. A run with a damaged file is a row in the state "damaged". is_quick: read no table;
    `f1_percent` is known if its interval is, and a damaged table is not noticed.
    """
    now = now or datetime.now(UTC)
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is not a folder; fix `roots: {{runs: ...}}` in the catalog")
    folders = sorted(root.iterdir()) if root.is_dir() else []
    rows, counts = [], []
    for folder in folders:
        if is_run(folder):
            row, of_run = _read_row(folder, now, reads_counts=not is_quick)
            rows.append(row)
            counts += of_run
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    if not is_quick:
        table["f1_percent"] = table["run"].map(_mean_percents(counts))
    table["finished_at"] = pd.to_datetime(table["finished_at"], utc=True)
    whole = ["seed", "num_finished", "num_folds", "size_bytes"]
    return table.astype(
        dict.fromkeys(whole, "Int64") | dict.fromkeys(("age_s", "f1_percent", "low_percent", "high_percent"), float)
    )


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run, be it a damaged one."""
    return not folder.name.startswith(".") and (
        (folder / RECORD_NAME).exists() or next(folder.glob("fold-*"), None) is not None
    )


def _read_row(folder: Path, now: datetime, *, reads_counts: bool) -> tuple[dict[str, Any], list[pd.DataFrame]]:
    """Return a run's row without its F1, and the counts of its finished folds with a column `run`."""
    row: dict[str, Any] = {
        "run": folder.name,
        "state": "damaged",
        "in_training": is_in_training(folder),
        "size_bytes": _size_bytes(folder),
        "folder": str(folder),
    }
    try:
        record = read_run(folder)
        row |= {name: record[name] for name in ("experiment", "dataset", "cache")}
        row |= {"seed": record.get("train", {}).get("seed"), "init_from": record.get("init_from")}
        folds = finished_folds(folder)
        counts = [read_counts(fold).assign(run=folder.name) for fold in folds.values()] if reads_counts else []
        results = [json.loads((fold / RESULT_NAME).read_bytes()) for fold in folds.values()]
        times = [_finished_at(result, fold) for result, fold in zip(results, folds.values(), strict=True)]
        row["device"] = ",".join(sorted({result["device"] for result in results})) or None
    except (DataError, ValueError, KeyError, AttributeError, TypeError):
        return row, []
    parts = set(record.get("parts", PARTS)) | set(folds)
    is_finished = len(folds) == len(parts)
    row |= {
        "state": "finished" if is_finished else "partial" if folds else "started",
        "num_finished": len(folds),
        "num_folds": len(parts),
        "finished_at": max(times, default=None),
        "age_s": (now - max(times, default=_modified_at(folder / RECORD_NAME))).total_seconds(),
    }
    return row | _reported_scores(folder, list(folds)), counts


def _finished_at(result: Mapping[str, Any], fold: Path) -> datetime:
    if "finished_at" in result:
        return datetime.fromisoformat(result["finished_at"])
    return _modified_at(fold / RESULT_NAME)  # of a run from before the time was stored


def _modified_at(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _reported_scores(folder: Path, parts: list[str]) -> dict[str, float]:
    """Return mean F1 and the ends of its interval in the run's report; nothing without a report of these folds."""
    try:
        report = json.loads((folder / "report.json").read_bytes())
        low, high = report["interval_95_percent"]
        scores = {"f1_percent": report["mean_f1_percent"], "low_percent": low, "high_percent": high}
        return scores if report["tested_parts"] == parts else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _size_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _mean_percents(counts: list[pd.DataFrame]) -> dict[str, float]:
    """Return F1 in percent by run, averaged over folds, then over action units; all runs in one pass."""
    if not counts:
        return {}
    sums = pd.concat(counts).groupby(["run", "part", "au"])[["tp", "fp", "fn"]].sum()
    sums["f1"] = f1_percent(sums["tp"], sums["fp"], sums["fn"])
    means = sums.groupby(["run", "au"])["f1"].mean().groupby("run").mean()
    return {str(run): float(percent) for run, percent in means.items()}


def select_runs(
    table: pd.DataFrame,
    *,
    dataset: str | None = None,
    experiment: str | None = None,
    newer: str | None = None,
    older: str | None = None,
    min_f1: float | None = None,
    max_f1: float | None = None,
    states: Collection[str] = (),
    sort: str = "age_s",
) -> pd.DataFrame:
    """Return the rows of `list_runs` that pass every filter, sorted by a column.

    experiment: name, or pattern such as `table1:*`. newer, older: age such as "7d", see `parse_age`. min_f1, max_f1: in
    percent; runs without F1 do not pass. Times, sizes and F1 are sorted from high to low, everything else from low to
    high (`age_s`: newest first); missing values are last. Raises `ConfigError` for an unknown state, column or unit.
    """
    _check_known(sort, COLUMNS, "column")
    for state in states:
        _check_known(state, STATES, "state")
    kept = pd.Series(True, index=table.index)
    if dataset is not None:
        kept &= table["dataset"] == dataset
    if experiment is not None:
        names = table["experiment"].fillna("").astype(str)
        kept &= names.map(lambda name: fnmatch.fnmatchcase(name, experiment)).astype(bool)
    if newer is not None:
        kept &= table["age_s"] <= parse_age(newer)
    if older is not None:
        kept &= table["age_s"] >= parse_age(older)
    if min_f1 is not None:
        kept &= table["f1_percent"] >= min_f1
    if max_f1 is not None:
        kept &= table["f1_percent"] <= max_f1
    if states:
        kept &= table["state"].isin(states)
    return table[kept].sort_values(sort, ascending=sort not in _DESCENDING, na_position="last", kind="stable")


def _check_known(name: str, known: Collection[str], what: str) -> None:
    if name not in known:
        raise ConfigError(f"{what} {name!r} does not exist; known ones: {', '.join(known)}")


def parse_age(text: str) -> float:
    """Return the seconds of an age such as "90s", "15m", "6h", "7d" or "2w"; `ConfigError` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None:
        raise ConfigError(f"age {text!r} is not a number with a unit; expected one such as 90s, 15m, 6h, 7d or 2w")
    return float(match[1]) * _UNITS[match[2]]


def as_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as JSON values: None for missing ones, times in ISO 8601."""
    records: list[dict[str, Any]] = json.loads(table.to_json(orient="records", date_format="iso", date_unit="s"))
    return records

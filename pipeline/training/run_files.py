"""A run: one experiment on one revision of one cache, in a folder named by everything that decides its result.

runs/{dataset}-{head}-seed{N}-{run fingerprint}/   the folder of a run
    run.json                 resolved settings, seeds, versions, cache fingerprint and revision
    .lock                    held by every training of the run, see pipeline/training/run_lock.py
    source/                  source files of a head of one's own
    live.html                page of the run's training, rewritten while it lasts, see pipeline/training/live_page.py
    fold-P1/history.csv      losses, learning rate, seconds and training F1 of the finished epochs, written after each
    fold-P1/checkpoint.pt    state after the last finished epoch, and beside it that of the one before (`.before`);
                             removed when the fold is finished
    fold-P1/head.safetensors         the head as trained, with all branches
    fold-P1/deployed/                the deployed head, see pipeline/training/export.py
    fold-P1/predictions.parquet, counts.parquet   per tested frame; per subject and action unit
    fold-P1/result.json      history and sizes; written last, so it marks the fold as finished
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.catalog import RUN_RECORD_NAME, Catalog
from pipeline.errors import DataError, DataNotFoundError, UsageError
from pipeline.protocols import PARTS
from pipeline.runtime.text import join_first, unknown_name
from pipeline.tables import read_record, read_table
from pipeline.training.metrics import COUNT_COLUMNS

RECORD_NAME, SOURCE_NAME = RUN_RECORD_NAME, "source"
CHECKPOINT_NAME, HEAD_NAME, DEPLOYED_NAME = "checkpoint.pt", "head.safetensors", "deployed"
RESULT_NAME, PREDICTIONS_NAME, COUNTS_NAME = "result.json", "predictions.parquet", "counts.parquet"
SCHEMA = 1
"""Of a run's folder: increased when an earlier version could not read its files; those from before have none."""
HISTORY_NAME = "history.csv"
HISTORY_COLUMNS = ["epoch", "loss", "loss_cls", "loss_kd", "lr", "seconds", "f1_train_percent"]
LIVE_NAME, REPORT_PAGE_NAME = "live.html", "report.html"

_FOLD_PREFIX = "fold-"
_MADE_BY = "fantrans train"


def check_parts(parts: Iterable[str]) -> None:
    """Raise `UsageError` for a part that no protocol has, or that appears twice."""
    parts = list(parts)
    for part in parts:
        if part not in PARTS:
            raise UsageError(unknown_name("part", part, PARTS))
        if parts.count(part) > 1:
            raise UsageError(f"part {part} appears twice; name it once")


def run_folder(catalog: Catalog, run: str) -> Path | None:
    """Return the folder of a run, given by path, or by its name below the runs root.

    A beginning of the name, or of the fingerprint at its end, is enough if no other run has it. None if it does not
    exist. Raises `UsageError` if several begin so.
    """
    for folder in (Path(run), catalog.roots.runs / run):
        if (folder / RECORD_NAME).is_file():
            return folder
    names = catalog.run_names()
    found = [name for name in names if run and (name.startswith(run) or name.rpartition("-")[2].startswith(run))]
    if len(found) > 1:
        raise UsageError(f"{len(found)} runs begin with {run!r}, give more letters of one: {join_first(found, 10)}")
    return catalog.roots.runs / found[0] if found else None


def find_run(catalog: Catalog, run: str) -> Path:
    """Return the folder of a run as `run_folder` does; raises `UsageError` with the nearest names if there is none."""
    folder = run_folder(catalog, run)
    if folder is None:
        names = catalog.run_names()
        near = get_close_matches(run, names, n=3)
        shown = f"near ones: {', '.join(near)}" if near else f"known ones: {join_first(names, 10)}"
        shown = shown if names else "train one with `fantrans train DATASET`"
        raise UsageError(f"run {run!r} does not exist below {catalog.roots.runs}; {shown}")
    return folder


def read_run(folder: Path) -> dict[str, Any]:
    """Read `run.json`; `DataNotFoundError` if the folder is not a run.

    Raises `DataError` if the file is damaged or of a later schema.
    """
    if not (folder / RECORD_NAME).is_file():
        raise DataNotFoundError(f"{folder} is not a run (no {RECORD_NAME}); pass a folder printed by `fantrans train`")
    record = read_record(folder / RECORD_NAME, keys=("experiment", "dataset", "cache", "head", "aus"), made_by=_MADE_BY)
    check_schema(folder, record.get("schema", SCHEMA), SCHEMA, record.get("versions", {}))
    return record


def check_schema(path: Path, found: int, known: int, versions: Mapping[str, str]) -> None:
    """Raise `DataError` for a file or folder of a later schema; versions: of what wrote it, if it is known."""
    if isinstance(found, int) and found > known:
        writer = f"the version {versions['fantrans']}" if "fantrans" in versions else "the version"
        raise DataError(
            f"{path} is written in schema {found}, this version reads schema {known}; use {writer} that wrote it, or a "
            "later one"
        )


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name: `{"head": {"dim": 8}}` becomes `{"head.dim": 8}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def fold_folder(folder: Path, test_part: str) -> Path:
    """Return where a run keeps the fold that tests `test_part`."""
    return folder / f"{_FOLD_PREFIX}{test_part}"


def finished_folds(folder: Path) -> dict[str, Path]:
    """Return the folders of a run's finished folds by test part, in order of the parts."""
    folds = sorted(folder.glob(f"{_FOLD_PREFIX}*"))
    return {path.name.removeprefix(_FOLD_PREFIX): path for path in folds if is_fold_finished(path)}


def is_fold_finished(fold: Path) -> bool:
    """Return whether a fold's folder has its result, predictions and counts."""
    return all((fold / name).is_file() for name in (RESULT_NAME, PREDICTIONS_NAME, COUNTS_NAME))


def read_counts(fold: Path) -> pd.DataFrame:
    """Read a finished fold's counts (`metrics.COUNT_COLUMNS`); `DataError` if damaged, or another fold's."""
    counts = read_table(fold / COUNTS_NAME, columns=tuple(COUNT_COLUMNS), made_by=_MADE_BY)
    parts = counts["part"].unique().tolist()
    if parts != [fold.name.removeprefix(_FOLD_PREFIX)]:
        raise DataError(
            f"{fold / COUNTS_NAME} is that of fold {', '.join(map(str, parts))}, not of {fold.name}; remove the folder "
            f"{fold}, and run `{_MADE_BY}` to compute it again"
        )
    return counts


def read_predictions(fold: Path) -> pd.DataFrame:
    """Read the predictions of a finished fold, see `predict.predict`; `DataError` if the table is damaged."""
    return read_table(fold / PREDICTIONS_NAME, columns=("frame_id", "subject"), made_by=_MADE_BY)


def read_history(fold: Path) -> pd.DataFrame:
    """Read losses, learning rate and seconds of a fold, one row per finished epoch; `DataError` if damaged."""
    if not (fold / RESULT_NAME).is_file() and (fold / HISTORY_NAME).is_file():
        try:
            return pd.read_csv(fold / HISTORY_NAME)
        except ValueError:
            raise DataError(
                f"{fold / HISTORY_NAME} is damaged; delete it, and run `{_MADE_BY}` to rebuild it"
            ) from None
    return pd.DataFrame(read_record(fold / RESULT_NAME, keys=("history",), made_by=_MADE_BY)["history"])

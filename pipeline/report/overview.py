"""One run at a glance, and runs side by side: settings, folds, scores, losses, files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.protocols import PARTS
from pipeline.report.rows import Difference, Row, corrected, difference, read_row
from pipeline.report.run import Report, read_report
from pipeline.report.settings import run_settings
from pipeline.training.run_files import finished_folds, flattened, fold_folder, read_history, read_run
from pipeline.training.run_lock import is_in_training

_NOT_COMPARED = ("experiment", "parts")
_MISSING = "(not set)"


@dataclass(frozen=True)
class FoldState:
    """One fold of a run: how far it is, and the losses of its finished epochs."""

    part: str
    state: str
    """finished, partial (some epochs), or missing."""
    num_epochs: int
    f1_percent: float
    """NaN if the fold is not finished, or F1 is undefined."""
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Overview:
    """One run: its record, folds and report (None without a finished fold), and what can be done with it next."""

    folder: Path
    record: Mapping[str, Any]
    folds: tuple[FoldState, ...]
    report: Report | None
    in_training: bool

    def settings(self, *, only_changed: bool = False) -> dict[str, Any]:
        """Return the run's settings by dotted name; with `only_changed`, those that differ from the defaults."""
        return run_settings(self.record, only_changed=only_changed)

    def files(self) -> dict[str, int]:
        """Return the sizes in bytes of the run's files, by path within its folder."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in paths}

    def next_commands(self) -> list[str]:
        """Return the commands that a user would run next."""
        name, done = self.folder.name, [fold.part for fold in self.folds if fold.state == "finished"]
        missing = [fold.part for fold in self.folds if fold.state != "finished"]
        commands = []
        if missing and not self.in_training:
            start = f" --init-from {self.record['init_from']}" if self.record.get("init_from") else ""
            experiment = f" --experiment {self.record['experiment']}"
            commands.append(f"fantrans train {self.record['dataset']}{experiment}{start}")
        if done:
            commands += [
                f"fantrans export {name} --part {done[0]} --out FOLDER",
                f"fantrans report {name} --figures",
                f"fantrans runs compare {name} OTHER",
            ]
        return commands

    def as_json(self) -> dict[str, Any]:
        """Return everything as docs/cli.md describes it; undefined scores and losses are NaN."""
        changed = self.settings(only_changed=True)
        return {
            "run": self.folder.name,
            "folder": str(self.folder),
            "experiment": self.record["experiment"],
            "dataset": self.record["dataset"],
            "cache": self.record["cache"],
            "init_from": self.record.get("init_from"),
            "in_training": self.in_training,
            "settings": [
                {"name": name, "value": as_scalar(value), "is_changed": name in changed}
                for name, value in self.settings().items()
            ],
            "folds": [
                {
                    "part": fold.part,
                    "state": fold.state,
                    "num_epochs": fold.num_epochs,
                    "f1_percent": fold.f1_percent,
                    "losses": list(fold.losses),
                }
                for fold in self.folds
            ],
            "report": None if self.report is None else self.report.as_json(),
            "files": [{"path": path, "size_bytes": size} for path, size in self.files().items()],
            "next_commands": self.next_commands(),
        }


def read_overview(folder: Path) -> Overview:
    """Return the overview of a run; raises `DataError` if one of its files is damaged."""
    record = read_run(folder)
    finished = finished_folds(folder)
    report = read_report(folder) if finished else None
    parts = sorted({*record.get("parts", PARTS), *finished})
    folds = tuple(_read_fold(folder, part, part in finished, report) for part in parts)
    return Overview(folder, record, folds, report, is_in_training(folder))


def _read_fold(folder: Path, part: str, is_finished: bool, report: Report | None) -> FoldState:
    try:
        losses = tuple(map(float, read_history(fold_folder(folder, part))["loss"]))
    except DataError:
        if is_finished:
            raise
        losses = ()
    state = "finished" if is_finished else "partial" if losses else "missing"
    percent = math.nan
    if is_finished and report is not None:
        of_part = report.scores.folds[report.scores.folds["part"] == part]
        percent = float(of_part["f1_percent"].mean())
    return FoldState(part, state, len(losses), percent, losses)


def as_scalar(value: Any) -> str | float | bool | None:
    """Return a setting as one JSON value; a list or mapping as its JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: the settings in which they differ, their F1 and the differences to the first."""

    folders: tuple[Path, ...]
    settings: Mapping[str, tuple[Any, ...]]
    """By dotted name, one value per run."""
    parts: tuple[str, ...]
    """Parts that all runs have tested; their F1 and differences are over these."""
    rows: tuple[Row | None, ...]
    """None for a run without a finished fold among `parts`."""
    differences: tuple[Difference | str | None, ...]
    """To the first run, corrected for their number; a sentence where one is impossible, None for the first itself."""

    def as_json(self) -> dict[str, Any]:
        """Return everything as docs/cli.md describes it; undefined scores are NaN."""
        runs = []
        for folder, row, gap in zip(self.folders, self.rows, self.differences, strict=True):
            low, high = (math.nan, math.nan) if row is None else row.subjects_interval
            over_first = gap.as_json() if isinstance(gap, Difference) else None
            runs.append(
                {
                    "run": folder.name,
                    "f1_percent": math.nan if row is None else row.percents[0],
                    "low_percent": low,
                    "high_percent": high,
                    "over_first": None if over_first is None else over_first["mean"],
                    "action_units": [] if over_first is None else over_first["action_units"],
                    "not_comparable": gap if isinstance(gap, str) else None,
                }
            )
        settings = [
            {"name": name, "values": [as_scalar(value) for value in values]} for name, values in self.settings.items()
        ]
        return {"parts": list(self.parts), "settings": settings, "runs": runs}


def compare_folders(folders: Sequence[Path]) -> Comparison:
    """Return the comparison of runs over the folds that are finished in all of them, with the first as reference.

    Raises `DataError` if a run's record or counts are damaged.
    """
    records = [flattened({k: v for k, v in read_run(each).items() if k not in _NOT_COMPARED}) for each in folders]
    names = list(dict.fromkeys(name for record in records for name in record))
    values = {name: tuple(record.get(name, _MISSING) for record in records) for name in names}
    differing = {name: each for name, each in values.items() if any(value != each[0] for value in each[1:])}
    finished = [set(finished_folds(folder)) for folder in folders]
    common = sorted(set.intersection(*[parts for parts in finished if parts])) if any(finished) else []
    rows = [
        read_row(folder.name, [folder], published=None, parts=common) if common and parts else None
        for folder, parts in zip(folders, finished, strict=True)
    ]
    gaps = [_gap(row, rows[0]) for row in rows[1:]]
    possible = iter(corrected([gap for gap in gaps if isinstance(gap, Difference)]))
    differences = (None, *(next(possible) if isinstance(gap, Difference) else gap for gap in gaps))
    return Comparison(tuple(folders), differing, tuple(common), tuple(rows), differences)


def _gap(ours: Row | None, theirs: Row | None) -> Difference | str:
    if ours is None or theirs is None:
        return "no fold is finished in both"
    try:
        return difference(ours, theirs)
    except DataError as error:
        return str(error)

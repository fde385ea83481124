"""Losses and scores for TensorBoard, MLflow or Weights & Biases, one of their runs per fold.

The catalog's `tracking:` chooses. Each fold has its own object, so heads may train in several threads and the folds of
a run in several processes. A tracker never changes or ends a training: the first failure is logged and stops tracking.
`fold-P1/tracking.json` counts the epochs that were logged, so that a resumed training logs none twice.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import ConfigError
from pipeline.runtime.atomic import write_json
from pipeline.training.runs import RECORD_NAME, flattened

logger = logging.getLogger("fantrans")

STATE_NAME = "tracking.json"
PROJECT = "fantrans"
"""Name of the experiment in MLflow and of the project in Weights & Biases; WANDB_PROJECT overrides the latter."""


@dataclass(frozen=True)
class Fold:
    """What a tracker needs to name a fold and to describe it."""

    run: str
    part: str
    folder: Path
    runs_root: Path
    settings: Mapping[str, Any]
    """The record of the run, as in `run.json`."""

    @property
    def name(self) -> str:
        """Name of the fold among all folds of all runs."""
        return f"{self.run}-{self.part}"


class Tracker(Protocol):
    """One fold's run in a tracking service; every method may raise anything."""

    def log_epoch(self, num_epochs: int, values: Mapping[str, float]) -> None:
        """Log losses, learning rate and seconds of an epoch under the step `num_epochs`, counted from 1."""

    def finish(self, num_epochs: int, scores: Mapping[str, float]) -> None:
        """Log F1 in percent, by `AU1`... and `mean`; undefined ones are left out."""

    def close(self, *, is_finished: bool) -> None:
        """Write what is buffered; `is_finished` is False for a training that was interrupted or failed."""


class _TensorBoard:
    """Event files in RUN/tensorboard/PART."""

    def __init__(self, fold: Fold, run_id: str, *, is_new: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra

        folder = fold.folder.parent / "tensorboard" / fold.part
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        self._settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in flattened(fold.settings).items()
        }
        self._writer = SummaryWriter(str(folder))
        if is_new:
            rows = "\n".join(f"| {name} | {value} |" for name, value in self._settings.items())
            self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def log_epoch(self, num_epochs: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, num_epochs)
        self._writer.flush()

    def finish(self, num_epochs: int, scores: Mapping[str, float]) -> None:
        for name, value in scores.items():
            self._writer.add_scalar(f"f1_percent/{name}", value, num_epochs)
        if "mean" in scores:
            self._writer.add_hparams(self._settings, {"hparam/mean_f1_percent": scores["mean"]}, run_name=".")

    def close(self, *, is_finished: bool) -> None:
        self._writer.close()


class _MLflow:
    """A run in the experiment `fantrans`, on MLFLOW_TRACKING_URI or in RUNS_ROOT/mlruns/mlflow.db."""

    def __init__(self, fold: Fold, run_id: str, *, is_new: bool) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415 - an extra
        from mlflow import environment_variables as limits  # noqa: PLC0415
        from mlflow.entities import Param  # noqa: PLC0415
        from mlflow.tracking import is_tracking_uri_set  # noqa: PLC0415

        for limit, value in ((limits.MLFLOW_HTTP_REQUEST_MAX_RETRIES, 1), (limits.MLFLOW_HTTP_REQUEST_TIMEOUT, 10)):
            if not limit.is_set():
                limit.set(value)  # a server that is away delays the training by seconds, not minutes
        store = fold.runs_root / "mlruns"
        if not is_tracking_uri_set():
            store.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(None if is_tracking_uri_set() else f"sqlite:///{store / 'mlflow.db'}")
        experiment = self._experiment(None if is_tracking_uri_set() else f"{store / 'artifacts'}")
        found = [] if is_new else self._client.search_runs([experiment], f"tags.`fantrans.id` = '{run_id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {"run": fold.run, "fold": fold.part, "fantrans.id": run_id}
        self._id = self._client.create_run(experiment, run_name=fold.name, tags=tags).info.run_id
        params = [Param(name, str(value)[:6000]) for name, value in flattened(fold.settings).items()]
        for i in range(0, len(params), 100):  # more are refused
            self._client.log_batch(self._id, params=params[i : i + 100])

    def _experiment(self, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(PROJECT)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(PROJECT, artifact_location=artifacts))

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def log_epoch(self, num_epochs: int, values: Mapping[str, float]) -> None:
        self._log(num_epochs, values)

    def finish(self, num_epochs: int, scores: Mapping[str, float]) -> None:
        self._log(num_epochs, {f"f1_percent/{name}": value for name, value in scores.items()})

    def close(self, *, is_finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if is_finished else "KILLED")


class _Wandb:
    """A run in the group of its run; WANDB_MODE=offline writes below the runs root only."""

    def __init__(self, fold: Fold, run_id: str, *, is_new: bool) -> None:
        import wandb  # noqa: PLC0415 - an extra

        self._run = wandb.init(
            project=wandb.setup().settings.project or PROJECT,
            id=run_id,
            name=fold.name,
            group=fold.run,
            dir=fold.runs_root,
            config=dict(fold.settings),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", init_timeout=30, login_timeout=10),
        )

    def log_epoch(self, num_epochs: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=num_epochs)

    def finish(self, num_epochs: int, scores: Mapping[str, float]) -> None:
        self._run.summary.update({f"f1_percent/{name}": value for name, value in scores.items()})

    def close(self, *, is_finished: bool) -> None:
        self._run.finish(exit_code=0 if is_finished else 1)


_TRACKERS: dict[str, tuple[Callable[..., Tracker], str]] = {
    "tensorboard": (_TensorBoard, "tensorboard"),
    "mlflow": (_MLflow, "mlflow"),
    "wandb": (_Wandb, "wandb"),
}
"""By the catalog's name: the class and the package that it needs."""


class Tracking:
    """The tracker that the catalog names, for the folds of one training.

    Raises `ConfigError` if its package is not installed.
    """

    def __init__(self, name: str = "none") -> None:
        self.name = name
        self.is_off = name == "none"
        if not self.is_off and importlib.util.find_spec(_TRACKERS[name][1]) is None:
            raise ConfigError(
                f"the catalog's `tracking` is {name}, but the package {_TRACKERS[name][1]} is not installed; run "
                f"`pip install 'fantrans[{name}]'`, or set FANTRANS_TRACKING=none"
            )

    def guard(self, action: Callable[[], object]) -> None:
        """Call `action`; its first failure is logged, and nothing is tracked from then on."""
        if self.is_off:
            return
        try:
            action()
        except Exception as error:
            if not self.is_off:
                self.is_off = True
                reason = str(error).strip().split("\n")[0] or type(error).__name__
                logger.warning("%s failed, the training continues without it: %s", self.name, reason)

    def open(self, folder: Path, part: str) -> FoldTracking:
        """Return the tracking of one fold, given by its folder; nothing is opened before the first epoch."""
        return FoldTracking(self, folder, part)


@dataclass
class FoldTracking:
    """Tracking of one fold: each epoch once, then the scores. No method raises."""

    tracking: Tracking
    folder: Path
    part: str
    _tracker: Tracker | None = None
    _state: dict[str, Any] = field(default_factory=dict)

    def log_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """Log the epochs of `history` that were not logged before, also by an interrupted training."""
        self.tracking.guard(lambda: self._log_history(history))

    def finish(self, num_epochs: int, scores: Mapping[str, float]) -> None:
        """Log F1 in percent by name; NaN stands for undefined."""
        self.tracking.guard(lambda: self._finish(num_epochs, scores))

    def close(self) -> None:
        """Close the tracker, if it was opened."""
        if self._tracker is not None:
            tracker, self._tracker = self._tracker, None
            self.tracking.guard(lambda: tracker.close(is_finished=self._state.get("is_finished", False)))

    def _log_history(self, history: Sequence[Mapping[str, float]]) -> None:
        tracker = self._opened()
        for num_epochs in range(self._state["num_epochs"] + 1, len(history) + 1):
            self._save(num_epochs=num_epochs)  # before it is logged: after a kill, one epoch may be missing, none twice
            entry = history[num_epochs - 1]
            tracker.log_epoch(num_epochs, {name: value for name, value in entry.items() if name != "epoch"})

    def _finish(self, num_epochs: int, scores: Mapping[str, float]) -> None:
        tracker = self._opened()
        if not self._state["is_finished"]:
            self._save(is_finished=True)
            tracker.finish(num_epochs, {name: value for name, value in scores.items() if not math.isnan(value)})

    def _opened(self) -> Tracker:
        if self._tracker is None:
            states = self._read()
            is_new = self.tracking.name not in states
            self._state = states.get(
                self.tracking.name, {"id": secrets.token_hex(8), "num_epochs": 0, "is_finished": False}
            )
            record = json.loads((self.folder.parent / RECORD_NAME).read_bytes())
            run = self.folder.parent
            fold = Fold(run.name, self.part, self.folder, run.parent, record)
            made, _ = _TRACKERS[self.tracking.name]
            self._tracker = made(fold, self._state["id"], is_new=is_new)
            self._save()
        return self._tracker

    def _read(self) -> dict[str, Any]:
        path = self.folder / STATE_NAME
        states: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
        return states

    def _save(self, **changes: Any) -> None:
        self._state |= changes
        write_json(self.folder / STATE_NAME, self._read() | {self.tracking.name: self._state})

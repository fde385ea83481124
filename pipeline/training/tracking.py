"""Losses and scores for TensorBoard, MLflow or Weights & Biases, one of their runs per fold.

The catalog's `tracking:` chooses. Each fold has its own object, so heads may train in several threads and the folds of
a run in several processes. A tracker never changes or ends a training: the first failure is logged and stops tracking.
A resumed training continues the tracker's run, whose id is in `fold-P1/tracking.json`, and logs no epoch twice.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import ConfigError
from pipeline.runtime.atomic import write_json
from pipeline.runtime.extras import requirements
from pipeline.training.run_files import RECORD_NAME, flattened

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

    num_logged: int
    """Number of epochs that the run had when it was opened."""

    def log_epoch(self, num_epochs: int, values: Mapping[str, float]) -> None:
        """Log losses, learning rate and seconds of an epoch under the step `num_epochs`, counted from 1."""

    def finish(self, num_epochs: int, scores: Mapping[str, float]) -> None:
        """Log F1 in percent, by `AU1`... and `mean`; undefined ones are left out."""

    def close(self, *, is_finished: bool) -> None:
        """Write what is buffered; `is_finished` is False for a training that was interrupted or failed."""


class _TensorBoard:
    """Event files in RUN/tensorboard/PART."""

    def __init__(self, fold: Fold, run_id: str) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra

        folder = fold.folder.parent / "tensorboard" / fold.part
        shutil.rmtree(folder, ignore_errors=True)  # all epochs are logged again, since a kill may lose the last ones
        self.num_logged = 0
        self._settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in flattened(fold.settings).items()
        }
        self._writer = SummaryWriter(str(folder))
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

    def __init__(self, fold: Fold, run_id: str) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415 - an extra
        from mlflow import environment_variables as limits  # noqa: PLC0415
        from mlflow.entities import Metric, Param  # noqa: PLC0415
        from mlflow.tracking import is_tracking_uri_set  # noqa: PLC0415

        self._make_metric = Metric
        for name in ("mlflow", "mlflow.store.db.utils", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)  # creation of a database, and each try of a request
        for limit, value in ((limits.MLFLOW_HTTP_REQUEST_MAX_RETRIES, 1), (limits.MLFLOW_HTTP_REQUEST_TIMEOUT, 10)):
            if not limit.is_set():
                limit.set(value)  # a server that is away delays the training by seconds, not minutes
        store = fold.runs_root / "mlruns"
        if not is_tracking_uri_set():
            store.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(None if is_tracking_uri_set() else f"sqlite:///{store / 'mlflow.db'}")
        experiment = self._experiment(None if is_tracking_uri_set() else f"{store / 'artifacts'}")
        found = self._client.search_runs([experiment], f"tags.`fantrans.id` = '{run_id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            self.num_logged = max(
                (metric.step for metric in self._client.get_metric_history(self._id, "loss")), default=0
            )
            return
        self.num_logged = 0
        tags = {"run": fold.run, "fold": fold.part, "fantrans.id": run_id}
        self._id = self._client.create_run(experiment, run_name=fold.name, tags=tags).info.run_id
        params = [Param(name, str(value)[:6000]) for name, value in flattened(fold.settings).items()]
        for i in range(0, len(params), 100):  # more are refused
            self._client.log_batch(self._id, params=params[i : i + 100])

    def _experiment(self, artifacts: str | None) -> str:
        if self._client.get_experiment_by_name(PROJECT) is None:
            with suppress(Exception):  # another process may have created it by now
                self._client.create_experiment(PROJECT, artifact_location=artifacts)
        experiment = self._client.get_experiment_by_name(PROJECT)
        if experiment is None:
            raise RuntimeError(f"the experiment {PROJECT} cannot be created")
        return str(experiment.experiment_id)

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        at_ms = int(1000 * time.time())
        metrics = [self._make_metric(name, value, at_ms, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def log_epoch(self, num_epochs: int, values: Mapping[str, float]) -> None:
        self._log(num_epochs, values)

    def finish(self, num_epochs: int, scores: Mapping[str, float]) -> None:
        known = self._client.get_run(self._id).data.metrics
        named = {f"f1_percent/{name}": value for name, value in scores.items()}
        self._log(num_epochs, {name: value for name, value in named.items() if name not in known})

    def close(self, *, is_finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if is_finished else "KILLED")


class _Wandb:
    """A run in the group of its run; WANDB_MODE=offline writes below the runs root only."""

    def __init__(self, fold: Fold, run_id: str) -> None:
        import wandb  # noqa: PLC0415 - an extra

        for folder in fold.runs_root.glob(f"wandb/offline-run-*-{run_id}"):
            shutil.rmtree(folder, ignore_errors=True)  # of a training that was killed: the new one holds all epochs
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
        self.num_logged = max(0, self._run.starting_step - 1)  # steps are counted from 0, epochs from 1

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
        self.opening = threading.Lock()
        """Held while a tracker is opened: the first one creates databases and starts services for all."""
        self.is_off = name == "none"
        if not self.is_off and importlib.util.find_spec(_TRACKERS[name][1]) is None:
            packages = " ".join(f"'{each}'" for each in requirements(name))
            raise ConfigError(
                f"the catalog's `tracking` is {name}, but the package {_TRACKERS[name][1]} is not installed; run "
                f"`pip install {packages}`, or set FANTRANS_TRACKING=none"
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
    _num_logged: int = 0
    _is_finished: bool = False

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
            self.tracking.guard(lambda: tracker.close(is_finished=self._is_finished))

    def _log_history(self, history: Sequence[Mapping[str, float]]) -> None:
        tracker = self._opened()
        for entry in history[self._num_logged :]:
            self._num_logged += 1
            tracker.log_epoch(self._num_logged, {name: value for name, value in entry.items() if name != "epoch"})

    def _finish(self, num_epochs: int, scores: Mapping[str, float]) -> None:
        tracker = self._opened()
        tracker.finish(num_epochs, {name: value for name, value in scores.items() if not math.isnan(value)})
        self._is_finished = True

    def _opened(self) -> Tracker:
        if self._tracker is None:
            run = self.folder.parent
            record = json.loads((run / RECORD_NAME).read_bytes())
            made, _ = _TRACKERS[self.tracking.name]
            with self.tracking.opening:
                if self.tracking.is_off:
                    raise ConnectionError(f"{self.tracking.name} failed for another fold")
                self._tracker = made(Fold(run.name, self.part, self.folder, run.parent, record), self._run_id())
            self._num_logged = self._tracker.num_logged
        return self._tracker

    def _run_id(self) -> str:
        """Return the id of the fold's run in the tracker; a new one is written before it is used."""
        path = self.folder / STATE_NAME
        ids: dict[str, str] = json.loads(path.read_bytes()) if path.is_file() else {}
        if self.tracking.name not in ids:
            ids[self.tracking.name] = secrets.token_hex(8)
            write_json(path, ids)
        return ids[self.tracking.name]

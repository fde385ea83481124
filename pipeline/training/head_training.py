"""One fold's head during training: its steps, the checkpoint after each epoch, and the files of the finished fold."""

# B frames, A action units
from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from models.fan_trans import FanTransHead, carry_over
from models.head import carry_over_by_size, deployed_head
from pipeline.config import OwnHeadConfig, TrainConfig
from pipeline.errors import ConfigError
from pipeline.protocols import train_parts
from pipeline.runtime.atomic import write_atomically, write_json, write_safetensors
from pipeline.runtime.checkpoint import Checkpoint
from pipeline.runtime.machine import describe_machine, describe_threads
from pipeline.runtime.progress import ProgressCallback
from pipeline.runtime.random_numbers import OwnRandomNumbers
from pipeline.runtime.schedules import schedule, step_decay, warm_up_cosine
from pipeline.runtime.version import FILE_METADATA_KEY, file_metadata, written_by
from pipeline.tables import write_table
from pipeline.training.export import read_tensors, write_deployed
from pipeline.training.fold_weights import fold_weights, large_weight
from pipeline.training.heads import BuiltHead, build_head
from pipeline.training.loader import Batch, CachedFrames, HeadBatches, Page
from pipeline.training.metrics import f1_percent, mean_of_defined
from pipeline.training.predict import count, predict
from pipeline.training.run_files import (
    CHECKPOINT_NAME,
    COUNTS_NAME,
    DEPLOYED_NAME,
    HEAD_NAME,
    HISTORY_COLUMNS,
    HISTORY_NAME,
    PREDICTIONS_NAME,
    RESULT_NAME,
    SCHEMA,
    fold_folder,
    read_run,
)
from pipeline.training.runs import TrainingRun, write_record
from pipeline.training.step import CudaGraphs, GraphedStep, Step
from pipeline.training.tracking import FoldTracking

logger = logging.getLogger("fantrans")


def learning_rate(step: int, *, settings: TrainConfig, steps_per_epoch: int) -> float:
    """Return the learning rate of a step (paper 4.1).

    "step" multiplies it by `lr_decay` after every `lr_step_epochs`; "one_cycle" rises linearly for a tenth of the
    steps, then falls to zero along half a cosine.
    """
    if settings.schedule == "step":
        every_steps = settings.lr_step_epochs * steps_per_epoch
        return step_decay(step, lr=settings.lr, decay=settings.lr_decay, every_steps=every_steps)
    num_steps = settings.num_epochs * steps_per_epoch
    return warm_up_cosine(step, max_lr=settings.lr, num_warm_up_steps=max(1, num_steps // 10), num_steps=num_steps)


@dataclass
class HeadTraining:
    """One fold's head with its optimiser and batches; call `train_on_page` with the pages of all epochs in order.

    A checkpoint is written after each epoch, and the fold's files after the last one.
    """

    run: TrainingRun
    test_part: str
    device: str
    built: BuiltHead
    batches: HeadBatches
    weights_A: Tensor
    optimiser: torch.optim.Optimizer
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry per finished epoch: epoch, loss, loss_cls, loss_kd, lr of the last step, seconds, f1_train_percent.

    The last one is the F1 of the deployed branch on the batches as they are trained on, averaged over action units; an
    epoch without any, or of an earlier version, lacks it.
    """
    fault: str | None = None
    """Why the training stopped, as a sentence; None while all is well."""
    on_epoch: Callable[[], None] | None = None
    """Called after each epoch, once its checkpoint and history are written."""
    tracking: FoldTracking | None = None
    """Receives each epoch and the fold's scores."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    """Where it trains, see `describe_machine`; of a resumed training, where it ends."""
    _epoch: list[Tensor] = field(default_factory=list)
    """Losses (3,) of the epoch's steps so far, on the device: reading them would make the CPU wait for it."""
    _counts: list[Tensor] = field(default_factory=list)
    """Counts (3, A) of the same steps, see `step.confusion`."""
    _seconds: float = 0.0
    _lr: float = 0.0

    def __post_init__(self) -> None:
        rate = partial(learning_rate, settings=self.settings, steps_per_epoch=self.batches.num_batches)
        self._schedule = schedule(self.optimiser, rate)
        parts: dict[str, Any] = {"head": self.head, "optimiser": self.optimiser, "schedule": self._schedule}
        if self.built.draws_random_numbers:
            parts["random"] = OwnRandomNumbers(self.settings.seed, torch.device(self.device))
        step = Step(self.head, self.optimiser, self.weights_A, self.settings, parts.get("random", nullcontext()))
        self._step = GraphedStep(step, CudaGraphs.of(self.weights_A.device)) if self._can_be_recorded else step
        path = self.run.fold_folder(self.test_part) / CHECKPOINT_NAME
        self._checkpoint = Checkpoint(path, {}, **parts, training=self)  # the folder's name stands for all settings

    @classmethod
    def start(cls, run: TrainingRun, test_part: str, device: str) -> HeadTraining:
        """Return a new head, or the head of the fold's checkpoint, ready to train.

        Raises `StoreError` or `DataError` for what concerns this fold alone: fewer frames in the cache than one batch,
        an action unit without positive labels, a run without the fold that initialises this one; `WeightsError` for a
        checkpoint of another version. Raises `ConfigError` for a run that cannot initialise this one.
        """
        settings = run.experiment.train
        frames = CachedFrames(
            run.cache, run.frames, aus=run.rules.aus, parts=train_parts(test_part), at_least=settings.batch_size
        )
        weights_A = fold_weights(frames.labels_NA, aus=run.rules.aus, dataset=run.dataset).to(device)
        torch.manual_seed(settings.seed)
        built = build_head(run)
        head = built.head
        if run.init_from is not None:
            _start_from(head, run, fold_folder(run.init_from, test_part) / HEAD_NAME)
        head.to(device)
        optimiser = torch.optim.AdamW(
            head.parameters(), lr=1.0, betas=(0.9, 0.999), weight_decay=settings.weight_decay, fused=True
        )
        batches = HeadBatches(
            run.cache,
            frames,
            batch_size=settings.batch_size,
            seed=settings.seed,
            max_shift_cells=settings.max_shift_cells,
        )
        write_record(run)
        machine = describe_machine(device) | describe_threads()
        training = cls(run, test_part, device, built, batches, weights_A, optimiser, machine=machine)
        training._checkpoint.resume(torch.device(device))
        training._write_history()
        return training

    def state_dict(self) -> dict[str, Any]:
        """Return the state beside head, optimiser and schedule, for the checkpoint."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.history = state_dict["history"]

    @property
    def head(self) -> nn.Module:
        """The head as it is trained."""
        return self.built.head

    @property
    def _can_be_recorded(self) -> bool:
        """Whether a CUDA graph repeats the steps: those of a head of one's own may differ from batch to batch."""
        is_own = isinstance(self.run.experiment.head, OwnHeadConfig)
        return self.weights_A.is_cuda and not is_own and not self.built.draws_random_numbers

    @property
    def warning(self) -> str | None:
        """What the user should know about the fold's training frames, as a sentence; None if nothing."""
        labels_NA = self.batches.frames.labels_NA
        return large_weight(self.weights_A, labels_NA, aus=self.run.rules.aus, dataset=self.run.dataset)

    @property
    def settings(self) -> TrainConfig:
        """Training settings of the experiment."""
        return self.run.experiment.train

    @property
    def num_epochs(self) -> int:
        """Number of epochs of the experiment."""
        return self.settings.num_epochs

    @property
    def num_epochs_done(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def num_epoch_frames(self) -> int:
        """Number of frames per epoch that are trained on."""
        return self.batches.num_batches * self.settings.batch_size

    @property
    def num_trained_frames(self) -> int:
        """Number of frames of all epochs that it has been trained on so far."""
        return self.num_epochs_done * self.num_epoch_frames + len(self._epoch) * self.settings.batch_size

    def train_on_page(self, page: Page, *, on_progress: ProgressCallback) -> None:
        """Train on a page of the next epoch, and ignore pages of other epochs.

        `on_progress` is called after each batch. The last page of an epoch writes the checkpoint, that of the last
        epoch the fold's files (`finish`).
        """
        if self.fault or page.epoch != self.num_epochs_done or page.epoch >= self.settings.num_epochs:
            return
        started = time.monotonic()
        self.head.train()
        if page.number == 0:
            self._epoch, self._counts, self._seconds = [], [], 0.0
        for batch in self.batches.from_page(page):
            self._epoch.append(self._learn(batch))
            on_progress(len(batch.labels_BA))
        losses = torch.stack(self._epoch).double().mean(0).tolist() if page.is_last else []  # waits for the device
        self._seconds += time.monotonic() - started
        if page.is_last:
            self._end_epoch(*losses)
            if self.fault is None and self.num_epochs_done == self.settings.num_epochs:
                self.finish()

    def _learn(self, batch: Batch) -> Tensor:
        """Take one optimiser step; return its losses (3,): total, classification, distillation."""
        result = self._step(batch.features, batch.labels_BA)
        self._lr = float(self._schedule.get_last_lr()[0])
        self._schedule.step()
        self._counts.append(result.counts)
        return result.losses

    def _end_epoch(self, loss: float, loss_cls: float, loss_kd: float) -> None:
        if not math.isfinite(loss):
            epoch = self.num_epochs_done + 1
            self.fault = f"the loss of epoch {epoch} is {loss}; lower `train.lr`, or train in fp32"
            return
        percents = f1_percent(*torch.stack(self._counts).sum(0).cpu().numpy())
        f1 = float(mean_of_defined(percents, axis=0))
        scored = {"f1_train_percent": f1} if math.isfinite(f1) else {}
        losses = {"loss": loss, "loss_cls": loss_cls, "loss_kd": loss_kd}
        entry = {"epoch": self.num_epochs_done, **losses, "lr": self._lr, "seconds": self._seconds, **scored}
        self._epoch, self._counts = [], []
        self.history.append(entry)
        self._checkpoint.save(self.num_epochs_done * self.batches.num_batches)
        self._write_history()
        if self.on_epoch is not None:
            self.on_epoch()
        if self.tracking is not None:
            self.tracking.log_history(self.history)

    def _write_history(self) -> None:
        """Write the finished epochs, those of the checkpoint, for readers of an unfinished fold."""
        table = pd.DataFrame(self.history, columns=HISTORY_COLUMNS)
        write_atomically(
            self.run.fold_folder(self.test_part) / HISTORY_NAME, lambda temp: table.to_csv(temp, index=False)
        )

    def finish(self) -> None:
        """Write the fold's files, `result.json` last since it marks the fold as finished, and remove the checkpoint."""
        run, folder = self.run, self.run.fold_folder(self.test_part)
        deployed = deployed_head(self.head)
        metadata = {FILE_METADATA_KEY: file_metadata(SCHEMA)}
        write_safetensors(folder / HEAD_NAME, self.head.state_dict(), metadata=metadata)
        write_deployed(
            folder / DEPLOYED_NAME,
            deployed,
            self.built.description,
            aus=run.rules.aus,
            features=run.cache.document["features"],
            averages_flip=self.settings.averages_flip,
            images=run.cache.document,
        )
        predictions = predict(
            deployed,
            run.cache,
            run.frames,
            aus=run.rules.aus,
            test_part=self.test_part,
            device=self.device,
            averages_flip=self.settings.averages_flip,
        )
        write_table(folder / PREDICTIONS_NAME, predictions, schema=SCHEMA)
        counts = count(predictions, aus=run.rules.aus, test_part=self.test_part)
        write_table(folder / COUNTS_NAME, counts, schema=SCHEMA)
        if self.tracking is not None:
            self.tracking.log_history(self.history)  # all of them if an interrupted training ended in this method
            self.tracking.finish(self.num_epochs_done, _scores(counts))
        result = {
            "test_part": self.test_part,
            "device": torch.device(self.device).type,
            "machine": dict(self.machine),
            "num_train_frames": len(self.batches.frames.rows),
            "num_test_frames": len(predictions),
            "num_test_frames_missing": int((run.frames["part"] == self.test_part).sum()) - len(predictions),
            "class_weights": self.weights_A.tolist(),
            "history": self.history,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **written_by(SCHEMA, python=platform.python_version(), torch=torch.__version__),
        }
        write_json(folder / RESULT_NAME, result)
        self._checkpoint.remove()
        logger.info(
            "%s, fold %s: %d epochs in %.0f s, loss %.3f, %d frames scored",
            folder.parent.name,
            self.test_part,
            len(self.history),
            sum(each["seconds"] for each in self.history),
            self.history[-1]["loss"],
            len(predictions),
        )


def _scores(counts: pd.DataFrame) -> dict[str, float]:
    """Return a fold's F1 in percent by `AU1`... and `mean`; NaN where it is undefined."""
    sums = counts.groupby("au")[["tp", "fp", "fn"]].sum()
    percents = f1_percent(sums["tp"], sums["fp"], sums["fn"])
    named = {f"AU{au}": float(percent) for au, percent in zip(sums.index, percents, strict=True)}
    return {**named, "mean": float(mean_of_defined(percents, axis=0))}


def _start_from(head: nn.Module, run: TrainingRun, weights: Path) -> None:
    """Initialise `head` with the tensors and action units shared with a head of the same settings and test part."""
    tensors = read_tensors(weights, otherwise="pass another run to --init-from")
    source = weights.parent.parent
    record = read_run(source)
    wanted = {"cache": run.cache.fingerprint, "head": run.experiment.head.document()}
    for name, value in wanted.items():
        if record[name] != value:
            raise ConfigError(
                f"cannot start from {source.name}: its {name} is {record[name]}, this run's is {value}; "
                "train a run of the same settings first"
            )
    try:
        if isinstance(head, FanTransHead):
            carry_over(head, tensors, source_aus=record["aus"], aus=run.rules.aus)
        else:
            new = carry_over_by_size(head, tensors)
            if new:
                logger.info("not initialised from %s, since their sizes differ: %s", source.name, ", ".join(new))
    except ValueError as error:
        raise ConfigError(f"cannot start from {source.name}: {error}") from None

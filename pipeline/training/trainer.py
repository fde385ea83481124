"""Train heads on cached features and score each on the part it never saw: any number of heads, one reading.

A fold of a run is a head of its own. All heads of a cache see the same pages; what one learns does not depend on who
learns beside it, nor, on a CPU, on the number of threads. See pipeline/training/runs.py for what lies on disk.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.head import FanTransHead, carry_over
from models.losses import class_weights, total_loss
from pipeline.config import TrainConfig
from pipeline.errors import ConfigError, DataError, DataNotFoundError, TrainingError
from pipeline.protocols import train_parts
from pipeline.runtime.atomic import write_atomically, write_bytes_atomically
from pipeline.runtime.broadcast import broadcast
from pipeline.runtime.device import checked_device, exact_convolutions
from pipeline.runtime.progress import ProgressCallback, track
from pipeline.tables import write_table
from pipeline.training.export import write_deployed
from pipeline.training.loader import Batch, CachedFrames, HeadBatches, Page, TrainingPages
from pipeline.training.predict import count, predict
from pipeline.training.runs import (
    CHECKPOINT_NAME,
    COUNTS_NAME,
    DEPLOYED_NAME,
    HEAD_NAME,
    PREDICTIONS_NAME,
    RESULT_NAME,
    TrainingRun,
    fold_folder,
    fold_parts,
    head_shape,
    read_run,
    resolve_runs,
    write_record,
)

# B frames, A action units

logger = logging.getLogger("fantrans")

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def train_folds(
    config: str,
    *,
    dataset: str,
    base: str | None = None,
    parts: list[str] | None = None,
    init_from: str | None = None,
    device: str = "cpu",
) -> list[Path]:
    """Train and score what is not done yet of an experiment, or of a set's; returns the runs' folders.

    base: the experiment that a set's members change; default: the data set's. parts: what to test; default: the
    experiment's. `init_from` names a run whose heads of the same test parts are the start, as DISFA's are from BP4D's
    (paper 4.1).
    """
    runs = resolve_runs(config, dataset=dataset, base=base, init_from=init_from)
    train_heads([(run, part) for run in runs for part in fold_parts(run, parts)], device=device)
    return [run.folder for run in runs]


def train_heads(folds: Sequence[tuple[TrainingRun, str]], *, device: str = "cpu") -> float:
    """Train and score folds, each given by its run and the part that it tests; returns the share of time spent waiting.

    Folds that are done are left as they are; killed ones go on after their last whole epoch, to the same weights. Each
    cache is read once for all of its heads. Raises `DataError` or `ConfigError` before the first step; and at the end
    `TrainingError` for heads whose loss went out of bounds, while the others are trained all the same.
    """
    checked_device(device)
    tune_allocator()
    for run, _ in folds:
        head_shape(run)  # before the first record is written
    readings: dict[tuple[Path, int, int], list[HeadTraining]] = {}
    for run, part in {run.fold_folder(part): (run, part) for run, part in folds}.values():
        if not run.is_done(part):
            reading = (run.cache.folder, run.cache.revision, run.experiment.cache.views.num_views)
            readings.setdefault(reading, []).append(HeadTraining.start(run, part, device))
    shares = [_train_together(heads, device) for heads in readings.values()]
    faults = [head.fault for heads in readings.values() for head in heads if head.fault is not None]
    if faults:
        raise TrainingError(f"{'; '.join(faults)}; the other heads are done")
    return max(shares, default=0.0)


def _train_together(heads: list[HeadTraining], device: str) -> float:
    run = heads[0].run
    num_missing = int((~run.frames["frame_id"].isin(run.cache.index["frame_id"])).sum())
    if num_missing:
        logger.info(
            "%d of %d frames are not in the cache (no face, unreadable): heads neither learn from them nor are "
            "scored on them",
            num_missing,
            len(run.frames),
        )
    parts = {part for head in heads for part in train_parts(head.test_part)}
    pages = TrainingPages(
        run.cache, run.frames, parts=parts, num_views=run.experiment.cache.views.num_views, device=device
    )
    first = min(head.num_epochs_done for head in heads)
    end = max(head.settings.num_epochs for head in heads)
    num_threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    names = f"fold {heads[0].test_part}" if len(heads) == 1 else f"{len(heads)} heads"
    num_before = sum(head.num_epochs_done * head.num_epoch_frames for head in heads)
    total = sum(head.settings.num_epochs * head.num_epoch_frames for head in heads)
    with (
        exact_convolutions(),
        track(f"train {names}", total=total, unit="frames", num_before=num_before) as step,
        closing(pages.epochs(first, end)) as coming,
    ):
        share = broadcast(coming, [partial(head.train_on_page, step=step) for head in heads], num_threads=num_threads)
    killed_at_the_end = [head for head in heads if head.fault is None and not head.run.is_done(head.test_part)]
    broadcast([None], [partial(_finish, head) for head in killed_at_the_end], num_threads=num_threads)
    logger.info("train %s: %.1f %% of the time spent waiting for data", names, 100 * share)
    return share


def _finish(head: HeadTraining, _: None) -> None:
    head.finish()


def tune_allocator() -> None:
    """Have glibc keep what it frees, in one place for all threads.

    Giving each step's buffers back to the kernel costs a fifth of CPU training.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def learning_rate(settings: TrainConfig, *, step: int, num_steps: int, steps_an_epoch: int) -> float:
    """Learning rate of a step.

    "step" drops by `lr_decay` after every `lr_step_epochs`; "one_cycle" rises linearly for a tenth of the steps, then
    falls to zero on a half cosine.
    """
    if settings.schedule == "step":
        return settings.lr * settings.lr_decay ** (step // steps_an_epoch // settings.lr_step_epochs)
    num_rising = max(1, num_steps // 10)
    if step < num_rising:
        return settings.lr * (step + 1) / num_rising
    fraction = (step - num_rising) / max(1, num_steps - num_rising)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * fraction))


@dataclass
class HeadTraining:
    """One fold's head on its way through the epochs; saved after each."""

    run: TrainingRun
    test_part: str
    device: str
    head: FanTransHead
    batches: HeadBatches
    weights_A: Tensor
    optimiser: torch.optim.Optimizer
    history: list[dict[str, float]] = field(default_factory=list)
    fault: str | None = None
    """Why it learns no more, in a sentence."""
    _epoch: list[Tensor] = field(default_factory=list)
    """Losses (3,) of the steps of the epoch so far, on the device: reading them would make it wait."""
    _seconds: float = 0.0

    @classmethod
    def start(cls, run: TrainingRun, test_part: str, device: str) -> HeadTraining:
        """A head at its beginning, or where its checkpoint left off."""
        settings = run.experiment.train
        frames = CachedFrames(
            run.cache, run.frames, aus=run.rules.aus, parts=train_parts(test_part), at_least=settings.batch_size
        )
        try:
            weights_A = class_weights(torch.from_numpy(frames.labels_NA), aus=run.rules.aus).to(device)
        except ValueError as error:
            raise DataError(str(error)) from None
        torch.manual_seed(settings.seed)
        head = FanTransHead(head_shape(run))
        if run.init_from is not None:
            _start_from(head, run, fold_folder(run.init_from, test_part) / HEAD_NAME)
        head = head.to(device)
        optimiser = torch.optim.AdamW(
            head.parameters(), lr=settings.lr, betas=(0.9, 0.999), weight_decay=settings.weight_decay, fused=True
        )
        batches = HeadBatches(run.cache, frames, batch_size=settings.batch_size, seed=settings.seed)
        write_record(run)
        training = cls(run, test_part, device, head, batches, weights_A, optimiser)
        if training.checkpoint.is_file():
            state = torch.load(training.checkpoint, map_location=device, weights_only=True)
            head.load_state_dict(state["head"])
            optimiser.load_state_dict(state["optimiser"])
            training.history = state["history"]
        return training

    @property
    def settings(self) -> TrainConfig:
        """How it is trained."""
        return self.run.experiment.train

    @property
    def checkpoint(self) -> Path:
        """Where its state is kept between epochs."""
        return self.run.fold_folder(self.test_part) / CHECKPOINT_NAME

    @property
    def num_epochs_done(self) -> int:
        """Whole epochs behind it."""
        return len(self.history)

    @property
    def num_epoch_frames(self) -> int:
        """Frames that it sees in an epoch."""
        return self.batches.num_batches * self.settings.batch_size

    def train_on_page(self, page: Page, *, step: ProgressCallback) -> None:
        """Learn from a page's frames, if its epoch is still to come; save after the epoch, score after the last."""
        if self.fault or page.epoch != self.num_epochs_done or page.epoch >= self.settings.num_epochs:
            return
        started = time.monotonic()
        self.head.train()
        if page.number == 0:
            self._epoch, self._seconds = [], 0.0
        for batch in self.batches.from_page(page):
            self._epoch.append(self._learn(batch))
            step(len(batch.labels_BA))
        self._seconds += time.monotonic() - started
        if page.is_last:
            self._end_epoch()
            if self.fault is None and self.num_epochs_done == self.settings.num_epochs:
                self.finish()

    def _learn(self, batch: Batch) -> Tensor:
        """One step; returns its losses (3,): total, classification, distillation."""
        settings = self.settings
        lr = self._learning_rate()
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=settings.precision == "bf16"):
            f_c_BDHW = self.head.forward_features(batch.features)
        output = self.head.forward_head(f_c_BDHW.float())
        terms = total_loss(
            output,
            batch.labels_BA,
            self.weights_A,
            kd_weight=settings.kd_weight,
            kd_form=settings.kd_form,
            kd_temperature=settings.kd_temperature,
        )
        self.optimiser.zero_grad(set_to_none=True)
        terms.total.backward()
        self.optimiser.step()
        return torch.stack(terms).detach()

    def _learning_rate(self) -> float:
        an_epoch = self.batches.num_batches
        return learning_rate(
            self.settings,
            step=self.num_epochs_done * an_epoch + len(self._epoch),
            num_steps=self.settings.num_epochs * an_epoch,
            steps_an_epoch=an_epoch,
        )

    def _end_epoch(self) -> None:
        means = torch.stack(self._epoch).double().mean(0).tolist()
        if not math.isfinite(means[0]):
            self.fault = (
                f"{self.run.experiment.name}, fold {self.test_part}: the loss of epoch "
                f"{self.num_epochs_done + 1} is {means[0]}; lower `train.lr`, or train in fp32"
            )
            return
        named = dict(zip(("loss", "loss_cls", "loss_kd"), means, strict=True))
        lr = self.optimiser.param_groups[0]["lr"]
        self.history.append({"epoch": self.num_epochs_done, **named, "lr": lr, "seconds": self._seconds})
        state = {"head": self.head.state_dict(), "optimiser": self.optimiser.state_dict(), "history": self.history}
        write_atomically(self.checkpoint, lambda temp: torch.save(state, temp))

    def finish(self) -> None:
        """Weights and predictions first, `result.json` last: it is what marks the fold as done."""
        run, folder = self.run, self.run.fold_folder(self.test_part)
        deployed = self.head.deployed()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.head.state_dict().items()}
        write_atomically(folder / HEAD_NAME, lambda temp: save_file(tensors, temp))
        write_deployed(
            folder / DEPLOYED_NAME,
            deployed,
            aus=run.rules.aus,
            features=run.cache.document["features"],
            averages_flip=self.settings.averages_flip,
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
        write_table(folder / PREDICTIONS_NAME, predictions)
        write_table(folder / COUNTS_NAME, count(predictions, aus=run.rules.aus, test_part=self.test_part))
        result = {
            "test_part": self.test_part,
            "device": torch.device(self.device).type,
            "num_train_frames": len(self.batches.frames.rows),
            "num_test_frames": len(predictions),
            "num_test_frames_missing": int((run.frames["part"] == self.test_part).sum()) - len(predictions),
            "class_weights": self.weights_A.tolist(),
            "history": self.history,
        }
        write_bytes_atomically(folder / RESULT_NAME, json.dumps(result, indent=2).encode())
        self.checkpoint.unlink(missing_ok=True)
        logger.info(
            "%s, fold %s: %d epochs in %.0f s, loss %.3f, %d frames scored",
            folder.parent.name,
            self.test_part,
            len(self.history),
            sum(each["seconds"] for each in self.history),
            self.history[-1]["loss"],
            len(predictions),
        )


def _start_from(head: FanTransHead, run: TrainingRun, weights: Path) -> None:
    """Copy what two protocols share from a head of the same settings that was trained for the same test part."""
    if not weights.is_file():
        raise DataNotFoundError(
            f"{weights} does not exist; train that fold first, or name another run with --init-from"
        )
    source = weights.parent.parent
    record = read_run(source)
    wanted = {"cache": run.cache.fingerprint, "head": run.experiment.head.model_dump()}
    for name, value in wanted.items():
        if record[name] != value:
            raise ConfigError(
                f"cannot start from {source.name}: its {name} is {record[name]}, this run's is {value}; "
                "train a run of the same settings first"
            )
    try:
        carry_over(head, load_file(weights), source_aus=record["aus"], aus=run.rules.aus)
    except ValueError as error:
        raise ConfigError(f"cannot start from {source.name}: {error}") from None

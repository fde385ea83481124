"""Train a head per fold on cached features and score it on the part it never saw.

    runs/{experiment}-{dataset}-{run fingerprint}/
        run.json                 resolved settings, seeds, versions, cache fingerprint and revision
        fold-P1/checkpoint.pt    state after the last whole epoch, gone once the fold is done
        fold-P1/head.safetensors, deployed.safetensors
        fold-P1/predictions.parquet, counts.parquet
        fold-P1/result.json      history and sizes; written last, so a fold that has it is done
"""

from __future__ import annotations

import ctypes
import json
import math
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.head import INPUT_MAPS, FanTransHead, HeadShape, carry_over
from models.losses import class_weights, total_loss
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.catalog import Catalog, load_catalog
from pipeline.config import ExperimentConfig, TrainConfig, load_experiment
from pipeline.device import checked_device
from pipeline.errors import CacheError, ConfigError, DataError
from pipeline.evaluate import count, predict
from pipeline.files import file_sha256, write_atomically, write_bytes_atomically
from pipeline.fingerprint import cache_fingerprint, fingerprint
from pipeline.folds import check_subject_exclusive, train_parts
from pipeline.frames import FILE_NAME, read_index
from pipeline.loader import CachedBatches
from pipeline.progress import Step, track
from pipeline.protocols import PARTS, Protocol
from pipeline.records import write_table

# B frames, A action units

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One experiment on one revision of one cache, and where its results go."""

    experiment: ExperimentConfig
    dataset: str
    rules: Protocol
    frames: pd.DataFrame
    cache: CacheReader
    folder: Path
    init_from: Path | None
    """Folder of a run whose heads, part by part, are the start."""

    def fold_folder(self, test_part: str) -> Path:
        """Where the fold that tests `test_part` goes."""
        return self.folder / f"fold-{test_part}"

    def is_done(self, test_part: str) -> bool:
        """Whether a fold's result stands."""
        return (self.fold_folder(test_part) / "result.json").is_file()


def prepare_run(
    config: str, *, dataset: str, init_from: str | None = None, catalog: Catalog | None = None
) -> TrainingRun:
    """Pin the cache's newest revision and name the run by everything that decides its result.

    Raises `CacheError` when the data set has no cache of the experiment's settings, `DataError` when subjects cross
    parts.
    """
    catalog = catalog or load_catalog()
    experiment = load_experiment(config)
    entry = catalog.dataset(dataset)
    frames = read_index(catalog.work_of(dataset), dataset=dataset, config=experiment.name)
    check_subject_exclusive(frames)
    folder = catalog.caches_of(dataset) / cache_fingerprint(experiment.cache, catalog)
    if not folder.is_dir():
        raise CacheError(
            f"{dataset} has no cache of the settings in {experiment.name} ({folder} is not there); "
            f"run `fantrans refresh {dataset} --config {experiment.name}`"
        )
    cache, num_views = open_cache(folder), experiment.cache.views.num_views
    if cache.num_views < num_views:
        raise CacheError(
            f"{folder} has {cache.num_views} views, {experiment.name} trains on {num_views}; "
            f"run `fantrans refresh {dataset} --config {experiment.name}`, or set `cache: {{views: {{num_views}}}}`"
        )
    plain, _ = INPUT_MAPS[experiment.head.input_features]
    cache.codec.check_serves(plain=plain, experiment=experiment.name)
    document = {
        "head": experiment.head.model_dump(),
        "train": experiment.train.model_dump(),
        "cache": cache.fingerprint,
        "index": cache.manifest["index"]["sha256"],
        "num_views": num_views,
        "labels": file_sha256(catalog.work_of(dataset) / FILE_NAME),
        "aus": list(entry.rules.aus),
        "init_from": init_from,
    }
    name = f"{experiment.name}-{dataset}-{fingerprint(document)}"
    run = TrainingRun(experiment=experiment, dataset=dataset, rules=entry.rules, frames=frames, cache=cache,
                      folder=catalog.roots.runs / name, init_from=catalog.roots.runs / init_from if init_from else None)
    _write_run(run, document | {"revision": cache.revision})
    return run


def finished_run(config: str, *, dataset: str) -> TrainingRun | None:
    """The experiment's run on the newest cache and labels if all its folds are done; None if anything is missing."""
    try:
        run = prepare_run(config, dataset=dataset)
    except (CacheError, DataError):
        return None
    return run if all(run.is_done(part) for part in run.experiment.parts) else None


def train_folds(
    config: str,
    *,
    dataset: str,
    parts: list[str] | None = None,
    init_from: str | None = None,
    device: str = "cpu",
) -> Path:
    """Train and score the folds that test `parts` (default: the experiment's); returns the run's folder.

    `init_from` names a run whose heads of the same test parts are the start, as DISFA's are from BP4D's (paper 4.1).
    """
    run = prepare_run(config, dataset=dataset, init_from=init_from)
    for part in fold_parts(run, parts):
        train_fold(run, part, device=device)
    return run.folder


def fold_parts(run: TrainingRun, parts: list[str] | None) -> tuple[str, ...]:
    """The asked-for test parts, or the experiment's; `DataError` for an unknown one."""
    unknown = sorted(set(parts or ()) - set(PARTS))
    if unknown:
        raise DataError(f"there is no part {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    return tuple(parts) if parts else run.experiment.parts


def train_fold(run: TrainingRun, test_part: str, *, device: str = "cpu") -> Path:
    """Train on the parts other than `test_part`, score on it; returns the fold's folder.

    A fold that is done is left as it is; a killed one goes on after its last whole epoch, to the same weights.
    """
    folder = run.fold_folder(test_part)
    checked_device(device)
    if run.is_done(test_part):
        return folder
    settings = run.experiment.train
    torch.manual_seed(settings.seed)
    keep_freed_memory()
    batches = CachedBatches(
        run.cache, run.frames, aus=run.rules.aus, parts=train_parts(test_part), batch_size=settings.batch_size,
        seed=settings.seed, device=device, is_training=True, num_views=run.experiment.cache.views.num_views,
    )
    head = FanTransHead(head_shape(run))
    if run.init_from is not None:
        _start_from(head, run, run.init_from / f"fold-{test_part}" / "head.safetensors")
    head = head.to(device)
    fold = _Fold.start(head, batches, settings, folder / "checkpoint.pt", device, run.rules.aus)
    num_frames = batches.num_batches * settings.batch_size * settings.num_epochs
    with track(f"train fold {test_part}", total=num_frames, unit="frames") as step:
        step(fold.num_epochs_done * batches.num_batches * settings.batch_size)
        while fold.num_epochs_done < settings.num_epochs:
            fold.train_epoch(step)
    _write_result(run, test_part, fold, device)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return folder


def keep_freed_memory() -> None:
    """Have glibc keep what it frees: giving each step's buffers back to the kernel costs a fifth of CPU training."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def head_shape(run: TrainingRun) -> HeadShape:
    """The head's sizes: the experiment's settings on the cache's maps and the protocol's action units.

    Raises `ConfigError` for settings that no head can be built from.
    """
    try:
        return HeadShape(fan_width=run.cache.num_channels, map_size=run.cache.map_size, num_aus=len(run.rules.aus),
                         **run.experiment.head.model_dump())
    except ValueError as error:
        raise ConfigError(f"experiment {run.experiment.name}: {error}") from None


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
class _Fold:
    """State of one fold's training, saved after each epoch."""

    head: FanTransHead
    batches: CachedBatches
    settings: TrainConfig
    checkpoint: Path
    weights_A: Tensor
    optimiser: torch.optim.Optimizer
    history: list[dict[str, float]]

    @classmethod
    def start(
        cls,
        head: FanTransHead,
        batches: CachedBatches,
        settings: TrainConfig,
        checkpoint: Path,
        device: str,
        aus: tuple[int, ...],
    ) -> _Fold:
        """A fold at its beginning, or where its checkpoint left off."""
        optimiser = torch.optim.AdamW(
            head.parameters(), lr=settings.lr, betas=(0.9, 0.999), weight_decay=settings.weight_decay, fused=True
        )
        try:
            weights_A = class_weights(torch.from_numpy(batches.labels_NA), aus=aus).to(device)
        except ValueError as error:
            raise DataError(str(error)) from None
        fold = cls(head, batches, settings, checkpoint, weights_A, optimiser, [])
        if checkpoint.is_file():
            state = torch.load(checkpoint, map_location=device, weights_only=True)
            head.load_state_dict(state["head"])
            optimiser.load_state_dict(state["optimiser"])
            fold.history = state["history"]
        return fold

    @property
    def num_epochs_done(self) -> int:
        return len(self.history)

    def train_epoch(self, progress: Step) -> None:
        """One pass over the training frames, in the view that this epoch's number selects."""
        settings, epoch = self.settings, self.num_epochs_done
        started = time.monotonic()
        sums = {"loss": 0.0, "loss_cls": 0.0, "loss_kd": 0.0}
        self.head.train()
        for i, batch in enumerate(self.batches.epoch(epoch)):
            lr = learning_rate(
                settings, step=epoch * self.batches.num_batches + i,
                num_steps=settings.num_epochs * self.batches.num_batches, steps_an_epoch=self.batches.num_batches,
            )
            for group in self.optimiser.param_groups:
                group["lr"] = lr
            terms = total_loss(
                self.head(batch.features), batch.labels_BA, self.weights_A, kd_weight=settings.kd_weight,
                kd_form=settings.kd_form, kd_temperature=settings.kd_temperature,
            )
            self.optimiser.zero_grad(set_to_none=True)
            terms.total.backward()
            self.optimiser.step()
            for name, value in zip(sums, terms, strict=True):
                sums[name] += float(value.detach())
            progress(len(batch.labels_BA))
        means = {name: value / self.batches.num_batches for name, value in sums.items()}
        self.history.append({"epoch": epoch, **means, "lr": lr, "seconds": time.monotonic() - started})
        state = {"head": self.head.state_dict(), "optimiser": self.optimiser.state_dict(), "history": self.history}
        write_atomically(self.checkpoint, lambda temp: torch.save(state, temp))


def _write_result(run: TrainingRun, test_part: str, fold: _Fold, device: str) -> None:
    """Weights and predictions first, `result.json` last: it is what marks the fold as done."""
    folder = run.fold_folder(test_part)
    deployed = fold.head.deployed()
    _save_weights(folder / "head.safetensors", fold.head)
    _save_weights(folder / "deployed.safetensors", deployed)
    predictions = predict(
        deployed, run.cache, run.frames, aus=run.rules.aus, test_part=test_part, device=device,
        averages_flip=run.experiment.train.averages_flip,
    )
    write_table(folder / "predictions.parquet", predictions)
    write_table(folder / "counts.parquet", count(predictions, aus=run.rules.aus, test_part=test_part))
    result = {
        "test_part": test_part,
        "num_train_frames": len(fold.batches.labels_NA),
        "num_test_frames": len(predictions),
        "num_test_frames_missing": int((run.frames["part"] == test_part).sum()) - len(predictions),
        "class_weights": fold.weights_A.tolist(),
        "history": fold.history,
    }
    write_bytes_atomically(folder / "result.json", json.dumps(result, indent=2).encode())


def _start_from(head: FanTransHead, run: TrainingRun, weights: Path) -> None:
    """Copy what two protocols share from a head of the same settings that was trained for the same test part."""
    path = weights.parent.parent / "run.json"
    if not weights.is_file() or not path.is_file():
        raise DataError(f"{weights} is not there; train that fold first, or name another run with --init-from")
    record = json.loads(path.read_bytes())
    wanted = {"cache": run.cache.fingerprint, "head": run.experiment.head.model_dump()}
    for name, value in wanted.items():
        if record[name] != value:
            raise ConfigError(
                f"cannot start from {path.parent.name}: its {name} is {record[name]}, this run's is {value}; "
                "train a run of the same settings first"
            )
    try:
        carry_over(head, load_file(weights), source_aus=record["aus"], aus=run.rules.aus)
    except ValueError as error:
        raise ConfigError(f"cannot start from {path.parent.name}: {error}") from None


def _save_weights(path: Path, module: nn.Module) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    write_atomically(path, lambda temp: save_file(tensors, temp))


def _write_run(run: TrainingRun, document: dict[str, Any]) -> None:
    """`run.json`, once: what the run's name stands for, and with which versions it started."""
    path = run.folder / "run.json"
    if path.is_file():
        return
    record = {
        "experiment": run.experiment.name,
        "dataset": run.dataset,
        "protocol": run.rules.name,
        **document,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    write_bytes_atomically(path, json.dumps(record, indent=2).encode())

"""Train any number of heads on cached features in one pass over each cache, and score each on its held-out part.

Each fold of a run has its own head. All heads of a cache read the same pages; the weights of a head depend neither on
the heads trained beside it nor, on a CPU, on the number of threads. pipeline/training/run_files.py lists the files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import torch

from pipeline.catalog import load_catalog
from pipeline.errors import DataError, StoreError, TrainingError, WeightsError
from pipeline.protocols import train_parts
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.broadcast import broadcast
from pipeline.runtime.device import checked_device, exact_convolutions
from pipeline.runtime.progress import track
from pipeline.runtime.text import join_first
from pipeline.training.epoch_log import EpochLog
from pipeline.training.head_training import HeadTraining
from pipeline.training.heads import build_head
from pipeline.training.live_page import LivePages
from pipeline.training.loader import TrainingPages
from pipeline.training.run_lock import training_locks
from pipeline.training.runs import FeatureOpener, TrainingRun, fold_parts, resolve_runs
from pipeline.training.tracking import Tracking

logger = logging.getLogger("fantrans")


def train_folds(
    experiment: str,
    *,
    dataset: str,
    base: str | None = None,
    parts: list[str] | None = None,
    init_from: str | None = None,
    overrides: Sequence[str] = (),
    device: str = "cpu",
    open_features: FeatureOpener | None = None,
) -> list[Path]:
    """Train and score the unfinished folds of an experiment or of a set's experiments; return the runs' folders.

    base: the experiment that the members of a set change; default: that of the data set. parts: parts to test; default:
    those of the experiment. init_from: a run whose heads of the same test parts initialise these, as the paper does for
    DISFA from BP4D (4.1). overrides: settings KEY=VALUE, see `experiments.load_set`. open_features: what
    is read in place of caches, see `Runs`. Raises what `resolve_runs` and `train_heads` raise.
    """
    runs = resolve_runs(
        experiment,
        dataset=dataset,
        base=base,
        init_from=init_from,
        overrides=overrides,
        open_features=open_features,
    )
    folds = [(run, part) for run in runs for part in fold_parts(run, parts)]
    train_heads(folds, device=device, tracking=load_catalog().tracking)
    return [run.folder for run in runs]


def train_heads(folds: Sequence[tuple[TrainingRun, str]], *, device: str = "cpu", tracking: str = "none") -> float:
    """Train and score folds, given by run and test part; return the share of time (0..1) spent waiting for data.

    Finished folds are skipped; interrupted ones resume after their last finished epoch, to the same weights. Each cache
    is read once for all of its heads. Raises `ConfigError` before the first step. A fold whose frames, labels or files
    cannot train a head is left out, and a head whose loss is not finite stops; the others are finished, then
    `TrainingError` names the folds that are not. tracking: where losses and scores are logged beside the run's files,
    see pipeline/training/tracking.py.
    """
    checked_device(device)
    tracked = Tracking(tracking)
    tune_allocator()
    for run in {run.folder: run for run, _ in folds}.values():
        build_head(run)  # raises before the first record is written
    readings: dict[tuple[Path, int, int], list[HeadTraining]] = {}
    faults: list[tuple[TrainingRun, str, str]] = []
    unfinished = {run.fold_folder(part): (run, part) for run, part in folds if not run.is_fold_finished(part)}
    with training_locks(run.folder for run, _ in unfinished.values()), ExitStack() as open_trackings:
        for fold, (run, part) in unfinished.items():
            reading = (run.cache.folder, run.cache.revision, run.experiment.cache.views.num_views)
            try:
                head = HeadTraining.start(run, part, device)
            except (DataError, StoreError, WeightsError) as error:
                faults.append((run, part, str(error)))
                continue
            readings.setdefault(reading, []).append(head)
            head.tracking = tracked.open(fold, part)
            open_trackings.callback(head.tracking.close)
        started = [head for heads in readings.values() for head in heads]
        warnings = [(head.run, head.test_part, head.warning) for head in started if head.warning is not None]
        for line in _by_sentence(warnings):
            logger.warning("%s", line)
        for line in _by_sentence(faults) if started else ():
            logger.warning("not trained: %s", line)
        shares = [_train_together(heads, device) for heads in readings.values()]
    faults += [(head.run, head.test_part, head.fault) for head in started if head.fault is not None]
    if faults:
        raise TrainingError(f"{'; '.join(_by_sentence(faults))} ({_finished(folds)})")
    return max(shares, default=0.0)


def _finished(folds: Sequence[tuple[TrainingRun, str]]) -> str:
    """Return how many folds are finished, and the command that shows them."""
    names = [run.folder.name for run, part in folds if run.is_fold_finished(part)]
    command = {0: "", 1: f"; `fantrans report {names[0] if names else ''}` prints their F1"}.get(
        len(set(names)), "; `fantrans runs ls` lists their runs"
    )
    return f"{len(names)} of {len(folds)} folds are finished{command}"


def _by_sentence(said: Iterable[tuple[TrainingRun, str, str]]) -> list[str]:
    """Return one line per sentence, with the folds that it is about: those of one data set have their frames in common.

    said: runs, the parts that their folds test, and sentences.
    """
    parts: dict[str, dict[str, dict[str, None]]] = {}
    for run, part, sentence in said:
        parts.setdefault(sentence, {}).setdefault(run.experiment.name, {})[part] = None
    lines = []
    for sentence, by_name in parts.items():
        names = [f"{name}, fold{'s' * (len(of_name) > 1)} {', '.join(of_name)}" for name, of_name in by_name.items()]
        lines.append(f"{join_first(names, 5, separator='; ')}: {sentence}")
    return lines


def _train_together(heads: list[HeadTraining], device: str) -> float:
    run = heads[0].run
    if run.gaps is not None:
        logger.info("heads are trained and scored on %s; the others have no features", run.gaps)
    parts = {part for head in heads for part in train_parts(head.test_part)}
    pages = TrainingPages(
        run.cache, run.frames, parts=parts, num_views=run.experiment.cache.views.num_views, device=device
    )
    first = min(head.num_epochs_done for head in heads)
    end = max(head.settings.num_epochs for head in heads)
    num_threads = num_head_threads(device)
    names = f"fold {heads[0].test_part}" if len(heads) == 1 else f"{len(heads)} heads"
    epochs = EpochLog({_name_among(head, heads): head for head in heads})
    for head in heads:
        head.on_epoch = partial(epochs.on_epoch, _name_among(head, heads))
    num_before = sum(head.num_epochs_done * head.num_epoch_frames for head in heads)
    total = sum(head.settings.num_epochs * head.num_epoch_frames for head in heads)
    with LivePages(heads):
        with (
            exact_convolutions(),
            track(
                f"train {names}", total=total, unit="frames", num_before=num_before, below=epochs.lines
            ) as on_progress,
            closing(pages.epochs(first, end)) as coming,
        ):
            share = broadcast(
                coming,
                [partial(head.train_on_page, on_progress=on_progress) for head in heads],
                num_threads=num_threads,
            )
        before = [head for head in heads if head.fault is None and not head.run.is_fold_finished(head.test_part)]
        broadcast([None], [partial(_finish, head) for head in before], num_threads=num_threads)
    logger.info("train %s: %.1f %% of the time spent waiting for data", names, 100 * share)
    return share


def num_head_threads(device: str) -> int:
    """Return how many heads of a reading learn at once."""
    return torch.get_num_threads() if torch.device(device).type == "cpu" else 1


def _name_among(head: HeadTraining, heads: Sequence[HeadTraining]) -> str:
    """Return the name of a head among those that train with it: its fold, and its run if there are several."""
    is_one_run = all(other.run.folder == head.run.folder for other in heads)
    return f"fold {head.test_part}" if is_one_run else f"{head.run.folder.name}, fold {head.test_part}"


def _finish(head: HeadTraining, _: None) -> None:
    head.finish()

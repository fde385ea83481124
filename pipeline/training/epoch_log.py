"""Losses and training F1 while heads train: one line per epoch in the log, and short curves for a terminal."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

logger = logging.getLogger("fantrans")

MAX_LOGGED_ALONE = 6
"""Up to this number of heads, each logs its own epochs; more heads share one line per epoch."""

_BESIDE = 14
"""Greatest number of bars per curve where two stand beside each other: both fit 80 characters."""
_BARS = "▁▂▃▄▅▆▇█"


class TrainedHead(Protocol):
    """What the log needs of a head in training."""

    @property
    def num_epochs(self) -> int:
        """Number of epochs that it trains for."""

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """Losses, learning rate and training F1, one entry per finished epoch; the last may be missing."""

    @property
    def fault(self) -> str | None:
        """Why the head has stopped; None while it trains."""


class EpochLog:
    """Log of the losses of heads that train together, by name; `on_epoch` may be called from several threads.

    Up to `MAX_LOGGED_ALONE` heads log one line each per epoch. More heads log one line once all that still train have
    finished the epoch.
    """

    def __init__(self, heads: Mapping[str, TrainedHead]) -> None:
        self._heads = dict(heads)
        self._lock = threading.Lock()
        self._num_logged = self._num_finished_by_all()

    def on_epoch(self, name: str) -> None:
        """Log the newest epoch of a head, or of all heads if there are many."""
        if len(self._heads) <= MAX_LOGGED_ALONE:
            logger.info("%s, %s", name, _epoch_line(self._heads[name]))
            return
        with self._lock:
            num_finished = self._num_finished_by_all()
            for epoch in range(self._num_logged, num_finished):
                logger.info("%s", self._summary(epoch))
            self._num_logged = max(self._num_logged, num_finished)

    def lines(self) -> str:
        """Return the lines for a terminal: one per head with its curve, or one for many heads."""
        if len(self._heads) <= MAX_LOGGED_ALONE:
            return "\n".join(
                f"{name}: epoch {len(head.history)} of {head.num_epochs}  {_curve(head)}"
                for name, head in self._heads.items()
            )
        num_finished = self._num_finished_by_all()
        if num_finished == 0:
            return f"{len(self._heads)} heads, no epoch finished"
        means = [_mean(self._losses(epoch)) for epoch in range(num_finished)]
        return f"{self._summary(num_finished - 1)}  {sparkline(means)}"

    def _num_finished_by_all(self) -> int:
        """The number of epochs that every head has finished, apart from those that have ended or stopped."""
        longest = max(len(head.history) for head in self._heads.values())
        return min(longest if _is_over(head) else len(head.history) for head in self._heads.values())

    def _losses(self, epoch: int) -> list[float]:
        return [head.history[epoch]["loss"] for head in self._heads.values() if len(head.history) > epoch]

    def _summary(self, epoch: int) -> str:
        losses = self._losses(epoch)
        longest = max(head.num_epochs for head in self._heads.values())
        percents = [f1 for head in self._heads.values() for f1 in training_f1(head.history[epoch : epoch + 1])]
        scored = f", training F1 {_mean(percents):.1f}" if len(percents) == len(losses) else ""
        return (
            f"{len(losses)} heads, epoch {epoch + 1} of {longest}: loss {_mean(losses):.3f} on average "
            f"({min(losses):.3f} to {max(losses):.3f}){scored}"
        )


def _is_over(head: TrainedHead) -> bool:
    return head.fault is not None or len(head.history) >= head.num_epochs


def _epoch_line(head: TrainedHead) -> str:
    last = head.history[-1]
    terms = f" (classification {last['loss_cls']:.3f}, distillation {last['loss_kd']:.3f})"
    if not any(epoch["loss_kd"] for epoch in head.history):  # a head of one branch has no distillation
        terms = ""
    scored = "".join(f", training F1 {f1:.1f}" for f1 in training_f1([last]))
    return (
        f"epoch {len(head.history)} of {head.num_epochs}: loss {last['loss']:.3f}{terms}{scored}, lr {last['lr']:.1e}"
    )


def _curve(head: TrainedHead) -> str:
    losses, percents = [entry["loss"] for entry in head.history], training_f1(head.history)
    scored = f"  training F1 {percents[-1]:.1f} {sparkline(percents, width=_BESIDE)}" if percents else ""
    width = {"width": _BESIDE} if percents else {}
    return f"loss {losses[-1]:.3f} {sparkline(losses, **width)}{scored}" if losses else ""


def training_f1(history: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the training F1, in percent, of the epochs that have one."""
    return [entry["f1_train_percent"] for entry in history if "f1_train_percent" in entry]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def sparkline(values: Sequence[float], *, width: int = 24) -> str:
    """Return one bar per value, of the last `width` ones, from the lowest to the highest; "·" for NaN and infinity."""
    values = values[-width:]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "·" * len(values)
    low, span = min(finite), max(finite) - min(finite)
    steps = [(value - low) / span * (len(_BARS) - 1) if span else 0 for value in finite]
    bars = iter(_BARS[round(step)] for step in steps)
    return "".join(next(bars) if math.isfinite(value) else "·" for value in values)

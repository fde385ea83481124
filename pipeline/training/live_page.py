"""A page per run that shows its training while it lasts: RUN/live.html, one file that reloads itself.

A thread writes it, so that a slow disk delays no step, and pauses so long between two writes that they take less than
`MAX_SHARE` of the time. A write that fails is one warning; the training continues. The page reads no tested subject:
its F1 is the one of the batches that are trained on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from pipeline.runtime.atomic import write_bytes_atomically
from pipeline.runtime.text import age_in_words
from pipeline.training.epoch_log import TrainedHead
from pipeline.training.run_files import LIVE_NAME, REPORT_PAGE_NAME
from pipeline.training.runs import TrainingRun

if TYPE_CHECKING:
    from jinja2 import Template

logger = logging.getLogger("fantrans")

EVERY_S = 3.0
"""Least pause between two writes, in seconds; the page reloads itself as often."""
MAX_SHARE = 0.01
"""Greatest share of the time of a training that is spent on writing."""

_TEMPLATES = Path(__file__).with_name("templates")
_WIDTH, _HEIGHT = 420, 150
_MAX_POINTS = 400
_COLOURS = ("ours", "second", "third")


class LiveHead(TrainedHead, Protocol):
    """What the page needs of a head in training."""

    run: TrainingRun
    test_part: str
    machine: Mapping[str, Any]

    @property
    def num_epoch_frames(self) -> int:
        """Number of frames per epoch that are trained on."""

    @property
    def num_trained_frames(self) -> int:
        """Number of frames of all epochs that it has been trained on so far."""


class LivePages:
    """The pages of the runs whose heads train together; written while the context is open, and at its end."""

    def __init__(self, heads: Sequence[LiveHead]) -> None:
        self._heads = list(heads)
        self._started, self._num_before = time.monotonic(), self._num_frames()
        self._is_warned = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=copy_context().run, args=(self._write_until_over,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.write("training" if kind is None else "stopped")

    def _write_until_over(self) -> None:
        template()
        pause_s = 0.0
        while not self._over.wait(pause_s):
            pause_s = pause_after(self.write("training"))

    def write(self, state: str) -> float:
        """Write all pages; return the seconds that it took. state: "training" or "stopped", unless a run is over."""
        started = time.monotonic()
        runs: dict[Path, list[LiveHead]] = {}
        for head in self._heads:
            runs.setdefault(head.run.folder, []).append(head)
        for folder, heads in runs.items():
            try:
                write_bytes_atomically(folder / LIVE_NAME, self._render(heads, state).encode())
            except Exception as error:  # whatever it is, the training is worth more than its page
                if not self._is_warned:
                    logger.warning("the training continues without its live page: %s", error)
                self._is_warned = True
        return time.monotonic() - started

    def _num_frames(self) -> int:
        return sum(head.num_trained_frames for head in self._heads)

    def _render(self, heads: Sequence[LiveHead], state: str) -> str:
        run = heads[0].run
        faults = {head.test_part: head.fault for head in heads if head.fault is not None}
        if all(head.run.is_fold_finished(head.test_part) for head in heads):
            state = "finished"
        elif faults and all(_is_over(head) for head in heads):
            state = "stopped"
        now = datetime.now(UTC)
        return template().render(
            title=f"{run.experiment.name} on {run.dataset}",
            name=run.folder.name,
            state=state,
            faults=faults,
            facts=self._facts(heads) if state == "training" else {},
            machine=describe(heads[0].machine),
            rows=[_row(head) for head in heads],
            charts=[
                chart("Loss", {head.test_part: [each["loss"] for each in head.history] for head in heads}, heads),
                chart("Training F1, in percent", {head.test_part: _percents(head) for head in heads}, heads),
            ],
            num_others=len(self._heads) - len(heads),
            report=REPORT_PAGE_NAME,
            every_s=max(1, round(EVERY_S)),
            written_at=f"{now:%Y-%m-%d %H:%M:%S} UTC",
            written_ms=round(1000 * now.timestamp()),
        )

    def _facts(self, heads: Sequence[LiveHead]) -> dict[str, str]:
        """Return what is known of speed and time left; they are those of all heads that train together."""
        num_trained = self._num_frames()
        total = sum(head.num_epochs * head.num_epoch_frames for head in self._heads)
        rate = (num_trained - self._num_before) / max(time.monotonic() - self._started, 1e-9)
        finished, epochs = min(len(head.history) for head in heads), max(head.num_epochs for head in heads)
        return {
            "epoch": f"{min(finished + 1, epochs)} of {epochs}",
            "frames per second": f"{rate:,.0f}" if rate else "-",
            "time left": age_in_words((total - num_trained) / rate) if rate else "-",
            "done": f"{100 * num_trained / max(total, 1):.0f} %",
        }


@cache
def template() -> Template:
    """Return the page's template, which takes longer to load than a page takes to write."""
    import jinja2  # noqa: PLC0415 - commands that train nothing start without it

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template("live_page.html")


def pause_after(took_s: float) -> float:
    """Return the seconds to wait after a write, so that writing takes at most `MAX_SHARE` of the time."""
    return max(EVERY_S, took_s * (1 / MAX_SHARE - 1))


def describe(machine: Mapping[str, Any]) -> str:
    """Return a machine of `describe_machine` in words: GPU or processor, cores, system."""
    named = [machine.get("gpu") or machine.get("cpu"), machine.get("system")]
    cores = machine.get("num_cores")
    return ", ".join(str(each) for each in (named[0], cores and f"{cores} cores", named[1]) if each)


def chart(title: str, curves: Mapping[str, Sequence[float]], heads: Sequence[LiveHead]) -> dict[str, Any]:
    """Return what the template draws: per curve its points in px, and the ends of both axes.

    curves: one value per epoch by name, NaN where there is none; epochs are counted from 1.
    """
    finite = [value for values in curves.values() for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    span, last = (high - low) or 1.0, max(2, *(head.num_epochs for head in heads))

    def point(epoch: int, value: float) -> str:
        x, y = (epoch - 1) / (last - 1) * _WIDTH, _HEIGHT - (value - low) / span * _HEIGHT
        return f"{x:.1f},{y:.1f}"

    def points(values: Sequence[float]) -> list[str]:
        step = max(1, math.ceil(len(values) / _MAX_POINTS))
        kept = [i for i in range(len(values)) if i % step == 0 or i == len(values) - 1]
        return [point(i + 1, values[i]) for i in kept if math.isfinite(values[i])]

    return {
        "title": title,
        "curves": [
            {"name": name, "points": points(values), "colour": _COLOURS[i % len(_COLOURS)]}
            for i, (name, values) in enumerate(curves.items())
        ],
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "last": last,
        "is_empty": not finite,
        "width": _WIDTH,
        "height": _HEIGHT,
    }


def _percents(head: LiveHead) -> list[float]:
    return [each.get("f1_train_percent", math.nan) for each in head.history]


def _is_over(head: LiveHead) -> bool:
    return head.fault is not None or head.run.is_fold_finished(head.test_part)


def _row(head: LiveHead) -> list[str]:
    """Return the cells of a fold: part, epoch, loss, its terms, training F1, learning rate, seconds per epoch."""
    epoch = f"{len(head.history)} of {head.num_epochs}"
    if not head.history:
        return [head.test_part, epoch, *["-"] * 6]
    last = head.history[-1]
    percent = last.get("f1_train_percent", math.nan)
    return [
        head.test_part,
        epoch,
        *(f"{last[name]:.3f}" for name in ("loss", "loss_cls", "loss_kd")),
        f"{percent:.1f}" if math.isfinite(percent) else "-",
        f"{last['lr']:.1e}",
        f"{last['seconds']:.1f}",
    ]

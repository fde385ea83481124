"""Progress with rate and time left: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

logger = logging.getLogger("fantrans")

LOG_EVERY_S = 10.0


class ProgressCallback(Protocol):
    """What is told of work as it finishes."""

    def __call__(self, num_done: int, piece: str = "") -> None:
        """So many more items are done, and they end the piece of work of that name, if any."""


def no_progress(num_done: int, piece: str = "") -> None:
    """A `ProgressCallback` that nobody hears."""


Listener = Callable[[str, float], None]
"""Told, now and then, of a stage: its description, and the percentage that is done."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def progress_listener(listener: Listener) -> Iterator[None]:
    """Have `listener` told of all that is tracked inside, from whichever thread does the work."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f} {task.fields['unit']}/s" if speed else "", style="cyan")


@contextmanager
def track(description: str, *, total: int, unit: str, num_before: int = 0) -> Iterator[ProgressCallback]:
    """Yield a `ProgressCallback`, to be called as work finishes; `num_before` of the `total` were done before.

    On a terminal: a bar with count, rate and time left on stderr. Elsewhere: a log line for each piece of work that has
    a name, every ten seconds otherwise, and one at the end.
    """
    listener, console = _listener.get(), Console(stderr=True)
    started = said = heard = time.monotonic()
    done = 0

    def rate() -> float:
        return done / max(time.monotonic() - started, 1e-9)

    def step(num_done: int, piece: str = "") -> None:
        nonlocal done, said, heard
        done += num_done
        now = time.monotonic()
        if bar is not None:
            bar.advance(task, num_done)
        elif piece or now - said >= LOG_EVERY_S:
            said = now
            left_s = (total - num_before - done) / rate() if done else float("inf")
            logger.info(
                "%s: %s%d of %d %s, %.1f/s, %.0f s left",
                description,
                piece and f"{piece}; ",
                num_before + done,
                total,
                unit,
                rate(),
                left_s,
            )
        if listener is not None and now - heard >= LOG_EVERY_S:
            heard = now
            listener(description, 100 * (num_before + done) / max(total, 1))

    if listener is not None:
        listener(description, 100 * num_before / max(total, 1))
    with ExitStack() as stack:
        bar = stack.enter_context(_bar(console)) if console.is_terminal else None
        task = TaskID(0) if bar is None else bar.add_task(description, total=total, unit=unit, completed=num_before)
        yield step
    if bar is None:
        logger.info("%s: %d %s in %.0f s, %.1f/s", description, done, unit, time.monotonic() - started, rate())
    if listener is not None:
        listener(description, 100.0)


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)

"""Progress with rate and time left: a bar on a terminal, periodic lines in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Protocol

from rich.console import Console, RenderableType
from rich.logging import RichHandler
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
    """Callback for finished work; parameters and variables of this type are named `on_progress`."""

    def __call__(self, num_done: int, piece: str = "") -> None:
        """Report `num_done` more items; `piece` names the unit of work that they complete, if any."""


def no_progress(num_done: int, piece: str = "") -> None:
    """Ignore the report: a `ProgressCallback` that does nothing."""


Listener = Callable[[str, float], None]
"""Called periodically with a stage's description and the percentage that is done."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def progress_listener(listener: Listener) -> Iterator[None]:
    """Call `listener` for everything that `track` tracks inside, from the thread that does the work."""
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
def track(
    description: str, *, total: int, unit: str, num_before: int = 0, below: Callable[[], str] | None = None
) -> Iterator[ProgressCallback]:
    """Yield a `ProgressCallback` to call as work finishes; `num_before` of `total` were done before.

    A terminal gets a bar with count, rate and time left on stderr, and below it the lines that `below` returns.
    Otherwise a line is logged for each named piece of work, else every ten seconds, and at the end.
    """
    listener, console = _listener.get(), _log_console()
    started = logged_at = reported_at = time.monotonic()
    done = 0

    def rate() -> float:
        return done / max(time.monotonic() - started, 1e-9)

    def on_progress(num_done: int, piece: str = "") -> None:
        nonlocal done, logged_at, reported_at
        done += num_done
        now = time.monotonic()
        if bar is not None:
            bar.advance(task, num_done)
        elif piece or now - logged_at >= LOG_EVERY_S:
            logged_at = now
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
        if listener is not None and now - reported_at >= LOG_EVERY_S:
            reported_at = now
            listener(description, 100 * (num_before + done) / max(total, 1))

    if listener is not None:
        listener(description, 100 * num_before / max(total, 1))
    with ExitStack() as stack:
        is_shown = console.is_terminal and logger.isEnabledFor(logging.INFO)
        bar = stack.enter_context(_bar(console, below)) if is_shown else None
        task = TaskID(0) if bar is None else bar.add_task(description, total=total, unit=unit, completed=num_before)
        yield on_progress
    if bar is None:
        logger.info("%s: %d %s in %.0f s, %.1f/s", description, done, unit, time.monotonic() - started, rate())
    if listener is not None:
        listener(description, 100.0)


def _log_console() -> Console:
    """Return the console that log lines are printed on, which puts them above the bar; else one on stderr."""
    handlers = (handler for handler in logging.getLogger().handlers if isinstance(handler, RichHandler))
    return next((handler.console for handler in handlers), Console(stderr=True))


class _ProgressWithLines(Progress):
    """A progress bar with lines below it, which are computed whenever it is drawn."""

    below: Callable[[], str] | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bar, then the lines."""
        yield from super().get_renderables()
        if self.below is not None:
            yield Text(self.below(), style="dim", no_wrap=True, overflow="ellipsis")


def _bar(console: Console, below: Callable[[], str] | None) -> Progress:
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    bar = _ProgressWithLines(*columns, console=console)
    bar.below = below
    return bar

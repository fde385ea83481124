"""Progress with rate and time left: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

logger = logging.getLogger("fantrans")

LOG_EVERY_S = 10.0

Step = Callable[[int], None]


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f} {task.fields['unit']}/s" if speed else "", style="cyan")


@contextmanager
def track(description: str, *, total: int, unit: str, num_before: int = 0) -> Iterator[Step]:
    """Yield `step(num_done)`, to be called as units of work finish; `num_before` were done before.

    On a terminal: a bar with count, rate and time left on stderr. Elsewhere: a log line every ten seconds and one
    at the end.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(description, total=total, unit=unit, completed=num_before)
            yield lambda num_done: progress.advance(task, num_done)
    else:
        yield from _track_in_log(description, total - num_before, unit)


def _track_in_log(description: str, total: int, unit: str) -> Iterator[Step]:
    started = said = time.monotonic()
    done = 0

    def step(num_done: int) -> None:
        nonlocal done, said
        done += num_done
        now = time.monotonic()
        if now - said >= LOG_EVERY_S:
            said = now
            rate = done / max(now - started, 1e-9)
            left_s = (total - done) / rate if rate else float("inf")
            logger.info("%s: %d of %d %s, %.1f/s, %.0f s left", description, done, total, unit, rate, left_s)

    yield step
    took_s = time.monotonic() - started
    logger.info("%s: %d %s in %.0f s, %.1f/s", description, done, unit, took_s, done / max(took_s, 1e-9))

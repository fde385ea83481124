"""Log lines of tasks on executors: they travel with the task's result and are logged where the task came from.

So they stand in the log of the command or of the flow run, whatever the executor is: threads, processes or a cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import QueueHandler
from typing import Any

logger = logging.getLogger("fantrans")

_records: ContextVar[list[logging.LogRecord] | None] = ContextVar("records", default=None)
_without: Any = None  # a queue, which `prepare` does not use
_prepare = QueueHandler(_without).prepare


def log_level() -> int:
    """Return the level of the project's log in this process, for `collect_records` in another one."""
    return logger.getEffectiveLevel()


@contextmanager
def collect_records(level: int) -> Iterator[list[logging.LogRecord]]:
    """Yield a list that gets what is logged in this context, in place of the handlers; the records can be pickled.

    Threads that are started with this context, as by `prefetch_map`, are included. level: of the process that hands out
    the task.
    """
    if log_level() != level:
        logger.setLevel(level)
    records: list[logging.LogRecord] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


def log_records(records: Iterable[logging.LogRecord]) -> None:
    """Log what `collect_records` collected."""
    for record in records:
        logger.handle(record)


def _pass_unless_collected(record: logging.LogRecord) -> bool:
    records = _records.get()
    if records is not None:
        records.append(_prepare(record))
    return records is None


logger.addFilter(_pass_unless_collected)

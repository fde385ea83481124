"""Send a stream of items to many consumers on threads; every consumer gets all items, in order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from typing import Generic, TypeVar

import torch

_T = TypeVar("_T")

_MAX_BUFFERED = 3
"""Buffer size in items: how far the fastest consumer may run ahead of the slowest."""


def broadcast(items: Iterable[_T], consumers: Sequence[Callable[[_T], None]], *, num_threads: int) -> float:
    """Call every consumer with every item; return the share of the threads' time that was spent waiting for items.

    Consumers run on `num_threads` threads with one torch thread each, so their results do not depend on `num_threads`,
    and in the caller's context (`contextvars`), by which a flow run collects their log lines.
    The consumer that is furthest behind runs next. This thread iterates over `items`, a few ahead. The first error,
    from `items` or a consumer, stops everything and is raised.
    """
    state = _Broadcast(consumers)
    threads = [
        threading.Thread(target=copy_context().run, args=(state.work,)) for _ in range(min(num_threads, len(consumers)))
    ]
    started, num_before = time.monotonic(), torch.get_num_threads()
    for thread in threads:
        thread.start()
    try:
        for item in items:
            state.put(item)
        state.end()
    except BaseException as error:
        state.fail(error)
        raise
    finally:
        for thread in threads:
            thread.join()
        torch.set_num_threads(num_before)  # a thread's setting becomes the default of new threads
    if state.error is not None:
        raise state.error
    return state.starved_s / max(len(threads) * (time.monotonic() - started), 1e-9)


class _Broadcast(Generic[_T]):
    """Buffered items and the position of each consumer, guarded by one condition."""

    def __init__(self, consumers: Sequence[Callable[[_T], None]]) -> None:
        self.error: BaseException | None = None
        self.starved_s = 0.0
        self._consumers = consumers
        self._next = [0] * len(consumers)  # number of each consumer's next item
        self._busy: set[int] = set()
        self._buffer: deque[_T] = deque()
        self._num_dropped = 0
        self._is_over = False
        self._changed = threading.Condition()

    def put(self, item: _T) -> None:
        """Add an item as soon as there is room."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._buffer) < _MAX_BUFFERED or self.error is not None)
            if self.error is not None:
                raise self.error
            self._buffer.append(item)
            self._changed.notify_all()

    def end(self) -> None:
        """Mark the end of the items."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Stop all threads; the first error is kept."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def work(self) -> None:
        """Run consumers until all items are consumed; the target of each thread."""
        torch.set_num_threads(1)
        while (claimed := self._claim()) is not None:
            number, item = claimed
            try:
                self._consumers[number](item)
            except BaseException as error:
                self.fail(error)
                return
            self._release(number)

    def _claim(self) -> tuple[int, _T] | None:
        with self._changed:
            started = time.monotonic()
            is_starved = len(self._buffer) < _MAX_BUFFERED and not self._is_over
            self._changed.wait_for(lambda: self.error is not None or self._is_done() or self._waiting() is not None)
            number = self._waiting()
            if is_starved:
                self.starved_s += time.monotonic() - started
            if self.error is not None or number is None:
                return None
            self._busy.add(number)
            return number, self._buffer[self._next[number] - self._num_dropped]

    def _release(self, number: int) -> None:
        with self._changed:
            self._busy.remove(number)
            self._next[number] += 1
            while self._buffer and min(self._next) > self._num_dropped:
                self._buffer.popleft()
                self._num_dropped += 1
            self._changed.notify_all()

    def _waiting(self) -> int | None:
        """Return the idle consumer with an available item that is furthest behind; None if there is none."""
        num_items = self._num_dropped + len(self._buffer)
        idle = [i for i, number in enumerate(self._next) if i not in self._busy and number < num_items]
        return min(idle, key=self._next.__getitem__, default=None)

    def _is_done(self) -> bool:
        return self._is_over and min(self._next) == self._num_dropped + len(self._buffer)

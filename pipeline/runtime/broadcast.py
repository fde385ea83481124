"""A stream of items to many consumers: each sees all of them in order, and as many work at once as threads do."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

import torch

_T = TypeVar("_T")

_MAX_HELD = 3
"""Items in memory at once: what a consumer may lead another by."""


def broadcast(items: Iterable[_T], consumers: Sequence[Callable[[_T], None]], *, num_threads: int) -> float:
    """Give every item to every consumer; returns the share of the threads' time that passed waiting for items.

    Consumers run on `num_threads` threads of one torch thread each, so what one computes does not depend on how many
    there are. The consumer that is furthest behind goes next. Items are taken from `items` in this thread, a few ahead;
    the first error, here or in a consumer, ends it all and is raised.
    """
    state = _Broadcast(consumers)
    threads = [threading.Thread(target=state.work) for _ in range(min(num_threads, len(consumers)))]
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
        torch.set_num_threads(num_before)  # a thread's setting is the default of threads to come
    if state.error is not None:
        raise state.error
    return state.starved_s / max(len(threads) * (time.monotonic() - started), 1e-9)


class _Broadcast(Generic[_T]):
    """Items that somebody still needs, and where each consumer is; guarded by one condition."""

    def __init__(self, consumers: Sequence[Callable[[_T], None]]) -> None:
        self.error: BaseException | None = None
        self.starved_s = 0.0
        self._consumers = consumers
        self._next = [0] * len(consumers)  # number of each consumer's next item
        self._busy: set[int] = set()
        self._held: deque[_T] = deque()
        self._num_dropped = 0
        self._is_over = False
        self._changed = threading.Condition()

    def put(self, item: _T) -> None:
        """Add an item as soon as there is room."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._held) < _MAX_HELD or self.error is not None)
            if self.error is not None:
                raise self.error
            self._held.append(item)
            self._changed.notify_all()

    def end(self) -> None:
        """Say that there are no more items."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Have everybody stop."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def work(self) -> None:
        """Serve consumers until all is done: what a thread does."""
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
            is_starved = len(self._held) < _MAX_HELD and not self._is_over
            self._changed.wait_for(lambda: self.error is not None or self._is_done() or self._waiting() is not None)
            number = self._waiting()
            if is_starved:
                self.starved_s += time.monotonic() - started
            if self.error is not None or number is None:
                return None
            self._busy.add(number)
            return number, self._held[self._next[number] - self._num_dropped]

    def _release(self, number: int) -> None:
        with self._changed:
            self._busy.remove(number)
            self._next[number] += 1
            while self._held and min(self._next) > self._num_dropped:
                self._held.popleft()
                self._num_dropped += 1
            self._changed.notify_all()

    def _waiting(self) -> int | None:
        """The idle consumer that is furthest behind and has an item to take."""
        num_items = self._num_dropped + len(self._held)
        idle = [i for i, number in enumerate(self._next) if i not in self._busy and number < num_items]
        return min(idle, key=self._next.__getitem__, default=None)

    def _is_done(self) -> bool:
        return self._is_over and min(self._next) == self._num_dropped + len(self._held)

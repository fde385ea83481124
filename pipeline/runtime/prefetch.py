"""Map a function over items on threads, a few items ahead of the consumer.

Threads work in the caller's context (`contextvars`), by which a flow run collects their log lines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def prefetch_map(
    function: Callable[[_In], _Out],
    items: Iterable[_In],
    *,
    num_threads: int,
    drop: Callable[[_Out], object] = lambda _: None,
) -> Iterator[tuple[_In, Future[_Out]]]:
    """Yield each item with the future of its result, in order, while threads work on the items that follow.

    Items are taken in the caller's thread until the first result is ready or all threads are busy. Results that an
    error elsewhere leaves unconsumed go to `drop`.
    """
    pending: deque[tuple[_In, Future[_Out]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(copy_context().run, function, item)))
                if pending[0][1].done() or len(pending) > num_threads:
                    yield pending.popleft()
            while pending:
                yield pending.popleft()
        finally:
            for _, future in pending:
                if future.exception() is None:
                    drop(future.result())


def read_ahead(items: Iterable[_In], *, num_ahead: int) -> Iterator[_In]:
    """Yield the items in order while a thread takes the next ones, at most `num_ahead` of them.

    Closing the generator closes that of the items, in the thread.
    """
    iterator, end = iter(items), object()

    def take() -> _In | object:
        return next(iterator, end)

    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(copy_context().run, take) for _ in range(num_ahead))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(copy_context().run, take))
                yield item  # type: ignore[misc]  # `end` is the only other object
        finally:
            for future in waiting:
                future.cancel()
            if isinstance(iterator, Generator):
                pool.submit(iterator.close).result()

"""Work on threads, ahead of whoever takes the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
    """Each item with what the function gives for it, in order; threads work on the items that follow.

    Items are taken in the caller's thread, until the first result is there or all threads are busy. What nobody takes
    any more, because of an error, goes to `drop`.
    """
    coming: deque[tuple[_In, Future[_Out]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                coming.append((item, pool.submit(function, item)))
                if coming[0][1].done() or len(coming) > num_threads:
                    yield coming.popleft()
            while coming:
                yield coming.popleft()
        finally:
            for _, future in coming:
                if future.exception() is None:
                    drop(future.result())

"""A pool of processes that ends at once when its user does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context


@contextmanager
def process_pool(num_workers: int, initializer: Callable[[], object] | None = None) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of new processes; an error or Ctrl-C inside the context ends them and drops what they have left.

    Tasks must leave nothing half-written that counts as finished.
    """
    before = set(active_children())
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), initializer)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(active_children()) - before:
            worker.kill()
        raise
    pool.shutdown()

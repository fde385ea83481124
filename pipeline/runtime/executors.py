"""Pieces of work on other processes, here or on other machines; one that fails does not stop the others."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import active_children, get_context
from typing import TypeVar

import torch

from pipeline.errors import FantransError, StoreError, WriteError
from pipeline.runtime.text import listed

logger = logging.getLogger("fantrans")

_MAX_UNDER_WAY = 256
"""Pieces handed out at once, so that a plan of millions does not lie in an executor's queue."""
_MAX_NAMED = 5
_ORPHAN_CHECK_S = 1.0

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@contextmanager
def worker_processes(num_workers: int) -> Iterator[Executor | None]:
    """Processes on this machine that share its cores and end with this one; None for a single worker, which is us."""
    if num_workers == 1:
        yield None
        return
    before = set(active_children())
    num_threads = max(1, (os.cpu_count() or 1) // num_workers)
    pool = ProcessPoolExecutor(
        num_workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(num_threads, os.getpid())
    )
    try:
        yield pool
    except BrokenProcessPool:
        for worker in set(active_children()) - before:  # one that started as another died would wait for ever
            worker.kill()
        raise StoreError(
            "a worker process died, perhaps for lack of memory; what was finished is kept: run this "
            "again, with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def outcomes(
    function: Callable[[_In], _Out], items: Iterable[_In], executor: Executor
) -> Iterator[tuple[_In, _Out | Exception]]:
    """Each item with what became of it, as they finish: the function's result, or its error (see `outcome`)."""
    under_way: dict[Future[_Out], _In] = {}
    left = iter(items)

    def hand_out(num: int) -> None:
        under_way.update((executor.submit(function, item), item) for item in islice(left, num))

    try:
        hand_out(_MAX_UNDER_WAY)
        while under_way:
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                item = under_way.pop(future)
                hand_out(1)
                yield item, outcome(future.result)
    finally:
        for future in under_way:
            future.cancel()


def outcome(function: Callable[[], _Out]) -> _Out | Exception:
    """The function's result, or its error if that concerns this piece of work alone.

    Input and output that fail, processes here that are gone and devices that are lost concern all that is left: raised.
    A piece that Dask gives up, after several of its workers died of it, has failed alone.
    """
    try:
        return function()
    except (OSError, WriteError, BrokenExecutor, torch.AcceleratorError):
        raise
    except Exception as error:
        if not isinstance(error, FantransError):
            logger.exception("a defect, or a device that failed")
        error.__cause__ = error.__context__ = None  # with what their frames hold: a batch, its maps
        return error.with_traceback(None)


def raise_failures(failed: Mapping[str, Exception], *, num_all: int, what: str) -> None:
    """Raise `StoreError` with the pieces of work that failed, if any did."""
    if failed:
        errors = (f"{name}: {str(error) or type(error).__name__}" for name, error in failed.items())
        named = listed(errors, _MAX_NAMED, separator="; ")
        raise StoreError(
            f"{len(failed)} of {num_all} {what} failed ({named}); the others are kept, and running "
            "this again tries just these"
        )


def _start_worker(num_threads: int, parent: int) -> None:
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """A coordinator that is killed takes its workers along; until then they can only stage, never publish."""
    while os.getppid() == parent:
        time.sleep(_ORPHAN_CHECK_S)
    os._exit(1)

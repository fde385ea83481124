"""Run tasks in threads, in processes, or on a cluster; a task that fails does not stop the others."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import active_children, get_context
from typing import Any, Generic, Protocol, TypeVar, cast

import torch

from pipeline.errors import FantransError, StoreError, is_io_failure
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.prefetch import prefetch_map
from pipeline.runtime.task_log import collect_records, log_level, log_records
from pipeline.runtime.text import join_first

logger = logging.getLogger("fantrans")

_MAX_IN_FLIGHT = 256
"""Tasks submitted at once, so that an executor's queue never has millions."""
_MAX_NAMED = 5
_ORPHAN_CHECK_S = 1.0

_State = TypeVar("_State")
_Task = TypeVar("_Task")
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Result(Generic[_Task, _Out]):
    """A task with its value, or with an error of this task alone."""

    task: _Task
    value: _Out | None = None
    error: Exception | None = None

    def unwrap(self) -> _Out:
        """Return the value; raise the error if there is one."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # a step that returns None has the type None


def attempt(task: _Task, function: Callable[[], _Out]) -> Result[_Task, _Out]:
    """Run a function for a task and wrap what it returns or raises.

    Errors that would also affect all other tasks are raised: failed input or output, a broken executor, a lost device.
    A task that Dask abandons after repeated worker deaths counts as failed by itself.
    """
    try:
        return Result(task, function())
    except (BrokenExecutor, torch.AcceleratorError):
        raise
    except Exception as error:
        if is_io_failure(error):
            raise
        if not isinstance(error, FantransError):
            logger.exception("a defect, or a device that failed")
        error.__cause__ = error.__context__ = None  # their frames hold a batch and its maps
        return Result(task, error=error.with_traceback(None))


def apply_step(
    step: Callable[[_Task, _In], _Out],
    results: Iterable[Result[_Task, _In]],
    *,
    num_threads: int = 0,
    discard: Callable[[_Out], object] = lambda _: None,
) -> Iterator[Result[_Task, _Out]]:
    """Apply a step to each result in order; results with an error pass through.

    `num_threads` threads work ahead on as many results; without threads the step runs in the caller's. Values that are
    computed but never taken, because of an error elsewhere, go to `discard`.
    """

    def apply(result: Result[_Task, _In]) -> Result[_Task, _Out]:
        if result.error is not None:
            return Result(result.task, error=result.error)
        return attempt(result.task, lambda: step(result.task, result.unwrap()))

    def drop(result: Result[_Task, _Out]) -> None:
        if result.error is None:
            discard(result.unwrap())

    try:
        if num_threads == 0:
            yield from map(apply, results)
            return
        for _, future in prefetch_map(apply, results, num_threads=num_threads, drop=drop):
            yield future.result()
    finally:
        close(results)


def close(results: Iterable[object]) -> None:
    """Close a generator at once: a traceback may hold it, and its threads would work on until that is freed."""
    if isinstance(results, Generator):
        results.close()


@dataclass(frozen=True)
class WorkerPool(Generic[_State]):
    """Workers that each hold a state, under a name, for as long as the pool is open."""

    executor: Executor
    name: str

    def run(self, function: Callable[[_State, _Task], _Out], tasks: Iterable[_Task]) -> Iterator[Result[_Task, _Out]]:
        """Run `function(state, task)` on the workers; yield results as they finish, in any order.

        What a task logs is logged here when it has ended.
        """
        running: dict[Future[_Answer[_Out]], _Task] = {}
        waiting, level = iter(tasks), log_level()

        def submit(num: int) -> None:
            for task in islice(waiting, num):
                running[self.executor.submit(_call, self.name, function, task, level)] = task

        try:
            submit(_MAX_IN_FLIGHT)
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    submit(1)
                    yield attempt(task, partial(_value, future))
        finally:
            for future in running:
                future.cancel()


class Workers(Protocol):
    """Where tasks run, other than in this process."""

    def open(self, state: _State, *, num_tasks: int) -> AbstractContextManager[WorkerPool[_State] | None]:
        """Give each worker a copy of `state` and return the pool; None if this process works alone."""


@dataclass(frozen=True)
class LocalWorkers:
    """Processes of this machine that share its cores and end with this one; a single one is this process itself."""

    num_workers: int = 1

    @contextmanager
    def open(self, state: _State, *, num_tasks: int) -> Iterator[WorkerPool[_State] | None]:
        """Start the processes, at most one per task; see `Workers`. Raises `StoreError` if one dies."""
        num_workers = min(self.num_workers, num_tasks)
        if num_workers <= 1:
            yield None
            return
        before = set(active_children())
        num_threads = max(1, (os.cpu_count() or 1) // num_workers)
        name = new_state_name()
        executor = ProcessPoolExecutor(
            num_workers,
            mp_context=get_context("spawn"),
            initializer=_start_worker,
            initargs=(num_threads, os.getpid(), name, state),
        )
        try:
            yield WorkerPool(executor, name)
        except BrokenProcessPool:
            for worker in set(active_children()) - before:  # one that started as another died would wait forever
                worker.kill()
            raise StoreError(
                "a worker process died, perhaps for lack of memory; finished work is kept: rerun with fewer --workers"
            ) from None
        finally:
            executor.shutdown(cancel_futures=True)


_states: dict[str, Any] = {}
"""States of the open pools that this process works for, by the pool's name."""


def new_state_name() -> str:
    """Return a name for a pool's state that no other pool has."""
    return f"fantrans-{secrets.token_hex(8)}"


def keep_state(name: str, state: object) -> None:
    """Keep a pool's state in this process until `drop_state`."""
    _states[name] = state


def drop_state(name: str) -> None:
    """Forget a pool's state, and with it the files and networks that it holds."""
    _states.pop(name, None)


@dataclass(frozen=True)
class _Answer(Generic[_Out]):
    """What a task returned or raised, and what it logged."""

    records: list[logging.LogRecord]
    value: _Out | None = None
    error: Exception | None = None


def _call(name: str, function: Callable[[Any, _Task], _Out], task: _Task, level: int) -> _Answer[_Out]:
    with collect_records(level) as records:
        try:
            return _Answer(records, function(_states[name], task))
        except Exception as error:
            if not isinstance(error, FantransError):
                error.add_note(f"in a worker:\n{''.join(traceback.format_exception(error))}")
            return _Answer(records, error=error)


def _value(future: Future[_Answer[_Out]]) -> _Out:
    answer = future.result()
    log_records(answer.records)
    if answer.error is not None:
        raise answer.error
    return cast(_Out, answer.value)  # a step that returns None has the type None


def raise_failures(failed: Mapping[str, Exception], *, num_all: int, what: str) -> None:
    """Raise `StoreError` that names the failed tasks, if there are any."""
    if failed:
        errors = (f"{name}: {str(error) or type(error).__name__}" for name, error in failed.items())
        named = join_first(errors, _MAX_NAMED, separator="; ")
        raise StoreError(
            f"{len(failed)} of {num_all} {what} failed ({named}); the others are kept, and a rerun tries only these"
        )


def _start_worker(num_threads: int, parent: int, name: str, state: object) -> None:
    tune_allocator()
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    keep_state(name, state)


def _end_with_parent(parent: int) -> None:
    """End this process when its coordinator is gone; until then it can only stage, never publish."""
    while os.getppid() == parent:
        time.sleep(_ORPHAN_CHECK_S)
    os._exit(1)

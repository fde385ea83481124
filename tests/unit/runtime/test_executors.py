"""Tasks on executors: results, failures and their messages."""

import errno
import gc
import logging
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from pipeline.errors import DataError, StoreError, WriteError
from pipeline.runtime import executors as workers
from pipeline.runtime.executors import (
    LocalWorkers,
    Result,
    _call,
    apply_step,
    attempt,
    drop_state,
    keep_state,
    raise_failures,
)
from pipeline.runtime.prefetch import prefetch_map
from tests.unit.small_cache import ThreadWorkers


def halved(divisor, number):
    if number == 3:
        raise DataError("three is odd")
    if number == 100:
        raise OSError(errno.EIO, "the disk hiccuped")
    if number == 200:
        raise WriteError("the disk is full", errno.ENOSPC)
    return number / divisor


def halves(numbers, num_threads):
    with ThreadPoolExecutor(num_threads) as threads, ThreadWorkers(threads).open(2, num_tasks=9) as pool:
        yield from pool.run(halved, numbers)


def test_a_piece_that_fails_does_not_stop_the_others_of_more_than_are_handed_out_at_once():
    results = list(halves((n for n in range(1, 1000) if n not in (100, 200)), 2))
    assert {result.task: str(result.error) for result in results if result.error} == {3: "three is odd"}
    found = {result.task: result.unwrap() for result in results if not result.error}
    assert found == {number: number / 2 for number in range(1, 1000) if number not in (3, 100, 200)}


@pytest.mark.parametrize(("number", "error"), [(100, OSError), (200, WriteError)])
def test_input_and_output_that_fail_stop_all(number, error):
    with pytest.raises(error):
        list(halves([1, number, 2], 1))


def test_a_failure_keeps_nothing_of_what_was_worked_on(monkeypatch):
    monkeypatch.setattr(workers.logger, "exception", lambda _: None)  # pytest keeps what is logged, with its traceback

    class Batch:
        pass

    def fail():
        batch = Batch()
        alive.append(weakref.ref(batch))
        raise RuntimeError("out of memory")

    alive = []
    error = attempt("a task", fail).error
    gc.collect()
    assert str(error) == "out of memory"
    assert alive[0]() is None


def test_failures_are_named_up_to_five_and_the_rest_counted():
    failed = {f"block {i}": DataError(f"odd {i}") for i in range(7)}
    with pytest.raises(StoreError, match=r"^7 of 9 blocks failed \(block 0: odd 0; .*block 4: odd 4; and 2 more\)"):
        raise_failures(failed, num_all=9, what="blocks")
    raise_failures({}, num_all=9, what="blocks")


def numbers(closed):
    """Results 0, 1, 2...; notes in `closed` when the generator is closed."""
    try:
        for number in range(1000):
            yield Result(number, number)
    finally:
        closed.append(True)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_after_an_error_the_steps_before_it_stop_although_its_traceback_is_kept(num_threads):
    def fail(number, _):
        if number == 5:
            raise OSError(errno.EIO, "the disk failed")
        return number

    closed, threads = [], set(threading.enumerate())
    before = apply_step(lambda number, _: number, numbers(closed), num_threads=num_threads)
    with pytest.raises(OSError, match="the disk failed") as caught:
        list(apply_step(fail, before, num_threads=num_threads))
    assert caught.tb is not None
    assert closed == [True]
    assert set(threading.enumerate()) <= threads


def test_values_that_are_computed_but_not_taken_are_discarded():
    discarded = []
    results = apply_step(lambda number, _: number, numbers([]), num_threads=3, discard=discarded.append)
    taken = [next(results).unwrap() for _ in range(4)]
    results.close()
    assert taken == [0, 1, 2, 3]
    assert discarded
    assert discarded == list(range(4, 4 + len(discarded)))


def test_an_error_of_one_task_passes_through_the_later_steps():
    def invert(number, _):
        if number == 0:
            raise DataError("zero has no inverse")
        return 1 / number

    inverted = apply_step(invert, (Result(number, number) for number in (0, 2)))
    first, second = apply_step(lambda _, value: 10 * value, inverted)
    assert str(first.error) == "zero has no inverse"
    assert second.unwrap() == 5


def test_what_waits_in_a_pool_is_cancelled_when_its_results_are_closed():
    started, release = [], threading.Event()

    def work(_, number):
        started.append(number)
        if number:
            release.wait(10)

    with ThreadPoolExecutor(1) as threads, ThreadWorkers(threads).open(None, num_tasks=9) as pool:
        results = pool.run(work, range(9))
        assert next(results).task == 0
        results.close()
        release.set()
    assert len(started) <= 2


def speak(state, number):
    logger = logging.getLogger("fantrans")
    logger.info("%s starts %d", state, number)
    for _, future in prefetch_map(lambda each: logger.warning("from a thread: %d", each), [number], num_threads=1):
        future.result()
    if number == 2:
        raise DataError("two is even")
    if number == 3:
        raise KeyError("a defect")
    return number


def test_what_tasks_and_their_threads_log_is_logged_where_they_came_from(caplog):
    caplog.set_level(logging.INFO, logger="fantrans")
    context = ContextVar("context", default="of a worker")
    context.set("of the caller")
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append((record.getMessage(), context.get()))
    logging.getLogger("fantrans").addHandler(handler)
    try:
        with ThreadPoolExecutor(1) as threads, ThreadWorkers(threads).open("a task", num_tasks=3) as pool:
            results = list(pool.run(speak, [1, 2]))
    finally:
        logging.getLogger("fantrans").removeHandler(handler)
    assert [str(result.error) for result in results if result.error] == ["two is even"]
    lines = ["a task starts 1", "from a thread: 1", "a task starts 2", "from a thread: 2"]
    assert sorted(seen) == sorted((line, "of the caller") for line in lines), "each once"


def test_what_a_task_logs_can_be_sent_and_a_defect_names_its_place_in_the_worker(caplog):
    keep_state("a pool", "a task")
    try:
        answer = pickle.loads(pickle.dumps(_call("a pool", speak, 3, logging.WARNING)))
        assert [record.getMessage() for record in answer.records] == ["from a thread: 3"], "no line below the level"
        assert 'raise KeyError("a defect")' in answer.error.__notes__[0]
    finally:
        drop_state("a pool")
        logging.getLogger("fantrans").setLevel(logging.NOTSET)
    assert not caplog.records


def test_a_single_worker_is_this_process():
    for num_workers, num_tasks in ((1, 9), (4, 1), (4, 0)):
        with LocalWorkers(num_workers).open("state", num_tasks=num_tasks) as pool:
            assert pool is None

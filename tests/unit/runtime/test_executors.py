"""Tasks on executors: results, failures and their messages."""

import errno
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import DataError, StoreError, WriteError
from pipeline.runtime import executors as workers
from pipeline.runtime.executors import attempt, raise_failures
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

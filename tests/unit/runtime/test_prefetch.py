import threading
import time

import pytest

from pipeline.runtime.prefetch import prefetch_map, read_ahead


def test_results_come_in_order_and_the_next_are_under_way_meanwhile():
    started = []
    both = threading.Barrier(2, timeout=10)

    def double(number):
        started.append(number)
        if number < 2:
            both.wait()  # passes only if two are worked on at once
        return 2 * number

    results = prefetch_map(double, range(5), num_threads=2)
    item, first = next(results)
    assert (item, first.result()) == (0, 0)
    assert [(item, future.result()) for item, future in results] == [(1, 2), (2, 4), (3, 6), (4, 8)]
    assert sorted(started) == [0, 1, 2, 3, 4]


def test_what_is_there_is_handed_on_before_all_threads_are_busy():
    taken = []

    def items():
        for number in range(9):
            time.sleep(0.1)  # in which the one before is long done
            taken.append(number)
            yield number

    results = prefetch_map(str, items(), num_threads=8)
    assert next(results)[0] == 0
    assert len(taken) < 9
    results.close()


def test_an_error_is_its_items_own():
    futures = [future for _, future in prefetch_map(lambda number: 1 // number, [1, 0, 1], num_threads=1)]
    assert [type(future.exception()) for future in futures] == [type(None), ZeroDivisionError, type(None)]


def test_results_not_taken_after_an_error_are_dropped():
    is_over = threading.Event()

    def items():
        yield from range(4)
        is_over.set()
        raise OSError("the disk is full")

    def text(number):
        assert number == 0 or is_over.wait(10)
        return str(number)

    dropped = []
    results = prefetch_map(text, items(), num_threads=3, drop=dropped.append)
    assert next(results)[1].result() == "0"
    with pytest.raises(OSError, match="full"):
        next(results)
    assert dropped == ["1", "2", "3"]


def test_results_not_taken_after_the_consumers_error_are_dropped():
    is_over = threading.Event()

    def text(number):
        assert number == 0 or is_over.wait(10)
        return str(number)

    def take_two():
        for number, future in prefetch_map(text, range(9), num_threads=3, drop=dropped.append):
            if number == 1:
                is_over.set()
                raise RuntimeError(future.result())

    dropped = []
    with pytest.raises(RuntimeError, match="1"):
        take_two()
    assert dropped == ["2", "3", "4"]


def test_read_ahead_yields_all_items_in_order_and_takes_no_more_than_it_may():
    taken = []

    def items():
        for i in range(20):
            taken.append(i)
            yield i

    ahead = read_ahead(items(), num_ahead=3)
    assert [next(ahead) for _ in range(4)] == [0, 1, 2, 3]
    assert len(taken) <= 4 + 3
    assert [*ahead] == list(range(4, 20))


def test_an_error_of_the_items_is_raised_where_it_occurs():
    def items():
        yield 1
        raise KeyError("here")

    ahead = read_ahead(items(), num_ahead=2)
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="here"):
        next(ahead)


def test_closing_closes_the_items_too():
    closed = []

    def items():
        try:
            yield from range(100)
        finally:
            closed.append(True)

    ahead = read_ahead(items(), num_ahead=2)
    next(ahead)
    ahead.close()
    assert closed == [True]

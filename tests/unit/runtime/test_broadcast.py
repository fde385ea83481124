import threading
import time
from contextvars import ContextVar
from functools import partial

import pytest
import torch

from pipeline.runtime.broadcast import broadcast


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_each_consumer_sees_every_item_in_order(num_threads):
    seen = [[], [], []]

    def slow(item):
        time.sleep(0.002)
        seen[0].append(item)

    share = broadcast(iter(range(20)), [slow, seen[1].append, seen[2].append], num_threads=num_threads)
    assert seen == [list(range(20))] * 3
    assert 0 <= share <= 1


def test_two_consumers_work_at_once_on_one_torch_thread_each():
    meeting = threading.Barrier(2, timeout=10)
    threads = []

    def meet(_):
        threads.append(torch.get_num_threads())
        meeting.wait()

    broadcast(range(3), [meet, meet], num_threads=2)
    assert threads == [1] * 6


def test_items_are_taken_only_a_few_ahead_of_the_slowest():
    taken, done = [], []

    def items():
        for item in range(12):
            assert item - len(done) <= 4
            taken.append(item)
            yield item

    def slow(item):
        time.sleep(0.005)
        done.append(item)

    broadcast(items(), [slow, lambda _: None], num_threads=2)
    assert taken == done == list(range(12))


def test_waiting_for_items_is_distinguished_from_working():
    def late():
        for item in range(5):
            time.sleep(0.02)
            yield item

    waiting = broadcast(late(), [lambda _: None], num_threads=1)
    working = broadcast(range(5), [lambda _: time.sleep(0.02)], num_threads=1)
    assert 1 >= waiting > working >= 0


@pytest.mark.parametrize("where", ["items", "consumer"])
def test_an_error_anywhere_stops_everything_and_is_raised(where):
    num_threads = threading.active_count()

    def items():
        yield from range(3)
        if where == "items":
            raise OSError("the disk is gone")
        yield from range(3, 100)

    def consumer(item):
        if where == "consumer" and item == 2:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        broadcast(items(), [consumer, lambda _: time.sleep(0.001)], num_threads=2)
    assert threading.active_count() == num_threads


def test_without_items_nothing_happens():
    assert broadcast([], [lambda _: pytest.fail("called")], num_threads=2) <= 1


def test_the_consumer_that_is_furthest_behind_goes_next():
    num_done = [0, 0, 0]
    leads = []

    def consume(number, item):
        time.sleep(0.005)  # so that more items wait
        num_done[number] += 1
        leads.append(max(num_done) - min(num_done))

    broadcast(range(6), [partial(consume, number) for number in range(3)], num_threads=1)
    assert num_done == [6, 6, 6]
    assert max(leads) == 1


def test_consumers_run_in_the_context_of_the_caller():
    name: ContextVar[str] = ContextVar("name", default="none")
    seen = []
    token = name.set("caller")
    try:
        broadcast([1, 2], [lambda _: seen.append(name.get())] * 2, num_threads=2)
    finally:
        name.reset(token)
    assert seen == ["caller"] * 4

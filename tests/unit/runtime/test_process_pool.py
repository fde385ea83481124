import os
import time

import pytest

from pipeline.runtime.process_pool import process_pool


def _touch_later(path, seconds):
    time.sleep(seconds)
    path.touch()
    return os.getpid()


def test_a_pool_finishes_what_it_was_given(tmp_path):
    with process_pool(2) as pool:
        jobs = [pool.submit(_touch_later, tmp_path / str(i), 0) for i in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]
    assert os.getpid() not in {job.result() for job in jobs}


def test_ctrl_c_ends_the_workers_at_once_and_drops_what_waits(tmp_path):
    with pytest.raises(KeyboardInterrupt), process_pool(2) as pool:  # noqa: PT012
        first = pool.submit(_touch_later, tmp_path / "first", 0)
        others = [pool.submit(_touch_later, tmp_path / f"{i}", 30) for i in range(6)]
        first.result()
        raise KeyboardInterrupt
    deadline = time.monotonic() + 20  # far below the 30 s of one task
    while not all(each.done() for each in others):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]

"""The kill test: a refresh from images to features is killed at random moments and before every kind of write.

FANTRANS_KILLS sets the number of random moments (`make kill-test`: 200).
"""

import os
import random
import shutil
import signal
import time

import pytest

from pipeline.store.revisions import load_revision
from tests import kills
from tests.steps import kind_of

NUM_KILLS = int(os.environ.get("FANTRANS_KILLS", "6"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def world(place):
    return kills.World(place)


@pytest.fixture(scope="module")
def undisturbed(world, place):
    """Folders of undisturbed refreshes: of the early data, and of the late data after them."""
    early, late = place / "undisturbed-early", place / "undisturbed-late"
    assert world.refresh(early, "early") == 0
    shutil.copytree(early, late)
    assert world.refresh(late, "late") == 0
    revisions = [[load_revision(folder).number for folder in kills.stores(state)] for state in (early, late)]
    assert revisions == [[1, 1], [2, 2]]
    return {"early": early, "late": late}


def start_of(data, undisturbed, state):
    """Prepare the folder before a refresh: nothing for the early data, the early state for the late data."""
    if data == "late":
        shutil.copytree(undisturbed["early"], state)


def check_and_finish(world, undisturbed, state, data):
    num_stores = kills.check_last_revisions(state)
    assert num_stores == 2 or data == "early"
    assert world.refresh(state, data) == 0
    assert kills.written(state) == kills.written(undisturbed[data])
    shutil.rmtree(state)


def test_killed_at_random_moments_it_ends_with_the_same_bytes(world, undisturbed, place):
    rng = random.Random(0)
    started = time.monotonic()
    assert world.refresh(place / "timed", "early") == 0
    whole_s = time.monotonic() - started
    num_killed = 0
    while num_killed < NUM_KILLS:
        data, state = ("early", "late")[num_killed % 2], place / f"random-{num_killed}"
        start_of(data, undisturbed, state)
        process = world.start(state, data)
        process.join(rng.uniform(0, whole_s))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            num_killed += 1
        check_and_finish(world, undisturbed, state, data)


@pytest.mark.parametrize("data", ["early", "late"])
def test_killed_before_each_kind_of_write_it_ends_with_the_same_bytes(world, undisturbed, place, data):
    state, trace = place / f"traced-{data}", place / f"trace-{data}"
    start_of(data, undisturbed, state)
    assert world.refresh(state, data, trace=trace) == 0
    assert kills.written(state) == kills.written(undisturbed[data])
    steps = trace.read_text().splitlines()
    kinds = {kind_of(step) for step in steps}
    for needed in (
        "rename lf/c.N.N.N.N",
        "fsync lf/temp c.N.N.N.N",
        "rename journal/N.view_N.json",
        "rename N/current.json",
        "rename N/manifest-N.json",
        "rename mirror/index-N.parquet",
        "unlink journal/N.view_N.json",
        "rename faces/frames.parquet",
        "rename crops/c.N.N.N.N",
    ):
        assert needed in kinds
    last = {kind_of(step): step for step in steps}
    chosen = sorted(last.values()) if NUM_KILLS < 100 else sorted({*last.values(), *(f"{kind}#1" for kind in kinds)})
    chosen = chosen if NUM_KILLS >= 100 else chosen[3 * (data == "late") :: 6]
    for number, step in enumerate(chosen):
        state = place / f"step-{data}-{number}"
        start_of(data, undisturbed, state)
        assert world.refresh(state, data, kill_before=step) == -signal.SIGKILL, step
        check_and_finish(world, undisturbed, state, data)

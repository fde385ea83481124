"""Outages: what Prefect shows, what the next scheduled run does, and that nothing is lost.

Faults inside a store are in tests/integration/test_faults.py, for a refresh from the command line.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.e2e.conftest import BIN, REFRESH, processes
from tests.small_catalog import NUM_FRAMES


def content_of(folder):
    """Every byte of the arrays of the one cache in a folder, and its index."""
    (cache,) = folder.iterdir()
    files = {path.relative_to(cache): path.read_bytes() for path in cache.glob("arrays.zarr/**/*") if path.is_file()}
    (index,) = cache.glob("index-*.parquet")
    return files, pd.read_parquet(index)


def assert_same(found, true):
    assert found[0] == true[0]
    pd.testing.assert_frame_equal(found[1], true[1])


@pytest.fixture(scope="module")
def caches(trial):
    """Folder of the data set's caches, emptied."""
    shutil.rmtree(trial.caches, ignore_errors=True)
    return trial.caches


class SmallDisk:
    """A small file system for the caches, if this process may mount one."""

    def __init__(self, folder, size_mb):
        folder.mkdir()
        self.folder = folder
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", folder]
        self.is_mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0

    def __enter__(self):
        return self

    def grow(self, size_mb):
        subprocess.run(["mount", "-o", f"remount,size={size_mb}m", self.folder], check=True)

    def __exit__(self, *_):
        if self.is_mounted:
            subprocess.run(["umount", self.folder], check=True)


def break_refresh(trial, fault):
    """Start a refresh, which resumes the last one; call `fault(run)` once another unit is done.

    Returns the final state of the run.
    """
    finished, num_units = trial.finished(), len(trial.units())
    run = trial.begin(REFRESH, experiment=trial.slow)
    trial.until(lambda: len(trial.units()) > num_units or trial.state(run)[0] == "Failed")
    fault(run)
    end = trial.wait_for_end(run)
    assert trial.shards().items() >= finished.items(), "finished shards are computed once"
    return end


def test_a_refresh_after_many_faults_has_the_bytes_of_an_undisturbed_one(trial, caches, undisturbed):
    with SmallDisk(caches, 64) as disk:
        if disk.is_mounted:
            state, message = break_refresh(trial, lambda run: None)
            assert (state, "No space left on device" in message) == ("Failed", True), message
            disk.grow(1024)

        state, message = break_refresh(trial, lambda run: os.kill(trial.wait_for_process(run), signal.SIGKILL))
        assert (state, "SIGKILL" in message) == ("Crashed", True), message

        def cancel(run):
            process, started = trial.wait_for_process(run), time.monotonic()
            trial.query(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
            trial.until(lambda: not Path(f"/proc/{process}").exists())
            assert time.monotonic() - started < 30

        assert break_refresh(trial, cancel)[0] == "Cancelled"

        done = undisturbed.result()  # it runs on the same worker, which is killed next
        assert done.returncode == 0, done.stdout + done.stderr
        state, message = break_refresh(trial, lambda run: os.kill(trial.wait_for_worker(), signal.SIGKILL))
        # the process runs on without its worker, for a while or to its end
        assert state in ("Crashed", "Completed"), message

        assert trial.wait_for_end(trial.begin(REFRESH, experiment=trial.slow))[0] == "Completed"
        assert_same(content_of(caches), content_of(trial.folder / "cache/undisturbed"))
    if not disk.is_mounted:
        pytest.skip("cannot mount a file system: all but the full disk was tested")


def test_a_refresh_survives_a_server_outage_of_twenty_seconds(trial, caches):
    run = trial.begin(REFRESH, experiment=trial.slow, profile="compact")
    trial.until(trial.units)
    assert trial.state(run)[0] == "Running"
    (server,) = (pid for pid, words in processes(f"PREFECT_API_URL={trial.address}") if "server start" in words)
    trial.process.send_signal(signal.SIGSTOP)  # it would restart the server at once
    os.kill(server, signal.SIGKILL)
    time.sleep(20)
    trial.process.send_signal(signal.SIGCONT)
    trial.until(trial.is_up)
    assert trial.wait_for_end(run)[0] == "Completed"
    following = trial.begin(REFRESH, experiment=trial.slow, profile="compact")
    verified = trial.command(BIN / "fantrans", "cache", "verify", "--deep", "bp4d-synthetic")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert trial.wait_for_end(following)[0] == "Completed"
    assert f"extract: nothing to do, {NUM_FRAMES} kept" in trial.log_lines(following)


@pytest.fixture(scope="module")
def together(trial, caches):
    """Two completed refreshes whose schedules fired together."""
    runs = [trial.begin(REFRESH) for _ in range(2)]
    trial.until(lambda: "AwaitingConcurrencySlot" in [trial.state(run)[0] for run in runs])
    assert [trial.wait_for_end(run)[0] for run in runs] == ["Completed", "Completed"]
    return runs


def test_when_two_schedules_fire_together_one_run_waits_and_computes_nothing(trial, together):
    lines = [trial.log_lines(run) for run in together]
    assert sorted(f"extract: {NUM_FRAMES} new, 0 kept" in each for each in lines) == [False, True]
    assert sorted(f"extract: nothing to do, {NUM_FRAMES} kept" in each for each in lines) == [False, True]
    (_, first_end), (second_start, _) = sorted(trial.times(run) for run in together)
    assert first_end <= second_start


@pytest.mark.usefixtures("together")
def test_an_unreadable_frame_is_named_and_the_others_are_computed(trial):
    image = sorted((trial.folder / "raw").glob("BP4D-training/*/*/*.jpg"))[0]
    before, content = trial.shards(), image.read_bytes()
    assert before
    image.write_bytes(content[:100] + b"\xff" * 50)
    try:
        run = trial.begin(REFRESH)
        assert trial.wait_for_end(run)[0] == "Completed"
    finally:
        image.write_bytes(content)
    summary = trial.artifacts("refresh-bp4d-synthetic")[0]["data"]
    assert f"{NUM_FRAMES - 1} ok, 1 unreadable" in summary
    frame_id = f"{image.parent.parent.name}/{image.parent.name}/{int(image.stem)}"
    assert f"Without features: `{frame_id}` unreadable." in summary
    assert trial.shards().items() >= before.items()
    following = trial.begin(REFRESH)
    assert trial.wait_for_end(following)[0] == "Completed"
    assert f"extract: nothing to do, {NUM_FRAMES} kept" in trial.log_lines(following)  # its old row is live again
    assert trial.shards().items() >= before.items()

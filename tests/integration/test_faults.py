"""What breaks around a refresh, through the command line: each is one sentence, and nothing published is lost.

Faults inside a store (lost and damaged files, clocks, readers during `prune`) are in
tests/integration/test_maintenance.py and tests/integration/test_build.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from flows.cli import app
from pipeline.cache.reader import open_cache
from pipeline.store.lock import writer_lock
from tests import kills

FANTRANS = Path(sys.executable).with_name("fantrans")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return kills.World(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def undisturbed(world):
    """Folders of undisturbed refreshes: of the early data, and of the late data after them."""
    early, late = world.folder / "undisturbed-early", world.folder / "undisturbed-late"
    assert world.refresh(early, "early") == 0
    shutil.copytree(early, late)
    assert world.refresh(late, "late") == 0
    return {"early": early, "late": late}


@pytest.fixture
def state(world, undisturbed, tmp_path):
    """A folder as a refresh of the early data leaves it."""
    shutil.copytree(undisturbed["early"], tmp_path / "state")
    return tmp_path / "state"


def command(world, state, data, *arguments):
    return subprocess.Popen(
        [FANTRANS, *arguments],
        env=world.variables(state, data),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(world, state, data, *arguments):
    process = command(world, state, data, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def inside(world, state, data, *arguments):
    """Run a command in this process; returns its exit status and what it printed."""
    result = CliRunner().invoke(app, arguments, env={**world.environment(state, data), "COLUMNS": "120"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def refresh(world, state, data, *more):
    return run(world, state, data, "refresh", "faces", "--experiment", world.config, *more)


def the_error(err):
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    return sentence


class Tmpfs:
    """A small disk mounted over a folder, with the files that were in the folder."""

    def __init__(self, folder, size_kb):
        copy = folder.with_name(folder.name + "-before")
        folder.rename(copy)
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", folder],
            check=False,
            capture_output=True,
            text=True,
        )
        if mounted.returncode:
            pytest.skip(f"no right to mount here: {mounted.stderr.strip()}")
        shutil.copytree(copy, folder, dirs_exist_ok=True)
        self.folder = folder

    def remount(self, options):
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", self.folder], check=True)


def test_on_a_full_disk_a_refresh_fails_keeps_its_work_and_resumes_with_more_room(world, undisturbed, state):
    used_kb = sum(path.stat().st_blocks for path in (state / "cache").rglob("*")) // 2
    with Tmpfs(state / "cache", used_kb + 200) as disk:
        code, _, err = refresh(world, state, "late")
        assert code == 1
        sentence = "No space left on device; free space or fix permissions, then rerun: finished work is kept"
        assert f"cannot be written: {sentence}" in the_error(err)
        assert kills.check_last_revisions(state) == 2
        (folder,) = (state / "cache/faces").iterdir()
        assert open_cache(folder).revision == 1
        disk.remount("size=64m")
        assert world.refresh(state, "late") == 0
        assert_same_cache(state, undisturbed["late"])


def test_on_a_read_only_disk_a_refresh_fails_and_the_cache_can_be_read(world, state):
    with Tmpfs(state / "cache", 65536) as disk:
        disk.remount("ro")
        code, _, err = refresh(world, state, "late")
        assert code == 1
        assert "Read-only file system" in the_error(err)
        code, out = inside(world, state, "early", "cache", "verify", "faces", "--deep")
        assert (code, out.count(": intact")) == (0, 2)


def test_while_another_process_writes_the_data_set_a_refresh_fails_and_names_it(world, state):
    with writer_lock(state / "work/faces"):
        code, _, err = refresh(world, state, "late")
    assert code == 1
    assert f"is being written by process {os.getpid()} on " in the_error(err)


def test_the_lock_of_a_dead_writer_blocks_no_refresh(world, undisturbed, state):
    (state / "work/faces/.lock").write_text(json.dumps({"pid": 1, "host": "gone", "since": "2020-01-01"}))
    process = world.start(state, "late")
    time.sleep(1)
    process.kill()
    process.join()
    assert world.refresh(state, "late") == 0
    assert kills.written(state) == kills.written(undisturbed["late"])


def test_four_workers_write_the_same_bytes_as_one(world, undisturbed, state, tmp_path):
    code, _, err = refresh(world, tmp_path / "new", "early", "--workers", "4")
    assert code == 0, err
    assert_same_cache(tmp_path / "new", undisturbed["early"])
    code, _, err = refresh(world, state, "late", "--workers", "4")
    assert code == 0, err
    assert_same_cache(state, undisturbed["late"])


def test_a_dead_worker_is_reported_and_workers_end_with_a_killed_coordinator(world, undisturbed, tmp_path):
    process = command(world, tmp_path, "early", "refresh", "faces", "--experiment", world.config, "--workers", "2")
    workers = wait_for_workers(process.pid)
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "a worker process died, perhaps for lack of memory; finished work is kept" in the_error(err)

    process = command(world, tmp_path, "early", "refresh", "faces", "--experiment", world.config, "--workers", "2")
    workers = wait_for_workers(process.pid)
    process.kill()
    process.communicate()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"workers {workers} outlived their coordinator")
    assert world.refresh(tmp_path, "early") == 0
    assert_same_cache(tmp_path, undisturbed["early"])


def wait_for_workers(pid):
    """Wait for two processes that extract for a refresh; returns their ids."""
    for _ in range(600):
        found = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_worker(path, pid)]
        if len(found) >= 2:
            return found
        time.sleep(0.05)
    raise AssertionError("no workers were started")


def is_worker(cmdline, parent):
    try:
        status = (cmdline.parent / "status").read_text()
        return f"PPid:\t{parent}\n" in status and b"spawn_main" in cmdline.read_bytes()
    except OSError:
        return False


def assert_same_cache(state, other):
    found, expected = (
        {name: data for name, data in kills.written(place).items() if name.startswith("cache/")}
        for place in (state, other)
    )
    assert found == expected


# --- what a data engineer does


def test_a_dry_run_prints_what_a_refresh_would_do_and_does_nothing(world, undisturbed, state):
    before = kills.written(state)
    arguments = ("refresh", "faces", "--experiment", world.config, "--dry-run")
    code, out = inside(world, state, "late", *arguments)
    assert code == 0
    cells = [[cell.strip() for cell in line.split("│")[1:5]] for line in out.splitlines() if "│" in line]
    # two frames of a new subject, one replaced, one lost
    assert cells == [
        ["index", "9", "3", "0"],
        ["detect", "8", "4", "0"],
        ["crop", "8", "3", "2"],
        ["extract", "8", "3", "2"],
        ["all", "", "", ""],
    ]
    assert kills.written(state) == before
    code, out = inside(world, undisturbed["late"], "late", *arguments)
    assert code == 0
    assert [line.split("│")[3].strip() for line in out.splitlines() if "│" in line] == ["0"] * 4 + [""]


def test_damaged_tables_are_rebuilt_and_features_are_kept(world, undisturbed, state):
    caches = {path: path.stat().st_mtime_ns for path in (state / "cache").rglob("c.*")}
    assert caches
    for path in (state / "work/faces").glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-9])
    code, _, err = refresh(world, state, "early")
    assert code == 0
    assert [line for line in err.splitlines() if "is damaged and will be rebuilt" in line]
    assert "extract: nothing to do" in err
    assert {path: path.stat().st_mtime_ns for path in (state / "cache").rglob("c.*")} == caches


def test_a_limit_never_shrinks_an_indexed_data_set(world, state):
    before = kills.written(state)
    code, _, err = refresh(world, state, "early", "--limit", "4")
    assert code == 2
    assert "has 10 frames indexed, and --limit 4 would drop 6 of them from its caches" in the_error(err)
    assert kills.written(state) == before


def test_listing_measuring_exporting_and_pruning(world, state, tmp_path):
    code, out = inside(world, state, "early", "cache", "ls", "faces")
    (folder,) = (state / "cache/faces").iterdir()
    assert code == 0
    row = next(line for line in out.splitlines() if folder.name in line)
    assert row.split()[-2:] == ["-", "intact"], "no run and no reader uses it"
    code, out = inside(world, state, "early", "cache", "stats", "faces", "--frames", "6")
    assert code == 0
    assert "relative L2 error" in out
    for crops in ((), ("--crops",)):
        place = tmp_path / f"h5{len(crops)}"
        before = kills.written(state)
        code, out = inside(world, state, "early", "cache", "export", "faces", "--out", str(place), *crops)
        assert code == 0
        shutil.rmtree(state / ("work/faces/crops" if crops else "cache"))
        files = sorted(str(path) for path in place.iterdir())
        assert out.split() == files
        code, out = inside(world, state, "early", "cache", "import", "faces", *files)
        assert code == 0
        assert "revision 1, 10 frames" in out
        after = kills.written(state)
        assert after.keys() == before.keys()
        assert {name for name in after if after[name] != before[name]} <= {
            name for name in after if "manifest" in name or "shards-" in name
        }
    code, out = inside(world, state, "early", "cache", "prune", "faces", "--grace-hours", "0")
    assert code == 0
    assert out.count("freed 0.0 MB") == 2
    code, _, err = run(world, state, "early", "cache", "export", "faces", "--out", "h5", "--fingerprint", "zz")
    assert code == 2
    assert "cache 'zz' does not exist for faces; known ones: " in the_error(err)


def test_a_basis_is_fitted_without_labels(world, state, tmp_path):
    file = tmp_path / "basis.safetensors"
    arguments = ("weights", "fit-codec", "faces", "--experiment", world.config, "--out", str(file), "--frames", "8")
    code, out = inside(world, state, "early", *arguments)
    assert code == 0
    assert f"codec: {{path: {file}, sha256: " in out.replace("\n", "")
    basis = load_file(file)
    for name in ("lf", "hm_h1", "hm_h2"):
        vectors = basis[f"{name}.vectors"]
        assert vectors.shape == (16, 12)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(12), atol=1e-5)
        assert (basis[f"{name}.channel_rms"] > 0).all()
    first = file.read_bytes()
    assert inside(world, state, "early", *arguments)[0] == 0
    assert file.read_bytes() == first
    code, _, err = run(world, state, "early", *arguments[:-1], "800")
    assert code == 1
    assert "only 10 frames have crops, and the basis is fitted on 800" in the_error(err)


def test_damage_is_listed_with_its_frames_and_the_next_refresh_repairs_it(world, undisturbed, state):
    (folder,) = (state / "cache/faces").iterdir()
    shard = next((folder / "arrays.zarr/view_02/h2").glob("c.*"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    code, out = inside(world, state, "early", "cache", "verify", "faces", "--deep")
    assert code == 1
    assert f"shard {shard} does not have the checksum that it was written with: F00" in out
    assert world.refresh(state, "early") == 0
    assert kills.written(state) == kills.written(undisturbed["early"])

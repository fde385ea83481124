"""The main job as a user runs it: in its own process, with its own Prefect server, killed twice on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kills import finished_shards, finished_units
from tests.small_catalog import SMALL_DEMO, write_small_demo

FANTRANS = Path(sys.executable).with_name("fantrans")
TIMEOUT_S = 900
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(disk):
    folder = disk / "demo"
    folder.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FANTRANS_", "PREFECT_"))}
    return folder, inherited | {"FANTRANS_CATALOG": str(write_small_demo(folder))}


def demo(environment):
    return subprocess.run(
        [FANTRANS, "demo", "--quick"], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def kill_once(condition, environment, log):
    """Start the demo and SIGKILL its whole process group as soon as `condition()` holds."""
    process = subprocess.Popen(
        [FANTRANS, "demo", "--quick"], env=environment, stdout=log, stderr=log, start_new_session=True
    )
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, "the demo ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_demo_resumes_and_a_second_one_has_nothing_to_do(environment):
    folder, variables = environment
    cache, runs = folder / "cache/demo_quick", folder / "runs"
    with (folder / "log").open("w") as log:
        kill_once(lambda: finished_units(cache), variables, log)
        assert not any(cache.rglob("current.json")), "killed too late for a resumed refresh"
        shards = finished_shards(cache)
        assert shards
        kill_once(lambda: any(runs.rglob("fold-*/checkpoint.pt")), variables, log)
    assert {path: path.stat().st_mtime_ns for path in shards} == shards, "a finished shard was written again"

    finished = demo(variables)
    assert finished.returncode == 0, finished.stderr
    assert "F1 in percent: demo_quick on demo_quick" in finished.stdout
    report = json.loads(next(runs.rglob("report.json")).read_text())
    assert report["tested_parts"] == ["P1", "P2", "P3"]
    assert len(report["action_units"]) == 12
    assert 0 < report["mean_f1_percent"] < 100

    written = {path: path.stat().st_mtime_ns for path in [*runs.rglob("*.safetensors"), *cache.rglob("view_*/*/c*")]}
    again = demo(variables)
    assert again.returncode == 0, again.stderr
    assert "nothing to refresh, nothing to train: this is the report of the last run" in again.stdout
    assert "F1 in percent: demo_quick on demo_quick" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in written} == written


def run(environment, *words):
    ended = subprocess.run(
        words, env=environment[1], cwd=CHECKOUT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_example_notebook_runs_on_its_cache(environment):
    executed = environment[0] / "executed.ipynb"
    run(environment, FANTRANS.with_name("jupyter-execute"), "examples/notebook.ipynb", f"--output={executed}")
    outputs = [output for cell in json.loads(executed.read_text())["cells"] for output in cell.get("outputs", [])]
    assert "ten steps" in json.dumps(outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_example_head_is_trained_compared_drawn_and_exported(environment):
    folder = environment[0]
    own = "examples/own_head.yaml"
    run(environment, FANTRANS, "-q", "train", "demo_quick", "--experiment", own)
    compared = json.loads(run(environment, FANTRANS, "compare", "demo_quick", own, "demo_quick", "--json"))
    assert (compared["num_subjects"], len(compared["action_units"])) == (SMALL_DEMO["num_subjects"], 12)
    drawn = run(environment, FANTRANS, "-q", "report", "demo_quick", "--experiment", own, "--figures")
    assert "score_cam.png" in drawn
    assert "curves.svg" in drawn
    run(environment, FANTRANS, "export", "demo_quick-ConvMlp", "--out", folder / "exported")
    assert {path.name for path in (folder / "exported").iterdir()} == {"head.json", "head.onnx", "head.safetensors"}

"""Normal operation: the deployments as an operator runs them, and what Prefect shows of them."""

import json
import os
import re
import signal
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.conftest import BIN, REFRESH
from tests.recipes import run_recipe
from tests.small_catalog import NUM_FRAMES


@pytest.fixture(scope="package")
def zombie(trial, refreshed):
    """A refresh whose process and worker were killed together, so that neither can report it."""
    run = trial.begin(REFRESH, profile="compact")
    trial.until(trial.units)
    os.kill(trial.wait_for_worker(), signal.SIGKILL)
    os.kill(trial.wait_for_process(run), signal.SIGKILL)
    return run


def test_a_refresh_reports_in_its_log_and_in_an_artifact(trial, refreshed):
    artifact = trial.artifacts("refresh-bp4d-synthetic")[0]
    assert f"| extract | 0 | {NUM_FRAMES} | 0 |" in artifact["data"]
    assert "file://" not in artifact["data"]
    lines = trial.log_lines(artifact["flow_run_id"])
    assert any(line.startswith("extract features: block 2; 192 of 192 views, ") for line in lines)
    assert f"extract: {NUM_FRAMES} new, 0 kept" in lines
    ours = {"type": {"any_": ["progress"]}, "flow_run_id": {"any_": [artifact["flow_run_id"]]}}
    progress = trial.query("artifacts/filter", artifacts=ours)
    assert {each["description"]: each["data"] for each in progress}["extract features"] == 100


@pytest.mark.usefixtures("refreshed")
def test_a_command_that_the_server_records_sends_its_lines_there(trial):
    done = trial.command(BIN / "fantrans", "refresh", "bp4d-synthetic", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    (run,) = trial.query("flow_runs/filter", sort="START_TIME_DESC", limit=1)
    assert run["name"].startswith("refresh bp4d-synthetic")
    line = f"extract: nothing to do, {NUM_FRAMES} kept"
    trial.until(lambda: line in trial.logged(run["id"]))
    assert done.stderr.count(line) == 1


@pytest.mark.usefixtures("zombie")
def test_train_and_report_run_from_their_deployments_with_a_history_of_f1(trial):
    for deployment in ("train-folds", "report"):
        done = trial.run(f"{deployment}/bp4d-synthetic", experiment=trial.small)
        assert done.returncode == 0, done.stdout + done.stderr
    assert trial.wait_for_end(trial.begin("report/bp4d-synthetic", experiment=trial.small))[0] == "Completed"
    named = {"name": {"any_": ["train bp4d-synthetic small, 2 folds"]}}
    (training,) = trial.query("flow_runs/filter", flow_runs=named)
    lines = trial.log_lines(training["id"])
    assert {"fold P1, epoch 1 of 1", "fold P2, epoch 1 of 1"} <= {line.split(":")[0] for line in lines}
    (path,) = trial.folder.glob("runs/*/report.json")
    assert 'href="report.html"' in path.with_name("live.html").read_text()
    newer, older = trial.artifacts("f1-bp4d-synthetic-small")
    assert newer["data"] == older["data"]
    mean = json.loads(newer["data"])[-1]
    expected = json.loads(path.read_text())
    assert (mean["au"], mean["f1_percent"]) == ("mean", pytest.approx(expected["mean_f1_percent"], abs=0.01))
    assert [mean["low_percent"], mean["high_percent"]] == pytest.approx(expected["interval_95_percent"], abs=0.01)
    assert f"the file `{path.with_suffix('.html')}` on " in newer["description"]
    assert "The run had all subjects, tasks and coded frames of the data set." in newer["description"]
    assert "file://" not in newer["description"]


@pytest.fixture(scope="module")
def failed(trial):
    """A training that has failed, by its id."""
    run = trial.begin("train-folds/bp4d-synthetic", experiment="nothing")
    assert trial.wait_for_end(run)[0] == "Failed"
    return run


def test_bad_input_fails_the_run_with_its_sentence_and_posts_it_to_the_webhook(trial, posted, failed):
    assert "experiment 'nothing' does not exist" in trial.state(failed)[1]
    trial.until(lambda: any(failed in line and "experiment 'nothing' does not exist" in line for line in posted[0]))


def test_status_says_why_a_run_is_late_or_has_failed_and_which_command_helps(trial, failed):
    start = (datetime.now(UTC) - timedelta(minutes=12)).isoformat()
    scheduled = {"type": "SCHEDULED", "state_details": {"scheduled_time": start}}
    trial.request("PATCH", "work_pools/gpu/queues/train", json={"is_paused": True})
    late = [
        trial.query(f"deployments/{trial.deployment(name)['id']}/create_flow_run", state=scheduled)["id"]
        for name in ("refresh-cache/bp4d", "train-folds/bp4d")
    ]
    try:
        found = json.loads(trial.command(BIN / "fantrans", "ops", "status", "--json").stdout)
    finally:
        for run in late:
            trial.request("DELETE", f"flow_runs/{run}")
        trial.request("PATCH", "work_pools/gpu/queues/train", json={"is_paused": False})
    by_deployment = {sentence.split(" ")[0]: sentence for sentence in found["problems"]}
    assert re.search(
        r"late for 1\d min: pool gpu has no worker online; start one with `prefect worker start .* gpu --limit 1`$",
        by_deployment["refresh-cache/bp4d"],
    )
    assert by_deployment["train-folds/bp4d"].endswith("resume it with `prefect work-queue resume train --pool gpu`")
    sentence = by_deployment["train-folds/bp4d-synthetic"]
    assert "experiment 'nothing' does not exist" in sentence
    command = sentence.rpartition("; its log: ")[2].strip("`").split()
    assert command == ["prefect", "flow-run", "logs", failed]
    assert "does not exist" in " ".join(trial.command(BIN / command[0], *command[1:]).stdout.split())
    assert any(
        re.search("the schedules of .* are off; `prefect deployment schedule ls", hint) for hint in found["hints"]
    )


def test_a_wrong_parameter_is_refused_before_a_run_is_created(trial):
    before = trial.query("flow_runs/count")
    refused = trial.run(REFRESH, profile="tiny")
    assert refused.returncode == 1
    assert "'tiny' is not one of" in " ".join((refused.stdout + refused.stderr).split())
    refused = trial.run(REFRESH, cluster={"num_workers": 0})
    assert refused.returncode == 1
    assert "0 is less than the minimum of 1" in " ".join((refused.stdout + refused.stderr).split())
    assert trial.query("flow_runs/count") == before


@pytest.mark.usefixtures("zombie", "undisturbed")  # in this order: the first kills the worker
def test_status_shows_worker_runs_and_caches(trial, refreshed):
    shown = trial.command(BIN / "fantrans", "ops", "status", COLUMNS="120").stdout
    lines = [line.split() for line in shown.splitlines()]
    assert any(line[:3] == ["cpu", "cpu", "online"] for line in lines)
    assert any(line[:1] == [REFRESH] and "never" not in line for line in lines)
    assert any(line[:1] == ["bp4d-synthetic"] and "standard" in line for line in lines)


def test_the_recipes_for_a_server_raise_an_alert_only_if_something_is_wrong(trial, refreshed, tmp_path):
    def run(title, *replace):
        ended = run_recipe(title, environment=trial.environment, folder=tmp_path, replace=replace)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    trial.wait_for_worker()
    title = "Alert if a worker or the server is down"
    assert run(title, "", "") == ""
    assert run(title, 'pools="cpu"', 'pools="cpu gpu"') == "ALERT: no worker of the pool gpu is online\n"
    listed = run("List deployments that failed, are late, or have not run for eight days", "", "")
    assert "ran last at" not in listed
    assert "has never run" not in listed, "their schedules are off"
    title = "Run a deployment and wait for its end"
    assert run(title, "refresh-cache/bp4d", REFRESH) == ""
    assert run(title, "refresh-cache/bp4d", "refresh-cache/bp5d").startswith("ALERT: refresh-cache/bp5d has failed")


def test_a_second_server_on_the_same_port_is_refused(trial):
    refused = trial.command(BIN / "fantrans", "ops", "up", "--port", trial.port)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: port {trial.port} is taken, perhaps by a server that already runs")


def test_bootstrapping_a_server_again_changes_nothing(trial):
    nightly = trial.deployment("refresh-cache/bp4d")
    (schedule,) = nightly["schedules"]
    assert not schedule["active"]
    trial.request("PATCH", f"deployments/{nightly['id']}/schedules/{schedule['id']}", json={"active": True})
    first = trial.command(BIN / "fantrans", "ops", "deploy", "--gpus", "2")
    assert "pool gpu: updated, at most 2 runs" in first.stdout, first.stderr
    again = trial.command(BIN / "fantrans", "ops", "deploy")
    assert again.returncode == 0, again.stderr
    done = dict(line.split(": ") for line in again.stdout.splitlines() if not line.startswith("automation"))
    assert set(done.values()) == {"unchanged", "deployed"}
    assert {"report/bp4d", "prune-cache/all"} <= done.keys()
    assert "automation for dead runs: unchanged" in again.stdout
    assert trial.request("GET", "work_pools/gpu").json()["concurrency_limit"] == 2
    (schedule,) = trial.deployment("refresh-cache/bp4d")["schedules"]
    assert schedule["active"], "an operator has switched it on"


def test_a_run_that_died_with_its_worker_is_found_and_posted_and_the_next_run_computes_the_rest(trial, posted, zombie):
    finished = trial.finished()
    assert finished
    following = trial.begin(REFRESH, profile="compact")
    assert trial.wait_for_end(zombie) == ("Crashed", "no heartbeat: its process and worker are gone")
    trial.until(lambda: any(zombie in line and "Crashed. no heartbeat" in line for line in posted[0]))
    assert trial.wait_for_end(following)[0] == "Completed"
    assert f"extract: {NUM_FRAMES} new, 0 kept" in trial.log_lines(following)
    assert trial.shards().items() >= finished.items(), "finished shards are computed once"

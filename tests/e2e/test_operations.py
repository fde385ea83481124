"""A server, its deployments and a worker as an operator starts them, over a small rendered data set."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from pipeline.catalog import CATALOG_FILE
from pipeline.config import CONFIG_FOLDER

BIN = Path(sys.executable).parent
PATIENCE_S = 600


def free_port():
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def small_catalog(folder):
    content = yaml.safe_load(CATALOG_FILE.read_text())
    content["roots"] = {"work": "work", "cache": "cache", "runs": "runs"}
    config = folder / "small.yaml"
    config.write_text(f"base: {CONFIG_FOLDER / 'demo_quick'}\ncache: {{views: {{num_views: 2}}}}\n"
                      "train: {num_epochs: 1, batch_size: 16}\nparts: [P1, P2]\n")
    rendered = {"num_subjects": 12, "num_tasks": 8, "num_frames": 1, "size_px": 256, "seed": 5}
    content["datasets"] = {"bp4d-synthetic": {"root": "raw", "layout": "bp4d", "protocol": "rendered_bp4d",
                                              "experiment": str(config), "rendered": rendered}}
    for entry in content["weights"].values():
        for file in filter(None, (entry, entry.get("codec"))):
            file["path"] = str(CATALOG_FILE.parent / file["path"])
    path = folder / "data_catalog.yaml"
    path.write_text(yaml.safe_dump(content))
    return path, config


class Trial:
    """`fantrans ops up` with its environment."""

    def __init__(self, folder):
        catalog, self.config = small_catalog(folder)
        self.runs = folder / "runs"
        self.address = f"http://127.0.0.1:{free_port()}/api"
        ours = ("PREFECT_", "FANTRANS_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environment = inherited | {"FANTRANS_CATALOG": str(catalog), "PREFECT_API_URL": self.address}
        self.log = folder / "up.log"
        port = self.address.split(":")[2].split("/")[0]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([BIN / "fantrans", "ops", "up", "--port", port], env=self.environment,
                                            stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + PATIENCE_S
        while "Ctrl-C stops it" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def run(self, deployment, **parameters):
        """`prefect deployment run --watch`; returns the finished process."""
        given = [word for name, value in parameters.items() for word in ("-p", f"{name}={json.dumps(value)}")]
        return subprocess.run([BIN / "prefect", "--no-prompt", "deployment", "run", deployment, "--watch", *given],
                              env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    def asked(self, path, **query):
        return httpx.post(f"{self.address}/{path}", json=query, timeout=30).raise_for_status().json()


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    trial = Trial(tmp_path_factory.mktemp("ops"))
    yield trial
    trial.process.send_signal(signal.SIGTERM)
    assert trial.process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{trial.address}/health")


def test_refresh_train_and_report_run_from_their_deployments_and_a_second_refresh_computes_nothing(trial):
    first = trial.run("refresh-cache/bp4d-synthetic")
    assert first.returncode == 0, first.stdout + first.stderr

    def shards():
        return {path: path.stat().st_mtime_ns for path in trial.runs.parent.glob("cache/*/*/arrays.zarr/*/*/c*")}

    before = shards()
    assert before
    for deployment in ("train-folds/bp4d-synthetic", "report/bp4d-synthetic"):
        done = trial.run(deployment, config=str(trial.config))
        assert done.returncode == 0, done.stdout + done.stderr
    (report,) = trial.runs.glob("*/report.md")
    (artifact,) = trial.asked("artifacts/filter", artifacts={"key": {"any_": ["f1-report"]}})
    assert artifact["data"] == report.read_text()
    second = trial.run("refresh-cache/bp4d-synthetic")
    assert second.returncode == 0
    assert shards() == before


def test_a_wrong_parameter_is_refused_before_a_run_is_made(trial):
    before = trial.asked("flow_runs/count")
    refused = trial.run("refresh-cache/bp4d-synthetic", profile="tiny")
    assert refused.returncode == 1
    assert "'tiny' is not one of" in " ".join((refused.stdout + refused.stderr).split())
    assert trial.asked("flow_runs/count") == before


def test_bad_input_fails_the_run_with_its_sentence(trial):
    failed = trial.run("train-folds/bp4d-synthetic", config="nothing")
    assert failed.returncode == 1
    runs = trial.asked("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["FAILED"]}}})
    assert "there is no experiment 'nothing'" in runs[0]["state"]["message"]


def test_status_shows_worker_runs_and_caches(trial):
    shown = subprocess.run([BIN / "fantrans", "ops", "status"], env=trial.environment | {"COLUMNS": "120"},
                           capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in shown.splitlines()]
    assert any(line[:3] == ["cpu", "cpu", "online"] for line in lines)
    assert any(line[:1] == ["refresh-cache/bp4d-synthetic"] and "Completed" in line for line in lines)
    assert any(line[:1] == ["bp4d-synthetic"] and "standard" in line for line in lines)

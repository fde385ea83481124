"""A server, its deployments and a worker, started as an operator does, on a small rendered data set."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.kills import finished_shards, finished_units
from tests.small_catalog import write_small_catalog
from tests.webhook import webhook

BIN = Path(sys.executable).parent
REFRESH = "refresh-cache/bp4d-synthetic"
TIMEOUT_S = 240


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Trial:
    """A running `fantrans ops up` with its environment."""

    def __init__(self, folder, webhook=""):
        self.folder = folder
        self.caches = folder / "cache/bp4d-synthetic"
        self.small, self.slow = str(folder / "small.yaml"), str(folder / "slow.yaml")
        self.port = str(free_port())
        self.address = f"http://127.0.0.1:{self.port}/api"
        ours = ("PREFECT_", "FANTRANS_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environment = inherited | {
            "FANTRANS_CATALOG": str(write_small_catalog(folder, dataset="bp4d-synthetic", small=2, slow=6)),
            "PREFECT_API_URL": self.address,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "FANTRANS_WEBHOOK": webhook,
        }
        elsewhere = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(folder / "elsewhere")}
        self.log = folder / "up.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [BIN / "fantrans", "ops", "up", "--port", self.port],
                env=self.environment | elsewhere,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self.until(lambda: "Ctrl-C stops it" in self.log.read_text())
        except BaseException:
            self.stop()
            raise

    def stop(self):
        """Stop it as a service manager does; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def until(self, condition):
        """Wait until `condition()` returns a true value; returns that value."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (answer := condition()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        return answer

    def command(self, *words, cwd=None, **more):
        return subprocess.run(
            words, env=self.environment | more, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )

    def run(self, deployment, **parameters):
        """Run `prefect deployment run --watch`; returns the finished process."""
        given = [word for name, value in parameters.items() for word in ("-p", f"{name}={json.dumps(value)}")]
        return self.command(BIN / "prefect", "--no-prompt", "deployment", "run", deployment, "--watch", *given)

    def begin(self, deployment, **parameters):
        """Start a run as a schedule does; returns its id."""
        path = f"deployments/{self.deployment(deployment)['id']}/create_flow_run"
        return self.query(path, parameters=parameters)["id"]

    def deployment(self, name):
        return self.request("GET", f"deployments/name/{name}").json()

    def request(self, method, path, **more):
        """Send a request to the server; retried, as by Prefect's own client, while the database is busy."""

        def answer():
            response = httpx.request(method, f"{self.address}/{path}", timeout=30, **more)
            return response if response.status_code != httpx.codes.SERVICE_UNAVAILABLE else None

        return self.until(answer).raise_for_status()

    def query(self, path, **filters):
        return self.request("POST", path, json=filters).json()

    def flow_run(self, run):
        return self.request("GET", f"flow_runs/{run}").json()

    def state(self, run):
        """Name of the run's state, and its message."""
        state = self.flow_run(run)["state"]
        return state["name"], state["message"] or ""

    def times(self, run):
        """Times at which the run started and ended."""
        found = self.flow_run(run)
        return found["start_time"], found["end_time"]

    def is_up(self):
        try:
            return httpx.get(f"{self.address}/health", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def artifacts(self, key):
        """All artifacts under a key, the newest first."""
        found = self.query("artifacts/filter", artifacts={"key": {"any_": [key]}})
        return sorted(found, key=lambda artifact: artifact["created"], reverse=True)

    def logged(self, run, *, by=None):
        """Log lines of a run that have arrived; by: only those of this logger."""
        found = self.query("logs/filter", logs={"flow_run_id": {"any_": [run]}}, sort="TIMESTAMP_ASC", limit=200)
        return [each["message"] for each in found if by in (None, each["name"])]

    def log_lines(self, run):
        """Log lines of a deployment's run; they arrive a little after the run has ended."""
        self.until(lambda: any("Finished in state" in line for line in self.logged(run, by="prefect.flow_runs")))
        return self.logged(run)

    def shards(self):
        """Shards of the data set's caches, with the time of each file's last change."""
        return {path: path.stat().st_mtime_ns for path in self.caches.glob("*/arrays.zarr/*/*/c.*")}

    def units(self):
        return finished_units(self.caches)

    def finished(self):
        return finished_shards(self.caches)

    def wait_for_end(self, run):
        """Wait for the run to end; returns its state's name and message."""
        last = ("Completed", "Failed", "Crashed", "Cancelled")
        return self.until(lambda: (state := self.state(run))[0] in last and state)

    def wait_for_process(self, run):
        """Wait for the process that executes the run; returns its id."""
        return self.until(
            lambda: next(
                (pid for pid, words in processes(f"PREFECT__FLOW_RUN_ID={run}") if "prefect.engine" in words), None
            )
        )

    def wait_for_worker(self):
        """Wait for the process of the worker; returns its id."""
        return self.until(
            lambda: next(
                (pid for pid, words in processes(f"PREFECT_API_URL={self.address}") if "worker start" in words), None
            )
        )


def processes(setting):
    """Yield ids and commands of the processes with this setting in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if setting.encode() in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue


@pytest.fixture(scope="package")
def posted():
    """Lines that the webhook received, and its URL."""
    with webhook() as lines_and_address:
        yield lines_and_address


@pytest.fixture(scope="package")
def refreshed(trial):
    """The first refresh of the rendered faces, completed."""
    done = trial.run(REFRESH)
    assert done.returncode == 0, done.stdout + done.stderr
    assert trial.shards()


@pytest.fixture(scope="package")
def undisturbed(trial, refreshed):
    """A running refresh by four processes of a Dask cluster: a future of `Trial.run`.

    It has its own data set and deployment, so that faults in other tests do not reach it.
    """
    elsewhere = "refresh-cache/disfa"
    trial.request("PATCH", f"deployments/{trial.deployment(elsewhere)['id']}", json={"work_pool_name": "cpu"})
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(
            trial.run, elsewhere, dataset="undisturbed", device="cpu", experiment=trial.slow, cluster={"num_workers": 4}
        )


@pytest.fixture(scope="package")
def disk():
    """A folder on a disk."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="package")
def trial(disk, posted):
    (disk / "ops").mkdir()
    trial = Trial(disk / "ops", posted[1])
    yield trial
    assert trial.stop() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{trial.address}/health")

"""A Prefect server with workers on this machine, for a trial; and what a server, its workers and caches are doing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Self

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateTypes
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort

from flows.bootstrap import QUEUES, bootstrap, wait_for_server
from pipeline.catalog import load_catalog
from pipeline.errors import ConfigError, FantransError
from pipeline.refresh.maintenance import list_caches

_START_S = 180.0
_STOP_S = 20.0
_SOON_S = 10.0
_MAX_EARLY = 5
_WORKER = ("worker", "start", "--type", "process")


def up(*, port: int, num_gpus: int, num_cpu_runs: int, say: Callable[[str], None]) -> None:
    """Server, pools, deployments and workers, until this process is told to stop; one that dies is started again.

    In this process's PREFECT_HOME lie the server's database, and the logs. Raises `ConfigError` when the port is taken,
    the server does not start, or a process ends again and again.
    """
    home, address = Path(os.environ["PREFECT_HOME"]), os.environ["PREFECT_API_URL"]
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: one that just ended is gone
        try:
            asked.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigError(
                f"port {port} is taken, perhaps by a server that runs already (`fantrans ops status`); "
                "give another --port"
            ) from None
    signal.signal(signal.SIGTERM, _stop)
    with _Processes(home, say) as servers, _Processes(home, say) as workers:
        servers.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        wait_for_server(address, seconds=_START_S, meanwhile=servers.keep_up)
        for name, what in bootstrap(num_gpus=max(1, num_gpus), num_cpu_runs=num_cpu_runs):
            say(f"{name}: {what}")
        for i in range(num_gpus):
            workers.start(
                f"gpu-{i}", *_WORKER, "--pool", "gpu", "--name", f"gpu-{i}", "--limit", "1", CUDA_VISIBLE_DEVICES=str(i)
            )
        workers.start("cpu", *_WORKER, "--pool", "cpu", "--name", "cpu")
        say(f"up: http://127.0.0.1:{port} (logs in {home}); Ctrl-C stops it. In another terminal:")
        say(f"    export PREFECT_API_URL={address}")
        say("    prefect --no-prompt deployment run 'refresh-cache/bp4d-synthetic' --watch")
        try:
            while True:
                time.sleep(1)
                servers.keep_up()
                workers.keep_up()
        except KeyboardInterrupt:
            say("stopping")


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


class _Processes:
    """`prefect` commands that are kept up together; each in its own session, so that Ctrl-C reaches us alone."""

    def __init__(self, logs: Path, say: Callable[[str], None]) -> None:
        self._logs, self._say = logs, say
        self._commands: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {}
        self._running: dict[str, tuple[subprocess.Popen, float]] = {}
        self._num_early: dict[str, int] = {}

    def start(self, name: str, *words: str, **environment: str) -> None:
        """Start a command that logs to NAME.log."""
        self._commands[name] = words, environment
        with (self._logs / f"{name}.log").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *words],
                env=os.environ | environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._running[name] = process, time.monotonic()

    def keep_up(self) -> None:
        """Start again what has ended; raises `ConfigError` for what has ended soon after its start too often."""
        for name, (process, started) in list(self._running.items()):
            if process.poll() is None:
                continue
            self._num_early[name] = self._num_early.get(name, 0) + 1 if time.monotonic() - started < _SOON_S else 0
            if self._num_early[name] > _MAX_EARLY:
                raise ConfigError(f"{name} ended with status {process.returncode}; read {self._logs / name}.log")
            self._say(f"{name} ended with status {process.returncode} and is started again")
            words, environment = self._commands[name]
            self.start(name, *words, **environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process, _started in self._running.values():
            process.terminate()
        deadline = time.monotonic() + _STOP_S
        for process, _started in self._running.values():
            try:
                process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def check_server() -> None:
    """Raises `ConfigError` where no server answers."""
    address = os.environ.get("PREFECT_API_URL", "")
    try:
        httpx.get(f"{address}/health", timeout=5).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL):
        raise ConfigError(
            f"no Prefect server answers at {address or 'PREFECT_API_URL, which is not set'}; "
            "start one with `fantrans ops up`, or set PREFECT_API_URL to yours"
        ) from None


Rows = list[tuple[str, ...]]


def status() -> dict[str, Rows]:
    """Tables, each with its head as the first row: workers, deployments with their last and next runs, caches.

    Raises `ConfigError` where no server answers.
    """
    check_server()
    with get_client(sync_client=True) as client:
        return {"workers": _workers(client), "deployments": _deployments(client), "caches": _caches()}


def _workers(client: SyncPrefectClient) -> Rows:
    rows: Rows = [("pool", "worker", "state", "last heartbeat")]
    there = {pool.name for pool in client.read_work_pools()}
    for pool in QUEUES:
        if pool not in there:
            rows.append((pool, "no such pool; run `python -m flows.bootstrap`", "", ""))
            continue
        workers = client.read_workers_for_work_pool(pool)
        rows += [
            (pool, worker.name, worker.status.value.lower(), _when(worker.last_heartbeat_time)) for worker in workers
        ] or [(pool, "none", "", "")]
    return rows


def _deployments(client: SyncPrefectClient) -> Rows:
    rows: Rows = [("deployment", "last run", "ended as", "next run")]
    for deployment in client.read_deployments():
        of = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        begun = FlowRunFilter(state=FlowRunFilterState(type=StateTypes(not_any_=[StateType.SCHEDULED])))
        planned = FlowRunFilter(state=FlowRunFilterState(type=StateTypes(any_=[StateType.SCHEDULED])))
        last = client.read_flow_runs(
            flow_run_filter=begun, deployment_filter=of, limit=1, sort=FlowRunSort.EXPECTED_START_TIME_DESC
        )
        coming = client.read_flow_runs(
            flow_run_filter=planned, deployment_filter=of, limit=1, sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC
        )
        rows.append(
            (
                f"{client.read_flow(deployment.flow_id).name}/{deployment.name}",
                _when(last[0].start_time) if last else "never",
                last[0].state_name or "" if last else "",
                _when(coming[0].next_scheduled_start_time) if coming else "not scheduled",
            )
        )
    return [rows[0], *sorted(rows[1:])]


def _caches() -> Rows:
    catalog = load_catalog()
    rows: Rows = [("data set", "cache", "revision", "frames", "made with", "age")]
    for dataset in catalog.datasets:
        try:
            caches = list_caches(catalog, dataset)
        except FantransError as error:
            rows.append((dataset, str(error), "", "", "", ""))
            continue
        rows += [
            (
                dataset,
                cache.fingerprint,
                str(cache.revision),
                f"{cache.num_frames:,} x {cache.num_views}",
                f"{cache.weights} {cache.profile}",
                cache.age,
            )
            for cache in caches
        ]
    return rows


def _when(time: datetime | None) -> str:
    return "" if time is None else f"{time.astimezone():%Y-%m-%d %H:%M}"

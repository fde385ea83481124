"""Run a Prefect server with workers on this machine, for a trial; and show the state of a server and the caches."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Self

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateTypes
from prefect.client.schemas.objects import DeploymentSchedule, StateType
from prefect.client.schemas.sorting import FlowRunSort

from flows.bootstrap import QUEUES, bootstrap
from flows.connection import check_server, wait_for_server
from pipeline.catalog import load_catalog
from pipeline.errors import FantransError, ServerError
from pipeline.refresh.caches import CacheSummary, list_caches
from pipeline.runtime.text import age_in_words

_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 20.0
_EARLY_END_S = 10.0
_MAX_EARLY_ENDS = 5
_LATE_AFTER = timedelta(seconds=60)
_SHARED_VARIABLES = ("FANTRANS_CATALOG", "FANTRANS_WORK", "FANTRANS_CACHE", "FANTRANS_RUNS")


def run_trial_server(*, port: int, num_gpus: int, num_cpu_runs: int, print_line: Callable[[str], None]) -> None:
    """Run a server with pools, deployments and workers until Ctrl-C or SIGTERM; a process that ends is restarted.

    The server's database and the logs are in the PREFECT_HOME of this process. Raises `ServerError` if the port is
    taken, the server does not start, or a process keeps ending.
    """
    home, address = Path(os.environ["PREFECT_HOME"]), os.environ["PREFECT_API_URL"]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does, or a port just left is taken
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ServerError(
                f"port {port} is taken, perhaps by a server that already runs (`fantrans ops status`); "
                "give another --port"
            ) from None
    signal.signal(signal.SIGTERM, _interrupt)
    with _Supervisor(home, print_line) as servers, _Supervisor(home, print_line) as workers:
        servers.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        wait_for_server(address, seconds=_START_TIMEOUT_S, while_waiting=servers.restart_ended)
        for name, what in bootstrap(num_gpus=max(1, num_gpus), num_cpu_runs=num_cpu_runs):
            print_line(f"{name}: {what}")
        for i in range(num_gpus):
            words = (*_worker_command("gpu", f"gpu-{i}"), "--limit", "1")
            workers.start(f"gpu-{i}", *words, CUDA_VISIBLE_DEVICES=str(i))
        workers.start("cpu", *_worker_command("cpu", "cpu"))
        print_line(f"up: http://127.0.0.1:{port} (logs in {home}); Ctrl-C stops it. In another terminal:")
        print_line(f"    export PREFECT_API_URL={address}")
        if os.environ.get("PREFECT_API_AUTH_STRING"):
            print_line("    export PREFECT_API_AUTH_STRING=...    # as here: the server asks for it")
        for name in _SHARED_VARIABLES:
            if name in os.environ:
                print_line(f"    export {name}={shlex.quote(str(Path(os.environ[name]).absolute()))}")
        print_line("    prefect --no-prompt deployment run 'refresh-cache/bp4d-synthetic' --watch")
        try:
            while True:
                time.sleep(1)
                servers.restart_ended()
                workers.restart_ended()
        except KeyboardInterrupt:
            print_line("stopping")


def _worker_command(pool: str, name: str) -> tuple[str, ...]:
    return ("worker", "start", "--type", "process", "--pool", pool, "--name", name)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _Supervisor:
    """Runs and restarts `prefect` commands; each has its own session, so that Ctrl-C reaches this process alone."""

    def __init__(self, logs: Path, print_line: Callable[[str], None]) -> None:
        self._logs, self._print_line = logs, print_line
        self._commands: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {}
        self._running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        self._num_early_ends: dict[str, int] = {}

    def start(self, name: str, *words: str, **environment: str) -> None:
        """Start a command whose output is appended to NAME.log."""
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

    def restart_ended(self) -> None:
        """Restart the commands that have ended; raises `ServerError` for one that keeps ending soon after its start."""
        for name, (process, started) in list(self._running.items()):
            if process.poll() is None:
                continue
            self._num_early_ends[name] = (
                self._num_early_ends.get(name, 0) + 1 if time.monotonic() - started < _EARLY_END_S else 0
            )
            if self._num_early_ends[name] > _MAX_EARLY_ENDS:
                raise ServerError(f"{name} ended with status {process.returncode}; read {self._logs / name}.log")
            self._print_line(f"{name} ended with status {process.returncode} and is restarted")
            words, environment = self._commands[name]
            self.start(name, *words, **environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):  # a second one would leave processes behind
            signal.signal(number, signal.SIG_IGN)
        for process, _started in self._running.values():
            process.terminate()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for process, _started in self._running.values():
            try:
                process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Worker(NamedTuple):
    """A worker of a pool; a pool that does not exist, or has no worker, is one row without a name."""

    pool: str
    name: str | None
    state: str
    last_heartbeat_at: datetime | None


class Deployment(NamedTuple):
    """A deployment, FLOW/NAME, with its last and next runs; None where there is none.

    last_message: why the last run failed or crashed; None for other ends. schedule: cron and time zone, and "off" for
    an inactive one. A run whose start is over is late since `next_run_at`.
    """

    name: str
    last_run_at: datetime | None
    last_state: str | None
    next_run_at: datetime | None
    last_message: str | None = None
    schedule: str | None = None
    pool: str | None = None

    def is_late(self, now: datetime) -> bool:
        """Return whether a run waits since more than a minute."""
        return self.next_run_at is not None and now - self.next_run_at > _LATE_AFTER


class Status(NamedTuple):
    """What a server and the folders of the catalog know.

    caches: of all data sets, in the folders of this process. faults: data sets whose caches could not be listed, and
    why. problems: see `find_problems`.
    """

    workers: list[Worker]
    deployments: list[Deployment]
    caches: list[CacheSummary]
    faults: list[str]
    problems: Sequence[str] = ()


def read_status() -> Status:
    """Return workers, deployments and caches; raises `ServerError` if no server answers at PREFECT_API_URL."""
    check_server()
    with get_client(sync_client=True) as client:
        workers, deployments = _workers(client), _deployments(client)
    catalog, caches, faults = load_catalog(), [], []
    for dataset in catalog.datasets:
        try:
            caches += list_caches(catalog, dataset)
        except FantransError as error:
            faults.append(f"{dataset}: {error}")
    return Status(workers, deployments, caches, faults, find_problems(workers, deployments, now=datetime.now(UTC)))


def find_problems(workers: list[Worker], deployments: list[Deployment], *, now: datetime) -> list[str]:
    """Return a sentence for each deployment whose run is late, or whose last run failed or crashed."""
    online = {worker.pool for worker in workers if worker.state == "online"}
    found = []
    for each in deployments:
        if each.is_late(now) and each.next_run_at is not None:
            why = f"pool {each.pool} has no worker online; start one with `{_worker_hint(each.pool)}`"
            if each.pool in online:
                why = f"all workers of pool {each.pool} are busy, or its queue is paused; see the page of the server"
            found.append(f"{each.name} is late for {_age(each.next_run_at, now)}: {why}")
        if each.last_message is not None and each.last_state is not None:
            when = "" if each.last_run_at is None else f" {_age(each.last_run_at, now)} ago"
            found.append(f"{each.name} {each.last_state.lower()}{when}: {each.last_message}")
    return found


def _worker_hint(pool: str | None) -> str:
    return f"prefect worker start --type process --pool {pool}{' --limit 1' if pool == 'gpu' else ''}"


def _age(then: datetime, now: datetime) -> str:
    return age_in_words((now - then).total_seconds())


def _workers(client: SyncPrefectClient) -> list[Worker]:
    found = []
    existing = {pool.name for pool in client.read_work_pools()}
    for pool in QUEUES:
        if pool not in existing:
            found.append(Worker(pool, None, "no pool; run `fantrans ops deploy`", None))
            continue
        workers = client.read_workers_for_work_pool(pool)
        found += [
            Worker(pool, worker.name, worker.status.value.lower(), worker.last_heartbeat_time) for worker in workers
        ] or [Worker(pool, None, "no worker", None)]
    return found


def _deployments(client: SyncPrefectClient) -> list[Deployment]:
    found = []
    for deployment in client.read_deployments():
        its_runs = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        started = FlowRunFilter(state=FlowRunFilterState(type=StateTypes(not_any_=[StateType.SCHEDULED])))
        scheduled = FlowRunFilter(state=FlowRunFilterState(type=StateTypes(any_=[StateType.SCHEDULED])))
        last = client.read_flow_runs(
            flow_run_filter=started, deployment_filter=its_runs, limit=1, sort=FlowRunSort.EXPECTED_START_TIME_DESC
        )
        following = client.read_flow_runs(
            flow_run_filter=scheduled,
            deployment_filter=its_runs,
            limit=1,
            sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
        )
        state = last[0].state if last else None
        has_failed = state is not None and state.type in (StateType.FAILED, StateType.CRASHED)
        found.append(
            Deployment(
                f"{client.read_flow(deployment.flow_id).name}/{deployment.name}",
                last[0].start_time if last else None,
                last[0].state_name if last else None,
                following[0].next_scheduled_start_time if following else None,
                _reason(state.message) if state is not None and has_failed else None,
                ", ".join(map(_schedule, deployment.schedules)) or None,
                deployment.work_pool_name,
            )
        )
    return sorted(found, key=lambda deployment: deployment.name)


def _reason(message: str | None) -> str:
    """Return the sentence of an error from the message of a failed state, on one line."""
    words = " ".join((message or "no message").split())
    return re.sub(r"^(Flow|Task) run encountered an exception: \w+: ", "", words)[:600]


def _schedule(schedule: DeploymentSchedule) -> str:
    """Return the rule of a schedule, with its time zone, and whether it is off."""
    rule = schedule.schedule
    words = str(
        getattr(rule, "cron", None) or getattr(rule, "rrule", None) or f"every {getattr(rule, 'interval', '?')}"
    )
    return f"{words} {getattr(rule, 'timezone', None) or 'UTC'}{'' if schedule.active else ', off'}"

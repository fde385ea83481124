"""Run a Prefect server with workers on this machine, for a trial."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import psutil

from flows.bootstrap import bootstrap
from flows.connection import wait_for_server
from pipeline.errors import ServerError

_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 20.0
_IDLE_WORKER_STOP_TIMEOUT_S = 4.0
"""For a worker without a flow run: one whose server was away may hang when it is to end, with nothing to lose."""

_EARLY_END_S = 10.0
_MAX_EARLY_ENDS = 5
_WITHOUT_DATA = "refresh-cache/bp4d-synthetic"
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
    with (
        _Supervisor(home, print_line) as servers,
        _Supervisor(home, print_line, idle_stop_timeout_s=_IDLE_WORKER_STOP_TIMEOUT_S) as workers,
    ):
        servers.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        wait_for_server(address, seconds=_START_TIMEOUT_S, while_waiting=servers.restart_ended)
        done = bootstrap(num_gpus=max(1, num_gpus), num_cpu_runs=num_cpu_runs)
        for name, what in done:
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
        if example := _example([name for name, what in done if what == "deployed"]):
            print_line(f"    prefect --no-prompt deployment run {shlex.quote(example)} --watch")
        try:
            while True:
                time.sleep(1)
                servers.restart_ended()
                workers.restart_ended()
        except KeyboardInterrupt:
            print_line("stopping")


def _example(deployments: Sequence[str]) -> str | None:
    """Return the deployment to try first: one that needs no data, else a refresh, else any; None if there are none."""
    return min(
        deployments, key=lambda name: (name != _WITHOUT_DATA, not name.startswith("refresh-cache/")), default=None
    )


def _worker_command(pool: str, name: str) -> tuple[str, ...]:
    return ("worker", "start", "--type", "process", "--pool", pool, "--name", name)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _Supervisor:
    """Runs and restarts `prefect` commands; each has its own session, so that Ctrl-C reaches this process alone.

    idle_stop_timeout_s: how long a process may take to end when it has no children.
    """

    def __init__(
        self, logs: Path, print_line: Callable[[str], None], *, idle_stop_timeout_s: float = _STOP_TIMEOUT_S
    ) -> None:
        self._logs, self._print_line, self._idle_stop_timeout_s = logs, print_line, idle_stop_timeout_s
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
        stopped = time.monotonic()
        busy_until = {process.pid: stopped for process, _started in self._running.values()}
        while running := [process for process, _started in self._running.values() if process.poll() is None]:
            now = time.monotonic()
            for process in running:
                if psutil.Process(process.pid).children():
                    busy_until[process.pid] = now
                idle_s = now - busy_until[process.pid]
                if now - stopped > _STOP_TIMEOUT_S or idle_s > self._idle_stop_timeout_s:
                    os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)

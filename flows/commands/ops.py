"""`fantrans ops`: deploy to a Prefect server, run one for a trial, and show what a server is doing."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from flows.commands.base import Group, add_command
from flows.commands.cache import cache_record
from flows.commands.options import Json
from flows.commands.output import print_json, print_line, print_table
from flows.commands.server import prefect_home, set_up_prefect
from pipeline.errors import ServerError
from pipeline.runtime.text import age_in_words

ops_app = typer.Typer(cls=Group, help="Run and watch scheduled jobs on a Prefect server.")


@add_command(ops_app, "up", "fantrans ops up", "fantrans ops up --port 4300 --gpus 2")
def start_server(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server.")] = 4200,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs to work on, with one worker per GPU.")] = 0,
    cpu_runs: Annotated[int, typer.Option(min=1, help="Runs of the pool cpu at a time.")] = 2,
) -> None:
    """Run a Prefect server, its deployments and workers on this machine, for a trial.

    Prints how to use them, restarts what ends, and stops all of them on Ctrl-C.
    """
    if "PREFECT_SERVER_API_AUTH_STRING" in os.environ:  # the workers know the password of the server that is started
        os.environ.setdefault("PREFECT_API_AUTH_STRING", os.environ["PREFECT_SERVER_API_AUTH_STRING"])
    set_up_prefect(
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api", PREFECT_HOME=str(prefect_home()), PREFECT_LOGGING_LEVEL="INFO"
    )
    from flows.ops import run_trial_server

    run_trial_server(port=port, num_gpus=gpus, num_cpu_runs=cpu_runs, print_line=print_line)


@add_command(ops_app, "deploy", "fantrans ops deploy", "fantrans ops deploy --gpus 2 --wait-s 180")
def deploy(
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs, with one run per GPU.", show_default="unchanged, 1 in a new pool")
    ] = None,
    cpu_runs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs of the pool cpu at a time.", show_default="unchanged, 2 in a new pool"),
    ] = None,
    wait_s: Annotated[float, typer.Option(min=0, help="Seconds to wait for a server that is starting.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Create or update pools, queues, limits and deployments on the server of PREFECT_API_URL.

    Prints what was done with each. Schedules that are switched on stay on; running it again changes nothing.
    """
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        raise ServerError("PREFECT_API_URL is not set; start a server with `fantrans ops up`, or set it to yours")
    set_up_prefect()
    from flows.bootstrap import bootstrap
    from flows.connection import wait_for_server

    wait_for_server(address, seconds=wait_s)
    done = bootstrap(num_gpus=gpus, num_cpu_runs=cpu_runs)
    if as_json:
        print_json("ops-deploy", address=address, items=[{"name": name, "result": result} for name, result in done])
        return
    for name, result in done:
        print_line(f"{name}: {result}")


@add_command(ops_app, "status", "fantrans ops status", "fantrans ops status --json")
def show_status(as_json: Json = False) -> None:
    """Show workers and deployments of the server of PREFECT_API_URL, and the caches of this shell's catalog.

    Prints one table of each: heartbeats of the workers, last and next runs of the deployments, revisions of the caches.
    Below the deployments stands what is late, stuck or has failed, why, and what to do next.
    """
    set_up_prefect()
    from flows.status import read_status
    from pipeline.catalog import load_catalog

    status, now = read_status(), datetime.now(UTC)
    if as_json:
        print_json(
            "ops-status",
            workers=[worker._asdict() for worker in status.workers],
            deployments=[deployment._asdict() for deployment in status.deployments],
            caches=[cache_record(cache) for cache in status.caches],
            faults=status.faults,
            problems=status.problems,
            hints=status.hints,
        )
        return
    _print(
        "workers",
        ("pool", "worker", "state", "last heartbeat"),
        [(each.pool, each.name or "none", each.state, _ago(each.last_heartbeat_at, now)) for each in status.workers],
    )
    _print(
        "deployments",
        ("deployment", "schedule", "last run", "ended as", "next run"),
        [
            (
                each.name,
                each.schedule or "",
                _ago(each.last_run_at, now) if each.last_state else "never",
                each.last_state or "",
                ("late: " if each.is_late(now) else "") + (_local(each.next_run_at) or "not scheduled"),
            )
            for each in status.deployments
        ],
    )
    for sentence in (*status.problems, *status.hints):
        print_line(sentence)
    _print(
        "caches",
        ("data set", "cache", "revision", "frames", "made with", "age", "state"),
        [
            (
                each.dataset,
                each.fingerprint,
                str(each.revision or "-"),
                f"{each.num_frames:,} x {each.num_views}",
                f"{each.weights} {each.profile}",
                each.age,
                each.state,
            )
            for each in status.caches
        ],
    )
    print_line(f"caches are those of this shell, below {load_catalog().roots.cache}")
    for fault in status.faults:
        print_line(fault)


def _print(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*head, title=title, title_justify="left", box=SIMPLE)
    for row in rows:
        table.add_row(*row)
    print_table(table)


def _local(time: datetime | None) -> str:
    return "" if time is None else f"{time.astimezone():%Y-%m-%d %H:%M %Z}"


def _ago(time: datetime | None, now: datetime) -> str:
    return "" if time is None else f"{age_in_words((now - time).total_seconds())} ago"

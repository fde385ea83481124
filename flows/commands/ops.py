"""`fantrans ops`: a Prefect server for a trial, and what a server is doing."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from flows.commands.options import console, print_line
from flows.commands.server import prefect_home, set_up_prefect

ops_app = typer.Typer(no_args_is_help=True, help="Run and watch scheduled jobs on a Prefect server.")


@ops_app.command("up")
def start_server(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server.")] = 4200,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs to work on, with one worker per GPU.")] = 0,
    cpu_runs: Annotated[int, typer.Option(min=1, help="Runs of the pool cpu at a time.")] = 2,
) -> None:
    """Run a Prefect server, its deployments and workers on this machine, for a trial.

    Prints how to use them, restarts what ends, and stops all of them on Ctrl-C.
    """
    set_up_prefect(
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api", PREFECT_HOME=str(prefect_home()), PREFECT_LOGGING_LEVEL="INFO"
    )
    from flows.ops import run_trial_server

    run_trial_server(port=port, num_gpus=gpus, num_cpu_runs=cpu_runs, print_line=print_line)


@ops_app.command("status")
def show_status() -> None:
    """Show workers, deployments and caches, as the server of PREFECT_API_URL knows them.

    Prints one table of each: heartbeats of the workers, last and next runs of the deployments, revisions of the caches.
    """
    set_up_prefect()
    from flows.ops import status_tables

    for title, (head, *rows) in status_tables().items():
        table = Table(*head, title=title, title_justify="left", box=SIMPLE)
        for row in rows:
            table.add_row(*row)
        console.print(table)

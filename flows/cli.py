"""The `fantrans` command line: its commands, logging, and how errors end it."""

from __future__ import annotations

import logging
import sys
from typing import NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from flows.commands import cache, data, ops, runs, train, weights
from flows.commands.options import CommandWithChoices
from pipeline.errors import FantransError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Detect facial action units with FAN-Trans.")
for command in (
    train.demo,
    data.render,
    data.refresh,
    train.train,
    train.report,
    train.compare,
    train.export,
):
    app.command(cls=CommandWithChoices)(command)
app.add_typer(data.catalog_app, name="catalog")
app.add_typer(cache.cache_app, name="cache")
app.add_typer(runs.runs_app, name="runs")
app.add_typer(weights.weights_app, name="weights")
app.add_typer(ops.ops_app, name="ops")


def main() -> None:
    """Run the command line; an error that a user can fix is one sentence on stderr and exit status 2."""
    errors = Console(stderr=True)
    if errors.is_terminal:
        handler: logging.Handler = RichHandler(console=errors, show_path=False, show_level=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("fantrans").setLevel(logging.INFO)
    try:
        app(standalone_mode=True)
    except FantransError as error:
        _exit_with(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _exit_with(f"{error.filename}: {error.strerror}; fix this path, or give another one")


def _exit_with(sentence: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(sentence)}", highlight=False)
    sys.exit(2)


if __name__ == "__main__":
    main()

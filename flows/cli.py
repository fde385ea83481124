"""The `fantrans` command line: its commands, logging, and how errors end it."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.logging import RichHandler
from rich.markup import escape

from flows.commands import cache, cache_plan, data, demo, ops, page, predict, project, runs, train, weights
from flows.commands.base import INTERRUPTED, Group, Quiet, Verbose, add_command
from flows.commands.output import make_console, print_json
from pipeline.errors import FantransError

logger = logging.getLogger("fantrans")

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Typer's errors of usage, whose base has no public name."""

app = typer.Typer(cls=Group)
for command, *examples in (
    (demo.demo, "fantrans demo --quick", "fantrans demo --device cuda"),
    (project.init, "fantrans init my-project"),
    (
        data.render,
        "fantrans render demo_quick",
        "fantrans render --out faces --layout disfa --subjects 6 --frames 100",
    ),
    (
        data.refresh,
        "fantrans refresh bp4d --dry-run",
        "fantrans refresh bp4d --device cuda",
        "fantrans refresh bp4d --experiment table2:bl_r18",
    ),
    (
        train.train,
        "fantrans train bp4d --experiment table1 --device cuda",
        "fantrans train bp4d --set head.num_blocks=3 --set train.lr=1e-4,3e-4",
        "fantrans train disfa --init-from bp4d",
    ),
    (
        train.report,
        "fantrans report bp4d",
        "fantrans report bp4d -e table1 -e table3",
        "fantrans report RUN --figures --open",
    ),
    (
        train.compare,
        "fantrans compare RUN RUN",
        "fantrans compare bp4d table1:t1_o2o_t2_o2m table1:baseline",
    ),
    (
        predict.predict,
        "fantrans predict face.jpg --out au.csv",
        "fantrans predict clip.mp4 --model RUN --out au.csv --overlay clip-au.mp4",
        "fantrans predict videos/ --out au.parquet --faces largest --workers 4",
    ),
    (page.page, "fantrans page --open", "fantrans page --serve --port 8080"),
    (train.export, "fantrans export RUN --out model", "fantrans export RUN --out model --whole"),
):
    add_command(app, command.__name__, *examples)(command)
app.add_typer(data.catalog_app, name="catalog")
add_command(cache.cache_app, "plan", "fantrans cache plan bp4d", "fantrans cache plan bp4d -e fan_trans")(
    cache_plan.plan_cache
)
app.add_typer(cache.cache_app, name="cache")
app.add_typer(runs.runs_app, name="runs")
app.add_typer(weights.weights_app, name="weights")
app.add_typer(ops.ops_app, name="ops")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"fantrans {version('fantrans')}{_commit(Path(__file__).parents[1])}")
        raise typer.Exit


def _commit(checkout: Path) -> str:
    """Return " (COMMIT)", with "+changes" if files differ from it; nothing without git or outside a checkout."""
    if not (checkout / ".git").exists():
        return ""
    try:
        commit, changes = (
            subprocess.run(["git", "-C", checkout, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" ({commit}{'+changes' if changes else ''})"


@app.callback(epilog="[bold]Examples[/]\n  fantrans demo --quick\n  fantrans refresh bp4d --dry-run")
def _start(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Detect facial action units with FAN-Trans."""


_CANNOT_PRINT = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 fine, 1 failed or damage found, 2 wrong usage, 130 stopped by Ctrl-C.

    An error that a user can fix is one sentence on stderr; with --json it is also a document on stdout.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if sys.stdout is None:  # closed, as by `>&-`
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 prints what it can
    with _logging():
        try:
            sys.exit(app(arguments, prog_name="fantrans", standalone_mode=False) or 0)
        except FantransError as error:
            _exit_with(error, str(error), error.exit_status, arguments)
        except _UsageError as error:
            _exit_with(error, _usage_sentence(error), 2, arguments)
        except OSError as error:
            if error.filename is None and error.errno in _CANNOT_PRINT:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered would fail again at exit
                _exit_with(error, f"the output cannot be written: {error.strerror}", 1, ())
            if error.filename is None:
                _print_error(error, str(error), 1, arguments)
                raise
            _exit_with(error, f"{error.filename}: {error.strerror}; fix this path, or give another one", 1, arguments)
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(INTERRUPTED)
        except Exception as error:
            _print_error(error, str(error), 1, arguments)
            raise


@contextmanager
def _logging() -> Iterator[None]:
    """Log to stderr; --verbose and --quiet change the level of the project's logger."""
    errors = make_console(stderr=True)
    if errors.is_terminal:
        handler: logging.Handler = RichHandler(console=errors, show_path=False, show_level=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _usage_sentence(error: Exception) -> str:
    """Return an error of Typer as a sentence that ends with the command for help."""
    words = " ".join(str(getattr(error, "message", error)).split())
    if hasattr(error, "format_message"):
        words = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    command = "fantrans" if context is None else context.command_path
    words = words[:1].lower() + words[1:].rstrip(".").replace(". Did you", "; did you")
    words = re.sub(r" \(Possible options: (.*)\)", r"; did you mean \1?", words)
    return f"{words}{'' if words.endswith('?') else ';'} run `{command} --help`"


def _exit_with(error: Exception, sentence: str, status: int, arguments: Sequence[str]) -> NoReturn:
    _print_error(error, sentence, status, arguments)
    if logger.isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    make_console(stderr=True, soft_wrap=True, emoji=False).print(
        f"[bold red]error:[/] {escape(sentence)}", highlight=False
    )
    sys.exit(status)


def _print_error(error: Exception, sentence: str, status: int, arguments: Sequence[str]) -> None:
    """Print the error as a document, if the arguments ask for one."""
    if "--json" in arguments:
        print_json("error", error={"type": type(error).__name__, "message": sentence, "exit_status": status})


if __name__ == "__main__":
    main()

"""What the commands print on stdout: lines and tables, or one JSON document in place of both."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

logger = logging.getLogger("fantrans")

_UNLIMITED = 10_000
"""Width in characters where there is no terminal: tables are not cut."""

_MIN_FOLDED = 10
"""Least width in characters of a column whose cells may be folded."""


def print_line(line: str) -> None:
    """Print a line unchanged, of any length."""
    typer.echo(line)


def print_table(table: Table) -> None:
    """Print a table in the width of the terminal, or of COLUMNS; else every cell in full.

    A terminal that is too narrow gets longer lines: names are folded, but no number is cut.
    """
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    width = None if has_width else _UNLIMITED
    console = make_console(width=width, markup=False, emoji=False)  # names may have brackets
    unlimited = console.options.update(width=_UNLIMITED)
    for column in table.columns:
        column.overflow = "fold"  # a name that is cut cannot be used
        cells = (column.header, *column.cells)
        width = max(Measurement.get(console, unlimited, cell).maximum for cell in cells)
        column.min_width = width if column.no_wrap else min(width, _MIN_FOLDED)
    _, right, _, left = table.padding
    needed = 1 + sum((column.min_width or 0) + left + right + 1 for column in table.columns)
    console.width = max(console.width, needed)
    console.print(table)


def make_console(**settings: Any) -> Console:
    """Return a console; with NO_COLOR it prints no codes at all, where Rich still prints bold and italic."""
    return Console(color_system=None if os.environ.get("NO_COLOR") else "auto", **settings)


def print_json(name: str, **content: Any) -> None:
    """Print a document of the schema `fantrans/NAME/1`, see docs/cli.md; NaN becomes null, a time ISO 8601 in UTC."""
    typer.echo(json.dumps(_plain({"schema": f"fantrans/{name}/1", **content}), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """Return `value` as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_page(page: Path | str) -> None:
    """Open a page, by its path or address, in the browser; a warning if there is none."""
    import webbrowser

    if not webbrowser.open(page.absolute().as_uri() if isinstance(page, Path) else page):
        logger.warning("no browser was found; open %s in one", page)


def print_weights_entry(path: Path, settings: str) -> None:
    """Print the catalog's entry for new weights; `settings` are its keys after path and sha256."""
    from pipeline.runtime.atomic import file_sha256

    entry = f"{{path: {path}, sha256: {file_sha256(path)}, {settings}}}"
    print_line(f"for `weights:` in data_catalog.yaml:\n  {path.stem}: {entry}")

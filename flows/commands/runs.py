"""`fantrans runs`: list, show, compare and remove trained runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from flows.commands.base import Group, add_command
from flows.commands.names import complete_run
from flows.commands.options import Json, Run
from flows.commands.output import make_console, print_json, print_line, print_table
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.report.overview import Comparison, Overview

runs_app = typer.Typer(cls=Group, help="List, show, compare and remove trained runs.")

Runs = Annotated[
    list[str],
    typer.Argument(help="Runs: folders, names, or beginnings of names.", autocompletion=complete_run),
]


@add_command(runs_app, "ls", "fantrans runs ls bp4d --newer 7d --sort f1_percent", "fantrans runs ls --csv")
def list_runs(
    dataset: Annotated[str | None, typer.Argument(help="Only runs on this data set.", show_default="all")] = None,
    experiment: Annotated[str | None, typer.Option(help="A name, or a pattern such as 'table1:*'.")] = None,
    newer: Annotated[str | None, typer.Option(help="At most this old, such as 12h or 7d (s, m, h, d, w).")] = None,
    older: Annotated[str | None, typer.Option(help="At least this old, such as 30d.")] = None,
    min_f1: Annotated[float | None, typer.Option(help="At least this mean F1, in percent.")] = None,
    max_f1: Annotated[float | None, typer.Option(help="At most this mean F1, in percent.")] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="finished, partial, started or damaged; may be repeated.")
    ] = None,
    sort: Annotated[str, typer.Option(help="A column of --csv.", show_default="age_s: newest first")] = "age_s",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a CSV with all columns.")] = False,
) -> None:
    """List the runs below the runs root.

    Prints per run its data set, experiment, seed, finished folds, mean F1 with its interval, and age.
    """
    if as_json and as_csv:
        raise ConfigError("--json and --csv cannot be combined; give one of them")
    from pipeline.catalog import load_catalog
    from pipeline.report import listing

    catalog = load_catalog()
    table = listing.list_runs(catalog.roots.runs)
    names = list(table["run"])
    if dataset is not None and dataset not in set(table["dataset"]):
        catalog.get_dataset(dataset)  # raises for an unknown name; runs stay when a data set leaves the catalog
    table = listing.select_runs(
        table,
        dataset=dataset,
        experiment=experiment,
        newer=newer,
        older=older,
        min_f1=min_f1,
        max_f1=max_f1,
        states=state or (),
        sort=sort,
    )
    if as_json:
        print_json("runs-ls", runs=listing.as_records(table))
    elif as_csv:
        typer.echo(table.to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%SZ"), nl=False)
    elif table.empty:
        print_line(f"no run below {catalog.roots.runs} passes")
    else:
        print_table(_rows_table(table, names, is_narrow=sys.stdout.isatty()))


def _rows_table(table: pd.DataFrame, names: Sequence[str], *, is_narrow: bool) -> Table:
    """Return the runs as a table; `is_narrow`: of 80 characters, with the beginning of each fingerprint as its name.

    names: of all runs, among which the beginning must be unique.
    """
    from pipeline.runtime.text import age_in_words

    columns = ["run", "data set", "experiment", "seed", "folds", "F1", "95 %", "age"]
    columns = [name for name in columns if name != "95 %" or not is_narrow]
    shown = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for name in columns:
        is_text = name in ("run", "data set", "experiment", "folds")
        shown.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        state = "damaged" if row["state"] == "damaged" else f"{row['num_finished']}/{row['num_folds']}"
        cells = {
            "run": _short_name(str(row["run"]), names) if is_narrow else str(row["run"]),
            "data set": row["dataset"] or "-",
            "experiment": row["experiment"] or "-",
            "seed": "-" if row["seed"] is None else str(row["seed"]),
            "folds": f"{state} now" if row["in_training"] else state,
            "F1": "-" if row["f1_percent"] is None else f"{row['f1_percent']:.1f}",
            "95 %": "-" if row["low_percent"] is None else f"{row['low_percent']:.1f}-{row['high_percent']:.1f}",
            "age": "-" if row["age_s"] is None else age_in_words(row["age_s"]),
        }
        shown.add_row(*(Text(cells[name]) for name in columns))
    return shown


def _short_name(name: str, names: Sequence[str]) -> str:
    """Return the first eight digits of a run's fingerprint if they name it among `names`, else its whole name."""
    short = name.rpartition("-")[2][:8]
    found = [other for other in names if other.startswith(short) or other.rpartition("-")[2].startswith(short)]
    return short if found == [name] else name


@add_command(runs_app, "show", "fantrans runs show RUN")
def show_run(
    run: Run,
    all_settings: Annotated[bool, typer.Option("--all", help="Show every setting, not only changed ones.")] = False,
    as_json: Json = False,
) -> None:
    """Show a run: settings, folds, F1 per action unit, loss curves and files.

    Prints the settings that differ from the defaults, and the commands that can follow.
    """
    from pipeline.catalog import load_catalog
    from pipeline.report.overview import read_overview
    from pipeline.training.run_files import find_run

    overview = read_overview(find_run(load_catalog(), run))
    if as_json:
        print_json("runs-show", **overview.as_json())
        return
    record = overview.record
    print_line(f"{overview.folder}")
    print_line(
        f"{record['experiment']} on {record['dataset']}, cache {record['cache']}"
        + (f", initialised from {record['init_from']}" if record.get("init_from") else "")
        + (", in training now" if overview.in_training else "")
    )
    print_line("\nall settings" if all_settings else "\nsettings that differ from the defaults")
    print_table(_settings_table(overview, all_settings))
    print_line("folds")
    print_table(_folds_table(overview))
    if overview.report is not None:
        print_table(overview.report.rich_table())
    _print_losses(overview)
    files = overview.files()
    print_line(f"\n{len(files)} files, {_megabytes(sum(files.values()))}")
    for path, size in files.items():
        print_line(f"  {path}  {_megabytes(size)}")
    print_line("\nnext:")
    for command in overview.next_commands():
        print_line(f"  {command}")


def _settings_table(overview: Overview, all_settings: bool) -> Table:
    table = Table("setting", "value", box=SIMPLE, pad_edge=False)
    for name, value in overview.settings(only_changed=not all_settings).items():
        table.add_row(name, Text(_value(value)))
    return table


def _folds_table(overview: Overview) -> Table:
    table = Table("fold", "state", "epochs", "last loss", "F1", box=SIMPLE, pad_edge=False)
    for fold in overview.folds:
        loss = f"{fold.losses[-1]:.3f}" if fold.losses else "-"
        percent = "-" if fold.f1_percent != fold.f1_percent else f"{fold.f1_percent:.1f}"
        table.add_row(fold.part, fold.state, str(fold.num_epochs), loss, percent)
    return table


def _print_losses(overview: Overview) -> None:
    from pipeline.report.curves import loss_chart

    losses = {fold.part: fold.losses for fold in overview.folds if fold.losses}
    console = make_console()
    is_coloured = console.is_terminal and console.color_system is not None
    chart = loss_chart(losses, width=min(console.width, 80), is_coloured=is_coloured)
    if chart:
        print_line("\nloss per epoch")
        console.print(Text.from_ansi(chart), soft_wrap=True)


@add_command(runs_app, "compare", "fantrans runs compare RUN RUN")
def compare_runs(runs: Runs, as_json: Json = False) -> None:
    """Compare runs with the first one: the settings that differ, and paired differences in F1.

    The interval of a run's F1 is that of its own heads, over subjects; that of a difference also holds the chance of a
    training, which is assumed, since a run has one seed.
    """
    from pipeline.catalog import load_catalog
    from pipeline.report.overview import compare_folders
    from pipeline.training.run_files import find_run

    catalog = load_catalog()
    folders = list(dict.fromkeys(find_run(catalog, run) for run in runs))
    if len(folders) < 2:
        raise ConfigError(f"a comparison needs two runs or more, found {len(folders)}; name another one")
    comparison = compare_folders(folders)
    if as_json:
        print_json("runs-compare", **comparison.as_json())
        return
    for i, folder in enumerate(folders, 1):
        print_line(f"{i}: {folder.name}")
    if comparison.settings:
        print_line("\nsettings that differ")
        print_table(_differing_table(comparison))
    else:
        print_line("no setting differs")
    print_line(f"F1 in percent, averaged over {', '.join(comparison.parts) or 'no common fold'}")
    print_table(_scores_table(comparison))
    for gap in comparison.differences:
        if isinstance(gap, str):
            print_line(gap)
        elif gap is not None:
            print_line(gap.sentence())


def _differing_table(comparison: Comparison) -> Table:
    numbers = [str(i) for i in range(1, len(comparison.folders) + 1)]
    table = Table("setting", *numbers, box=SIMPLE, pad_edge=False)
    for name, values in comparison.settings.items():
        table.add_row(name, *(Text(_value(value), overflow="fold") for value in values))
    return table


def _scores_table(comparison: Comparison) -> Table:
    table = Table("run", "F1", "95 %", "over 1", "95 %", box=SIMPLE, pad_edge=False)
    for i, (row, gap) in enumerate(zip(comparison.rows, comparison.differences, strict=True), 1):
        own = ["-", "-"] if row is None else [f"{row.percents[0]:.1f}", "{:.1f}-{:.1f}".format(*row.subjects_interval)]
        over = ["", ""]
        if gap is not None and not isinstance(gap, str):
            over = [f"{gap.points[-1]:+.2f}", f"{gap.low[-1]:+.2f} to {gap.high[-1]:+.2f}"]
        table.add_row(str(i), *own, *over)
    return table


@add_command(runs_app, "rm", "fantrans runs rm RUN --dry-run")
def remove_runs(
    runs: Runs,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Remove runs that initialise others, or are being trained.")
    ] = False,
) -> None:
    """Remove runs with all their files.

    Asks first. A run that initialises another one, or is being trained, is kept unless --force is given.
    """
    from pipeline.catalog import load_catalog
    from pipeline.training import removal
    from pipeline.training.run_files import find_run

    catalog = load_catalog()
    folders = list(dict.fromkeys(find_run(catalog, run) for run in runs))
    if not (yes or dry_run or sys.stdin.isatty()):
        raise ConfigError("the removal of runs is not confirmed, and there is no terminal to ask; pass --yes")
    if not force:
        for folder in folders:
            removal.check_removable(folder, besides=folders)
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = _megabytes(sum(path.stat().st_size for path in files))
        print_line(f"{'would remove' if dry_run else 'to remove'}: {folder} ({len(files)} files, {size})")
    if dry_run:
        return
    if not yes and not typer.confirm(f"remove {len(folders)} {'run' if len(folders) == 1 else 'runs'}?"):
        print_line("nothing is removed")
        raise typer.Exit(1)
    removal.remove_runs(folders, is_forced=force)
    for folder in folders:
        print_line(f"removed: {folder}")


def _value(value: object) -> str:
    return "none" if value is None else str(value)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"

"""`fantrans demo`, `train`, `report`, `export` and `compare`: from cached features to F1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import Base, Device, InitFrom, console, print_line, refuse_ignored
from flows.commands.server import is_server_named, set_up_prefect
from pipeline.errors import DataError

_OF_EXPERIMENTS = ("dataset", "base", "init_from")
"""Options that find the runs of an experiment; they have no effect on a run."""


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Use the small data set: one to two minutes.")] = False,
    device: Device = "cpu",
) -> None:
    """Run the main job on rendered faces: frames, boxes, crops, features, three folds, F1 table.

    Prints the F1 table and the path of the report. Finished work is not repeated.
    """
    from pipeline.catalog import load_catalog
    from pipeline.report.run import write_report
    from pipeline.training.runs import finished_run

    dataset = "demo_quick" if quick else "bp4d-synthetic"
    run = finished_run(load_catalog().get_dataset(dataset).experiment, dataset=dataset)
    if run is not None and _is_up_to_date(dataset, device):
        console.print("nothing to refresh, nothing to train: this is the report of the last run")
        result = write_report(run.folder)
    else:
        set_up_prefect()
        is_server_named()  # raises if it is down; without one, Prefect starts its own
        from flows.main_job import main_job

        result = main_job(dataset, device=device)
    console.print(result.rich_table())
    print_line(f"report: {result.folder / 'report.md'}")


def _is_up_to_date(dataset: str, device: str) -> bool:
    """Return whether a refresh of a data set would do nothing; needs no Prefect server."""
    from pipeline.refresh.job import prepare_refresh
    from pipeline.refresh.stages import plan_refresh

    return all(plan.is_noop for plan in plan_refresh(prepare_refresh(dataset, device=device)))


def train(
    config: Annotated[str, typer.Argument(help="An experiment, a set or SET:MEMBER, in configs/ or a file.")],
    dataset: Annotated[str, typer.Option(help="A data set of the catalog, refreshed before.")],
    base: Base = None,
    parts: Annotated[
        str | None, typer.Option(help="Parts to test on, such as P1,P3.", show_default="the experiment's")
    ] = None,
    init_from: InitFrom = None,
    device: Device = "cpu",
) -> None:
    """Train one head per fold on cached features, score it and print the report.

    Writes one folder per run below the runs root. Finished folds are skipped.
    """
    run = _find_training()
    tested = [part.strip() for part in parts.split(",")] if parts else None
    folders = run(config, dataset=dataset, base=base, parts=tested, init_from=init_from, device=device)
    if len(folders) == 1:
        _print_reports([str(folders[0])])
    elif tested is not None:  # the table of a set needs runs with all their folds
        for folder in folders:
            print_line(f"trained {', '.join(tested)}: {folder}")
    else:
        _print_reports([config], dataset=dataset, base=base, init_from=init_from)


def _find_training() -> Callable[..., list[Path]]:
    """Return the Prefect flow if a server is named to record it, else the same function without Prefect."""
    if is_server_named():
        from flows.train import train_folds as train_flow

        return train_flow
    from pipeline.training.trainer import train_folds

    return train_folds


def report(
    context: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(help="Runs (folders, or names below the runs root), experiments, sets or SET:MEMBER."),
    ],
    dataset: Annotated[str | None, typer.Option(help="The data set that a set was trained on.")] = None,
    base: Base = None,
    init_from: InitFrom = None,
    figures: Annotated[bool, typer.Option("--figures", help="Draw each run, as PNG and SVG beside it.")] = False,
) -> None:
    """Print the F1 table of finished runs, or of a set beside the published table.

    Writes each table as .json, .csv, .md and .html: in the folder of a run, below the runs root for a set.
    """
    _refuse_ignored_of_runs(context, runs)
    _print_reports(runs, dataset=dataset, base=base, init_from=init_from, draws=figures)


def _refuse_ignored_of_runs(context: typer.Context, names: Sequence[str]) -> None:
    """Raise `ConfigError` for the options of experiments if all the names are those of runs."""
    from pipeline.catalog import load_catalog
    from pipeline.training.runs import run_folder

    catalog = load_catalog()
    if all(run_folder(catalog, name) is not None for name in names):
        what = f"for {names[0]}, which is a run" if len(names) == 1 else f"for {', '.join(names)}, which are runs"
        refuse_ignored(context, _OF_EXPERIMENTS, when=what)


def _print_reports(
    names: Sequence[str],
    *,
    dataset: str | None = None,
    base: str | None = None,
    init_from: str | None = None,
    draws: bool = False,
) -> None:
    from pipeline.catalog import load_catalog
    from pipeline.report.run import write_report
    from pipeline.report.sets import write_set_report
    from pipeline.training.runs import run_folder

    catalog = load_catalog()
    drawn: dict[str, Path] = {}
    together = None
    for name in names:
        folder = run_folder(catalog, name)
        if folder is not None:
            result = write_report(folder)
            console.print(result.rich_table())
            print_line(f"report: {result.folder / 'report.md'}")
            drawn[result.experiment if len(names) == 1 else folder.name] = folder
            together = together or folder / "figures/similarities"
            continue
        if dataset is None:
            raise DataError(f"{name} is not a run; for a set of experiments, name its --dataset")
        table, path = write_set_report(name, dataset=dataset, base=base, init_from=init_from)
        console.print(table.rich_table())
        print_line(f"report: {path}")
        drawn |= {row.name: row.folders[0] for row in table.rows if row.folders}
        together = together or path.with_name(f"{path.stem}-similarities")
    if draws and together is not None:
        from pipeline.report.figures import write_figures

        for path in write_figures(catalog, drawn, together=together):
            print_line(str(path))


def export(
    run: Annotated[str, typer.Argument(help="A finished run: its folder, or its name below the runs root.")],
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    part: Annotated[str, typer.Option(help="The fold, by the part that it tests.")] = "P1",
) -> None:
    """Export the deployed head of a fold as safetensors and ONNX.

    Writes both and a description, checks the ONNX file with onnxruntime, and prints the files and how far it differs.
    """
    from pipeline.catalog import load_catalog
    from pipeline.training.export import export_deployed
    from pipeline.training.runs import DEPLOYED_NAME, fold_folder, run_folder

    folder = run_folder(load_catalog(), run)
    if folder is None:
        raise DataError(f"{run} is not a run; pass a folder printed by `fantrans train`")
    gap = export_deployed(fold_folder(folder, part) / DEPLOYED_NAME, out)
    files = ", ".join(sorted(path.name for path in out.iterdir()))
    print_line(f"{out}: {files}; ONNX and torch differ by {gap:.1e} at most")


def compare(
    context: typer.Context,
    ours: Annotated[str, typer.Argument(help="A run; or an experiment or SET:MEMBER, with all its finished seeds.")],
    theirs: Annotated[str, typer.Argument(help="Another one, tested on the same subjects.")],
    dataset: Annotated[str | None, typer.Option(help="The data set that experiments were trained on.")] = None,
    base: Base = None,
    init_from: InitFrom = None,
) -> None:
    """Compare two runs or experiments, AU by AU.

    Prints the differences in F1 with confidence intervals from resampling the subjects that both were tested on.
    """
    _refuse_ignored_of_runs(context, [ours, theirs])
    from pipeline.report.sets import compare_runs

    comparison = compare_runs(ours, theirs, dataset=dataset, base=base, init_from=init_from)
    console.print(comparison.rich_table())
    print_line(comparison.sentence())

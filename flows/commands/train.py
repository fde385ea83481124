"""`fantrans train`, `report`, `export` and `compare`: from cached features to F1."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.base import checked_choice, has_choices
from flows.commands.names import complete_dataset_or_run, complete_experiment, is_experiment, resolve_experiment
from flows.commands.options import (
    Base,
    Dataset,
    DatasetOrRuns,
    Device,
    Experiment,
    Images,
    InitFrom,
    Json,
    Open,
    Run,
    Set,
    checked_dataset,
    choose_device,
    refuse_ignored,
)
from flows.commands.output import open_page, print_json, print_line, print_table
from flows.commands.server import is_server_named
from pipeline.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from pipeline.report.run import Report
    from pipeline.report.sets import SetTable

logger = logging.getLogger("fantrans")

_OF_EXPERIMENTS = ("experiment", "base", "init_from", "overrides")
"""Options that find the runs of an experiment; they have no effect on a run."""


def _checked_parts(parts: str | None) -> str | None:
    from pipeline.protocols import PARTS
    from pipeline.runtime.text import unknown_name

    named = _split_parts(parts) or []
    for part in named:
        if part not in PARTS:
            raise ConfigError(unknown_name("part", part, PARTS))
        if named.count(part) > 1:
            raise ConfigError(f"part {part} appears twice in --parts; name it once")
    return parts


def _split_parts(parts: str | None) -> list[str] | None:
    return None if parts is None else [part.strip() for part in parts.split(",")]


@has_choices("source")
def _source_names() -> Sequence[str]:
    return "cache", "crops"


def train(
    dataset: Dataset,
    experiment: Experiment = None,
    base: Base = None,
    parts: Annotated[
        str | None,
        typer.Option(help="Parts to test on, such as P1,P3.", show_default="the experiment's", callback=_checked_parts),
    ] = None,
    init_from: InitFrom = None,
    overrides: Set = None,
    source: Annotated[
        str, typer.Option(help="Read features from the cache, or compute them from crops.", callback=checked_choice)
    ] = "cache",
    device: Device = "auto",
) -> None:
    """Train one head per fold on cached features, score it and print the report.

    The experiment may be a set, whose heads train together. Writes one folder per run below the runs root. Finished
    folds are skipped.
    """
    sets = overrides or []
    chosen = resolve_experiment(dataset, experiment, base, sets)
    run = _find_training()
    tested = _split_parts(parts)
    folders = run(
        experiment=chosen.spec,
        dataset=dataset,
        base=base,
        parts=tested,
        init_from=init_from,
        overrides=sets,
        device=choose_device(device),
        source=source,
    )
    if len(folders) == 1:
        _print_reports(_written([_read_run(folders[0])]))
    elif tested is not None:  # the table of a set needs runs with all their folds
        for folder in folders:
            print_line(f"trained {', '.join(tested)}: {folder}")
    else:
        _print_reports(_written([_read_experiment(dataset, chosen.spec, base, init_from, sets)]))


def _find_training() -> Callable[..., list[Path]]:
    """Return the Prefect flow if a server is named to record it, else the same function without Prefect."""
    if is_server_named():
        from flows.train import train_folds as train_flow

        return train_flow
    from pipeline.cache.live import Source, feature_opener
    from pipeline.training.trainer import train_folds

    def train_plainly(*, source: Source, device: str, **settings: Any) -> list[Path]:
        return train_folds(device=device, open_features=feature_opener(source, device), **settings)

    return train_plainly


_Reported = tuple["Report | SetTable", Path | None]
"""A report or table, and its Markdown file, which its page lies beside; None if the runs cannot be written."""


def report(
    context: typer.Context,
    names: DatasetOrRuns,
    experiment: Annotated[
        list[str] | None,
        typer.Option(
            "--experiment",
            "-e",
            help="An experiment, a set or SET:MEMBER of the data set; repeat it for several.",
            show_default="the data set's own",
            autocompletion=complete_experiment,
        ),
    ] = None,
    base: Base = None,
    init_from: InitFrom = None,
    overrides: Set = None,
    figures: Annotated[bool, typer.Option("--figures", help="Draw each run, as PNG and SVG beside it.")] = False,
    images: Images = None,
    opens: Open = False,
    as_json: Json = False,
) -> None:
    """Print the F1 table of finished runs, or of a data set's experiments beside the published table.

    Writes each table as .json, .csv and .md, and a page as .html: in the folder of a run, below the runs root for a
    set. The pages of several runs compare them.
    """
    from pipeline.catalog import load_catalog

    catalog = load_catalog()
    named = [name for name in names if name in catalog.datasets or is_experiment(name)]
    if named and len(named) < len(names):
        raise ConfigError(f"expected one data set, or runs; found {' '.join(names)}; leave out {' '.join(named)}")
    if named or (experiment and not _are_runs(*names)):
        checked_dataset(context, names[0])
        if len(names) > 1:
            raise ConfigError(
                f"expected one data set, or runs; found {' '.join(names)}; name experiments of {names[0]} with "
                f"--experiment, as in `fantrans report {names[0]} --experiment {names[1]}`"
            )
        chosen = experiment or [catalog.get_dataset(names[0]).experiment]
        sets = overrides or []
        specs = [resolve_experiment(names[0], each, base, sets).spec for each in chosen]
        results = [_read_experiment(names[0], spec, base, init_from, sets) for spec in specs]
    else:
        what = f"for {names[0]}, which is a run" if len(names) == 1 else f"for {', '.join(names)}, which are runs"
        refuse_ignored(context, _OF_EXPERIMENTS, when=what)
        from pipeline.training.run_files import find_run

        results = [_read_run(folder) for folder in dict.fromkeys(find_run(catalog, name) for name in names)]
    drawn = _draw_figures(results) if figures else []
    reported = _written(results, images)
    if opens:
        _open_pages(reported)
    if as_json:
        _print_documents(reported, drawn)
        return
    for path in drawn:
        print_line(str(path))
    _print_reports(reported)


def _read_run(folder: Path) -> Report:
    from pipeline.report.run import read_report

    return read_report(folder)


def _read_experiment(
    dataset: str, experiment: str, base: str | None, init_from: str | None, overrides: Sequence[str]
) -> Report | SetTable:
    """Return the table of a set's runs, or the report of the run of one experiment."""
    from pipeline.report.sets import read_set_report

    table = read_set_report(experiment, dataset=dataset, base=base, init_from=init_from, overrides=overrides)
    folders = [folder for row in table.rows for folder in row.folders]
    return table if table.is_set else _read_run(folders[0])


def _written(results: Sequence[Report | SetTable], shows_images: bool | None = None) -> list[_Reported]:
    """Write the files of reports and tables; the page of each run compares it with the other ones."""
    from pipeline.report.run import Report, write_files, written_unless_read_only
    from pipeline.report.sets import write_set_files

    runs = [result for result in results if isinstance(result, Report)]
    reported: list[_Reported] = []
    for result in results:
        if isinstance(result, Report):
            others = [run for run in runs if run is not result]
            write = partial(write_files, result, others=others, shows_images=shows_images)
        else:
            write = partial(write_set_files, result, shows_images=shows_images)
        reported.append((result, written_unless_read_only(write)))
    return reported


def _open_pages(reported: Sequence[_Reported]) -> None:
    for _, path in reported:
        if path is not None:
            open_page(_page(path))


def _page(path: Path) -> Path:
    """The page beside a report's Markdown file."""
    return path.with_suffix(".html").absolute()


def _print_reports(reported: Sequence[_Reported]) -> None:
    for result, path in reported:
        print_table(result.rich_table())
        if path is not None:
            print_line(f"report: {_page(path)}")


def _print_documents(reported: Sequence[_Reported], figures: Sequence[Path]) -> None:
    from pipeline.report.run import Report

    runs, sets = [], []
    for result, path in reported:
        files = {"file": path, "page": path and _page(path)}
        if isinstance(result, Report):
            runs.append(result.document() | files)
        else:
            sets.append(result.as_json() | files)
    print_json("report", runs=runs, sets=sets, figures=figures)


def _draw_figures(results: Sequence[Report | SetTable]) -> list[Path]:
    from pipeline.catalog import load_catalog
    from pipeline.report.figures import write_figures
    from pipeline.report.run import Report

    drawn: dict[str, Path] = {}
    for result in results:
        if isinstance(result, Report):
            drawn[result.experiment if len(results) == 1 else result.folder.name] = result.folder
        else:
            drawn |= {row.name: row.folders[0] for row in result.rows if row.folders}
    first = results[0]
    if isinstance(first, Report):
        together = first.folder / "figures/similarities"
    else:
        together = first.file.with_name(f"{first.file.stem}-similarities")
    return write_figures(load_catalog(), drawn, together=together)


def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    part: Annotated[
        str | None,
        typer.Option(
            help="The fold, by the part that it tests.",
            show_default="the first finished one",
            callback=checked_choice,
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Also write model.onnx, from a face's crop to probabilities.")
    ] = False,
    calibrated: Annotated[
        bool,
        typer.Option("--calibrated", help="Store the threshold of each action unit that is best on the other folds."),
    ] = False,
) -> None:
    """Export the deployed head of a fold as safetensors and ONNX.

    Writes both and a description, checks the ONNX file with onnxruntime, and prints the files and how far it differs.
    """
    from pipeline.catalog import load_catalog
    from pipeline.report.thresholds import thresholds_of_fold
    from pipeline.training.export import export_deployed
    from pipeline.training.metrics import THRESHOLD
    from pipeline.training.run_files import DEPLOYED_NAME, find_run, finished_folds, fold_folder

    if out.is_file():
        raise ConfigError(f"{out} is a file; name a folder with --out")
    folder = find_run(load_catalog(), run)
    tested = part or next(iter(finished_folds(folder)), "P1")
    threshold = thresholds_of_fold(folder, tested) if calibrated else THRESHOLD
    gap = export_deployed(fold_folder(folder, tested) / DEPLOYED_NAME, out, threshold=threshold)
    if whole:
        from pipeline.predict.whole import export_whole

        gap = max(gap, export_whole(out, out, load_catalog()))
    files = ", ".join(sorted(path.name for path in out.iterdir()))
    print_line(f"{out}: {files}; ONNX and torch differ by {gap:.1e} at most")


def _refuse_experiments(ours: str, theirs: str) -> None:
    """Raise `ConfigError` with the right command if one of the two is an experiment, which needs a data set."""
    from pipeline.catalog import load_catalog

    for name in (ours, theirs):
        if is_experiment(name):
            dataset = next(iter(load_catalog().datasets))
            raise ConfigError(
                f"{name} is an experiment, not a run, and needs its data set; run `fantrans compare {dataset} "
                f"{ours} {theirs}`"
            )


def _are_runs(*names: str) -> bool:
    from pipeline.catalog import load_catalog
    from pipeline.training.run_files import run_folder

    catalog = load_catalog()
    return all(not is_experiment(name) and run_folder(catalog, name) is not None for name in names)


def compare(
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            help="Two runs; or a data set, and two experiments or SET:MEMBER with all finished seeds.",
            autocompletion=complete_dataset_or_run,
        ),
    ],
    base: Base = None,
    init_from: InitFrom = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Compare two runs or experiments, AU by AU.

    Prints the differences in F1 with confidence intervals over tested subjects and trainings. One run of each shows
    which scores higher, not that its settings are better: train three seeds of each.
    """
    from pipeline.catalog import load_catalog

    if not 2 <= len(names) <= 3:
        raise UsageError(
            f"expected two runs, or a data set and two experiments; found {' '.join(names) or 'nothing'}; run "
            "`fantrans compare --help`"
        )
    *first, ours, theirs = names
    if ours == theirs:
        raise UsageError(f"{ours} is compared with itself; name another one")
    if not first and ours in load_catalog().datasets and is_experiment(theirs):
        raise UsageError(
            f"a comparison on the data set {ours} needs two experiments; run `fantrans compare {ours} {theirs} OTHER`"
        )
    dataset = checked_dataset(context, first[0]) if first else None
    if dataset is None:
        _refuse_experiments(ours, theirs)
    from pipeline.report.compare import compare_runs

    if dataset is None or _are_runs(ours, theirs):
        what = f"for {ours} and {theirs}, which are runs"
        refuse_ignored(context, ("base", "init_from", "overrides"), when=what)
        if dataset is not None:
            raise ConfigError(f"the data set {dataset} has no effect {what}; leave it out")
    comparison = compare_runs(ours, theirs, dataset=dataset, base=base, init_from=init_from, overrides=overrides or ())
    if as_json:
        print_json("compare", **comparison.as_json())
        return
    print_table(comparison.rich_table())
    print_line(comparison.sentence())

"""The `fantrans` command line. Each command imports its stage when it runs, so head-only work loads no detector."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from pipeline.errors import DataError, FantransError

if TYPE_CHECKING:
    from pipeline.refresh.dry_run import StagePlan
    from pipeline.store.reader import StoreReader

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Facial action units with FAN-Trans.")
catalog_app = typer.Typer(no_args_is_help=True, help="Where things are.")
cache_app = typer.Typer(no_args_is_help=True, help="Feature caches.")
weights_app = typer.Typer(no_args_is_help=True, help="Train and score the shipped networks.")
ops_app = typer.Typer(no_args_is_help=True, help="Scheduled jobs on a Prefect server.")
app.add_typer(catalog_app, name="catalog")
app.add_typer(cache_app, name="cache")
app.add_typer(weights_app, name="weights")
app.add_typer(ops_app, name="ops")

console = Console()


def _checked_device(device: str) -> str:
    from pipeline.runtime.device import checked_device

    return checked_device(device)


Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1...", callback=_checked_device)]
Start = typer.Option(exists=True, dir_okay=False, help="Weights to go on from; for a FAN, of its width or half of it.")
MaybeDataset = Annotated[str | None, typer.Argument(help="One data set; default: all.")]
Base = Annotated[str | None, typer.Option(help="What a set's variants change; default: the data set's experiment.")]
InitFrom = Annotated[
    str | None,
    typer.Option(help="A run whose heads, part by part, are the start; or a data set: its run of the same experiment."),
]
WhichCache = Annotated[str | None, typer.Option(help="Of the cache (the beginning is enough); default: the only one.")]
ConfigName = Annotated[str | None, typer.Option(help="An experiment, or SET:VARIANT; default: the data set's own.")]


class Layout(StrEnum):
    """Raw layouts that can be rendered."""

    BP4D = "bp4d"
    DISFA = "disfa"


def main() -> None:
    """Run the command line: what a user can mend is one sentence on stderr and exit status 2."""
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
        _end_with(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _end_with(f"{error.filename}: {error.strerror}; mend the place, or name another")


def _end_with(sentence: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(sentence)}", highlight=False)
    sys.exit(2)


@app.command()
def demo(
    quick: Annotated[bool, typer.Option(help="The small set: one to two minutes.")] = False,
    device: Device = "cpu",
) -> None:
    """The whole main job on rendered faces: frames, faces, crops, features, three folds, F1 table."""
    from pipeline.catalog import load_catalog
    from pipeline.report.run import write_report
    from pipeline.training.runs import finished_run

    name = "demo_quick" if quick else "bp4d-synthetic"
    run = finished_run(load_catalog().dataset(name).experiment, dataset=name)
    if run is not None and _has_nothing_new(name, device):
        console.print("nothing to refresh, nothing to train: this is the report of the last run")
        result = write_report(run.folder)
    else:
        _set_up_prefect()
        if "PREFECT_API_URL" in os.environ:
            from flows.ops import check_server

            check_server()
        from flows.main_job import main_job

        result = main_job(name, device=device)
    console.print(result.rich_table())
    _print_place(result.folder / "report.md")


@catalog_app.command("show")
def catalog_show() -> None:
    """Data sets, weights and roots, with what is there."""
    from pipeline.catalog import load_catalog

    catalog = load_catalog()
    table = Table("data set", "layout", "protocol", "root", "there", title="Data sets", title_justify="left")
    for name, dataset in catalog.datasets.items():
        is_there = "no" if dataset.missing_folders() else "yes"
        table.add_row(name, dataset.layout, dataset.protocol, str(dataset.root), is_there)
    console.print(table)
    table = Table("weights", "family", "width", "pooling", "file", title="Weights", title_justify="left")
    for name, weights in catalog.weights.items():
        table.add_row(name, weights.family, str(weights.width or ""), weights.pooling or "", str(weights.path))
    console.print(table)
    table = Table("root", "folder", title="Roots", title_justify="left")
    for name, folder in catalog.roots:
        table.add_row(name, str(folder))
    console.print(table)


@catalog_app.command("check")
def catalog_check(dataset: Annotated[str | None, typer.Argument(help="One data set; default: all.")] = None) -> None:
    """Say what the catalog names and the disk lacks; exit status 2 if anything."""
    from pipeline.catalog import load_catalog

    faults = load_catalog().faults(dataset)
    for fault in faults:
        console.print(fault, soft_wrap=True, highlight=False, markup=False)
    if faults:
        raise typer.Exit(2)
    console.print(f"catalog: {dataset or 'all data sets'} and weights are there")


@app.command()
def synth(
    out: Annotated[Path | None, typer.Option(help="Folder to write into.")] = None,
    layout: Annotated[Layout, typer.Option()] = Layout.BP4D,
    subjects: Annotated[int, typer.Option(min=1)] = 12,
    tasks: Annotated[int, typer.Option(min=1, max=8)] = 8,
    frames: Annotated[int, typer.Option(min=1, help="Frames a task.")] = 4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    size: Annotated[int, typer.Option(min=64, help="Side of a frame in px.")] = 512,
    workers: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    dataset: Annotated[str | None, typer.Option(help="Render this entry of the catalog instead.")] = None,
) -> None:
    """Render faces with known action units in a data set's raw layout."""
    from pipeline.catalog import load_catalog
    from pipeline.refresh.render import render_dataset
    from pipeline.synthetic.dataset import write_dataset

    if dataset is not None:
        if load_catalog().dataset(dataset).rendered is None:
            raise typer.BadParameter(f"data set {dataset!r} has no `rendered:` in the catalog")
        render_dataset(dataset, num_workers=workers)
        return
    if out is None:
        raise typer.BadParameter("give --out FOLDER, or --dataset NAME for one of the catalog")
    write_dataset(
        out,
        layout=layout.value,
        num_subjects=subjects,
        num_tasks=tasks,
        num_frames=frames,
        seed=seed,
        size_px=size,
        num_workers=workers,
    )
    protocol = {Layout.BP4D: "rendered_bp4d", Layout.DISFA: "disfa"}[layout]
    _say(
        f"for `datasets:` in data_catalog.yaml:\n  {out.name}: {{root: {out.resolve()}, layout: {layout.value}, "
        f"protocol: {protocol}}}"
    )


@app.command()
def refresh(
    dataset: Annotated[str, typer.Argument(help="A data set of the catalog.")],
    config: ConfigName = None,
    base: Base = None,
    profile: Annotated[str | None, typer.Option(help="exact, standard or compact; default: the experiment's.")] = None,
    views: Annotated[int | None, typer.Option(min=2, help="Views a frame; default: the experiment's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="A first try on so many frames.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that extract; the bytes are the same.")] = 1,
    dry_run: Annotated[bool, typer.Option(help="Say what would be kept, computed and dropped, and stop.")] = False,
    device: Device = "cpu",
) -> None:
    """Bring a data set's index, boxes, crops and feature cache up to date; computes only what is missing."""
    if dry_run:
        from pipeline.refresh.dry_run import plan_job
        from pipeline.refresh.job import prepare_refresh

        job = prepare_refresh(
            dataset, config=config, base=base, profile=profile, num_views=views, limit=limit, device=device
        )
        _print_plan(plan_job(job))
        return
    run = _flow_or_function("refresh_cache", flow_module="flows.refresh", function_module="pipeline.refresh.stages")
    run(
        dataset,
        config=config,
        base=base,
        profile=profile,
        num_views=views,
        limit=limit,
        device=device,
        num_workers=workers,
    )


def _print_plan(plans: list[StagePlan]) -> None:
    table = Table("stage", "keep", "compute", "drop", "MB to write", "time (as last time)")
    for plan in plans:
        megabytes = "" if plan.num_bytes is None else f"{plan.num_bytes / 1e6:,.1f}"
        time = "" if plan.seconds is None else f"{plan.seconds / 60:,.1f} min"
        counts = (f"{count:,}" for count in (plan.num_kept, plan.num_computed, plan.num_dropped))
        table.add_row(plan.stage, *counts, megabytes, time)
    console.print(table)


@cache_app.command("ls")
def cache_ls(dataset: MaybeDataset = None) -> None:
    """Every feature cache with its size, age, revision, what it was made with and who uses it."""
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import list_caches

    catalog = load_catalog()
    for name in catalog.names(dataset):
        caches = list_caches(catalog, name)
        table = Table(
            "fingerprint",
            "rev",
            "frames",
            "size",
            "age",
            "made with",
            "used by",
            title=name,
            title_justify="left",
            box=SIMPLE,
        )
        table.columns[0].no_wrap = True
        for cache in caches:
            table.add_row(
                cache.fingerprint,
                str(cache.revision),
                f"{cache.num_frames:,} x {cache.num_views}",
                f"{cache.megabytes:,} MB",
                cache.age,
                f"{cache.weights} {cache.profile}",
                cache.used_by,
            )
        if caches:
            console.print(table)


@cache_app.command("verify")
def cache_verify(
    dataset: MaybeDataset = None,
    deep: Annotated[bool, typer.Option(help="Read every byte, and compute some frames again.")] = False,
    device: Device = "cpu",
) -> None:
    """Compare crops and caches with their indexes and checksums; exit status 2 if something is damaged."""
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import verify_caches

    catalog = load_catalog()
    is_whole = True
    for name in catalog.names(dataset):
        for folder, damages in verify_caches(catalog, name, is_deep=deep, device=device).items():
            _say(f"{folder}: {f'{len(damages)} damaged' if damages else 'whole'}")
            for damage in damages[:50]:
                frames = f": {', '.join(damage.frame_ids)}" if damage.frame_ids else ""
                _say(f"  {damage.what}{frames}")
            is_whole = is_whole and not damages
    if not is_whole:
        _say("run `fantrans refresh` with the settings of the damaged cache (`fantrans cache ls`): it mends just this")
        raise typer.Exit(2)


@cache_app.command("collect")
def cache_prune(
    dataset: MaybeDataset = None,
    grace_hours: Annotated[float, typer.Option(min=0, help="What is younger stays.")] = 24.0,
) -> None:
    """Free dead rows, stale revisions and orphans; what a reader holds stays."""
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import prune_stores

    catalog = load_catalog()
    for name in catalog.names(dataset):
        for folder, done in prune_stores(catalog, name, grace_s=grace_hours * 3600).items():
            _say(f"{folder}: {done}")


@cache_app.command("stats")
def cache_stats(
    dataset: Annotated[str, typer.Argument(help="A data set of the catalog.")],
    fingerprint: WhichCache = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames that ranges are taken over.")] = 256,
) -> None:
    """Base rates of the cached frames, ranges of the channels, and what the profile loses."""
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import cache_statistics, find_cache

    catalog = load_catalog()
    folder = find_cache(catalog, dataset, fingerprint)
    for title, table in cache_statistics(catalog, dataset, folder, num_frames=frames):
        shown = Table("", *map(str, table.columns), title=title, title_justify="left")
        for name, row in table.iterrows():
            shown.add_row(str(name), *(f"{value:.4g}" for value in row))
        console.print(shown)


class ExportFormat(StrEnum):
    """Formats that caches are exchanged in."""

    HDF5 = "hdf5"


@cache_app.command("export")
def cache_export(
    dataset: Annotated[str, typer.Argument(help="A data set of the catalog.")],
    out: Annotated[Path, typer.Option(help="Folder to write into, one file a part.")],
    fingerprint: WhichCache = None,
    crops: Annotated[bool, typer.Option(help="The crops that the cache is made from, instead.")] = False,
    format: Annotated[ExportFormat, typer.Option()] = ExportFormat.HDF5,
) -> None:
    """Write a cache's newest revision as HDF5: one file a part, one frame a chunk."""
    from pipeline.cache.crops import CropReader
    from pipeline.cache.reader import open_cache
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import export_store, find_cache

    assert format is ExportFormat.HDF5
    catalog = load_catalog()
    cache = open_cache(find_cache(catalog, dataset, fingerprint))
    store: StoreReader = cache
    if crops:
        store = CropReader(catalog.work_dir(dataset) / "crops" / cache.manifest["provenance"]["crops"]["folder"])
    for path in export_store(store, out):
        _say(str(path))


@cache_app.command("import")
def cache_import(
    dataset: Annotated[str, typer.Argument(help="A data set of the catalog, which the cache is put below.")],
    files: Annotated[list[Path], typer.Argument(exists=True, help="Files of `cache export`, all parts.")],
) -> None:
    """Make a cache, or crops, from the files of an export; values and fingerprint are the same."""
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import import_store

    catalog = load_catalog()
    catalog.dataset(dataset)
    store = import_store(catalog, dataset, files)
    _say(f"{store.folder}: revision {store.revision}, {len(store.index):,} frames")


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="An experiment, a set or SET:VARIANT, in configs/ or a file.")],
    dataset: Annotated[str, typer.Option(help="A data set of the catalog, refreshed before.")],
    base: Base = None,
    parts: Annotated[str | None, typer.Option(help="Test parts, such as P1,P3; default: the experiment's.")] = None,
    init_from: InitFrom = None,
    device: Device = "cpu",
) -> None:
    """Train heads on cached features, one a fold, and score them; prints the report. What is done is not done again."""
    run = _flow_or_function("train_folds", flow_module="flows.train", function_module="pipeline.training.trainer")
    tested = [part.strip() for part in parts.split(",")] if parts else None
    folders = run(config, dataset=dataset, base=base, parts=tested, init_from=init_from, device=device)
    if len(folders) == 1:
        report([str(folders[0])])
    elif tested is not None:  # the set's table is of whole runs
        for folder in folders:
            _say(f"trained {', '.join(tested)}: {folder}")
    else:
        report([config], dataset=dataset, base=base, init_from=init_from)


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Runs (folders, or names under the runs root), or sets of experiments in configs/, or SET:VARIANT."
        ),
    ],
    dataset: Annotated[str | None, typer.Option(help="The data set that a set was trained on.")] = None,
    base: Base = None,
    init_from: InitFrom = None,
    figures: Annotated[bool, typer.Option("--figures", help="Draw the runs, too: PNG and SVG beside each.")] = False,
) -> None:
    """The F1 table of finished runs, or of a set beside the published one; and .json, .csv, .md of it."""
    from pipeline.catalog import load_catalog
    from pipeline.report.run import write_report
    from pipeline.report.sets import write_set_report
    from pipeline.training.runs import run_folder

    catalog = load_catalog()
    drawn: dict[str, Path] = {}
    together = None
    for name in runs:
        folder = run_folder(catalog, name)
        if folder is not None:
            result = write_report(folder)
            console.print(result.rich_table())
            _print_place(result.folder / "report.md")
            drawn[result.experiment if len(runs) == 1 else folder.name] = folder
            together = together or folder / "figures/similarities"
            continue
        if dataset is None:
            raise DataError(f"{name} is not a run; for a set of experiments, name its --dataset")
        table, path = write_set_report(name, dataset=dataset, base=base, init_from=init_from)
        console.print(table.rich_table())
        _print_place(path)
        drawn |= {row.name: row.folders[0] for row in table.rows if row.folders}
        together = together or path.with_name(f"{path.stem}-similarities")
    if figures and together is not None:
        from pipeline.report.figures import write_figures

        for path in write_figures(catalog, drawn, together=together):
            _say(str(path))


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A finished run: its folder, or its name under the runs root.")],
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    part: Annotated[str, typer.Option(help="The fold, by the part that it tests.")] = "P1",
) -> None:
    """The deployed branch of a fold alone: safetensors, its description, and ONNX, checked with onnxruntime."""
    from pipeline.catalog import load_catalog
    from pipeline.training.export import export_deployed
    from pipeline.training.runs import DEPLOYED_NAME, run_folder

    folder = run_folder(load_catalog(), run)
    if folder is None:
        raise DataError(f"{run} is not a run; pass a folder that `fantrans train` printed")
    gap = export_deployed(folder / f"fold-{part}" / DEPLOYED_NAME, out)
    _say(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}; ONNX and torch differ by {gap:.1e} at most")


@app.command()
def compare(
    ours: Annotated[str, typer.Argument(help="A run; or an experiment, or SET:VARIANT: all its seeds that are done.")],
    theirs: Annotated[str, typer.Argument(help="Another one, tested on the same subjects.")],
    dataset: Annotated[str | None, typer.Option(help="The data set that experiments were trained on.")] = None,
    base: Base = None,
    init_from: InitFrom = None,
) -> None:
    """The difference of two, AU by AU, with intervals from resampling the subjects that both were tested on."""
    from pipeline.report.sets import compare_runs

    comparison = compare_runs(ours, theirs, dataset=dataset, base=base, init_from=init_from)
    console.print(comparison.rich_table())
    _say(comparison.sentence())


@ops_app.command("up")
def ops_up(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 4200,
    gpus: Annotated[int, typer.Option(min=0, help="Devices, one worker each.")] = 0,
    cpu_runs: Annotated[int, typer.Option(min=1, help="Runs of the pool cpu at a time.")] = 2,
) -> None:
    """A Prefect server, its deployments and workers on this machine, for a trial; Ctrl-C stops them."""
    _set_up_prefect(
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api", PREFECT_HOME=str(_prefect_home()), PREFECT_LOGGING_LEVEL="INFO"
    )
    from flows.ops import up

    up(port=port, num_gpus=gpus, num_cpu_runs=cpu_runs, say=_say)


@ops_app.command("status")
def ops_status() -> None:
    """Workers, last and next runs of the deployments, and caches, as the server of PREFECT_API_URL sees them."""
    _set_up_prefect()
    from flows.ops import status

    for title, (head, *rows) in status().items():
        table = Table(*head, title=title, title_justify="left", box=SIMPLE)
        for row in rows:
            table.add_row(*row)
        console.print(table)


@weights_app.command("train-fan")
def train_fan(
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    width: Annotated[int, typer.Option(min=16)] = 64,
    steps: Annotated[int, typer.Option(min=1)] = 2600,
    lr: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 3e-3,
    faces: Annotated[int, typer.Option(min=32, help="Rendered faces, each of another identity.")] = 5000,
    start: Annotated[Path | None, Start] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "cpu",
) -> None:
    """Train a FAN on rendered faces; a killed training goes on where it was."""
    from pipeline.catalog import load_catalog
    from pipeline.pretraining.fan import FanTraining, train_fan
    from pipeline.synthetic.bank import default_bank_path

    settings = FanTraining(width=width, num_steps=steps, max_lr=lr, num_faces=faces, seed=seed)
    pool = load_catalog().roots.work / "weights" / f"faces-{faces}-{seed}"
    train_fan(out, settings, pool_path=pool, bank_path=default_bank_path(), device=device, start=start)
    _print_entry(out, f"family: fan, width: {width}, num_stacks: {settings.num_stacks}, pooling: {settings.pooling}")


@weights_app.command("train-retinaface")
def train_retinaface(
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    steps: Annotated[int, typer.Option(min=1)] = 3600,
    lr: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 4e-3,
    scenes: Annotated[int, typer.Option(min=50, help="Rendered scenes.")] = 4000,
    start: Annotated[Path | None, Start] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "cpu",
) -> None:
    """Train the MobileNet RetinaFace on rendered scenes; a killed training goes on where it was."""
    import torch

    from pipeline.catalog import load_catalog
    from pipeline.pretraining.retinaface import train_retinaface
    from pipeline.synthetic.bank import default_bank_path

    work = load_catalog().roots.work / "weights" / f"scenes-{scenes}-{seed}"
    train_retinaface(
        out,
        bank_path=default_bank_path(),
        work=work,
        device=torch.device(device),
        num_steps=steps,
        num_scenes=scenes,
        max_lr=lr,
        seed=seed,
        init_from=start,
    )
    _print_entry(out, "family: retinaface-mobilenet")


@weights_app.command("train-resnet")
def train_resnet(
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    steps: Annotated[int, typer.Option(min=1)] = 1500,
    faces: Annotated[int, typer.Option(min=32, help="Rendered faces, each a class.")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "cpu",
) -> None:
    """Train ResNet-18's early features to tell rendered faces apart; a killed training goes on where it was."""
    from pipeline.catalog import load_catalog
    from pipeline.pretraining.face_pool import FACE_SIZE_PX, render_pool
    from pipeline.pretraining.resnet import ResNetTraining, train_resnet
    from pipeline.synthetic.bank import default_bank_path

    folder = load_catalog().roots.work / "weights" / f"faces-{faces}-{seed}"
    pool = render_pool(folder, bank_path=default_bank_path(), num_faces=faces, seed=seed, size_px=FACE_SIZE_PX)
    accuracy = train_resnet(out, ResNetTraining(num_steps=steps, seed=seed), pool, device=device)
    _say(f"tells {100 * accuracy:.1f} % of {faces} faces apart")
    _print_entry(out, "family: resnet18")


@weights_app.command("fit-codec")
def fit_codec(
    dataset: Annotated[str, typer.Argument(help="A data set of the catalog whose crops are there.")],
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    config: ConfigName = None,
    frames: Annotated[int, typer.Option(min=8, help="Faces to fit on.")] = 96,
    device: Device = "cpu",
) -> None:
    """Fit the basis in which the profile compact keeps a FAN's maps; no labels are used."""
    from pipeline.refresh.fit_codec import fit_codec
    from pipeline.refresh.job import prepare_refresh
    from pipeline.runtime.atomic import file_sha256

    job = prepare_refresh(dataset, config=config, profile="exact", device=device)
    fit_codec(job, out, num_frames=frames)
    console.print(
        f"for {job.config.features.weights} in data_catalog.yaml:\n    codec: "
        f"{{path: {out}, sha256: {file_sha256(out)}}}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


@weights_app.command("evaluate")
def evaluate_weights(
    name: Annotated[str, typer.Argument(help="Weights of the catalog.")],
    num: Annotated[int | None, typer.Option(min=1, help="Faces or scenes; default: 500 or 1000.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the faces or scenes.")] = 0,
    device: Device = "cpu",
) -> None:
    """Score a FAN or a RetinaFace on rendered faces or scenes that no training sees."""
    import torch

    from pipeline.catalog import load_catalog
    from pipeline.synthetic.bank import default_bank_path

    catalog = load_catalog()
    entry = catalog.get_weights(name)
    if entry.family == "fan":
        from pipeline.faces.features import load_fan
        from pipeline.pretraining.fan_scores import evaluate_fan

        num = num or 500
        pool = catalog.roots.work / "weights" / f"unseen-faces-{num}-{seed}"
        scores = evaluate_fan(
            load_fan(entry, device), pool_path=pool, bank_path=default_bank_path(), num_faces=num, seed=seed
        )
    else:
        from pipeline.faces.detect import load_detector
        from pipeline.pretraining.retinaface import evaluate_detector

        detector = load_detector(entry, torch.device(device))
        scores = evaluate_detector(
            detector, bank_path=default_bank_path(), device=torch.device(device), num_scenes=num or 1000, seed=seed
        )._asdict()
    for key, value in scores.items():
        console.print(f"{key}: {value:.4g}", highlight=False)


def _print_place(path: Path) -> None:
    console.print(f"report: {path}", soft_wrap=True, highlight=False, markup=False)


def _print_entry(path: Path, kind: str) -> None:
    from pipeline.runtime.atomic import file_sha256

    entry = f"{{path: {path}, sha256: {file_sha256(path)}, {kind}}}"
    console.print(
        f"for `weights:` in data_catalog.yaml:\n  {path.stem}: {entry}", soft_wrap=True, highlight=False, markup=False
    )


def _has_nothing_new(name: str, device: str) -> bool:
    """Whether a refresh of a data set would do nothing, found out without a Prefect server."""
    from pipeline.catalog import load_catalog
    from pipeline.refresh.dry_run import plan_job
    from pipeline.refresh.job import prepare_refresh

    if load_catalog().dataset(name).missing_folders():
        return False
    return all(plan.num_computed == plan.num_dropped == 0 for plan in plan_job(prepare_refresh(name, device=device)))


def _flow_or_function(name: str, *, flow_module: str, function_module: str) -> Callable[..., Any]:
    """The Prefect flow where a server is named (PREFECT_API_URL) to record it, else the same function without one."""
    from importlib import import_module

    if "PREFECT_API_URL" in os.environ:
        _set_up_prefect()
        from flows.ops import check_server

        check_server()
        return getattr(import_module(flow_module), name)
    return getattr(import_module(function_module), name)


def _prefect_home() -> Path:
    from pipeline.catalog import load_catalog

    return load_catalog().roots.work / "prefect"


def _set_up_prefect(**chosen: str) -> None:
    """Prefect's settings where the user has none: patient start-up, no telemetry, state under the catalog's roots.

    Prefect reads them when it is first imported, so this comes before. `chosen` goes before what the user has.
    """
    os.environ |= chosen
    home = _prefect_home()
    home.mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder only, and its server dies without it
    for name, value in {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # errors end as one sentence, or as the traceback of a defect
        "DO_NOT_TRACK": "1",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    main()

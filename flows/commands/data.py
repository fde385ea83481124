"""`fantrans catalog`, `render` and `refresh`: from the names of the catalog to a feature cache."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.commands.base import Group, add_command, checked_choice, has_choices
from flows.commands.names import complete_dataset, resolve_experiment
from flows.commands.options import (
    Base,
    Dataset,
    Device,
    Experiment,
    Json,
    Layout,
    OptionalDataset,
    Profile,
    Set,
    checked_dataset,
    choose_device,
    refuse_ignored,
)
from flows.commands.output import print_json, print_line, print_table
from flows.commands.server import is_server_named
from pipeline.errors import ConfigError
from pipeline.runtime.text import counted

if TYPE_CHECKING:
    from pipeline.refresh.doctor import Examination
    from pipeline.refresh.job import RefreshJob
    from pipeline.refresh.plan import StagePlan

catalog_app = typer.Typer(cls=Group, help="Show and check what the catalog names.")


@add_command(catalog_app, "ls", "fantrans catalog ls", "fantrans catalog ls --json")
def list_catalog(as_json: Json = False) -> None:
    """List data sets, weights and roots.

    Prints one table of each: data sets with layout, protocol and whether their raw folders exist, weights with their
    file, roots with their folder.
    """
    from pipeline.catalog import load_catalog

    catalog = load_catalog()
    if as_json:
        print_json(
            "catalog-ls",
            datasets=[
                {
                    **entry.model_dump(include={"layout", "protocol", "experiment", "root"}),
                    "name": name,
                    "is_rendered": entry.is_rendered,
                    "exists": not entry.missing_folders(),
                }
                for name, entry in catalog.datasets.items()
            ],
            weights=[
                {"name": name, **entry.model_dump(include={"family", "width", "pooling", "path"})}
                for name, entry in catalog.weights.items()
            ],
            roots=[{"name": name, "folder": folder} for name, folder in catalog.roots],
        )
        return
    table = Table("data set", "layout", "protocol", "root", "exists", title="Data sets", title_justify="left")
    for name, dataset in catalog.datasets.items():
        exists = "no" if dataset.missing_folders() else "yes"
        table.add_row(name, dataset.layout, dataset.protocol, str(dataset.root), exists)
    print_table(table)
    table = Table("weights", "family", "width", "pooling", "file", title="Weights", title_justify="left")
    for name, weights in catalog.weights.items():
        table.add_row(name, weights.family, str(weights.width or ""), weights.pooling or "", str(weights.path))
    print_table(table)
    table = Table("root", "folder", title="Roots", title_justify="left")
    for name, folder in catalog.roots:
        table.add_row(name, str(folder))
    print_table(table)


@add_command(catalog_app, "check", "fantrans catalog check bp4d", "fantrans catalog check bp4d --deep")
def check_catalog(
    context: typer.Context,
    dataset: OptionalDataset = None,
    experiment: Experiment = None,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every frame, not a sample.")] = False,
    as_json: Json = False,
) -> None:
    """Examine a data set before its first refresh; without one, list what the disk lacks of all.

    Prints subjects, tasks and frames that are there and expected, base rates beside the published ones, positive labels
    per part, class weights, unreadable files, whether all weights can be loaded, the disk needed and free. Ends with
    "ready", or with the faults and status 1.
    """
    from pipeline.catalog import load_catalog
    from pipeline.faces.weights import find_weights_faults

    if dataset is not None:
        resolve_experiment(dataset, experiment)
        _print_examination(dataset, experiment, is_deep=deep, as_json=as_json)
        return
    refuse_ignored(context, ["experiment", "deep"], when="without a data set")
    catalog = load_catalog()
    faults = catalog.find_faults() + find_weights_faults(catalog)
    if as_json:
        print_json("catalog-check", dataset=None, faults=faults)
    else:
        for fault in faults:
            print_line(fault)
    if faults:
        raise typer.Exit(1)
    if not as_json:
        print_line("catalog: all data sets and all weights exist")


def _print_examination(dataset: str, experiment: str | None, *, is_deep: bool, as_json: bool) -> None:
    from pipeline.refresh.doctor import examine
    from pipeline.refresh.job import prepare_refresh

    job = prepare_refresh(dataset, experiment=experiment, checks_weights=False)
    found = examine(job, is_deep=is_deep)
    if as_json:
        print_json("catalog-examination", **_examination_record(found))
    else:
        _print_tables(found)
    if not found.is_ready:
        raise typer.Exit(1)


def _examination_record(found: Examination) -> dict[str, Any]:
    names = ("dataset", "is_ready", "faults", "notes", "coverage", "num_decoded", "needed_bytes", "free_bytes")
    tables = {name: getattr(found, name) for name in ("parts", "aus")}
    listed = {name: [] if table is None else table.to_dict("records") for name, table in tables.items()}
    return {name: getattr(found, name) for name in names} | listed


def _print_tables(found: Examination) -> None:
    if found.parts is not None and found.aus is not None:
        print_line(f"{found.dataset}: {found.coverage}")
        table = Table("part", "subjects", "frames", "without image")
        for _, part, *counts in found.parts.itertuples():
            table.add_row(part, *(f"{count:,}" for count in counts))
        print_table(table)
        names = [str(name) for name in found.aus.dropna(axis=1, how="all").columns if name != "au"]
        table = Table("AU", title="Positive labels in percent, positive labels, class weight by tested part")
        for name in names:
            kind, _, part = name.rpartition("_")
            table.add_column(_AU_COLUMNS[kind][0].format(part), justify="right")
        for row in found.aus.to_dict("records"):
            cells = (_number(row[name], _AU_COLUMNS[name.rpartition("_")[0]][1]) for name in names)
            table.add_row(str(row["au"]), *cells)
        print_table(table)
        print_line(f"images: {found.num_decoded:,} decoded")
    if found.needed_bytes is not None and found.free_bytes is not None:
        print_line(f"disk: about {found.needed_bytes / 1e9:,.1f} GB needed, {found.free_bytes / 1e9:,.1f} GB free")
    for note in found.notes:
        print_line(f"note: {note}")
    for fault in found.faults:
        print_line(f"fault: {fault}")
    if found.is_ready:
        print_line(f"{found.dataset} is ready; run `fantrans refresh {found.dataset} --dry-run`")
    else:
        print_line(f"{found.dataset} is not ready: {counted(len(found.faults), 'fault')}")


_AU_COLUMNS = {"percent": ("{} %", "{:.1f}"), "num_positive": ("{}", "{:,.0f}"), "weight_test": ("w {}", "{:.3f}")}
"""Heading and format of the columns of an examination, by what they hold."""


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)


def render(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="Render this data set of the catalog, with its settings.",
            callback=checked_dataset,
            autocompletion=complete_dataset,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write into.")] = None,
    layout: Layout = "bp4d",
    subjects: Annotated[int, typer.Option(min=1, help="Number of subjects.")] = 12,
    tasks: Annotated[int, typer.Option(min=1, max=8, help="Tasks per subject.")] = 8,
    frames: Annotated[int, typer.Option(min=1, help="Frames per task.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Another seed renders other subjects.")] = 0,
    size: Annotated[int, typer.Option(min=64, help="Side of a frame in px.")] = 512,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that render.", show_default="one per core")
    ] = os.cpu_count() or 1,
) -> None:
    """Render faces with known action units in the raw layout of a data set.

    Writes frames and labels into a folder and prints its entry for the catalog. With a data set, the folder and all
    settings are those of its entry in the catalog.
    """
    if dataset is not None:
        ignored = ("out", "layout", "subjects", "tasks", "frames", "seed", "size")
        refuse_ignored(context, ignored, when=f"with data set {dataset}, whose settings are in the catalog")
        from pipeline.catalog import load_catalog

        entry = load_catalog().get_dataset(dataset)
        if not entry.is_rendered:
            raise ConfigError(
                f"data set {dataset!r} has no `rendered:` in the catalog; render into a folder with --out"
            )
        entry.render(num_workers=workers)
        return
    if out is None:
        raise ConfigError("`fantrans render` needs a folder or a data set; give --out FOLDER, or a name of the catalog")
    from pipeline.datasets import LAYOUTS
    from pipeline.synthetic.dataset import write_dataset

    write_dataset(
        out,
        layout=layout,
        num_subjects=subjects,
        num_tasks=tasks,
        num_frames=frames,
        seed=seed,
        size_px=size,
        num_workers=workers,
    )
    print_line(
        f"for `datasets:` in data_catalog.yaml:\n  {out.name}: {{root: {out.resolve()}, layout: {layout}, "
        f"protocol: {LAYOUTS[layout].rendered_protocol}}}"
    )


@has_choices("until")
def _stage_names() -> Sequence[str]:
    return "index", "detect", "crop", "extract"


def refresh(
    context: typer.Context,
    dataset: Dataset,
    experiment: Experiment = None,
    base: Base = None,
    overrides: Set = None,
    profile: Profile = None,
    views: Annotated[int | None, typer.Option(min=2, help="Views per frame.", show_default="the experiment's")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Process only this many frames, sampled from the whole data set.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that extract; any number gives the same bytes.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be kept, computed and dropped, and stop.")
    ] = False,
    allow_lost: Annotated[
        bool, typer.Option("--allow-lost", help="Continue although many images, videos or labels are gone.")
    ] = False,
    until: Annotated[str, typer.Option(help="The last stage to run.", callback=checked_choice)] = "extract",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Bring a data set's index, boxes, crops and feature cache up to date.

    Computes only what is missing. Logs one line per stage: how many frames are new, kept and dropped. Writes the page
    of the cache and logs its path.
    """
    resolve_experiment(dataset, experiment, base, overrides or ())
    chosen: dict[str, Any] = {
        "experiment": experiment,
        "base": base,
        "overrides": overrides or [],
        "profile": profile,
        "num_views": views,
        "limit": limit,
        "allow_lost": allow_lost,
        "until": until,
    }
    if dry_run:
        refuse_ignored(context, ["workers"], when="with --dry-run, which computes nothing")
        from pipeline.refresh.job import prepare_refresh
        from pipeline.refresh.stages import plan_refresh

        job = prepare_refresh(dataset, **chosen, device=choose_device(device))
        _print_plan(job, plan_refresh(job), as_json=as_json)
        return
    refuse_ignored(context, ["as_json"], when="without --dry-run")
    _find_refresh()(dataset, **chosen, device=choose_device(device), num_workers=workers)


def _find_refresh() -> Callable[..., Any]:
    """Return the Prefect flow if a server is named to record it, else the same function without Prefect."""
    if is_server_named():
        from flows.refresh import refresh_cache as refresh_flow

        return refresh_flow
    return _refresh_plainly


def _refresh_plainly(dataset: str, **settings: Any) -> None:
    from flows.pages import write_refreshed_page
    from pipeline.refresh import stages
    from pipeline.refresh.job import prepare_refresh

    stages.refresh_cache(dataset, **settings)
    write_refreshed_page(prepare_refresh(dataset, **settings, checks_weights=False))


def _print_plan(job: RefreshJob, plans: list[StagePlan], *, as_json: bool) -> None:
    from pipeline.refresh.caches import free_bytes

    folder = job.catalog.roots.cache
    has_all_stages = plans[-1].stage != "render"
    is_noop = all(plan.is_noop for plan in plans)
    free, needed = free_bytes(folder), sum(plan.num_bytes or 0 for plan in plans)
    if as_json:
        stages = [
            {
                "stage": plan.stage,
                "num_kept": plan.num_kept,
                "num_computed": plan.num_computed,
                "num_dropped": plan.num_dropped,
                "size_bytes": plan.num_bytes,
                "time_s": plan.duration.seconds,
                "is_time_typical": plan.duration.is_typical,
            }
            for plan in plans
        ]
        document = {"dataset": job.dataset, "has_all_stages": has_all_stages, "is_noop": is_noop, "free_bytes": free}
        print_json("refresh-plan", **document, stages=stages)
        return
    table = Table("stage", "keep", "compute", "drop", "MB to write", "time", show_footer=True)
    for plan in plans:
        megabytes = "" if plan.num_bytes is None else f"{plan.num_bytes / 1e6:,.1f}"
        counts = (f"{count:,}" for count in (plan.num_kept, plan.num_computed, plan.num_dropped))
        table.add_row(plan.stage, *counts, megabytes, _time(plan.duration.seconds, plan.duration.is_typical))
    is_typical = any(plan.duration.is_typical for plan in plans)
    table.columns[0].footer = "all"
    table.columns[4].footer = f"{needed / 1e6:,.1f}"
    table.columns[5].footer = _time(sum(plan.duration.seconds for plan in plans), is_typical)
    print_table(table)
    if is_typical:
        print_line(f"~ at rates that are typical of {job.device}; the refresh measures its own")
    print_line(f"free below {folder}: {free / 1e6:,.0f} MB")
    if needed > free:
        print_line(
            f"too little: {needed / 1e6:,.0f} MB are needed; choose another disk with FANTRANS_CACHE, fewer --views or "
            "--profile compact"
        )
    if not has_all_stages:
        print_line("the other stages can be planned when these faces are rendered: run the refresh")


def _time(seconds: float, is_typical: bool) -> str:
    return f"{'~' if is_typical else ''}{seconds / 60:,.1f} min" if seconds else ""

"""`fantrans cache`: maintain feature caches and the crops that they are computed from."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from flows.commands.base import Group, add_command
from flows.commands.options import (
    CacheFingerprint,
    Dataset,
    Device,
    Images,
    Json,
    Open,
    OptionalDataset,
    choose_device,
    refuse_ignored,
)
from flows.commands.output import open_page, print_json, print_line, print_table
from pipeline.errors import ConfigError
from pipeline.runtime.text import counted

if TYPE_CHECKING:
    from pipeline.refresh.caches import CacheSummary
    from pipeline.store.reader import StoreReader


cache_app = typer.Typer(cls=Group, help="List, check, prune, measure and exchange feature caches.")


@add_command(cache_app, "ls", "fantrans cache ls", "fantrans cache ls bp4d --json")
def list_caches(dataset: OptionalDataset = None, as_json: Json = False) -> None:
    """List feature caches.

    Prints per cache its fingerprint, revision, number of frames and views, size, age, weights, profile, users and
    state: intact or damaged, as far as known without `cache verify`, unfinished, or how many frames it is behind the
    data set's index. Then the command that brings each up to date, and the free disk space.
    """
    from pipeline.catalog import load_catalog
    from pipeline.refresh.caches import free_bytes, list_caches

    catalog = load_catalog()
    found = {name: list_caches(catalog, name) for name in catalog.dataset_names(dataset)}
    if as_json:
        listed = [cache_record(cache) for caches in found.values() for cache in caches]
        print_json("cache-ls", caches=listed, free_bytes=free_bytes(catalog.roots.cache))
        return
    if not any(found.values()):
        print_line(f"no cache below {catalog.roots.cache}")
    for name, caches in found.items():
        table = Table(
            "fingerprint",
            "rev",
            "frames",
            "size",
            "age",
            "made with",
            "used by",
            "state",
            title=name,
            title_justify="left",
            box=SIMPLE,
        )
        table.columns[0].no_wrap = True
        for cache in caches:
            table.add_row(
                cache.fingerprint,
                "-" if cache.revision is None else str(cache.revision),
                f"{cache.num_frames:,} x {cache.num_views}",
                f"{cache.size_bytes / 1e6:,.0f} MB",
                cache.age,
                f"{cache.weights} {cache.profile}",
                cache.used_by,
                cache.state,
            )
        if caches:
            print_table(table)
        for cache in caches:
            print_line(f"  {cache.fingerprint}: {cache.refresh_command}")
    print_line(f"free below {catalog.roots.cache}: {free_bytes(catalog.roots.cache) / 1e6:,.0f} MB")


def cache_record(cache: CacheSummary) -> dict[str, Any]:
    """Return a cache as docs/cli.md describes it."""
    derived = {"fingerprint": cache.fingerprint, "age_s": cache.age_s, "state": cache.state.split()[0]}
    return cache._asdict() | derived


@add_command(cache_app, "verify", "fantrans cache verify", "fantrans cache verify bp4d --deep")
def verify_caches(
    context: typer.Context,
    dataset: OptionalDataset = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte, and recompute some frames.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Check crops and caches against their indexes and checksums.

    Prints what is damaged, and which frames that affects; the exit status is 1 if anything is, or if the data set that
    is named has no cache. The next refresh repairs damage.
    """
    if not deep:
        refuse_ignored(context, ["device"], when="without --deep, which recomputes frames")
    chosen = choose_device(device) if deep else "cpu"
    from pipeline.catalog import load_catalog
    from pipeline.refresh.caches import refresh_command
    from pipeline.refresh.maintenance import verify_caches
    from pipeline.runtime.text import join_first

    catalog = load_catalog()
    stores = []
    for name in catalog.dataset_names(dataset):
        for folder, damages in verify_caches(catalog, name, is_deep=deep, device=chosen).items():
            listed = [{"message": damage.message, "frame_ids": damage.frame_ids} for damage in damages]
            is_cache = folder.parent == catalog.caches_folder(name)
            repair = refresh_command(catalog, name, folder.name) if is_cache else f"fantrans refresh {name}"
            store = {"dataset": name, "folder": folder, "num_damaged": len(damages), "damages": listed}
            stores.append({**store, "refresh_command": repair if damages else None})
            if as_json:
                continue
            print_line(f"{folder}: {f'{len(damages)} damaged' if damages else 'intact'}")
            if damages:
                print_line("  " + join_first((str(damage) for damage in damages), separator="\n  "))
                print_line(f"  to repair it: {repair}")
    is_intact = not any(store["num_damaged"] for store in stores)
    has_cache = any(Path(str(store["folder"])).is_relative_to(catalog.roots.cache) for store in stores)
    if as_json:
        print_json("cache-verify", is_deep=deep, is_intact=is_intact, has_cache=has_cache, stores=stores)
    elif not stores:
        print_line(f"nothing to verify: no crops below {catalog.roots.work}, no cache below {catalog.roots.cache}")
    elif not has_cache:
        print_line(f"no cache below {catalog.roots.cache}: only crops were checked")
    elif not deep:
        print_line("checked: tables, and that each file exists in its size; --deep reads every byte")
    if dataset is not None and not has_cache and not as_json:
        print_line(f"{dataset} should have one: check the disk and FANTRANS_CACHE, or run `fantrans refresh {dataset}`")
    if not is_intact or (dataset is not None and not has_cache):
        raise typer.Exit(1)


@add_command(cache_app, "rm", "fantrans cache rm bp4d a376a39ed29f98e4")
def remove_cache(
    dataset: Dataset,
    fingerprint: Annotated[str, typer.Argument(help="Fingerprint of the cache, or its beginning.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Remove a cache that is read or that runs use.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a feature cache with all its files, finished or not.

    Asks first. A cache that runs were trained on, or that a reader pins, is kept unless --force is given; one that is
    being written is always kept.
    """
    from pipeline.catalog import load_catalog
    from pipeline.refresh.caches import find_cache, remove_cache, runs_by_cache
    from pipeline.report.page_files import cache_page_path

    catalog = load_catalog()
    folder = find_cache(catalog, dataset, fingerprint)
    if not yes and (as_json or not sys.stdin.isatty()):
        raise ConfigError("the removal of a cache is not confirmed, and cannot be asked for here; pass --yes")
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    runs = runs_by_cache(catalog, dataset).get(folder.name, [])
    if not yes:
        size = f"{counted(len(sizes), 'file')}, {sum(sizes) / 1e6:,.1f} MB"
        print_line(f"to remove: {folder} ({size}, used by {counted(len(runs), 'run')})")
        if not typer.confirm("remove this cache?"):
            print_line("nothing is removed")
            raise typer.Exit(1)
    remove_cache(catalog, dataset, folder, is_forced=force)
    cache_page_path(catalog, dataset, folder.name).unlink(missing_ok=True)
    if as_json:
        print_json(
            "cache-rm", dataset=dataset, folder=folder, num_files=len(sizes), freed_bytes=sum(sizes), used_by_runs=runs
        )
    else:
        print_line(f"removed: {folder}")


@add_command(cache_app, "prune", "fantrans cache prune", "fantrans cache prune bp4d --grace-hours 0")
def prune_caches(
    dataset: OptionalDataset = None,
    grace_hours: Annotated[float, typer.Option(min=0, help="Keep files that are younger than this.")] = 24.0,
    as_json: Json = False,
) -> None:
    """Free the disk space of dead rows, old revisions and orphaned files.

    The newest revision, and those that readers pin, are kept. Prints per store what was freed.
    """
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import prune_stores

    catalog = load_catalog()
    stores = []
    for name in catalog.dataset_names(dataset):
        for folder, result in prune_stores(catalog, name, grace_s=grace_hours * 3600).items():
            counts = asdict(result)
            stores.append({"dataset": name, "folder": folder, "freed_bytes": counts.pop("num_bytes"), **counts})
            if not as_json:
                print_line(f"{folder}: {result}")
    if as_json:
        print_json("cache-prune", stores=stores)
    elif not stores:
        print_line(f"nothing to prune: no crops below {catalog.roots.work}, no cache below {catalog.roots.cache}")


@add_command(cache_app, "stats", "fantrans cache stats bp4d")
def measure_cache(
    dataset: Dataset,
    fingerprint: CacheFingerprint = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames that ranges and errors are measured on.")] = 256,
    as_json: Json = False,
) -> None:
    """Measure a cache: AU base rates, ranges of the channels, and the error of its profile.

    Prints one table of each.
    """
    from pipeline.catalog import load_catalog
    from pipeline.refresh.caches import find_cache
    from pipeline.refresh.maintenance import cache_statistics

    catalog = load_catalog()
    folder = find_cache(catalog, dataset, fingerprint)
    tables = cache_statistics(catalog, dataset, folder, num_frames=frames)
    if as_json:
        listed = [
            {
                "title": title,
                "values": [
                    {"row": str(name), "column": str(column), "value": value}
                    for name, row in table.iterrows()
                    for column, value in row.items()
                ],
            }
            for title, table in tables
        ]
        print_json("cache-stats", dataset=dataset, folder=folder, tables=listed)
        return
    for title, table in tables:
        shown = Table("", *map(str, table.columns), title=title, title_justify="left")
        for name, row in table.iterrows():
            shown.add_row(str(name), *(f"{value:.4g}" for value in row))
        print_table(shown)


@add_command(cache_app, "report", "fantrans cache report bp4d --open", "fantrans cache report bp4d --images")
def report_cache(
    dataset: Dataset,
    fingerprint: CacheFingerprint = None,
    images: Images = None,
    opens: Open = False,
) -> None:
    """Write the page of a cache: coverage, missed faces, boxes, tracks, fidelity, bytes, damage, runs.

    Writes one HTML file below the runs root, which needs no network, and prints its path. A refresh writes it, too,
    without the check of all files.
    """
    from pipeline.catalog import load_catalog
    from pipeline.refresh.caches import find_cache
    from pipeline.report.cache_page import write_cache_page

    catalog = load_catalog()
    folder = find_cache(catalog, dataset, fingerprint)
    path = write_cache_page(catalog, dataset, folder, shows_images=images).absolute()
    if opens:
        open_page(path)
    print_line(f"report: {path}")


@add_command(cache_app, "export", "fantrans cache export bp4d --out exported")
def export_cache(
    dataset: Dataset,
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    fingerprint: CacheFingerprint = None,
    crops: Annotated[bool, typer.Option("--crops", help="Export the crops that the cache is computed from.")] = False,
) -> None:
    """Export the newest revision of a cache as HDF5.

    Writes one file per part, with one chunk per frame, and prints the files.
    """
    from pipeline.cache.crops import CropReader
    from pipeline.cache.reader import open_cache
    from pipeline.catalog import load_catalog
    from pipeline.refresh.caches import find_cache
    from pipeline.refresh.maintenance import export_store

    catalog = load_catalog()
    cache = open_cache(find_cache(catalog, dataset, fingerprint))
    store: StoreReader = cache
    if crops:
        store = CropReader(catalog.crops_folder(dataset) / cache.manifest["provenance"]["crops"]["folder"])
    for path in export_store(store, out):
        print_line(str(path))


@add_command(cache_app, "import", "fantrans cache import bp4d exported/*.h5")
def import_cache(
    dataset: Dataset,
    files: Annotated[list[Path], typer.Argument(exists=True, help="Files of `fantrans cache export`, all parts.")],
) -> None:
    """Import a cache, or crops, from the files of an export.

    Writes a store with the same values and fingerprint, and prints its folder.
    """
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import import_store

    catalog = load_catalog()
    store = import_store(catalog, dataset, files)
    print_line(f"{store.folder}: revision {store.revision}, {len(store.index):,} frames")

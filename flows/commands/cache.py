"""`fantrans cache`: maintain feature caches and the crops that they are computed from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from flows.commands.options import (
    CacheFingerprint,
    Dataset,
    Device,
    OptionalDataset,
    console,
    print_line,
    refuse_ignored,
)

if TYPE_CHECKING:
    from pipeline.store.reader import StoreReader


cache_app = typer.Typer(no_args_is_help=True, help="List, check, prune, measure and exchange feature caches.")


@cache_app.command("ls")
def list_caches(dataset: OptionalDataset = None) -> None:
    """List feature caches.

    Prints per cache its fingerprint, revision, number of frames and views, size, age, weights, profile and users.
    """
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import list_caches

    catalog = load_catalog()
    for name in catalog.dataset_names(dataset):
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
def verify_caches(
    context: typer.Context,
    dataset: OptionalDataset = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte, and recompute some frames.")] = False,
    device: Device = "cpu",
) -> None:
    """Check crops and caches against their indexes and checksums.

    Prints what is damaged, and which frames that affects; the exit status is 2 if anything is. The next refresh
    repairs it.
    """
    if not deep:
        refuse_ignored(context, ["device"], when="without --deep, which recomputes frames")
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import verify_caches
    from pipeline.runtime.text import join_first

    catalog = load_catalog()
    is_intact = True
    for name in catalog.dataset_names(dataset):
        for folder, damages in verify_caches(catalog, name, is_deep=deep, device=device).items():
            print_line(f"{folder}: {f'{len(damages)} damaged' if damages else 'intact'}")
            if damages:
                print_line("  " + join_first((str(damage) for damage in damages), separator="\n  "))
            is_intact = is_intact and not damages
    if not is_intact:
        print_line("run `fantrans refresh` with the settings of the damaged cache (`fantrans cache ls`) to repair it")
        raise typer.Exit(2)


@cache_app.command("prune")
def prune_caches(
    dataset: OptionalDataset = None,
    grace_hours: Annotated[float, typer.Option(min=0, help="Keep files that are younger than this.")] = 24.0,
) -> None:
    """Free the disk space of dead rows, old revisions and orphaned files.

    The newest revision, and those that readers pin, are kept. Prints per store what was freed.
    """
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import prune_stores

    catalog = load_catalog()
    for name in catalog.dataset_names(dataset):
        for folder, result in prune_stores(catalog, name, grace_s=grace_hours * 3600).items():
            print_line(f"{folder}: {result}")


@cache_app.command("stats")
def measure_cache(
    dataset: Dataset,
    fingerprint: CacheFingerprint = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames that ranges and errors are measured on.")] = 256,
) -> None:
    """Measure a cache: AU base rates, ranges of the channels, and the error of its profile.

    Prints one table of each.
    """
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import cache_statistics, find_cache

    catalog = load_catalog()
    folder = find_cache(catalog, dataset, fingerprint)
    for title, table in cache_statistics(catalog, dataset, folder, num_frames=frames):
        shown = Table("", *map(str, table.columns), title=title, title_justify="left")
        for name, row in table.iterrows():
            shown.add_row(str(name), *(f"{value:.4g}" for value in row))
        console.print(shown)


@cache_app.command("export")
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
    from pipeline.refresh.maintenance import export_store, find_cache

    catalog = load_catalog()
    cache = open_cache(find_cache(catalog, dataset, fingerprint))
    store: StoreReader = cache
    if crops:
        store = CropReader(catalog.crops_folder(dataset) / cache.manifest["provenance"]["crops"]["folder"])
    for path in export_store(store, out):
        print_line(str(path))


@cache_app.command("import")
def import_cache(
    dataset: Annotated[str, typer.Argument(help="The data set of the catalog that the cache belongs to.")],
    files: Annotated[list[Path], typer.Argument(exists=True, help="Files of `fantrans cache export`, all parts.")],
) -> None:
    """Import a cache, or crops, from the files of an export.

    Writes a store with the same values and fingerprint, and prints its folder.
    """
    from pipeline.catalog import load_catalog
    from pipeline.refresh.maintenance import import_store

    catalog = load_catalog()
    catalog.get_dataset(dataset)
    store = import_store(catalog, dataset, files)
    print_line(f"{store.folder}: revision {store.revision}, {len(store.index):,} frames")

"""A data set's caches: where they are, what is known of each without reading it, and how one is removed."""

from __future__ import annotations

import logging
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.catalog import RUN_RECORD_NAME, Catalog
from pipeline.config import PROFILES
from pipeline.errors import DataError, FantransError, StoreError, StoreNotFoundError, UsageError
from pipeline.experiments import resolve
from pipeline.fingerprint import cache_fingerprint, overrides_for
from pipeline.project import experiment_folders
from pipeline.runtime.atomic import TEMP_PREFIX, fsync_folder
from pipeline.runtime.text import age_in_words, counted, join_first, unknown_name
from pipeline.store.hashing import hash_document
from pipeline.store.lock import is_held, writer_lock
from pipeline.store.revisions import (
    POINTER_NAME,
    has_intact_tables,
    load_revision,
    manifest_name,
    read_damage,
    read_fingerprint,
    revision_numbers,
    store_folders,
)
from pipeline.tables import read_record, read_table_if_intact

logger = logging.getLogger("fantrans")


class CacheSummary(NamedTuple):
    """One row of `fantrans cache ls`.

    revision, num_frames, num_views, size_bytes, published_at: of the newest revision; None and 0 if no refresh has
    finished. weights, profile: what the features were computed with. num_runs: runs of the data set that were trained
    on the cache. has_reader: whether a reader pins the revision. num_damaged: units that are known to be damaged.
    num_behind: frames that only one of the data set's index and the cache lists. refresh_command: brings it up to date.
    """

    dataset: str
    folder: Path
    revision: int | None
    num_frames: int
    num_views: int
    size_bytes: int
    published_at: datetime | None
    weights: str
    profile: str
    num_runs: int
    has_reader: bool
    num_damaged: int
    has_damaged_tables: bool
    num_behind: int
    refresh_command: str

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the cache: the name of its folder."""
        return self.folder.name

    @property
    def age_s(self) -> float | None:
        """Seconds since the newest revision was published."""
        return None if self.published_at is None else time.time() - self.published_at.timestamp()

    @property
    def age(self) -> str:
        """Time since the newest revision was published, such as 30 h."""
        age_s = self.age_s
        if age_s is None:
            return "-"
        return "in the future" if age_s < 0 else age_in_words(age_s)

    @property
    def used_by(self) -> str:
        """Runs and readers; "-" if there are none."""
        users = [counted(self.num_runs, "run")] * (self.num_runs > 0)
        return ", ".join(users + ["a reader"] * self.has_reader) or "-"

    @property
    def state(self) -> str:
        """What is known without reading the cache: intact, damaged, unfinished, or how many frames it is behind."""
        if self.revision is None:
            return "unfinished"
        if self.num_damaged:
            return f"damaged {self.num_damaged}"
        if self.has_damaged_tables:
            return "damaged tables"
        return f"behind {counted(self.num_behind, 'frame')}" if self.num_behind else "intact"


def list_caches(catalog: Catalog, dataset: str, *, names_commands: bool = True) -> list[CacheSummary]:
    """Return a data set's feature caches, with the runs and readers that use each.

    Caches whose tables are damaged in both copies are logged and left out. names_commands: whether to look for the
    command that refreshes each, which takes most of the time; it is empty otherwise.
    """
    runs = runs_by_cache(catalog, dataset)
    index = read_table_if_intact(catalog.index_path(dataset))
    summaries = []
    for folder in cache_folders(catalog, dataset):
        try:
            revision, document = load_revision(folder), read_fingerprint(folder)
        except StoreError as error:
            logger.warning("%s", error)
            continue
        features = document["features"]
        pointer = folder / POINTER_NAME
        summaries.append(
            CacheSummary(
                dataset=dataset,
                folder=folder,
                revision=None if revision is None else revision.number,
                num_frames=0 if revision is None else revision.manifest["num_rows"],
                num_views=0 if revision is None else len(revision.groups),
                size_bytes=_size(folder) if revision is None else revision.manifest["num_bytes"],
                published_at=datetime.fromtimestamp(pointer.stat().st_mtime, UTC) if pointer.is_file() else None,
                weights=_network_name(features),
                profile=features["profile"],
                num_runs=len(runs.get(hash_document(document), ())),
                has_reader=revision is not None and is_held(folder / manifest_name(revision.number)),
                num_damaged=len(read_damage(folder)),
                has_damaged_tables=revision is not None and not has_intact_tables(folder),
                num_behind=0
                if revision is None or index is None
                else len(set(index["frame_id"]) ^ set(revision.index["frame_id"])),
                refresh_command=refresh_command(catalog, dataset, folder.name) if names_commands else "",
            )
        )
    return summaries


def _network_name(features: Mapping[str, Any]) -> str:
    """Return the network of a fingerprint document's features, such as FAN 128."""
    return f"FAN {features['width']}" if features["family"] == "fan" else features["family"]


def cache_folders(catalog: Catalog, dataset: str) -> list[Path]:
    """Return the folders of a data set's feature caches, sorted."""
    return store_folders(catalog.caches_folder(dataset))


def crop_folders(catalog: Catalog, dataset: str) -> list[Path]:
    """Return the folders of a data set's stores of crops, sorted."""
    return store_folders(catalog.crops_folder(dataset))


def runs_by_cache(catalog: Catalog, dataset: str) -> dict[str, list[str]]:
    """Return the names of a data set's runs by the fingerprint of their cache; damaged runs are logged."""
    runs: dict[str, list[str]] = {}
    for name in catalog.run_names():
        path = catalog.roots.runs / name / RUN_RECORD_NAME
        try:
            record = read_record(path, keys=("cache", "dataset"), made_by="fantrans train")
            if record["dataset"] == dataset:
                runs.setdefault(record["cache"], []).append(name)
        except DataError as error:
            logger.warning("this run is not counted as a user of its cache: %s", error)
    return runs


def refresh_command(catalog: Catalog, dataset: str, fingerprint: str) -> str:
    """Return the `fantrans refresh` that writes the cache of this fingerprint.

    Looks among the data set's own experiment and those that are known by name, in every profile; another one is
    named by what it changes in the first.
    """
    own, folder = catalog.get_dataset(dataset).experiment, catalog.caches_folder(dataset) / fingerprint
    names = sorted({path.stem for folder in experiment_folders() for path in folder.glob("*.yaml")})
    for name in dict.fromkeys((own, *names)):
        for profile, num_views, found in _fingerprints(catalog, dataset, name):
            if found == fingerprint:
                words = [*(["--experiment", name] if name != own else []), *(["--profile", profile] if profile else [])]
                return shlex.join(["fantrans", "refresh", dataset, *words, *_fewer_views(folder, num_views)])
    words = ["--experiment", "EXPERIMENT"]
    with suppress(FantransError, OSError):
        settings = resolve(catalog, dataset).cache
        overrides = overrides_for(settings, read_fingerprint(folder), catalog)
        if overrides is not None:
            words = [word for each in overrides for word in ("--set", each)]
            words += _fewer_views(folder, settings.views.num_views)
    return shlex.join(["fantrans", "refresh", dataset, *words])


def _fewer_views(folder: Path, num_views: int) -> list[str]:
    """Return the option with which a refresh keeps a cache's number of views, if that is below `num_views`."""
    with suppress(FantransError, OSError):
        revision = load_revision(folder)
        if revision is not None and len(revision.groups) < num_views:
            return ["--views", str(len(revision.groups))]
    return []


def _fingerprints(catalog: Catalog, dataset: str, experiment: str) -> Iterator[tuple[str | None, int, str]]:
    """Yield profile, number of views and fingerprint of an experiment's cache in its own profile (None) and in each.

    Skips what has none here, such as a set, or a profile without its weights.
    """
    try:
        settings = resolve(catalog, dataset, experiment).cache
    except (FantransError, OSError):
        return
    for profile in (None, *PROFILES):
        features = settings.features.model_copy(update={"profile": profile} if profile else {})
        with suppress(FantransError, OSError):
            fingerprint = cache_fingerprint(settings.model_copy(update={"features": features}), catalog)
            yield profile, settings.views.num_views, fingerprint


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove_cache(catalog: Catalog, dataset: str, folder: Path, *, is_forced: bool = False) -> None:
    """Remove a feature cache; a kill leaves it either whole or no longer listed.

    Raises `StoreError` if a process writes it, and, unless `is_forced`, if a reader pins it or runs were trained on it.
    """
    with writer_lock(folder):
        if not is_forced:
            users = runs_by_cache(catalog, dataset).get(folder.name, [])
            if users:
                raise StoreError(
                    f"{folder} is the cache of {join_first(users, 5)}, which can then neither resume nor be reported "
                    "on again; remove these runs first, or pass --force"
                )
            if any(is_held(folder / manifest_name(number)) for number in revision_numbers(folder)):
                raise StoreError(f"{folder} is being read; wait until the reader ends, or pass --force")
        gone = folder.with_name(f"{TEMP_PREFIX}{secrets.token_hex(4)}-{folder.name}")
        folder.rename(gone)
        fsync_folder(folder.parent)
    for left in folder.parent.glob(f"{TEMP_PREFIX}*"):  # and what a killed removal left
        shutil.rmtree(left, ignore_errors=True)


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that holds a folder, which need not exist yet."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def find_cache(catalog: Catalog, dataset: str, name: str | None) -> Path:
    """Return the folder of the cache whose fingerprint begins with `name` (default: the data set's only cache).

    Raises `UsageError` with all fingerprints if none fits, or several do; `StoreNotFoundError` without a cache.
    """
    known = cache_folders(catalog, dataset)
    if not known:
        raise StoreNotFoundError(f"{dataset} has no cache; run `fantrans refresh {dataset}` to create one")
    folders = [folder for folder in known if folder.name.startswith(name or "")]
    names = [folder.name for folder in known]
    if name and not folders:
        raise UsageError(unknown_name("cache", name, names, where=f" for {dataset}"))
    if len(folders) > 1:
        raise UsageError(
            f"{dataset} has {len(folders)} caches to choose from: {', '.join(names)}; name one with --fingerprint"
        )
    return folders[0]

"""Looking after the stores of a data set: list, verify, collect, count, export and import."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from dask.base import compute

from pipeline.cache import statistics
from pipeline.cache.codecs import make_codec
from pipeline.cache.crops import CropReader, crops_format, stored_crops_format
from pipeline.cache.format import features_format, stored_format, view_number
from pipeline.cache.hdf5 import export_hdf5, import_hdf5
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.cache.units import Extractor, UnitSpec, UnitTask, UnitWorker
from pipeline.catalog import Catalog, WeightsEntry
from pipeline.config import CropConfig, ViewConfig
from pipeline.datasets.index import read_index
from pipeline.errors import DataError, StoreError
from pipeline.faces.features import Precision, extract_features, load_network
from pipeline.fingerprint import weights_in
from pipeline.runtime.progress import track
from pipeline.store.fingerprint import fingerprint
from pipeline.store.format import StoreFormat
from pipeline.store.lock import is_held
from pipeline.store.mirror import MIRROR_NAME
from pipeline.store.plan import Unit
from pipeline.store.prune import DEFAULT_GRACE_S, PruneResult, prune_store
from pipeline.store.reader import StoreReader
from pipeline.store.revisions import (
    FINGERPRINT_NAME,
    POINTER_NAME,
    load_revision,
    manifest_name,
    read_fingerprint,
)
from pipeline.store.verify import Damage, mark_damaged, verify_store
from pipeline.tables import read_record

logger = logging.getLogger("fantrans")

NUM_RECOMPUTED = 8
"""Frames that a deep verification computes again from their crops, in the first and the last view."""
_TOLERANCE = 0.1
"""Relative L2 that other hardware than the writer's may differ by; on the same kind of device bytes must agree.

`tests/integration/test_cuda.py` bounds what a GPU and a CPU differ by; two rendered frames of one task were 0.3 apart.
"""


class CacheSummary(NamedTuple):
    """A line of `fantrans cache ls`."""

    fingerprint: str
    revision: int
    num_frames: int
    num_views: int
    megabytes: int
    age: str
    weights: str
    profile: str
    used_by: str


def list_caches(catalog: Catalog, dataset: str) -> list[CacheSummary]:
    """A data set's caches that have a finished revision, and the runs and readers that use them."""
    used = _runs_by_cache(catalog.roots.runs)
    summaries = []
    for folder in cache_folders(catalog, dataset):
        try:
            revision, document = load_revision(folder), read_fingerprint(folder)
        except StoreError as error:
            logger.warning("%s", error)
            continue
        if revision is None:
            continue  # a first refresh that has not finished
        features, manifest = document["features"], revision.manifest
        num_runs = used[fingerprint(document)]
        users = [f"{num_runs} run{'s' * (num_runs > 1)}"] * (num_runs > 0)
        users += ["a reader"] * is_held(folder / manifest_name(revision.number))
        age_s = time.time() - (folder / POINTER_NAME).stat().st_mtime if (folder / POINTER_NAME).is_file() else 0
        summaries.append(
            CacheSummary(
                fingerprint(document),
                revision.number,
                manifest["num_rows"],
                len(revision.groups),
                round(manifest["num_bytes"] / 1e6),
                _age(age_s),
                _network_name(features),
                features["profile"],
                ", ".join(users) or "nobody",
            )
        )
    return summaries


def _network_name(features: Mapping[str, Any]) -> str:
    return f"FAN {features['width']}" if features["family"] == "fan" else features["family"]


def cache_folders(catalog: Catalog, dataset: str) -> list[Path]:
    """Folders of a data set's feature caches, by name."""
    root = catalog.cache_dir(dataset)
    names = {
        path.parent if path.parent.name != MIRROR_NAME else path.parent.parent
        for pattern in (f"*/{FINGERPRINT_NAME}", f"*/{MIRROR_NAME}/{FINGERPRINT_NAME}")
        for path in root.glob(pattern)
    }
    return sorted(names)


def crop_folders(catalog: Catalog, dataset: str) -> list[Path]:
    """Folders of a data set's crops, by name."""
    return sorted(path.parent for path in catalog.crops_dir(dataset).glob(f"*/{FINGERPRINT_NAME}"))


def _runs_by_cache(root: Path) -> Counter[str]:
    runs: Counter[str] = Counter()
    for path in root.glob("*/run.json"):
        try:
            runs[read_record(path, keys=("cache",), made_by="fantrans train")["cache"]] += 1
        except DataError as error:
            logger.warning("no user of any cache: %s", error)
    return runs


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "now" if seconds >= 0 else "in the future"


def verify_caches(catalog: Catalog, dataset: str, *, is_deep: bool, device: str = "cpu") -> dict[Path, list[Damage]]:
    """Verify a data set's crops and caches, and leave word for `refresh` of what it must compute anew.

    Deep, every byte is read, and some frames are computed again from their crops.
    """
    found = {}
    for folder in (*crop_folders(catalog, dataset), *cache_folders(catalog, dataset)):
        revision = load_revision(folder)
        if revision is None:
            continue
        with track(f"verify {folder.name}", total=len(revision.records), unit="units") as step:
            damages = verify_store(folder, is_deep=is_deep, step=step)
        if is_deep and not damages and folder.parent == catalog.cache_dir(dataset):
            damages = recompute_sample(catalog, dataset, folder, device=device)
        mark_damaged(folder, damages)
        found[folder] = damages
    return found


def recompute_sample(
    catalog: Catalog, dataset: str, folder: Path, *, device: str = "cpu", num_frames: int = NUM_RECOMPUTED
) -> list[Damage]:
    """Compute a few frames of a cache again from their crops, and tell those that differ.

    On a CPU, of what a CPU wrote, every byte must agree. The frames are chosen anew for each revision. What cannot be
    compared (crops that have moved on, weights that the catalog lacks) is said in the log.
    """
    cache = open_cache(folder)
    spec = _unit_spec(catalog, dataset, cache, device)
    if spec is None:
        return []
    worker, crops = UnitWorker(spec), CropReader(spec.crops_folder)
    index = cache.index.merge(crops.index[["frame_id", "key"]], on=["frame_id", "key"])
    salt = f"{cache.fingerprint}/{cache.revision}/"
    digests = [hashlib.sha256((salt + name).encode()).hexdigest() for name in index["frame_id"]]
    order = pd.Series(digests, index=index.index).sort_values()
    sample = index.loc[order.index[:num_frames]]
    must_agree = device == "cpu" and cache.manifest["provenance"].get("device") == "cpu"
    damages = []
    for group in dict.fromkeys((cache.groups[0], cache.groups[-1])):
        tasks = [
            UnitTask(Unit(int(row["row"]) // cache.block_rows, group), sample.loc[[i]], is_damaged=False)
            for i, row in sample.iterrows()
        ]
        for result in worker.computed(tasks):
            task, computed = result.task, result.unwrap()
            stored = cache.read(task.rows["row"].to_numpy(), view=view_number(group))
            for name, values in stored.items():
                gap = _relative_l2(values, computed.arrays[name])
                if gap > (0 if must_agree else _TOLERANCE):
                    names = tuple(task.rows["frame_id"])
                    what = f"{name} of {names[0]} in {group} is {gap:.2g} (relative L2) off its recomputation"
                    damages.append(Damage(what, task.unit, names))
    return damages


def _relative_l2(found: np.ndarray, true: np.ndarray) -> float:
    size = float(np.linalg.norm(true.astype(np.float64)))
    return float(np.linalg.norm(found.astype(np.float64) - true.astype(np.float64))) / (size or 1.0)


def _unit_spec(catalog: Catalog, dataset: str, cache: CacheReader, device: str) -> UnitSpec | None:
    features = cache.document["features"]
    weights = weights_in(features, catalog)
    crops = catalog.crops_dir(dataset) / cache.manifest["provenance"]["crops"]["folder"]
    if weights is None or not crops.is_dir():
        lacking = f"{crops} does not exist" if weights else f"the catalog has no weights {features['sha256'][:12]}"
        logger.warning("%s: no frame was computed again, as %s", cache.folder, lacking)
        return None
    return UnitSpec(
        folder=cache.folder,
        arrays=tuple(cache.spec(name) for name in cache.array_names),
        block_rows=cache.block_rows,
        crops_folder=crops,
        crops_revision=CropReader(crops).revision,
        codec=cache.codec,
        exact=None,
        views=ViewConfig(num_views=max(2, cache.num_views), **cache.document["views"]),
        view_px=cache.document["crop"]["size_px"],
        make_extractor=partial(_extractor, weights, cache, device, features["precision"]),
    )


def _extractor(weights: WeightsEntry, cache: CacheReader, device: str, precision: Precision) -> Extractor:
    return partial(extract_features, load_network(weights, device), encode=cache.codec.encode, precision=precision)


def prune_stores(catalog: Catalog, dataset: str, *, grace_s: float = DEFAULT_GRACE_S) -> dict[Path, PruneResult]:
    """Free what a data set's crops and caches no longer need; see `pipeline.store.prune`."""
    done = {}
    for folders, format_of in ((crop_folders, stored_crops_format), (cache_folders, stored_format)):
        for folder in folders(catalog, dataset):
            if load_revision(folder) is not None:
                done[folder] = prune_store(folder, format_of(folder), grace_s=grace_s)
    return done


def find_cache(catalog: Catalog, dataset: str, name: str | None) -> Path:
    """The folder of a data set's cache by the beginning of its fingerprint, or the only one there is."""
    folders = [folder for folder in cache_folders(catalog, dataset) if folder.name.startswith(name or "")]
    if len(folders) != 1:
        there = ", ".join(folder.name for folder in cache_folders(catalog, dataset)) or "none"
        which = f"no cache {name!r}" if name and not folders else f"{len(folders)} caches to choose from"
        raise StoreError(
            f"{dataset} has {which}; there are: {there} (`fantrans cache ls {dataset}`); name one with --fingerprint"
        )
    return folders[0]


def export_store(store: StoreReader, out: Path) -> list[Path]:
    """Write a store's newest revision as HDF5 files below `out`."""
    with track("export", total=len(store.index) * len(store.groups), unit="rows") as step:
        return export_hdf5(store, out, step=step)


def import_store(catalog: Catalog, dataset: str, paths: Sequence[Path]) -> StoreReader:
    """Make a data set's cache, or crops, from files of `export_store`."""
    kinds = {"features": catalog.cache_dir(dataset), "crops": catalog.crops_dir(dataset)}
    return import_hdf5(kinds, list(paths), _format_from)


def _format_from(document: Mapping[str, Any], basis: bytes | None, block_rows: int) -> StoreFormat:
    if document["kind"] == "crops":
        return crops_format(document, CropConfig.model_validate(document["crop"]), block_rows=block_rows)
    features = document["features"]
    codec = make_codec(features["profile"], {n: tuple(s) for n, s in features["shapes"].items()}, basis=basis)
    return features_format(document, codec, block_rows=block_rows)


def cache_statistics(
    catalog: Catalog, dataset: str, folder: Path, *, num_frames: int
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Tables with titles: base rates of the frames that the cache holds, ranges of its channels, fidelity.

    Ranges and fidelity are of the clean view of `num_frames` frames, in rows that lie together.
    """
    cache = open_cache(folder)
    frames = read_index(catalog.work_dir(dataset), dataset=dataset)
    frames = frames[frames["frame_id"].isin(cache.index["frame_id"])]
    aus = catalog.dataset(dataset).rules.aus
    rows = cache.rows()[:num_frames]
    graphs = (
        statistics.base_rates(frames, aus),
        statistics.channel_ranges(cache, view=0, rows=rows),
        statistics.mean_relative_l2(cache, view=0, rows=rows),
    )
    rates, ranges, losses = compute(*graphs)
    yield "percent positive among known labels", pd.DataFrame(rates, index=[f"AU{au}" for au in aus])
    yield (
        f"channels over {len(rows)} frames",
        pd.DataFrame(
            {
                name: {
                    "channels": len(each["min"]),
                    "least": each["min"].min(),
                    "greatest": each["max"].max(),
                    "smallest rms": each["rms"].min(),
                    "largest rms": each["rms"].max(),
                }
                for name, each in ranges.items()
            }
        ).T,
    )
    if losses:
        yield "relative L2 error against fp16", pd.DataFrame({"error": losses})

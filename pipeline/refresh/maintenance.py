"""Maintain the stores of a data set, its crops and feature caches: verify, prune, measure, export, import."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
from pipeline.faces.features import Precision, extract_features, load_network
from pipeline.fingerprint import find_weights
from pipeline.refresh.caches import cache_folders, crop_folders
from pipeline.runtime.progress import track
from pipeline.store.format import StoreFormat
from pipeline.store.plan import Unit
from pipeline.store.prune import DEFAULT_GRACE_S, PruneResult, prune_store
from pipeline.store.reader import StoreReader
from pipeline.store.revisions import (
    load_revision,
)
from pipeline.store.verify import Damage, mark_damaged, verify_store

logger = logging.getLogger("fantrans")

NUM_RECOMPUTED = 8
"""Frames that a deep verification recomputes from their crops, in the first and in the last view."""
_TOLERANCE = 0.1
"""Greatest relative L2 difference from a recomputation where bytes need not agree: unless both were made on a CPU.

A GPU and a CPU differ by less (`tests/integration/test_cuda.py`), two frames of one task by more (0.3 if rendered).
"""


def verify_caches(catalog: Catalog, dataset: str, *, is_deep: bool, device: str = "cpu") -> dict[Path, list[Damage]]:
    """Verify a data set's crops and caches; return the damage in each store that has a revision, by folder.

    Damaged units are marked, and the next refresh recomputes them. is_deep: also read every byte, and recompute a
    sample of frames on `device` (`recompute_sample`). Raises `StoreError` for a store that cannot be opened.
    """
    found = {}
    for folder in (*crop_folders(catalog, dataset), *cache_folders(catalog, dataset)):
        revision = load_revision(folder)
        if revision is None:
            continue
        with track(f"verify {folder.name}", total=len(revision.records), unit="units") as on_progress:
            damages = verify_store(folder, is_deep=is_deep, on_progress=on_progress)
        if is_deep and not damages and folder.parent == catalog.caches_folder(dataset):
            damages = recompute_sample(catalog, dataset, folder, device=device)
        mark_damaged(folder, damages)
        found[folder] = damages
    return found


def recompute_sample(
    catalog: Catalog, dataset: str, folder: Path, *, device: str = "cpu", num_frames: int = NUM_RECOMPUTED
) -> list[Damage]:
    """Recompute `num_frames` frames of a cache from their crops, in the first and last view; return those that differ.

    If both devices are CPUs, every byte must agree, else arrays may differ by `_TOLERANCE`. Each revision has another
    sample. Frames whose crop has changed since are skipped. If crops or weights are missing, that is logged and
    nothing is recomputed.
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
        for result in worker.compute_all(tasks):
            task, computed = result.task, result.unwrap()
            stored = cache.read(task.rows["row"].to_numpy(), view=view_number(group))
            for name, values in stored.items():
                gap = _relative_l2(values, computed.arrays[name])
                if gap > (0 if must_agree else _TOLERANCE):
                    names = tuple(task.rows["frame_id"])
                    what = f"{name} of {names[0]} in {group} differs from its recomputation by {gap:.2g} (relative L2)"
                    damages.append(Damage(what, task.unit, names))
    return damages


def _relative_l2(found: np.ndarray, true: np.ndarray) -> float:
    """Return the L2 norm of the difference over that of `true`; the difference's norm if `true` is zero."""
    size = float(np.linalg.norm(true.astype(np.float64)))
    return float(np.linalg.norm(found.astype(np.float64) - true.astype(np.float64))) / (size or 1.0)


def _unit_spec(catalog: Catalog, dataset: str, cache: CacheReader, device: str) -> UnitSpec | None:
    """Return how the units of an existing cache are computed; None, with a warning, without its crops or weights."""
    features = cache.document["features"]
    weights = find_weights(features, catalog)
    crops = catalog.crops_folder(dataset) / cache.manifest["provenance"]["crops"]["folder"]
    if weights is None or not crops.is_dir():
        reason = f"{crops} does not exist" if weights else f"the catalog has no weights {features['sha256'][:12]}"
        logger.warning("%s: no frame was recomputed, because %s", cache.folder, reason)
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
    """Load a network and return a function from images to arrays of the cache's codec."""
    return partial(extract_features, load_network(weights, device), encode=cache.codec.encode, precision=precision)


def prune_stores(catalog: Catalog, dataset: str, *, grace_s: float = DEFAULT_GRACE_S) -> dict[Path, PruneResult]:
    """Prune each of a data set's stores that has a revision (`prune_store`); return what was freed, by folder."""
    results = {}
    for list_folders, read_format in ((crop_folders, stored_crops_format), (cache_folders, stored_format)):
        for folder in list_folders(catalog, dataset):
            if load_revision(folder) is not None:
                results[folder] = prune_store(folder, read_format(folder), grace_s=grace_s)
    return results


def export_store(store: StoreReader, out: Path) -> list[Path]:
    """Write a store's pinned revision as HDF5 files, one per part, into the folder `out`; return their paths."""
    with track("export", total=len(store.index) * len(store.groups), unit="rows") as on_progress:
        return export_hdf5(store, out, on_progress=on_progress)


def import_store(catalog: Catalog, dataset: str, paths: Sequence[Path]) -> StoreReader:
    """Write a data set's cache, or crops, from files of `export_store`; return its reader.

    Raises `StoreError` for files that are not all parts of one revision of the data set's cache; see `import_hdf5`.
    """
    kinds = {"features": catalog.caches_folder(dataset), "crops": catalog.crops_folder(dataset)}
    return import_hdf5(kinds, list(paths), _format_from, dataset=dataset)


def _format_from(document: Mapping[str, Any], basis: bytes | None, block_rows: int) -> StoreFormat:
    """Return the format of an exported store from its fingerprint document, basis and rows per block."""
    if document["kind"] == "crops":
        return crops_format(document, CropConfig.model_validate(document["crop"]), block_rows=block_rows)
    features = document["features"]
    codec = make_codec(features["profile"], {n: tuple(s) for n, s in features["shapes"].items()}, basis=basis)
    return features_format(document, codec, block_rows=block_rows)


def cache_statistics(
    catalog: Catalog, dataset: str, folder: Path, *, num_frames: int
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield titled tables: base rates of the labels, ranges of the channels, and, if the profile is lossy, its error.

    Base rates are of all frames in the cache, in percent of the known labels. Ranges and errors are of the clean view
    of the first `num_frames` rows.
    """
    cache = open_cache(folder)
    frames = read_index(catalog.work_folder(dataset), dataset=dataset)
    frames = frames[frames["frame_id"].isin(cache.index["frame_id"])]
    aus = catalog.get_dataset(dataset).rules.aus
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

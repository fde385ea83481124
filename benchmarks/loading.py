"""Measure how fast training rows are read, beside other libraries on the same values, and beside the disk's own limit.

    fantrans refresh bp4d-synthetic --experiment fan_trans --profile exact     # and another profile, or none of them
    pip install tensorstore                                                    # optional peers are left out if absent
    python benchmarks/loading.py --experiment fan_trans --profiles exact standard --out var/loading.json

Per profile, one view of at most `--rows` rows is read in shuffled order, in batches of 64. All readers take turns; the
numbers are frames per second: the median of the rounds, and their range. warm: files in the page cache; cold: dropped
from it before each round. Peers get their best case: plain arrays of the decoded stored values, contiguous rows.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import torch
import zarr
from torch.utils.data import DataLoader, Dataset

from benchmarks.origin import origin
from pipeline.cache.format import view_group
from pipeline.cache.reader import CacheReader, open_cache
from pipeline.catalog import load_catalog
from pipeline.datasets.index import read_index
from pipeline.experiments import load_experiment
from pipeline.fingerprint import cache_fingerprint
from pipeline.protocols import PARTS
from pipeline.runtime.allocator import tune_allocator
from pipeline.training.loader import TrainingPages

BATCH_ROWS = 64
WORKERS = (0, 2, 4)

Reader = Callable[[], int]
"""Reads all rows once; returns their number."""


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="bp4d-synthetic")
    parser.add_argument("--experiment", default="fan_trans")
    parser.add_argument("--profiles", nargs="+", default=["exact", "standard"])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--place", type=Path, default=None, help="folder for the peers' copies, on the cache's disk")
    parser.add_argument("--out", type=Path, default=Path("var/loading.json"))
    arguments = parser.parse_args()
    tune_allocator()
    result: dict[str, Any] = {**origin(), "rows": arguments.rows}
    for profile in arguments.profiles:
        with TemporaryDirectory(dir=arguments.place) as place:
            result[profile] = measure(arguments, profile, Path(place))
        print(json.dumps({profile: result[profile]}, indent=2), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2))


def measure(arguments: argparse.Namespace, profile: str, place: Path) -> dict[str, Any]:
    """Return frames per second of every reader of one profile's cache."""
    catalog = load_catalog()
    settings = load_experiment(arguments.experiment).cache
    features = settings.features.model_copy(update={"profile": profile})
    name = cache_fingerprint(settings.model_copy(update={"features": features}), catalog)
    cache = open_cache(catalog.caches_folder(arguments.dataset) / name)
    frames = read_index(catalog.work_folder(arguments.dataset), dataset=arguments.dataset)
    cached = cache.index.iloc[: arguments.rows]
    frames = frames[frames["frame_id"].isin(cached["frame_id"])]
    readers, files = make_readers(cache, frames, cached["row"].to_numpy(), place)
    found: dict[str, Any] = {"row_bytes": sum(spec.row_bytes for spec in cache.codec.input_specs)}
    for state, prepare in (("warm", lambda: None), ("cold", partial(drop_from_page_cache, files))):
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for number in range(arguments.rounds + 1):  # the first round warms up and does not count
            for name, read in readers.items():
                prepare()
                started = time.perf_counter()
                num_rows = read()
                rate = num_rows / (time.perf_counter() - started)
                if number:
                    rates[name].append(rate)
        found[state] = {
            name: {"median": round(median(of_reader)), "range": [round(min(of_reader)), round(max(of_reader))]}
            for name, of_reader in rates.items()
        }
    return found


def make_readers(
    cache: CacheReader, frames: Any, rows: np.ndarray, place: Path
) -> tuple[dict[str, Reader], list[Path]]:
    """Write the peers' copies below `place`; return all readers by name, and the files that they read."""
    names, group = cache.codec.inputs, view_group(0)
    stored = cache.read(rows, view=0)
    order = np.random.default_rng(0).permutation(len(rows))
    batches = [order[start : start + BATCH_ROWS] for start in range(0, len(order), BATCH_ROWS)]
    for name, values in stored.items():
        np.save(place / f"{name}.npy", values)
    with h5py.File(place / "rows.h5", "w") as file:
        for name, values in stored.items():
            file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]))
    pages = TrainingPages(cache, frames, parts=PARTS, num_views=2)  # no augmented view: the clean one
    arrays = {name: zarr.open_group(cache.folder / "arrays.zarr", mode="r")[group][name] for name in names}
    maps = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in names}
    buffers = {name: np.empty_like(values[:BATCH_ROWS]) for name, values in stored.items()}

    def ours(at: np.ndarray) -> None:
        cache.read(rows[at], view=0, out={name: buffer[: len(at)] for name, buffer in buffers.items()})

    def memmap(at: np.ndarray) -> None:
        for name, values in maps.items():
            np.take(values, at, axis=0, out=buffers[name][: len(at)], mode="clip")  # "raise" would copy twice

    def in_batches(take: Callable[[np.ndarray], object], batches: Sequence[np.ndarray] = batches) -> Reader:
        def read() -> int:
            for batch in batches:
                take(batch)
            return len(order)

        return read

    readers: dict[str, Reader] = {
        "limit: pread into a reused buffer": partial(
            pread_all, [place / f"{name}.npy" for name in names], stored, order
        ),
        "ours, own order": lambda: sum(len(page.rows) for page in pages.epochs(0, 1)),
        "ours, any order": in_batches(ours),
        "ours, single rows": in_batches(ours, order[:, None]),
        "numpy memmap, into a reused buffer": in_batches(memmap),
        "numpy memmap": in_batches(lambda at: [values[at] for values in maps.values()]),
        "zarr-python": in_batches(lambda at: [array.oindex[rows[np.sort(at)]] for array in arrays.values()]),
    }
    for num_workers in WORKERS:
        loader = DataLoader(
            Hdf5Rows(place / "rows.h5", names), batch_size=BATCH_ROWS, sampler=order.tolist(), num_workers=num_workers
        )
        readers[f"h5py, DataLoader with {num_workers} workers"] = partial(count_rows, loader)
    tensorstore = open_tensorstore(cache, names, group)
    if tensorstore is not None:
        readers["tensorstore, same files"] = in_batches(
            lambda at: [future.result() for future in [store[rows[at]].read() for store in tensorstore]]
        )
    return readers, [*place.iterdir(), *(cache.folder / "arrays.zarr" / group).rglob("c.*")]


class Hdf5Rows(Dataset):
    """Rows of an HDF5 file, opened in each worker."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self._path, self._names, self._file = path, names, None

    def __getitem__(self, at: int) -> dict[str, np.ndarray]:
        self._file = self._file or h5py.File(self._path)
        return {name: self._file[name][at] for name in self._names}


def count_rows(loader: DataLoader) -> int:
    """Take all batches; return the number of rows."""
    return sum(len(next(iter(batch.values()))) for batch in loader)


def pread_all(paths: list[Path], stored: dict[str, np.ndarray], order: np.ndarray) -> int:
    """Read the rows of plain files into one buffer, without checksums."""
    for path, values in zip(paths, stored.values(), strict=True):
        buffer, start = np.empty(values[0].nbytes, np.uint8), path.stat().st_size - values.nbytes
        with path.open("rb", buffering=0) as file:
            for at in order.tolist():
                os.preadv(file.fileno(), [buffer.data], start + at * buffer.nbytes)
    return len(order)


def open_tensorstore(cache: CacheReader, names: tuple[str, ...], group: str) -> list[Any] | None:
    """Open the cache's arrays with tensorstore; None if it is not installed."""
    try:
        import tensorstore  # noqa: PLC0415 - optional
    except ImportError:
        return None
    paths = [str(cache.folder / "arrays.zarr" / group / name) for name in names]
    specs = [{"driver": "zarr3", "kvstore": {"driver": "file", "path": path}} for path in paths]
    return [tensorstore.open(spec, open=True).result() for spec in specs]


def drop_from_page_cache(files: list[Path]) -> None:
    """Ask the kernel to forget the files' content."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()

"""Convert a store to HDF5 files and back: one file per part, one chunk per frame.

{out}/P1.h5
    attrs        document, arrays, manifest, columns and the names of all parts as JSON; schema, part, block_rows
    frame_id     strings, in the order of every array's rows
    key, status  hash of what decides a frame's values, and whether it has any
    view_00/lf   the array as stored, with HDF5's checksums; attributes: axes, and the array's own
    codec        bytes of the basis, if the profile has one
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd

from pipeline.cache.format import CODEC_NAME
from pipeline.errors import StoreError
from pipeline.runtime.atomic import write_atomically, write_bytes_atomically
from pipeline.runtime.progress import ProgressCallback, no_progress
from pipeline.store.format import StoreFormat
from pipeline.store.plan import NO_ROW
from pipeline.store.reader import StoreReader
from pipeline.store.revisions import SCHEMA
from pipeline.store.writer import open_writer

NO_PART_NAME = "all"
"""File name for frames without a part, as in a store of crops."""

_BATCH_ROWS = 64
_TEXT = h5py.string_dtype("utf-8")
_EXPORT_AGAIN = "export it again with `fantrans cache export`"


def export_hdf5(store: StoreReader, out: Path, *, on_progress: ProgressCallback = no_progress) -> list[Path]:
    """Write a revision to the folder `out`, one file per part, each atomically; return the paths.

    Values stay as stored (int8 with scales, fp16), so that a round trip is exact. `on_progress` is called after each
    group, with its number of rows. Raises `WriteError` if the disk is full or not writable.
    """
    paths = []
    for part in sorted(store.listed["part"].unique()):
        path = out / f"{part or NO_PART_NAME}.h5"
        write_atomically(path, partial(_write_part, store=store, part=part, on_progress=on_progress))
        paths.append(path)
    return paths


class _Output:
    """A file that HDF5 writes to and that never fails it: after a failed write, HDF5 may end the process.

    From the first error on, everything written is dropped; `check` raises that error.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)
        self._error: OSError | None = None

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        """Write all of `data` (a buffer)."""
        view = memoryview(data).cast("B")
        num_written = 0
        with self._kept_error():
            while num_written < len(view):
                num_written += self._file.write(view[num_written:])
        return len(view)

    def truncate(self, size: int) -> int:
        with self._kept_error():
            self._file.truncate(size)
        return size

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes; h5py takes an object for a file by this method."""
        return self._file.read(size)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        self._file.readinto(view)
        return len(view)

    def seek(self, position: int, whence: int = 0) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is buffered."""

    @contextmanager
    def _kept_error(self) -> Iterator[None]:
        if self._error is None:
            try:
                yield
            except OSError as error:
                self._error = error
        else:
            with suppress(OSError):
                yield


def _write_part(path: Path, *, store: StoreReader, part: str, on_progress: ProgressCallback) -> None:
    output = _Output(path)
    try:
        with h5py.File(output, "w") as file:
            _fill_part(file, store=store, part=part, on_progress=on_progress, check=output.check)
        output.check()
    finally:
        output.close()


def _fill_part(
    file: h5py.File, *, store: StoreReader, part: str, on_progress: ProgressCallback, check: Callable[[], None]
) -> None:
    listed = store.listed[store.listed["part"] == part]
    arrays = [store.spec(name) for name in store.array_names]
    described = {
        "document": store.document,
        "arrays": [spec.as_json() for spec in arrays],
        "manifest": store.manifest,
        "columns": list(listed.columns.drop("row")),
        "parts": sorted(store.listed["part"].unique()),
    }
    file.attrs.update(
        {
            "schema": SCHEMA,
            "part": part,
            "block_rows": store.block_rows,
            **{name: json.dumps(value) for name, value in described.items()},
        }
    )
    for name in listed.columns.drop("row"):
        values = listed[name].to_numpy()
        is_text = values.dtype.kind in "OUT"
        file.create_dataset(name, data=values, dtype=_TEXT if is_text else None)
    rows = listed.loc[listed["row"] != NO_ROW, "row"].to_numpy()
    file.create_dataset("has_values", data=(listed["row"] != NO_ROW).to_numpy())
    codec = store.folder / CODEC_NAME
    if codec.is_file():
        file.create_dataset("codec", data=np.frombuffer(codec.read_bytes(), np.uint8))
    for group in store.groups:
        for spec in arrays:
            place = f"{group}/{spec.name}".lstrip("/")
            chunks = {"chunks": (1, *spec.row_shape), "fletcher32": True} if len(rows) else {}
            dataset = file.create_dataset(place, (len(rows), *spec.row_shape), spec.dtype, **chunks)
            dataset.attrs.update({"axes": ["row", *spec.axes], "attributes": json.dumps(dict(spec.attributes))})
            for start in range(0, len(rows), _BATCH_ROWS):
                here = rows[start : start + _BATCH_ROWS]
                dataset[start : start + len(here)] = store.read_rows(spec.name, here, group=group)
                check()
        on_progress(len(rows))


class _Part(NamedTuple):
    """One opened file of an export, and what its attributes say."""

    path: Path
    file: h5py.File
    name: str
    document: dict[str, Any]
    manifest: dict[str, Any]
    columns: list[str]
    all_parts: list[str] | None
    block_rows: int


def import_hdf5(
    roots: Mapping[str, Path],
    paths: list[Path],
    make_format: Callable[[dict[str, Any], bytes | None, int], StoreFormat],
    *,
    dataset: str | None = None,
) -> StoreReader:
    """Write the store of these files of `export_hdf5` below the root of its kind; return its reader.

    roots: by kind. make_format: called with fingerprint document, basis and rows per block. dataset: the data set that
    the files must be of; None for any. Raises `StoreError` without files, and for files that are not an export or are
    damaged, of another schema or data set, or not all parts of one revision. An existing store keeps its rows; one with
    frames that the files lack is not touched.
    """
    if not paths:
        raise StoreError("no .h5 file to import was found; pass the files that `fantrans cache export` wrote")
    with ExitStack() as opened:
        parts = [_open_part(path, opened) for path in paths]
        _check_complete(parts, dataset)
        first = parts[0]
        with _read_errors(first.path):
            basis = first.file["codec"][()].tobytes() if "codec" in first.file else None
        return _write_store(
            roots[first.document["kind"]], parts, make_format(first.document, basis, first.block_rows), basis
        )


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Raise what HDF5 or a missing entry raises as `StoreError` with the file."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path} is cut short or damaged, or not an export of a cache; {_EXPORT_AGAIN}") from error


def _open_part(path: Path, opened: ExitStack) -> _Part:
    if path.is_dir():
        raise StoreError(f"{path} is a folder; name the files in it, such as {path / '*.h5'}")
    with _read_errors(path):
        file = opened.enter_context(h5py.File(path, "r"))
        attributes = dict(file.attrs)
        if attributes["schema"] != SCHEMA:
            raise StoreError(
                f"{path} has schema {attributes['schema']}, this version imports schema {SCHEMA}; "
                "export it again with a version that reads its cache"
            )
        return _Part(
            path,
            file,
            str(attributes["part"]),
            json.loads(attributes["document"]),
            json.loads(attributes["manifest"]),
            json.loads(attributes["columns"]),
            json.loads(attributes["parts"]) if "parts" in attributes else None,
            int(attributes["block_rows"]),
        )


def _check_complete(parts: list[_Part], dataset: str | None) -> None:
    """Raise `StoreError` unless these are all parts of one revision of a cache of the data set."""
    first = parts[0]
    for part in parts:
        found = part.manifest["provenance"].get("dataset")
        if dataset is not None and found not in (None, dataset):
            raise StoreError(f"{part.path} is of the data set {found!r}, not of {dataset!r}; import it as {found!r}")
        if part.document != first.document:
            raise StoreError(
                f"{part.path} and {first.path} hold caches with different settings; import them one by one"
            )
        if part.manifest != first.manifest:
            raise StoreError(
                f"{part.path} and {first.path} are of different revisions; import the files of one export together"
            )
    twice = [name for name, count in Counter(part.name for part in parts).items() if count > 1]
    if twice:
        raise StoreError(f"part {twice[0]} is given twice; import each file of the export once")
    missing = sorted(set(first.all_parts or ()) - {part.name for part in parts})
    if missing:
        raise StoreError(
            f"part {' and part '.join(missing)} of the cache is missing among the files; import all parts together"
        )
    with _read_errors(first.path):
        num_frames = sum(len(part.file["frame_id"]) for part in parts)
    if num_frames != first.manifest["num_frames"]:
        raise StoreError(
            f"the files hold {num_frames:,} of the cache's {first.manifest['num_frames']:,} frames; "
            "import all parts together"
        )


def _write_store(root: Path, parts: list[_Part], format: StoreFormat, basis: bytes | None) -> StoreReader:
    tables, place = [], {}
    for part in parts:
        with _read_errors(part.path):
            columns = {name: part.file[name] for name in part.columns}
            table = pd.DataFrame({n: d.asstr()[()] if d.dtype == _TEXT else d[()] for n, d in columns.items()})
            has_values = part.file["has_values"][()]
        place.update({name: (part, i) for i, name in enumerate(table.loc[has_values, "frame_id"])})
        tables.append(table.assign(key=table["key"].where(has_values, "")))
    wanted, manifest = pd.concat(tables, ignore_index=True), parts[0].manifest
    folder = format.folder_in(root)
    with open_writer(folder, format) as writer:
        plan = writer.plan(wanted, manifest["groups"])
        if plan.num_dropped:
            raise StoreError(
                f"{folder} has {plan.num_dropped:,} rows that the files lack, and they would be dropped; import into "
                "another folder (FANTRANS_CACHE), or remove that cache with `fantrans cache rm` first"
            )
        if basis is not None:
            write_bytes_atomically(folder / CODEC_NAME, basis)
        for unit in plan.units:
            rows = plan.rows_in(unit.block)
            values = {spec.name: np.empty((len(rows), *spec.row_shape), spec.dtype) for spec in format.arrays}
            for i, name in enumerate(rows["frame_id"]):
                part, position = place[name]
                with _read_errors(part.path):
                    for array, out in values.items():
                        out[i] = part.file[f"{unit.group}/{array}".lstrip("/")][position]
            writer.write_unit(unit, rows, values)
        writer.publish(plan, provenance=manifest["provenance"])
    return StoreReader(folder)

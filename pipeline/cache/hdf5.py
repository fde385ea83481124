"""Convert a store to HDF5 files and back: one file per part, one chunk per frame.

{out}/P1.h5
    attrs        document, arrays, manifest and columns as JSON; schema, part, block_rows
    frame_id     strings, in the order of every array's rows
    key, status  hash of what decides a frame's values, and whether it has any
    view_00/lf   the array as stored; attributes: axes, and the array's own
    codec        bytes of the basis, if the profile has one
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

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


def export_hdf5(store: StoreReader, out: Path, *, on_progress: ProgressCallback = no_progress) -> list[Path]:
    """Write a revision to the folder `out`, one file per part, each atomically; return the paths.

    Values stay as stored (int8 with scales, fp16), so that a round trip is exact. `on_progress` is called after each
    group, with its number of rows.
    """
    paths = []
    for part in sorted(store.listed["part"].unique()):
        path = out / f"{part or NO_PART_NAME}.h5"
        write_atomically(path, partial(_write_part, store=store, part=part, on_progress=on_progress))
        paths.append(path)
    return paths


def _write_part(path: Path, *, store: StoreReader, part: str, on_progress: ProgressCallback) -> None:
    listed = store.listed[store.listed["part"] == part]
    arrays = [store.spec(name) for name in store.array_names]
    with h5py.File(path, "w") as file:
        described = {
            "document": store.document,
            "arrays": [spec.as_json() for spec in arrays],
            "manifest": store.manifest,
            "columns": list(listed.columns.drop("row")),
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
                dataset = file.create_dataset(
                    place, (len(rows), *spec.row_shape), spec.dtype, chunks=(1, *spec.row_shape) if len(rows) else None
                )
                dataset.attrs.update({"axes": ["row", *spec.axes], "attributes": json.dumps(dict(spec.attributes))})
                for start in range(0, len(rows), _BATCH_ROWS):
                    here = rows[start : start + _BATCH_ROWS]
                    dataset[start : start + len(here)] = store.read_rows(spec.name, here, group=group)
            on_progress(len(rows))


def import_hdf5(
    roots: Mapping[str, Path],
    paths: list[Path],
    make_format: Callable[[dict[str, Any], bytes | None, int], StoreFormat],
) -> StoreReader:
    """Write the store of these files of `export_hdf5` below the root of its kind; return its reader.

    roots: by kind. make_format: called with fingerprint document, basis and rows per block. The frames of an existing
    store are kept. Raises `StoreError` for files of different stores or of another schema, and without files.
    """
    if not paths:
        raise StoreError("no .h5 file to import was found; pass the files that `fantrans cache export` wrote")
    files = [h5py.File(path, "r") for path in paths]
    try:
        first = files[0]
        for path, file in zip(paths, files, strict=True):
            if file.attrs.get("schema") != SCHEMA:
                raise StoreError(
                    f"{path} has schema {file.attrs.get('schema')}, this version imports schema {SCHEMA}; "
                    "export it again with a version that reads its cache"
                )
            if file.attrs["document"] != first.attrs["document"]:
                raise StoreError(f"{path} and {paths[0]} hold caches with different settings; import them one by one")
        document = json.loads(first.attrs["document"])
        manifest = json.loads(first.attrs["manifest"])
        basis = first["codec"][()].tobytes() if "codec" in first else None
        format = make_format(document, basis, int(first.attrs["block_rows"]))
        return _write_store(roots[document["kind"]], files, format, manifest, basis)
    finally:
        for file in files:
            file.close()


def _write_store(
    root: Path, files: list[h5py.File], format: StoreFormat, manifest: dict[str, Any], basis: bytes | None
) -> StoreReader:
    tables, place = [], {}
    for number, file in enumerate(files):
        columns = json.loads(file.attrs["columns"])
        table = pd.DataFrame({n: file[n].asstr()[()] if file[n].dtype == _TEXT else file[n][()] for n in columns})
        has_values = file["has_values"][()]
        names = table.loc[has_values, "frame_id"]
        place.update({name: (number, i) for i, name in enumerate(names)})
        tables.append(table.assign(key=table["key"].where(has_values, "")))
    wanted = pd.concat(tables, ignore_index=True)
    folder = format.folder_in(root)
    with open_writer(folder, format) as writer:
        if basis is not None:
            write_bytes_atomically(folder / CODEC_NAME, basis)
        plan = writer.plan(wanted, manifest["groups"])
        for unit in plan.units:
            rows = plan.rows_in(unit.block)
            values = {spec.name: np.empty((len(rows), *spec.row_shape), spec.dtype) for spec in format.arrays}
            for i, name in enumerate(rows["frame_id"]):
                number, position = place[name]
                for array, out in values.items():
                    out[i] = files[number][f"{unit.group}/{array}".lstrip("/")][position]
            writer.write_unit(unit, rows, values)
        writer.publish(plan, provenance=manifest["provenance"])
    return StoreReader(folder)

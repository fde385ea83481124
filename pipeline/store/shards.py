"""One shard file of a Zarr v3 array: one inner chunk per row, each with its checksum, and an index at the end.

Bytes: for each stored row its values (C order, little-endian, optionally zstd) and their crc32c. Then, for each row of
the block, offset and length (uint64; both 2^64 - 1 for a row that is not stored), and the crc32c of that index. This is
`sharding_indexed` of the Zarr v3 specification, so any Zarr reader reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

from pipeline.errors import StoreError, StoreNotFoundError
from pipeline.runtime.atomic import stage_file

_ABSENT = np.iinfo(np.uint64).max
_CRC_BYTES = 4
_INDEX_ENTRY_BYTES = 16
_READ_BYTES = 1 << 20
_ZSTD_LEVEL = 1
_ZSTD = Zstd(level=_ZSTD_LEVEL)


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """An array's name, and the shape, dtype and axes of one row."""

    name: str
    row_shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    compressor: Literal["zstd"] | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes per row, before compression."""
        return int(np.prod(self.row_shape)) * np.dtype(self.dtype).itemsize

    def as_json(self) -> dict[str, Any]:
        """Return the fields for a manifest."""
        return {**asdict(self), "row_shape": list(self.row_shape), "axes": list(self.axes)}


@dataclass(frozen=True)
class FileRecord:
    """Size and checksum of a shard file."""

    num_bytes: int
    crc32c: int


def shard_name(spec: ArraySpec, block: int) -> str:
    """Return the file name of a block's shard: Zarr's chunk key with "." between the coordinates."""
    return ".".join(["c", str(block), *("0" for _ in spec.row_shape)])


def stage_shard(
    path: Path, rows: np.ndarray, *, slots: np.ndarray, spec: ArraySpec, block_rows: int
) -> tuple[Path, FileRecord]:
    """Write rows (n, *row_shape) into the ascending `slots` (n,) of a temporary shard beside `path`, and fsync it.

    Returns the temporary path, for `put_in_place`, and the size and checksum of the file.
    """
    assert rows.shape == (len(slots), *spec.row_shape), f"{spec.name}: rows {rows.shape}"
    assert rows.dtype == np.dtype(spec.dtype), f"{spec.name}: {rows.dtype}"
    num_bytes, crc = 0, 0

    def put(file: IO[bytes], data: bytes) -> None:
        nonlocal num_bytes, crc
        file.write(data)
        num_bytes += len(data)
        crc = google_crc32c.extend(crc, data)

    def write(temp: Path) -> None:
        index = np.full((block_rows, 2), _ABSENT, "<u8")
        with temp.open("wb") as file:
            for slot, row in zip(slots, rows, strict=True):
                start = num_bytes
                values = row.tobytes() if spec.compressor is None else _ZSTD.encode(np.ascontiguousarray(row))
                put(file, values)
                put(file, _crc_bytes(values))
                index[slot] = start, num_bytes - start
            put(file, index.tobytes())
            put(file, _crc_bytes(index.tobytes()))

    temp = stage_file(path, write)
    return temp, FileRecord(num_bytes, crc)


def file_crc32c(path: Path) -> int:
    """Return the crc32c of a file."""
    crc = 0
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            crc = google_crc32c.extend(crc, data)
    return crc


def stored_slots(path: Path, *, block_rows: int) -> np.ndarray:
    """Return which rows of the block a shard holds, bool (block_rows,); `StoreError` if its index is unreadable."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise StoreNotFoundError(f"shard {path} does not exist; {_REPAIR}") from None
    try:
        is_stored: np.ndarray = _read_index(descriptor, path, block_rows)[:, 0] != _ABSENT
        return is_stored
    finally:
        os.close(descriptor)


def read_shard(
    path: Path, slots: np.ndarray, *, spec: ArraySpec, block_rows: int, out: np.ndarray, at: np.ndarray
) -> None:
    """Read the rows in `slots` (n,) into `out[at]` (at: (n,) positions), and verify the checksum of each.

    out: C-contiguous (any, *row_shape) of the array's dtype. Raises `StoreError` for a shard that is missing, cut short
    or damaged, and for a row that is not stored.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise StoreNotFoundError(f"shard {path} does not exist; {_REPAIR}") from None
    try:
        index = _read_index(descriptor, path, block_rows)
        for slot, position in zip(slots.tolist(), at.tolist(), strict=True):
            offset, length = (int(number) for number in index[slot])
            if offset == _ABSENT:
                raise StoreError(f"shard {path} does not hold row {slot}; {_REPAIR}")
            read = _read_row if spec.compressor is None else _read_compressed_row
            if not read(descriptor, offset, length, out[position : position + 1].reshape(-1).view(np.uint8)):
                raise StoreError(f"row {slot} of shard {path} fails its checksum; {_REPAIR}")
    finally:
        os.close(descriptor)


def array_metadata(spec: ArraySpec, *, num_rows: int, block_rows: int) -> bytes:
    """Return the array's `zarr.json`. Rows that are not stored read as NaN (floats) or 0."""
    dtype = np.dtype(spec.dtype)
    in_bytes: dict[str, Any] = {"name": "bytes"}
    if dtype.itemsize > 1:
        in_bytes["configuration"] = {"endian": "little"}
    crc32c = {"name": "crc32c"}
    zstd = [{"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}}] if spec.compressor else []
    sharding = {
        "chunk_shape": [1, *spec.row_shape],
        "codecs": [in_bytes, *zstd, crc32c],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, crc32c],
        "index_location": "end",
    }
    return _json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [num_rows, *spec.row_shape],
            "data_type": spec.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [block_rows, *spec.row_shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": "NaN" if dtype.kind == "f" else 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": dict(spec.attributes),
            "dimension_names": ["row", *spec.axes],
            "storage_transformers": [],
        }
    )


def group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """Return a group's `zarr.json`."""
    return _json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


_REPAIR = "run `fantrans cache verify --deep`, then the refresh that it prints to recompute it"


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"


def _crc_bytes(data: np.ndarray | bytes) -> bytes:
    crc: int = google_crc32c.value(data)
    return crc.to_bytes(_CRC_BYTES, "little")


def _read_index(descriptor: int, path: Path, block_rows: int) -> np.ndarray:
    size = block_rows * _INDEX_ENTRY_BYTES + _CRC_BYTES
    start = os.fstat(descriptor).st_size - size
    data = os.pread(descriptor, size, start) if start >= 0 else b""
    if len(data) < size or _crc_bytes(data[:-_CRC_BYTES]) != data[-_CRC_BYTES:]:
        raise StoreError(f"shard {path} is cut short or its index is damaged; {_REPAIR}")
    return np.frombuffer(data[:-_CRC_BYTES], "<u8").reshape(block_rows, 2)


def _read_row(descriptor: int, offset: int, length: int, values: np.ndarray) -> bool:
    """Read a row's bytes into `values`; return whether they are complete and have their checksum."""
    stored_crc = bytearray(_CRC_BYTES)
    num_read = os.preadv(descriptor, [values.data, stored_crc], offset)
    return num_read == length == values.nbytes + _CRC_BYTES and _crc_bytes(values) == stored_crc


def _read_compressed_row(descriptor: int, offset: int, length: int, values: np.ndarray) -> bool:
    data = os.pread(descriptor, length, offset)
    if len(data) < length or _crc_bytes(data[:-_CRC_BYTES]) != data[-_CRC_BYTES:]:
        return False
    _ZSTD.decode(data[:-_CRC_BYTES], out=values)
    return True

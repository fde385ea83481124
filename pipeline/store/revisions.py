"""The published side of a store: which revision there is, and what belongs to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import CacheError
from pipeline.files import write_bytes_atomically
from pipeline.store.plan import NO_ROW, Unit
from pipeline.store.shards import FileRecord

SCHEMA = 1
"""Version of everything in the folder; a reader refuses another one."""

ARRAYS_NAME = "arrays.zarr"
FINGERPRINT_NAME = "fingerprint.json"
POINTER_NAME = "current.json"
JOURNAL_NAME = "journal"
METADATA_NAME = "zarr.json"

Records = dict[Unit, dict[str, FileRecord]]
"""Shard files by array name, for each unit."""


@dataclass(frozen=True)
class Revision:
    """One published state of a store; nothing in it changes while its files exist."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def number(self) -> int:
        """1 for the first."""
        return self.manifest["revision"]

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups that hold every row of the index."""
        return tuple(self.manifest["groups"])

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return self.manifest["block_rows"]

    @property
    def num_blocks(self) -> int:
        """Blocks ever published; the next new block takes this number."""
        return self.manifest["num_blocks"]

    @cached_property
    def index(self) -> pd.DataFrame:
        """frame_id, row, key and the kind's own columns, by row."""
        return self._table("index")

    @cached_property
    def records(self) -> Records:
        """Size and checksum of every shard that the index needs."""
        return _records_from(self._table("shards"))

    def _table(self, name: str) -> pd.DataFrame:
        entry = self.manifest[name]
        path = self.folder / entry["file"]
        if not path.is_file():
            raise CacheError(f"{path} of revision {self.number} is not there; {_REMOVE}")
        data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != entry["sha256"]:
            raise CacheError(f"{path} has sha256 {found[:12]}..., expected {entry['sha256'][:12]}...; {_REMOVE}")
        return pd.read_parquet(BytesIO(data))


_REMOVE = "put it back, or remove the whole folder and run `fantrans refresh` again"


def load_revision(folder: Path, number: int | None = None) -> Revision | None:
    """A store's revision by its number, or the newest; None if it has none yet.

    Raises `CacheError` for an unknown number, another schema, or files that are damaged.
    """
    pointer_path = folder / POINTER_NAME
    if not pointer_path.is_file():
        return None
    newest = _read_json(pointer_path)["revision"]
    path = folder / _manifest_name(newest if number is None else number)
    if not path.is_file():
        raise CacheError(f"{folder} has no revision {number or newest}; its newest is {newest}")
    manifest = _read_json(path)
    if manifest["schema"] != SCHEMA:
        raise CacheError(
            f"{folder} is written in schema {manifest['schema']}, this version reads schema {SCHEMA}; "
            "use the version that wrote it, or refresh into a new folder"
        )
    return Revision(folder, manifest)


def publish(
    folder: Path,
    *,
    index: pd.DataFrame,
    records: Records,
    groups: tuple[str, ...],
    num_blocks: int,
    block_rows: int,
    provenance: Mapping[str, Any],
) -> Revision:
    """Write the next revision's files and then move the pointer to it."""
    previous = load_revision(folder)
    number = 1 if previous is None else previous.number + 1
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "revision": number,
        "groups": list(groups),
        "num_blocks": num_blocks,
        "block_rows": block_rows,
        "num_frames": len(index),
        "num_rows": int((index["row"] != NO_ROW).sum()),
        "num_bytes": sum(record.num_bytes for files in records.values() for record in files.values()),
        "provenance": dict(provenance),
    }
    for name, table in (("index", index), ("shards", _records_table(records))):
        file = f"{name}-{number:06d}.parquet"
        buffer = BytesIO()
        table.to_parquet(buffer, index=False)
        write_bytes_atomically(folder / file, buffer.getvalue())
        manifest[name] = {"file": file, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    write_bytes_atomically(folder / _manifest_name(number), _json(manifest))
    write_bytes_atomically(folder / POINTER_NAME, _json({"revision": number}))
    return Revision(folder, manifest)


def read_fingerprint(folder: Path) -> dict[str, Any]:
    """The document that `folder` is named by; `CacheError` if there is none."""
    path = folder / FINGERPRINT_NAME
    if not path.is_file():
        raise CacheError(f"{folder} is no cache: it has no {FINGERPRINT_NAME}; run `fantrans refresh` to make one")
    return _read_json(path)


def _manifest_name(number: int) -> str:
    return f"manifest-{number:06d}.json"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        raise CacheError(f"{path} is damaged; {_REMOVE}") from None


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"


def _records_table(records: Records) -> pd.DataFrame:
    rows = [
        (unit.block, unit.group, name, record.num_bytes, record.crc32c)
        for unit in sorted(records)
        for name, record in sorted(records[unit].items())
    ]
    return pd.DataFrame(rows, columns=["block", "group", "array", "num_bytes", "crc32c"])


def _records_from(table: pd.DataFrame) -> Records:
    records: Records = {}
    for block, group, name, num_bytes, crc in table.itertuples(index=False, name=None):
        records.setdefault(Unit(block, group), {})[name] = FileRecord(num_bytes, crc)
    return records

"""Published revisions of a store and the files that belong to them.

Every small file has a second copy (`pipeline.store.mirror`). The manifest has the hashes of tables and fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import LockError, StoreError, StoreNotFoundError
from pipeline.runtime.atomic import TEMP_PREFIX, write_bytes_atomically
from pipeline.runtime.parquet import parse_parquet
from pipeline.store.hashing import canonical_json, hash_document
from pipeline.store.lock import is_current, shared
from pipeline.store.mirror import (
    MIRROR_NAME,
    Validator,
    copy_paths,
    find_intact_copy,
    has_copy,
    has_sha256,
    is_intact,
    is_sealed,
    read_copy,
    read_sealed_json,
    repair,
    sealed_json,
    write_copies,
)
from pipeline.store.plan import NO_ROW, Unit
from pipeline.store.shards import ArraySpec, FileRecord, shard_name

logger = logging.getLogger("fantrans")

SCHEMA = 2
"""Version of the folder's format; a reader refuses every other one."""

ARRAYS_NAME = "arrays.zarr"
DAMAGE_NAME = "damage.json"
FINGERPRINT_NAME = "fingerprint.json"
JOURNAL_NAME = "journal"
METADATA_NAME = "zarr.json"
POINTER_NAME = "current.json"

_TABLES = ("index", "shards")

Records = dict[Unit, dict[str, FileRecord]]
"""Shard files by array name, for each unit."""


@dataclass(frozen=True)
class Revision:
    """One published state of a store; nothing in it changes while its files exist."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def number(self) -> int:
        """Number of the revision, from 1."""
        number: int = self.manifest["revision"]
        return number

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups that hold every row of the index."""
        return tuple(self.manifest["groups"])

    @property
    def block_rows(self) -> int:
        """Rows per block."""
        block_rows: int = self.manifest["block_rows"]
        return block_rows

    @property
    def num_blocks(self) -> int:
        """Number of blocks ever published, and the number of the next new block."""
        num_blocks: int = self.manifest["num_blocks"]
        return num_blocks

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """Specs of the arrays in every group, by name."""
        specs = (
            ArraySpec(**{**each, "row_shape": tuple(each["row_shape"]), "axes": tuple(each["axes"])})
            for each in self.manifest["arrays"]
        )
        return {spec.name: spec for spec in specs}

    @cached_property
    def index(self) -> pd.DataFrame:
        """Table of frame_id, row, key and the store kind's own columns, sorted by row."""
        return self._table("index")

    @cached_property
    def records(self) -> Records:
        """Size and checksum of every shard that the index needs."""
        return _records_from(self._table("shards"))

    def _table(self, name: str) -> pd.DataFrame:
        entry = self.manifest[name]
        return parse_parquet(read_copy(self.folder, entry["file"], has_sha256(entry["sha256"])))


def load_revision(folder: Path, number: int | None = None) -> Revision | None:
    """Load a revision by its number, or the newest; None if none is published.

    Raises `StoreError` for an unknown number, another schema, or a file that is damaged in both copies.
    """
    _check_schema(folder)
    newest = _newest(folder)
    if newest is None:
        return None
    wanted = newest if number is None else number
    name = manifest_name(wanted)
    if not has_copy(folder, name):
        raise StoreError(f"{folder} has no revision {wanted}; its newest is {newest}")
    return Revision(folder, json.loads(read_copy(folder, name, is_sealed)))


def _check_schema(folder: Path) -> None:
    """Raise `StoreError` for a store of another schema, even if its files have other checksums."""
    for path in sorted(folder.glob("manifest-*.json"), reverse=True):
        try:
            schema = json.loads(path.read_bytes())["schema"]
        except (ValueError, KeyError, TypeError):
            continue  # damaged: try an older manifest
        if schema != SCHEMA:
            raise StoreError(
                f"{folder} is written in schema {schema}, this version reads schema {SCHEMA}; "
                "use the version that wrote it, or refresh into a new folder"
            )
        return


def _newest(folder: Path) -> int | None:
    """Return the number in the pointer; if that is not intact, the number of the newest intact manifest."""
    pointer = read_sealed_json(folder / POINTER_NAME, fallback={})
    if pointer:
        newest: int = pointer["revision"]
        return newest
    return max((number for number in revision_numbers(folder) if _manifest(folder, number)), default=None)


def revision_numbers(folder: Path) -> list[int]:
    """Return the numbers of all revisions with a manifest, ascending."""
    names = {path.name for at in (folder, folder / MIRROR_NAME) for path in at.glob("manifest-*.json")}
    return sorted(int(name.removeprefix("manifest-").removesuffix(".json")) for name in names)


def revision_files(number: int) -> tuple[str, ...]:
    """Return the names of a revision's own files, the manifest first."""
    return (manifest_name(number), *(f"{table}-{number:06d}.parquet" for table in _TABLES))


def manifest_name(number: int) -> str:
    """Return the file name of a revision's manifest."""
    return f"manifest-{number:06d}.json"


def pin_revision(folder: Path, number: int | None) -> tuple[Revision | None, int]:
    """Load a revision and lock it against pruning until the returned descriptor is closed (-1: no lock).

    The shared lock is on the manifest, so a reader needs no write permission; it ends with its process. A revision
    that cannot be locked is read all the same: then only the grace period keeps it from `prune`.
    """
    while True:
        revision = load_revision(folder, number)
        if revision is None:
            return None, -1
        manifest = folder / manifest_name(revision.number)
        try:
            descriptor = shared(manifest)
        except FileNotFoundError:
            if (folder / MIRROR_NAME / manifest_name(revision.number)).is_file():
                return revision, -1  # a damaged store is read without a lock
            continue  # pruned between the two lines: there is a newer one
        except LockError as error:
            logger.debug("%s: revision %d is read without a lock: %s", folder, revision.number, error)
            return revision, -1
        if is_current(descriptor, manifest):
            return revision, descriptor
        os.close(descriptor)


def publish(
    folder: Path,
    *,
    index: pd.DataFrame,
    records: Records,
    groups: tuple[str, ...],
    num_blocks: int,
    block_rows: int,
    arrays: Iterable[ArraySpec],
    fingerprint: str,
    provenance: Mapping[str, Any],
) -> Revision:
    """Write the next revision's files, then point `current.json` to it, and return it."""
    previous = load_revision(folder)
    number = 1 if previous is None else previous.number + 1
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "revision": number,
        "fingerprint": fingerprint,
        "groups": list(groups),
        "arrays": [spec.as_json() for spec in arrays],
        "num_blocks": num_blocks,
        "block_rows": block_rows,
        "num_frames": len(index),
        "num_rows": int((index["row"] != NO_ROW).sum()),
        "num_bytes": sum(record.num_bytes for files in records.values() for record in files.values()),
        "provenance": dict(provenance),
    }
    for name, table in (("index", index), ("shards", _records_table(records))):
        file, content = f"{name}-{number:06d}.parquet", table_bytes(table)
        write_copies(folder, file, content)
        manifest[name] = {"file": file, "sha256": hashlib.sha256(content).hexdigest()}
    write_copies(folder, manifest_name(number), sealed_json(manifest))
    write_bytes_atomically(folder / POINTER_NAME, sealed_json({"revision": number}))
    return Revision(folder, manifest)


def table_bytes(table: pd.DataFrame) -> bytes:
    """Return a table as it is published."""
    buffer = BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def store_folders(root: Path) -> list[Path]:
    """Return the folders of the stores in a folder, sorted; a fingerprint in either copy counts."""
    found = {path.parent for path in root.glob(f"*/{FINGERPRINT_NAME}")}
    found |= {path.parent.parent for path in root.glob(f"*/{MIRROR_NAME}/{FINGERPRINT_NAME}")}
    return sorted(folder for folder in found if not folder.name.startswith(TEMP_PREFIX))


def has_fingerprint(folder: Path) -> bool:
    """Return whether the folder has a fingerprint document."""
    return has_copy(folder, FINGERPRINT_NAME)


def write_fingerprint(folder: Path, document: Mapping[str, Any]) -> None:
    """Write the document that decides the folder's values."""
    write_copies(folder, FINGERPRINT_NAME, canonical_json(document))


def read_fingerprint(folder: Path) -> dict[str, Any]:
    """Read the fingerprint document; `StoreError` if it does not exist or both copies are damaged."""
    if not has_fingerprint(folder):
        raise StoreNotFoundError(
            f"{folder} is not a store (no {FINGERPRINT_NAME}); run `fantrans refresh` to create one"
        )
    document: dict[str, Any] = json.loads(read_copy(folder, FINGERPRINT_NAME, _fingerprint_validator(folder)))
    return document


def repair_tables(folder: Path) -> None:
    """Restore missing or damaged small files from their copies; the writer's first step.

    Where neither copy is intact, both stay as they are. Files of revisions that were never published are skipped.
    """
    repair(folder, FINGERPRINT_NAME, _fingerprint_validator(folder))
    newest = _newest(folder)
    if newest is None:
        return
    for number in revision_numbers(folder):
        if number <= newest:
            for name, is_valid in _validators(folder, number).items():
                repair(folder, name, is_valid)
    if not is_intact(folder / POINTER_NAME, is_sealed):
        write_bytes_atomically(folder / POINTER_NAME, sealed_json({"revision": newest}))


def has_intact_tables(folder: Path) -> bool:
    """Return whether both copies of the newest revision's small files are intact."""
    pointer = read_sealed_json(folder / POINTER_NAME, fallback={})
    if not pointer:
        return False
    validators = {FINGERPRINT_NAME: _fingerprint_validator(folder), **_validators(folder, pointer["revision"])}
    return all(is_intact(path, is_valid) for name, is_valid in validators.items() for path in copy_paths(folder, name))


def _validators(folder: Path, number: int) -> dict[str, Validator]:
    """Return a validator for each of a revision's own small files, by name."""
    manifest = _manifest(folder, number)
    tables = [manifest[name] for name in _TABLES] if manifest else []
    return {manifest_name(number): is_sealed, **{table["file"]: has_sha256(table["sha256"]) for table in tables}}


def _manifest(folder: Path, number: int) -> dict[str, Any]:
    """Read a manifest from either copy; {} if neither is intact."""
    data = find_intact_copy(folder, manifest_name(number), is_sealed)
    return {} if data is None else json.loads(data)


def read_damage(folder: Path) -> set[Unit]:
    """Return the units that the last verification found damaged."""
    listed = read_sealed_json(folder / DAMAGE_NAME, fallback={"units": []})["units"]
    return {Unit(block, group) for block, group in listed}


def write_damage(folder: Path, units: Iterable[Unit]) -> None:
    """Record damaged units, so that the next refresh recomputes them."""
    listed = [[unit.block, unit.group] for unit in sorted(units)]
    write_bytes_atomically(folder / DAMAGE_NAME, sealed_json({"units": listed}))


def shard_path(folder: Path, unit: Unit, spec: ArraySpec) -> Path:
    """Return the path of a unit's shard of an array."""
    return array_folder(folder, unit.group, spec.name) / shard_name(spec, unit.block)


def array_folder(folder: Path, group: str, name: str) -> Path:
    """Return the folder of an array's shards."""
    return folder / ARRAYS_NAME / group / name


def shard_sizes(folder: Path) -> dict[tuple[str, str], dict[str, int]]:
    """Return the bytes of each shard file, by (group, array) and file name."""
    root = folder / ARRAYS_NAME
    sizes: dict[tuple[str, str], dict[str, int]] = {}
    for array, _, _ in os.walk(root):
        with os.scandir(array) as entries:
            shards = {entry.name: entry.stat().st_size for entry in entries if entry.name.startswith("c.")}
        if shards:
            *group, name = Path(array).relative_to(root).parts
            sizes["".join(group), name] = shards
    return sizes


def _fingerprint_validator(folder: Path) -> Validator:
    """Return a validator for the document with the newest manifest's fingerprint, or else the folder name's."""
    manifests = (_manifest(folder, number) for number in reversed(revision_numbers(folder)))
    manifest = next((found for found in manifests if found), {})
    expected: str = manifest.get("fingerprint", folder.name)

    def is_valid(data: bytes) -> bool:
        try:
            return hash_document(json.loads(data)) == expected
        except ValueError:
            return False

    return is_valid


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

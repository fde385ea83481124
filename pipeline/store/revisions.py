"""The published side of a store: which revision there is, and what belongs to it.

Every small file is kept twice (`store.copies`); tables and the fingerprint have their hashes in the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import StoreError, StoreNotFoundError
from pipeline.runtime.atomic import write_bytes_atomically
from pipeline.store.fingerprint import canonical_json, fingerprint
from pipeline.store.lock import shared
from pipeline.store.mirror import (
    MIRROR_NAME,
    Check,
    copies,
    good_copy,
    has_sha256,
    is_good,
    is_sealed,
    is_there,
    read_copy,
    read_sealed_json,
    repair,
    sealed_json,
    write_copies,
)
from pipeline.store.plan import NO_ROW, Unit
from pipeline.store.shards import ArraySpec, FileRecord, shard_name

SCHEMA = 2
"""Version of everything in the folder; a reader refuses another one."""

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

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """What every group holds, by name."""
        specs = (
            ArraySpec(**{**each, "row_shape": tuple(each["row_shape"]), "axes": tuple(each["axes"])})
            for each in self.manifest["arrays"]
        )
        return {spec.name: spec for spec in specs}

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
        return pd.read_parquet(BytesIO(read_copy(self.folder, entry["file"], has_sha256(entry["sha256"]))))


def load_revision(folder: Path, number: int | None = None) -> Revision | None:
    """A store's revision by its number, or the newest; None if it has none yet.

    Raises `StoreError` for an unknown number, another schema, or a file that is damaged in both copies.
    """
    _check_schema(folder)
    newest = _newest(folder)
    if newest is None:
        return None
    wanted = newest if number is None else number
    name = manifest_name(wanted)
    if not is_there(folder, name):
        raise StoreError(f"{folder} has no revision {wanted}; its newest is {newest}")
    return Revision(folder, json.loads(read_copy(folder, name, is_sealed)))


def _check_schema(folder: Path) -> None:
    """Refuse what another version wrote, however its files are sealed."""
    for path in sorted(folder.glob("manifest-*.json"), reverse=True):
        try:
            schema = json.loads(path.read_bytes())["schema"]
        except (ValueError, KeyError, TypeError):
            continue  # damaged: the others tell
        if schema != SCHEMA:
            raise StoreError(
                f"{folder} is written in schema {schema}, this version reads schema {SCHEMA}; "
                "use the version that wrote it, or refresh into a new folder"
            )
        return


def _newest(folder: Path) -> int | None:
    """The number in the pointer; without a good pointer, that of the newest whole manifest."""
    pointer = read_sealed_json(folder / POINTER_NAME, fallback={})
    if pointer:
        return pointer["revision"]
    return max((number for number in revision_numbers(folder) if _manifest(folder, number)), default=None)


def revision_numbers(folder: Path) -> list[int]:
    """Numbers of the revisions whose manifests are there, ascending."""
    names = {path.name for at in (folder, folder / MIRROR_NAME) for path in at.glob("manifest-*.json")}
    return sorted(int(name.removeprefix("manifest-").removesuffix(".json")) for name in names)


def revision_files(number: int) -> tuple[str, ...]:
    """Names of a revision's own files, the manifest first."""
    return (manifest_name(number), *(f"{table}-{number:06d}.parquet" for table in _TABLES))


def manifest_name(number: int) -> str:
    """File name of a revision's manifest."""
    return f"manifest-{number:06d}.json"


def pin_revision(folder: Path, number: int | None) -> tuple[Revision | None, int]:
    """A revision, and a descriptor whose shared lock keeps `collect` from it until it is closed (-1 without one).

    The lock is on the manifest, so that a reader needs no right to write, and it dies with its process.
    """
    while True:
        revision = load_revision(folder, number)
        if revision is None:
            return None, -1
        try:
            descriptor = shared(folder / manifest_name(revision.number))
        except FileNotFoundError:
            if (folder / MIRROR_NAME / manifest_name(revision.number)).is_file():
                return revision, -1  # a damaged store is read as long as it lasts
            continue  # collected between the two lines: there is a newer one
        if os.fstat(descriptor).st_nlink > 0:
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
    """Write the next revision's files and then move the pointer to it."""
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
        file = f"{name}-{number:06d}.parquet"
        buffer = BytesIO()
        table.to_parquet(buffer, index=False)
        write_copies(folder, file, buffer.getvalue())
        manifest[name] = {"file": file, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    write_copies(folder, manifest_name(number), sealed_json(manifest))
    write_bytes_atomically(folder / POINTER_NAME, sealed_json({"revision": number}))
    return Revision(folder, manifest)


def has_fingerprint(folder: Path) -> bool:
    """Whether the folder says whose it is."""
    return is_there(folder, FINGERPRINT_NAME)


def write_fingerprint(folder: Path, document: Mapping[str, Any]) -> None:
    """Say what the folder's values depend on."""
    write_copies(folder, FINGERPRINT_NAME, canonical_json(document))


def read_fingerprint(folder: Path) -> dict[str, Any]:
    """The document that `folder` is named by; `StoreError` if there is none, or it is damaged in both copies."""
    if not has_fingerprint(folder):
        raise StoreNotFoundError(
            f"{folder} is not a store (no {FINGERPRINT_NAME}); run `fantrans refresh` to create one"
        )
    return json.loads(read_copy(folder, FINGERPRINT_NAME, _is_document_of(folder)))


def repair_tables(folder: Path) -> None:
    """Put back what is missing or damaged of the small files, from the other copy; the writer's first act.

    A revision that is whole in neither copy keeps what it has; one that was not published in time is written anew.
    """
    repair(folder, FINGERPRINT_NAME, _is_document_of(folder))
    newest = _newest(folder)
    if newest is None:
        return
    for number in revision_numbers(folder):
        if number <= newest:
            for name, check in _checks(folder, number).items():
                repair(folder, name, check)
    if not is_good(folder / POINTER_NAME, is_sealed):
        write_bytes_atomically(folder / POINTER_NAME, sealed_json({"revision": newest}))


def has_intact_tables(folder: Path) -> bool:
    """Whether the newest revision's small files are there twice, and good."""
    pointer = read_sealed_json(folder / POINTER_NAME, fallback={})
    if not pointer:
        return False
    checks = {FINGERPRINT_NAME: _is_document_of(folder), **_checks(folder, pointer["revision"])}
    return all(is_good(path, check) for name, check in checks.items() for path in copies(folder, name))


def _checks(folder: Path, number: int) -> dict[str, Check]:
    """A revision's own small files, and how each is known to be good."""
    manifest = _manifest(folder, number)
    tables = [manifest[name] for name in _TABLES] if manifest else []
    return {manifest_name(number): is_sealed, **{table["file"]: has_sha256(table["sha256"]) for table in tables}}


def _manifest(folder: Path, number: int) -> dict[str, Any]:
    """A manifest from either copy, {} if neither is good."""
    data = good_copy(folder, manifest_name(number), is_sealed)
    return {} if data is None else json.loads(data)


def read_damage(folder: Path) -> set[Unit]:
    """Units that the last verification found damaged."""
    listed = read_sealed_json(folder / DAMAGE_NAME, fallback={"units": []})["units"]
    return {Unit(block, group) for block, group in listed}


def write_damage(folder: Path, units: Iterable[Unit]) -> None:
    """Leave word for the next refresh of units to compute anew."""
    listed = [[unit.block, unit.group] for unit in sorted(units)]
    write_bytes_atomically(folder / DAMAGE_NAME, sealed_json({"units": listed}))


def shard_path(folder: Path, unit: Unit, spec: ArraySpec) -> Path:
    """Where a unit's shard of an array lies."""
    return array_folder(folder, unit.group, spec.name) / shard_name(spec, unit.block)


def array_folder(folder: Path, group: str, name: str) -> Path:
    """Where an array's shards lie."""
    return folder / ARRAYS_NAME / group / name


def shard_sizes(folder: Path) -> dict[tuple[str, str], dict[str, int]]:
    """Bytes of each shard file by (group, array) and file name."""
    root = folder / ARRAYS_NAME
    sizes: dict[tuple[str, str], dict[str, int]] = {}
    for array, _, _ in os.walk(root):
        with os.scandir(array) as entries:
            shards = {entry.name: entry.stat().st_size for entry in entries if entry.name.startswith("c.")}
        if shards:
            *group, name = Path(array).relative_to(root).parts
            sizes["".join(group), name] = shards
    return sizes


def _is_document_of(folder: Path) -> Check:
    """A check that bytes are the document which the newest manifest, or the folder's name, says."""
    manifests = (_manifest(folder, number) for number in reversed(revision_numbers(folder)))
    manifest = next((found for found in manifests if found), {})
    expected = manifest.get("fingerprint", folder.name)

    def check(data: bytes) -> bool:
        try:
            return fingerprint(json.loads(data)) == expected
        except ValueError:
            return False

    return check


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

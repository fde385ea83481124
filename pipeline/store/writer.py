"""The one process that adds to a store: it reuses finished units, writes the missing ones, publishes last."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.errors import CacheError
from pipeline.files import TEMP_PREFIX, write_bytes_atomically
from pipeline.fingerprint import canonical_json, fingerprint
from pipeline.store.lock import writer_lock
from pipeline.store.plan import NO_ROW, Plan, Unit, make_plan
from pipeline.store.revisions import (
    ARRAYS_NAME,
    FINGERPRINT_NAME,
    JOURNAL_NAME,
    METADATA_NAME,
    Records,
    Revision,
    load_revision,
    publish,
    read_fingerprint,
)
from pipeline.store.shards import (
    ArraySpec,
    FileRecord,
    array_metadata,
    group_metadata,
    shard_name,
    write_shard,
)

DEFAULT_BLOCK_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class StoreFormat:
    """What a kind of store holds: its fingerprint document, each group's arrays, and attributes for foreign readers.

    A group "" is the root: its arrays lie directly in `arrays.zarr`.
    """

    document: Mapping[str, Any]
    arrays: tuple[ArraySpec, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    group_attributes: Callable[[str], Mapping[str, Any]] = lambda _: {}
    is_shuffled: bool
    block_rows: int = DEFAULT_BLOCK_ROWS

    def folder_in(self, root: Path) -> Path:
        """The folder below `root` that is named by the document."""
        return root / fingerprint(self.document)


def plan_store(folder: Path, format: StoreFormat, wanted: pd.DataFrame, groups: Sequence[str]) -> Plan:
    """What a refresh would do, without doing it; takes no lock.

    wanted: frame_id, key (what a frame's values depend on beside the fingerprint; "" for a frame that is listed only),
    part and further columns for the index. Groups that are there already are kept and filled, named or not.
    """
    return _State.of(folder, format).plan(wanted, groups)


@contextmanager
def open_writer(folder: Path, format: StoreFormat) -> Iterator[StoreWriter]:
    """A writer that holds the store's lock; the store is made if it is not there.

    Raises `CacheError` if another process writes, or if the folder belongs to another fingerprint.
    """
    with writer_lock(folder):
        _claim(folder, format)
        yield StoreWriter(folder, format)


class StoreWriter:
    """Writes units into a store that this process has locked, and publishes them as one revision."""

    def __init__(self, folder: Path, format: StoreFormat) -> None:
        self.folder = folder
        self._state = _State.of(folder, format)
        self._state.sweep()

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return self._state.block_rows

    def plan(self, wanted: pd.DataFrame, groups: Sequence[str]) -> Plan:
        """What is missing; see `plan_store`."""
        return self._state.plan(wanted, groups)

    def write_unit(
        self, plan: Plan, unit: Unit, arrays: Mapping[str, np.ndarray], *, is_present: np.ndarray | None = None
    ) -> None:
        """Write one unit's shards, then its journal entry, which is what makes it count.

        arrays: by name, (n, *row_shape), for the plan's rows of the block in their order. Where not all rows have
        values, `is_present` says which do; the others stay empty and leave the index when it is published.
        """
        rows = plan.rows_of(unit.block)
        is_present = np.ones(len(rows), bool) if is_present is None else is_present
        slots = rows["row"].to_numpy() % self.block_rows

        def write(spec: ArraySpec) -> FileRecord:
            path = _array_folder(self.folder, unit.group, spec.name) / shard_name(spec, unit.block)
            return write_shard(
                path, arrays[spec.name], slots=slots[is_present], spec=spec, block_rows=self.block_rows
            )

        specs = self._state.format.arrays
        with ThreadPoolExecutor(len(specs)) as pool:  # each waits for the disk; together they wait once
            records = dict(zip((spec.name for spec in specs), pool.map(write, specs), strict=True))
        entry = {
            "block": unit.block,
            "group": unit.group,
            "block_rows": self.block_rows,
            "frame_ids": rows["frame_id"].tolist(),
            "keys": rows["key"].tolist(),
            "slots": slots.tolist(),
            "is_present": is_present.tolist(),
            "files": {name: asdict(record) for name, record in records.items()},
        }
        write_bytes_atomically(_journal_path(self.folder, unit), json.dumps(entry).encode())
        self._state.add(unit, records, entry)

    def publish(
        self, plan: Plan, *, provenance: Mapping[str, Any], absent_as: Mapping[str, str] | None = None
    ) -> Revision:
        """Make the plan's index the newest revision, once all its units are written; returns it.

        Frames that turned out to have no values keep no row and no key, and get the columns `absent_as`. A plan that
        changes nothing publishes nothing and returns the current revision.
        """
        state = self._state
        index = _without(plan.index, state.absent, absent_as or {})
        rows = index["row"].to_numpy()
        blocks = np.unique(rows[rows != NO_ROW] // self.block_rows).tolist()
        records = {unit: state.records[unit] for unit in (Unit(b, g) for b in blocks for g in plan.groups)}
        current = state.revision
        if current is not None and not plan.is_new and records == current.records:
            return current
        num_blocks = max([state.first_free_block, *(block + 1 for block in blocks)])
        self._describe(plan.groups, num_rows=num_blocks * self.block_rows)
        revision = publish(
            self.folder, index=index, records=records, groups=plan.groups, num_blocks=num_blocks,
            block_rows=self.block_rows, provenance={**provenance, "versions": package_versions()},
        )
        for path in (self.folder / JOURNAL_NAME).glob("*.json"):
            path.unlink()
        return revision

    def _describe(self, groups: Sequence[str], *, num_rows: int) -> None:
        """Zarr's metadata. It covers new blocks before the pointer moves: readers go by the index, not the shape."""
        arrays, format = self.folder / ARRAYS_NAME, self._state.format
        for group in groups:
            for spec in format.arrays:
                content = array_metadata(spec, num_rows=num_rows, block_rows=self.block_rows)
                write_bytes_atomically(_array_folder(self.folder, group, spec.name) / METADATA_NAME, content)
            if group:
                write_bytes_atomically(arrays / group / METADATA_NAME, group_metadata(format.group_attributes(group)))
        write_bytes_atomically(arrays / METADATA_NAME, group_metadata(format.attributes))


@dataclass
class _State:
    """What a store holds: the published revision, and intact units of an unfinished refresh."""

    folder: Path
    format: StoreFormat
    revision: Revision | None
    records: Records
    journal_rows: list[tuple[str, str, int]] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, folder: Path, format: StoreFormat) -> _State:
        state = cls(folder, format, load_revision(folder), {})
        sizes = _shard_sizes(folder)
        if state.revision is not None:
            state.records.update(_intact(state.revision.records, format, sizes))
        for path in sorted((folder / JOURNAL_NAME).glob("*.json")):
            entry = json.loads(path.read_bytes())
            unit = Unit(entry["block"], entry["group"])
            records = {unit: {name: FileRecord(**record) for name, record in entry["files"].items()}}
            if entry["block_rows"] == state.block_rows and _intact(records, format, sizes):
                state.add(unit, records[unit], entry)
        return state

    def add(self, unit: Unit, records: dict[str, FileRecord], entry: Mapping[str, Any]) -> None:
        self.records[unit] = records
        columns = (entry["frame_ids"], entry["keys"], entry["slots"], entry["is_present"])
        for frame_id, key, slot, is_present in zip(*columns, strict=True):
            self.journal_rows.append((frame_id, key, unit.block * self.block_rows + slot))
            if not is_present:
                self.absent.add(frame_id)

    @property
    def block_rows(self) -> int:
        return self.format.block_rows if self.revision is None else self.revision.block_rows

    @property
    def first_free_block(self) -> int:
        return 0 if self.revision is None else self.revision.num_blocks

    def plan(self, wanted: pd.DataFrame, groups: Sequence[str]) -> Plan:
        published = None if self.revision is None else self.revision.index
        known = pd.DataFrame(self.journal_rows, columns=["frame_id", "key", "row"])
        if published is not None:
            live = published.loc[published["row"] != NO_ROW, ["frame_id", "key", "row"]]
            known = pd.concat([live, known], ignore_index=True) if len(known) else live
        kept_groups = () if self.revision is None else self.revision.groups
        return make_plan(
            wanted,
            known=known,
            published=published,
            done=self.records.keys(),
            has_unpublished=self.revision is not None and self.records != self.revision.records,
            groups=tuple(dict.fromkeys((*kept_groups, *groups))),
            first_free_block=self.first_free_block,
            block_rows=self.block_rows,
            row_bytes=sum(spec.row_bytes for spec in self.format.arrays),
            is_shuffled=self.format.is_shuffled,
        )

    def sweep(self) -> None:
        """Remove what a killed writer left: half-written files, and shards that no revision and no journal names."""
        for path in self.folder.rglob(f"{TEMP_PREFIX}*"):
            path.unlink()
        published_groups = () if self.revision is None else self.revision.groups
        for (group, name), files in _shard_sizes(self.folder).items():
            for file in files:
                block = int(file.split(".")[1])
                is_published = group in published_groups and block < self.first_free_block
                if not is_published and Unit(block, group) not in self.records:
                    (_array_folder(self.folder, group, name) / file).unlink()
        for path in (self.folder / JOURNAL_NAME).glob("*.json"):
            block_text, _, group = path.stem.partition(".")
            if Unit(int(block_text), group) not in self.records:
                path.unlink()


def package_versions() -> dict[str, str]:
    """Versions of what can change a stored value."""
    names = ("fantrans", "numpy", "opencv-python", "pandas", "torch", "zarr")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _claim(folder: Path, format: StoreFormat) -> None:
    """Make the folder the document's own, or see that it is."""
    if not (folder / FINGERPRINT_NAME).is_file():
        write_bytes_atomically(folder / FINGERPRINT_NAME, canonical_json(format.document))
        return
    found = read_fingerprint(folder)
    if canonical_json(found) != canonical_json(format.document):
        raise CacheError(
            f"{folder} holds a store of fingerprint {fingerprint(found)}, expected {fingerprint(format.document)}; "
            "move that folder away and run `fantrans refresh` again"
        )


def _without(index: pd.DataFrame, absent: set[str], absent_as: Mapping[str, str]) -> pd.DataFrame:
    is_absent = index["frame_id"].isin(absent).to_numpy()
    if not is_absent.any():
        return index
    columns = {"row": NO_ROW, "key": "", **absent_as}
    index = index.assign(**{name: index[name].mask(is_absent, value) for name, value in columns.items()})
    return index.sort_values(["row", "frame_id"], ignore_index=True)


def _intact(records: Records, format: StoreFormat, sizes: Mapping[tuple[str, str], Mapping[str, int]]) -> Records:
    """The units all of whose files are there in their recorded size."""

    def is_intact(unit: Unit, files: Mapping[str, FileRecord]) -> bool:
        return all(
            sizes.get((unit.group, spec.name), {}).get(shard_name(spec, unit.block)) == files[spec.name].num_bytes
            for spec in format.arrays
        )

    return {unit: files for unit, files in records.items() if is_intact(unit, files)}


def _shard_sizes(folder: Path) -> dict[tuple[str, str], dict[str, int]]:
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


def _array_folder(folder: Path, group: str, name: str) -> Path:
    return folder / ARRAYS_NAME / group / name


def _journal_path(folder: Path, unit: Unit) -> Path:
    return folder / JOURNAL_NAME / f"{unit.block:06d}.{unit.group}.json"

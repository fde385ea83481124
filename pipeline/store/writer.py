"""The one process that adds to a store: it reuses finished units, writes the missing ones, publishes last."""

from __future__ import annotations

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

from pipeline.errors import StoreError
from pipeline.runtime.atomic import TEMP_PREFIX, discard, put_in_place, write_bytes_atomically
from pipeline.store.fingerprint import canonical_json, fingerprint
from pipeline.store.lock import writer_lock
from pipeline.store.mirror import read_sealed_json, sealed_json
from pipeline.store.plan import NO_ROW, Plan, Unit, is_same_index, make_plan
from pipeline.store.revisions import (
    ARRAYS_NAME,
    DAMAGE_NAME,
    JOURNAL_NAME,
    METADATA_NAME,
    Records,
    Revision,
    array_folder,
    has_fingerprint,
    has_intact_tables,
    load_revision,
    publish,
    read_damage,
    read_fingerprint,
    repair_tables,
    shard_path,
    shard_sizes,
    write_fingerprint,
)
from pipeline.store.shards import (
    ArraySpec,
    FileRecord,
    array_metadata,
    group_metadata,
    shard_name,
    stage_shard,
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
    return _State.load(folder, format).plan(wanted, groups)


@contextmanager
def open_writer(folder: Path, format: StoreFormat) -> Iterator[StoreWriter]:
    """A writer that holds the store's lock; the store is made if it does not exist.

    Raises `StoreError` if another process writes, or if the folder belongs to another fingerprint.
    """
    with writer_lock(folder):
        _claim(folder, format)
        yield StoreWriter(folder, format)


@dataclass(frozen=True, kw_only=True)
class StagedUnit:
    """A unit whose shards lie, whole, under temporary names, until `StoreWriter.commit_unit` gives them their own."""

    unit: Unit
    frame_ids: list[str]
    keys: list[str]
    slots: list[int]
    is_present: list[bool]
    temps: dict[str, Path]
    files: dict[str, FileRecord]

    def discard(self) -> None:
        """Remove the shards, which were not committed."""
        for temp in self.temps.values():
            discard(temp)


def stage_unit(
    folder: Path,
    arrays: Sequence[ArraySpec],
    unit: Unit,
    rows: pd.DataFrame,
    values: Mapping[str, np.ndarray],
    *,
    block_rows: int,
    is_present: np.ndarray | None = None,
) -> StagedUnit:
    """Write a unit's shards beside their places; needs no lock, so any process may do it for the one that has it.

    values: by array name, (n, *row_shape), for the plan's `rows` of the block in their order. Where not all have
    values, `is_present` says which do; the others stay empty and leave the index when it is published.
    """
    present = np.ones(len(rows), bool) if is_present is None else is_present
    slots = rows["row"].to_numpy() % block_rows

    def stage(spec: ArraySpec) -> tuple[Path, FileRecord]:
        path = shard_path(folder, unit, spec)
        return stage_shard(path, values[spec.name], slots=slots[present], spec=spec, block_rows=block_rows)

    with ThreadPoolExecutor(len(arrays)) as pool:  # each waits for the disk; together they wait once
        staging = [pool.submit(stage, spec) for spec in arrays]
    try:
        staged = {spec.name: shard.result() for spec, shard in zip(arrays, staging, strict=True)}
    except BaseException:  # on a full disk the others would be in the way
        for shard in staging:
            if shard.exception() is None:
                discard(shard.result()[0])
        raise
    return StagedUnit(
        unit=unit,
        frame_ids=rows["frame_id"].tolist(),
        keys=rows["key"].tolist(),
        slots=slots.tolist(),
        is_present=present.tolist(),
        temps={name: temp for name, (temp, _) in staged.items()},
        files={name: record for name, (_, record) in staged.items()},
    )


class StoreWriter:
    """Writes units into a store that this process has locked, and publishes them as one revision."""

    def __init__(self, folder: Path, format: StoreFormat) -> None:
        self.folder = folder
        repair_tables(folder)
        self._state = _State.load(folder, format)
        self._state.sweep()

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return self._state.block_rows

    @property
    def revision(self) -> Revision | None:
        """The published revision."""
        return self._state.revision

    @property
    def damaged(self) -> set[Unit]:
        """Units that the last verification found damaged."""
        return self._state.damaged

    @property
    def unpublished(self) -> set[Unit]:
        """Finished units of a refresh that has not been published."""
        published = {} if self._state.revision is None else self._state.revision.records
        return self._state.records.keys() - published.keys()

    @property
    def has_only_moved_rows(self) -> bool:
        """Whether what was finished but not published is what the newest revision has, in other places."""
        state = self._state
        if state.revision is None:
            return not state.records
        published = set(zip(state.revision.index["frame_id"], state.revision.index["key"], strict=True))
        return {unit.group for unit in self.unpublished} <= set(state.revision.groups) and all(
            (frame_id, key) in published for frame_id, key, _ in state.journal_rows
        )

    def plan(self, wanted: pd.DataFrame, groups: Sequence[str], *, moved: frozenset[int] = frozenset()) -> Plan:
        """What is missing; see `plan_store`. Rows of the blocks `moved` get new places."""
        return self._state.plan(wanted, groups, moved=moved)

    def write_unit(
        self, unit: Unit, rows: pd.DataFrame, values: Mapping[str, np.ndarray], *, is_present: np.ndarray | None = None
    ) -> None:
        """`stage_unit`, then `commit_unit`."""
        arrays = self._state.format.arrays
        self.commit_unit(
            stage_unit(self.folder, arrays, unit, rows, values, block_rows=self.block_rows, is_present=is_present)
        )

    def commit_unit(self, staged: StagedUnit) -> None:
        """Give staged shards their names, then write the unit's journal entry, which is what makes it count."""
        unit = staged.unit
        for spec in self._state.format.arrays:
            put_in_place(staged.temps[spec.name], shard_path(self.folder, unit, spec))
        entry = {
            "block": unit.block,
            "group": unit.group,
            "block_rows": self.block_rows,
            "frame_ids": staged.frame_ids,
            "keys": staged.keys,
            "slots": staged.slots,
            "is_present": staged.is_present,
            "files": {name: asdict(record) for name, record in staged.files.items()},
        }
        write_bytes_atomically(_journal_path(self.folder, unit), sealed_json(entry))
        self._state.add(unit, staged.files, entry)

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
        revision = state.revision
        num_blocks = max([state.first_free_block, *(block + 1 for block in blocks)])
        _describe(
            self.folder, state.format, plan.groups, num_rows=num_blocks * self.block_rows, block_rows=self.block_rows
        )
        if revision is None or not is_same_index(index, revision.index) or records != revision.records:
            revision = publish(
                self.folder,
                index=index,
                records=records,
                groups=plan.groups,
                num_blocks=num_blocks,
                block_rows=self.block_rows,
                arrays=state.format.arrays,
                fingerprint=fingerprint(state.format.document),
                provenance={**provenance, "versions": package_versions()},
            )
        for path in (self.folder / JOURNAL_NAME).glob("*.json"):
            path.unlink()
        (self.folder / DAMAGE_NAME).unlink(missing_ok=True)
        return revision


def _metadata(
    folder: Path, format: StoreFormat, groups: Sequence[str], *, num_rows: int, block_rows: int
) -> Iterator[tuple[Path, bytes]]:
    """Zarr's metadata: each file's place and content, the root last."""
    arrays = folder / ARRAYS_NAME
    for group in groups:
        for spec in format.arrays:
            yield (
                arrays / group / spec.name / METADATA_NAME,
                array_metadata(spec, num_rows=num_rows, block_rows=block_rows),
            )
        if group:
            yield arrays / group / METADATA_NAME, group_metadata(format.group_attributes(group))
    yield arrays / METADATA_NAME, group_metadata(format.attributes)


def _describe(folder: Path, format: StoreFormat, groups: Sequence[str], *, num_rows: int, block_rows: int) -> None:
    """Write Zarr's metadata where it differs; it may cover unpublished blocks, as readers go by the index."""
    for path, content in _metadata(folder, format, groups, num_rows=num_rows, block_rows=block_rows):
        if not path.is_file() or path.read_bytes() != content:
            write_bytes_atomically(path, content)


@dataclass
class _State:
    """What a store holds: the published revision, and intact units of an unfinished refresh."""

    folder: Path
    format: StoreFormat
    revision: Revision | None
    records: Records
    damaged: set[Unit]
    journal_rows: list[tuple[str, str, int]] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, folder: Path, format: StoreFormat) -> _State:
        state = cls(folder, format, load_revision(folder), {}, read_damage(folder))
        sizes = shard_sizes(folder)
        if state.revision is not None:
            intact = _intact(state.revision.records, format, sizes)
            state.damaged |= state.revision.records.keys() - intact.keys()
            state.records.update({unit: files for unit, files in intact.items() if unit not in state.damaged})
        for path in sorted((folder / JOURNAL_NAME).glob("[0-9]*.json")):  # and none that is being written
            entry = read_sealed_json(path, fallback={})
            if not entry:
                continue  # damaged: its unit is computed again
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

    def plan(self, wanted: pd.DataFrame, groups: Sequence[str], *, moved: frozenset[int] = frozenset()) -> Plan:
        published = None if self.revision is None else self.revision.index
        known = pd.DataFrame(self.journal_rows, columns=["frame_id", "key", "row"])
        if published is not None:
            stays = (published["row"] != NO_ROW) & ~(published["row"] // self.block_rows).isin(moved)
            live = published.loc[stays, ["frame_id", "key", "row"]]
            known = pd.concat([live, known], ignore_index=True) if len(known) else live
        kept_groups = () if self.revision is None else self.revision.groups
        return make_plan(
            wanted,
            known=known,
            published=published,
            done=self.records.keys(),
            needs_repair=not self.is_whole(),
            groups=tuple(dict.fromkeys((*kept_groups, *groups))),
            first_free_block=self.first_free_block,
            block_rows=self.block_rows,
            row_bytes=sum(spec.row_bytes for spec in self.format.arrays),
            is_shuffled=self.format.is_shuffled,
        )

    def is_whole(self) -> bool:
        """Whether nothing is left over, damaged or missing beside what a plan finds to compute."""
        if self.revision is None or self.records != self.revision.records or not has_intact_tables(self.folder):
            return False
        if (self.folder / DAMAGE_NAME).exists() or any((self.folder / JOURNAL_NAME).glob("*.json")):
            return False
        expected = _metadata(
            self.folder,
            self.format,
            self.revision.groups,
            block_rows=self.block_rows,
            num_rows=self.revision.num_blocks * self.block_rows,
        )
        return all(path.is_file() and path.read_bytes() == content for path, content in expected)

    def sweep(self) -> None:
        """Remove what a killed writer left: half-written files, and shards that no revision and no journal names."""
        for path in self.folder.rglob(f"{TEMP_PREFIX}*"):
            path.unlink()
        published_groups = () if self.revision is None else self.revision.groups
        for (group, name), files in shard_sizes(self.folder).items():
            for file in files:
                block = int(file.split(".")[1])
                is_published = group in published_groups and block < self.first_free_block
                if not is_published and Unit(block, group) not in self.records:
                    (array_folder(self.folder, group, name) / file).unlink()
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
    if not has_fingerprint(folder):
        write_fingerprint(folder, format.document)
        return
    found = read_fingerprint(folder)
    if canonical_json(found) != canonical_json(format.document):
        raise StoreError(
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


def _journal_path(folder: Path, unit: Unit) -> Path:
    return folder / JOURNAL_NAME / f"{unit.block:06d}.{unit.group}.json"

"""The one process that changes a store: it reuses finished units, writes missing ones, and publishes last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.errors import StoreError
from pipeline.runtime.atomic import TEMP_PREFIX, discard, put_in_place, write_bytes_atomically
from pipeline.store.format import StoreFormat, write_metadata
from pipeline.store.hashing import canonical_json, hash_document
from pipeline.store.lock import writer_lock
from pipeline.store.mirror import sealed_json
from pipeline.store.plan import NO_ROW, Plan, Unit, is_same_index
from pipeline.store.revisions import (
    DAMAGE_NAME,
    JOURNAL_NAME,
    Revision,
    array_folder,
    has_fingerprint,
    publish,
    read_fingerprint,
    repair_tables,
    shard_path,
    shard_sizes,
    write_fingerprint,
)
from pipeline.store.shards import ArraySpec, FileRecord, stage_shard
from pipeline.store.state import StoreState


def plan_store(folder: Path, format: StoreFormat, wanted: pd.DataFrame, groups: Sequence[str]) -> Plan:
    """Plan a refresh without doing it; takes no lock.

    wanted: frame_id, key (hash of what decides a frame's values beside the fingerprint; "" for a frame that is only
    listed), part, and further columns for the index. Existing groups are kept and filled even if `groups` omits them.
    """
    return StoreState.load(folder, format).plan(wanted, groups)


@contextmanager
def open_writer(folder: Path, format: StoreFormat) -> Iterator[StoreWriter]:
    """Yield a writer that holds the store's lock; creates the store if it does not exist.

    Raises `StoreError` if another process writes it, or if the folder has another fingerprint.
    """
    with writer_lock(folder):
        _claim(folder, format)
        yield StoreWriter(folder, format)


@dataclass(frozen=True, kw_only=True)
class StagedUnit:
    """A unit whose complete shards have temporary names until `StoreWriter.commit_unit` renames them."""

    unit: Unit
    frame_ids: list[str]
    keys: list[str]
    slots: list[int]
    is_present: list[bool]
    temps: dict[str, Path]
    files: dict[str, FileRecord]

    def discard(self) -> None:
        """Remove the shards of a unit that is not committed."""
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
    """Write a unit's shards under temporary names. Needs no lock, so that workers can stage for the writer.

    rows: the plan's rows of the block. is_present: bool (len(rows),), which rows have values (default: all); the others
    stay empty and leave the index on publishing. values: (n, *row_shape) by array name, for the rows that have values.
    """
    present = np.ones(len(rows), bool) if is_present is None else is_present
    slots = rows["row"].to_numpy() % block_rows

    def stage(spec: ArraySpec) -> tuple[Path, FileRecord]:
        path = shard_path(folder, unit, spec)
        return stage_shard(path, values[spec.name], slots=slots[present], spec=spec, block_rows=block_rows)

    with ThreadPoolExecutor(len(arrays)) as pool:  # the fsyncs of a unit's shards overlap
        staging = [pool.submit(stage, spec) for spec in arrays]
    try:
        staged = {spec.name: shard.result() for spec, shard in zip(arrays, staging, strict=True)}
    except BaseException:  # free the space of the shards that succeeded
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
    """Writes units into a locked store and publishes them as one revision."""

    def __init__(self, folder: Path, format: StoreFormat) -> None:
        self.folder = folder
        repair_tables(folder)
        self._state = StoreState.load(folder, format)
        _sweep(self._state)

    @property
    def block_rows(self) -> int:
        """Rows per block."""
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
        """Finished units of a refresh that is not published."""
        return self._state.unpublished

    @property
    def has_only_moved_rows(self) -> bool:
        """Whether every unpublished row is a published row in another place."""
        return self._state.has_only_moved_rows

    def plan(self, wanted: pd.DataFrame, groups: Sequence[str], *, moved: frozenset[int] = frozenset()) -> Plan:
        """Plan the next revision; see `plan_store`. Rows of the blocks `moved` get new places."""
        return self._state.plan(wanted, groups, moved=moved)

    def write_unit(
        self, unit: Unit, rows: pd.DataFrame, values: Mapping[str, np.ndarray], *, is_present: np.ndarray | None = None
    ) -> None:
        """Stage a unit (see `stage_unit`) and commit it."""
        arrays = self._state.format.arrays
        self.commit_unit(
            stage_unit(self.folder, arrays, unit, rows, values, block_rows=self.block_rows, is_present=is_present)
        )

    def commit_unit(self, staged: StagedUnit) -> None:
        """Rename staged shards to their final names, then write the journal entry that makes the unit finished."""
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
        """Publish the plan's index as the newest revision and return it; all units of the plan must be committed.

        Frames that turned out to have no values lose row and key, and get the columns `absent_as`. A plan that changes
        nothing publishes nothing and returns the current revision. `provenance` goes into the manifest unchanged.
        """
        state = self._state
        index = _without(plan.index, state.absent, absent_as or {})
        rows = index["row"].to_numpy()
        blocks = np.unique(rows[rows != NO_ROW] // self.block_rows).tolist()
        known = {**plan.revived, **state.records}
        records = {unit: known[unit] for unit in (Unit(b, g) for b in blocks for g in plan.groups)}
        revision = state.revision
        num_blocks = max([state.first_free_block, *(block + 1 for block in blocks)])
        num_rows = num_blocks * self.block_rows
        write_metadata(self.folder, state.format, plan.groups, num_rows=num_rows, block_rows=self.block_rows)
        if revision is None or not is_same_index(index, revision.index) or records != revision.records:
            revision = publish(
                self.folder,
                index=index,
                records=records,
                groups=plan.groups,
                num_blocks=num_blocks,
                block_rows=self.block_rows,
                arrays=state.format.arrays,
                fingerprint=hash_document(state.format.document),
                provenance=provenance,
            )
        for path in (self.folder / JOURNAL_NAME).glob("*.json"):
            path.unlink()
        (self.folder / DAMAGE_NAME).unlink(missing_ok=True)
        return revision


def _sweep(state: StoreState) -> None:
    """Remove what a killed writer left: half-written files, and shards that no revision and no journal entry names."""
    for path in state.folder.rglob(f"{TEMP_PREFIX}*"):
        path.unlink()
    published_groups = () if state.revision is None else state.revision.groups
    for (group, name), files in shard_sizes(state.folder).items():
        for file in files:
            block = int(file.split(".")[1])
            is_published = group in published_groups and block < state.first_free_block
            if not is_published and Unit(block, group) not in state.records:
                (array_folder(state.folder, group, name) / file).unlink()
    for path in (state.folder / JOURNAL_NAME).glob("*.json"):
        block_text, _, group = path.stem.partition(".")
        if Unit(int(block_text), group) not in state.records:
            path.unlink()


def _claim(folder: Path, format: StoreFormat) -> None:
    """Write the fingerprint document into a new folder, or check that an existing folder has it."""
    if not has_fingerprint(folder):
        write_fingerprint(folder, format.document)
        return
    found = read_fingerprint(folder)
    if canonical_json(found) != canonical_json(format.document):
        raise StoreError(
            f"{folder} holds a store of fingerprint {hash_document(found)}, expected {hash_document(format.document)}; "
            "move that folder away and run `fantrans refresh` again"
        )


def _without(index: pd.DataFrame, absent: set[str], absent_as: Mapping[str, str]) -> pd.DataFrame:
    is_absent = index["frame_id"].isin(absent).to_numpy()
    if not is_absent.any():
        return index
    columns = {"row": NO_ROW, "key": "", **absent_as}
    index = index.assign(**{name: index[name].mask(is_absent, value) for name, value in columns.items()})
    return index.sort_values(["row", "frame_id"], ignore_index=True)


def _journal_path(folder: Path, unit: Unit) -> Path:
    return folder / JOURNAL_NAME / f"{unit.block:06d}.{unit.group}.json"

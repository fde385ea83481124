"""What a store holds on disk: its published revision, and the intact units of an unfinished refresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.store.dead_rows import Sizes, find_dead_rows, has_recorded_sizes
from pipeline.store.format import StoreFormat, is_metadata_current
from pipeline.store.mirror import read_sealed_json
from pipeline.store.plan import NO_ROW, Plan, Unit, make_plan
from pipeline.store.revisions import (
    DAMAGE_NAME,
    JOURNAL_NAME,
    Records,
    Revision,
    has_intact_tables,
    load_revision,
    read_damage,
    shard_sizes,
)
from pipeline.store.shards import FileRecord


@dataclass
class StoreState:
    """A loaded store. `load` and `plan` only read; the writer calls `add` after each commit."""

    folder: Path
    format: StoreFormat
    revision: Revision | None
    records: Records
    """Shard files of every intact unit, published or not."""
    damaged: set[Unit]
    journal_rows: dict[Unit, list[tuple[str, str, int]]] = field(default_factory=dict)
    """frame_id, key and row of each unpublished unit."""
    absent: set[str] = field(default_factory=set)
    """Frames of those units that turned out to have no values."""

    @classmethod
    def load(cls, folder: Path, format: StoreFormat) -> StoreState:
        """Read revision, damage list and journal, and keep the units whose shards have their recorded size."""
        state = cls(folder, format, load_revision(folder), {}, read_damage(folder))
        sizes = shard_sizes(folder)
        if state.revision is not None:
            intact = _intact(state.revision.records, format, sizes)
            state.damaged |= state.revision.records.keys() - intact.keys()
            state.records.update({unit: files for unit, files in intact.items() if unit not in state.damaged})
        for path in sorted((folder / JOURNAL_NAME).glob("[0-9]*.json")):  # skips half-written files
            entry = read_sealed_json(path, fallback={})
            if not entry:
                continue  # damaged: its unit is recomputed
            unit = Unit(entry["block"], entry["group"])
            records = {unit: {name: FileRecord(**record) for name, record in entry["files"].items()}}
            if entry["block_rows"] == state.block_rows and _intact(records, format, sizes):
                state.add(unit, records[unit], entry)
        return state

    def add(self, unit: Unit, records: dict[str, FileRecord], entry: Mapping[str, Any]) -> None:
        """Add a finished unit from its journal entry."""
        self.records[unit] = records
        rows = [unit.block * self.block_rows + slot for slot in entry["slots"]]
        self.journal_rows[unit] = list(zip(entry["frame_ids"], entry["keys"], rows, strict=True))
        self.absent.update(compress(entry["frame_ids"], (not is_present for is_present in entry["is_present"])))

    @property
    def block_rows(self) -> int:
        """Rows per block."""
        return self.format.block_rows if self.revision is None else self.revision.block_rows

    @property
    def first_free_block(self) -> int:
        """Number of the next new block."""
        return 0 if self.revision is None else self.revision.num_blocks

    @property
    def unpublished(self) -> set[Unit]:
        """Finished units of a refresh that is not published."""
        published = {} if self.revision is None else self.revision.records
        return self.records.keys() - published.keys()

    @property
    def has_only_moved_rows(self) -> bool:
        """Whether every unpublished row is a published row in another place."""
        if self.revision is None:
            return not self.records
        published = set(zip(self.revision.index["frame_id"], self.revision.index["key"], strict=True))
        return {unit.group for unit in self.unpublished} <= set(self.revision.groups) and all(
            (frame_id, key) in published for rows in self.journal_rows.values() for frame_id, key, _ in rows
        )

    def plan(self, wanted: pd.DataFrame, groups: Sequence[str], *, moved: frozenset[int] = frozenset()) -> Plan:
        """Plan the next revision; see `writer.plan_store`. Rows of the blocks `moved` get new places."""
        published = None if self.revision is None else self.revision.index
        known = pd.DataFrame(chain(*self.journal_rows.values()), columns=["frame_id", "key", "row"])
        if published is not None:
            stays = (published["row"] != NO_ROW) & ~(published["row"] // self.block_rows).isin(moved)
            live = published.loc[stays, ["frame_id", "key", "row"]]
            known = pd.concat([live, known], ignore_index=True) if len(known) else live
        kept_groups = () if self.revision is None else self.revision.groups
        groups = tuple(dict.fromkeys((*kept_groups, *groups)))
        dead, revived = (known[:0], {}) if moved else self._dead_rows(wanted, known, groups)
        return make_plan(
            wanted,
            known=pd.concat([known, dead], ignore_index=True) if len(dead) else known,
            published=published,
            done=self.records.keys(),
            done_rows={unit: {row for *_, row in rows} for unit, rows in self.journal_rows.items()},
            revived=revived,
            needs_repair=not self.is_intact(),
            groups=groups,
            first_free_block=self.first_free_block,
            block_rows=self.block_rows,
            row_bytes=sum(spec.row_bytes for spec in self.format.arrays),
            is_shuffled=self.format.is_shuffled,
        )

    def _dead_rows(
        self, wanted: pd.DataFrame, known: pd.DataFrame, groups: Sequence[str]
    ) -> tuple[pd.DataFrame, Records]:
        """Return the dead rows of wanted frames that no known row holds, and the shard files of their units."""
        pairs = wanted.loc[wanted["key"] != "", ["frame_id", "key"]]
        missing = pairs[~pd.MultiIndex.from_frame(pairs).isin(pd.MultiIndex.from_frame(known[["frame_id", "key"]]))]
        if self.revision is None or missing.empty:
            return known[:0], {}
        return find_dead_rows(self.revision, missing, groups, records=self.records, damaged=self.damaged)

    def is_intact(self) -> bool:
        """Return whether the folder holds exactly its published revision: no leftovers, nothing missing or damaged."""
        if self.revision is None or self.records != self.revision.records or not has_intact_tables(self.folder):
            return False
        if (self.folder / DAMAGE_NAME).exists() or any((self.folder / JOURNAL_NAME).glob("*.json")):
            return False
        num_rows = self.revision.num_blocks * self.block_rows
        groups = self.revision.groups
        return is_metadata_current(self.folder, self.format, groups, num_rows=num_rows, block_rows=self.block_rows)


def _intact(records: Records, format: StoreFormat, sizes: Sizes) -> Records:
    """Return the units for which every shard exists and has its recorded size."""
    return {unit: files for unit, files in records.items() if has_recorded_sizes(unit, files, format.arrays, sizes)}

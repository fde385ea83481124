"""Compare a store with its newest revision: tables with shards, shards with their checksums."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import StoreNotFoundError
from pipeline.runtime.progress import ProgressCallback, no_progress
from pipeline.store.plan import NO_ROW, Unit
from pipeline.store.reader import readable_rows
from pipeline.store.revisions import (
    Revision,
    has_intact_tables,
    load_revision,
    shard_path,
    shard_sizes,
    write_damage,
)
from pipeline.store.shards import FileRecord, file_crc32c, shard_name, stored_slots

_NUM_THREADS = 4


@dataclass(frozen=True)
class Damage:
    """One damaged file: a message, its unit (None for a small file), and the frames that cannot be read."""

    message: str
    unit: Unit | None
    frame_ids: tuple[str, ...]

    def __str__(self) -> str:
        """Message and frames in one line."""
        return self.message + (f": {', '.join(self.frame_ids)}" if self.frame_ids else "")


def verify_store(folder: Path, *, is_deep: bool, on_progress: ProgressCallback = no_progress) -> list[Damage]:
    """Return the damage in the newest revision: missing files, wrong sizes and, if `is_deep`, wrong checksums.

    Changes nothing; see `mark_damaged`. Calls `on_progress(1)` after each unit. Raises `StoreError` without a revision.
    """
    revision = load_revision(folder)
    if revision is None:
        raise StoreNotFoundError(f"{folder} has no finished revision to verify; run `fantrans refresh` to the end")
    found = []
    if not has_intact_tables(folder):
        found.append(
            Damage(
                "a table, a manifest, the fingerprint or the pointer is damaged or missing in one of its two copies",
                None,
                (),
            )
        )
    sizes = shard_sizes(folder)
    rows_in = dict(iter(revision.index[revision.index["row"] != NO_ROW].groupby(_blocks(revision))))

    def verify(unit: Unit) -> list[Damage]:
        return list(_unit_damage(folder, revision, unit, rows_in.get(unit.block), sizes, is_deep))

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for damages in pool.map(verify, sorted(revision.records)):
            found += damages
            on_progress(1)
    return found


def mark_damaged(folder: Path, damages: list[Damage]) -> None:
    """Record damaged units, so that the next refresh recomputes them."""
    units = {damage.unit for damage in damages if damage.unit is not None}
    if units:
        write_damage(folder, units)


def _blocks(revision: Revision) -> pd.Series:
    rows = revision.index["row"]
    return rows[rows != NO_ROW] // revision.block_rows


def _unit_damage(
    folder: Path,
    revision: Revision,
    unit: Unit,
    rows: pd.DataFrame | None,
    sizes: dict[tuple[str, str], dict[str, int]],
    is_deep: bool,
) -> Iterator[Damage]:
    names = [] if rows is None else rows["frame_id"].tolist()
    slots = np.empty(0, np.int64) if rows is None else rows["row"].to_numpy() % revision.block_rows
    for array, record in revision.records[unit].items():
        spec = revision.arrays[array]
        path = shard_path(folder, unit, spec)
        size = sizes.get((unit.group, array), {}).get(shard_name(spec, unit.block))
        fault = _fault(path, size, record, slots, revision.block_rows, is_deep)
        if fault is not None:
            is_good, _ = readable_rows(folder, [spec], unit, slots, block_rows=revision.block_rows)
            affected = tuple(name for name, good in zip(names, is_good, strict=True) if not good)
            yield Damage(f"shard {path} {fault}", unit, affected)


def _fault(
    path: Path, size: int | None, record: FileRecord, slots: np.ndarray, block_rows: int, is_deep: bool
) -> str | None:
    if size is None:
        return "is missing"
    if size != record.num_bytes:
        return f"has {size} bytes, expected {record.num_bytes}"
    if not is_deep:
        return None
    if file_crc32c(path) != record.crc32c:
        return "does not have the checksum that it was written with"
    if not stored_slots(path, block_rows=block_rows)[slots].all():
        return "lacks rows that the index names"
    return None

"""What a refresh keeps, computes and drops: a pure function of the wanted frames and the stored ones.

A frame's row depends only on the wanted frames and the revisions on disk, not on when an earlier refresh was killed:
finished units hold the rows that an uninterrupted refresh would have given them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pandas as pd

from pipeline.store.shards import FileRecord

NO_ROW = -1
"""Row of a frame that is listed without stored values: no face, unreadable."""


@dataclass(frozen=True, order=True)
class Unit:
    """One block of one group: computed, committed and reused as a whole."""

    block: int
    group: str


@dataclass(frozen=True)
class Plan:
    """The next revision and the units to compute for it.

    index: frame_id, row, key, then the wanted table's other columns, sorted by row. num_kept: frames in complete
    blocks. num_computed: frames in blocks with missing units. num_dropped: rows that die, because the frame is gone or
    its key changed. num_bytes: uncompressed bytes to write. is_new: whether publishing changes anything. revived: shard
    files of units of older revisions whose dead rows become live again (`dead_rows`).
    """

    index: pd.DataFrame
    groups: tuple[str, ...]
    block_rows: int
    units: tuple[Unit, ...]
    num_kept: int
    num_computed: int
    num_dropped: int
    num_bytes: int
    is_new: bool
    revived: Mapping[Unit, dict[str, FileRecord]] = field(default_factory=dict)

    def rows_in(self, block: int) -> pd.DataFrame:
        """Return the index's rows of a block, ascending."""
        first, last = np.searchsorted(self.index["row"].to_numpy(), np.array([block, block + 1]) * self.block_rows)
        return self.index.iloc[first:last]


def assign_rows(
    wanted: pd.DataFrame, known: pd.DataFrame, *, first_free_block: int, block_rows: int, is_shuffled: bool
) -> pd.DataFrame:
    """Return `wanted` with a column `row`, sorted by row and frame_id; `NO_ROW` for frames with the key "".

    wanted: frame_id (unique), key, part and any other columns. known: frame_id, key, row of everything stored,
    published or not, and of the dead rows that hold what is wanted. A frame keeps the row that holds its key. The
    others fill new blocks of one part each, in the table's order or shuffled by a hash of frame_id. New blocks take the
    free numbers from `first_free_block` up.
    """
    assert wanted["frame_id"].is_unique
    index = wanted.merge(known.drop_duplicates(["frame_id", "key"]), on=["frame_id", "key"], how="left")
    rows = index["row"].fillna(NO_ROW).to_numpy().astype(np.int64)
    keys, parts = index["key"].to_numpy(), index["part"].to_numpy()
    rows[keys == ""] = NO_ROW
    taken = set((known["row"] // block_rows).tolist())
    block = first_free_block
    missing = (rows == NO_ROW) & (keys != "")
    for part in sorted(set(parts[missing])):
        positions = np.flatnonzero(missing & (parts == part))
        if is_shuffled:
            positions = positions[np.argsort(_shuffle_keys(index["frame_id"].to_numpy()[positions]), kind="stable")]
        for start in range(0, len(positions), block_rows):
            while block in taken:
                block += 1
            here = positions[start : start + block_rows]
            rows[here] = block * block_rows + np.arange(len(here))
            block += 1
    columns = ["frame_id", "row", "key", *(name for name in wanted.columns if name not in ("frame_id", "key"))]
    return index.assign(row=rows)[columns].sort_values(["row", "frame_id"], ignore_index=True)


def make_plan(
    wanted: pd.DataFrame,
    *,
    known: pd.DataFrame,
    published: pd.DataFrame | None,
    done: Collection[Unit],
    done_rows: Mapping[Unit, Set[int]] = MappingProxyType({}),
    needs_repair: bool,
    groups: tuple[str, ...],
    first_free_block: int,
    block_rows: int,
    row_bytes: int,
    is_shuffled: bool,
    revived: Mapping[Unit, dict[str, FileRecord]] = MappingProxyType({}),
) -> Plan:
    """Plan the next revision; see `assign_rows`.

    published: the current revision's index. done: intact units, published or not. done_rows: the only rows that some of
    them hold; such a unit counts as missing if its block has another row now. needs_repair: whether a killed
    refresh left files, or the revision has missing or damaged ones. revived: see `Plan`.
    """
    index = assign_rows(
        wanted, known, first_free_block=first_free_block, block_rows=block_rows, is_shuffled=is_shuffled
    )
    rows = index.loc[index["row"] != NO_ROW, "row"].to_numpy()
    blocks, num_rows = np.unique(rows // block_rows, return_counts=True)
    in_block = dict(zip(blocks.tolist(), np.split(rows, np.cumsum(num_rows)), strict=False))

    def is_done(unit: Unit) -> bool:
        has_rows = unit not in done_rows or set(in_block[unit.block].tolist()) <= done_rows[unit]
        return (unit in done and has_rows) or unit in revived

    units = [unit for unit in (Unit(block, group) for block in in_block for group in groups) if not is_done(unit)]
    num_computed = sum(len(in_block[block]) for block in {unit.block for unit in units})
    old = set() if published is None else set(published.loc[published["row"] != NO_ROW, "row"])
    return Plan(
        index=index,
        groups=groups,
        block_rows=block_rows,
        units=tuple(units),
        num_kept=len(rows) - num_computed,
        num_computed=num_computed,
        num_dropped=len(old - set(rows.tolist())),
        num_bytes=sum(len(in_block[unit.block]) for unit in units) * row_bytes,
        is_new=bool(units) or needs_repair or published is None or not is_same_index(index, published),
        revived=revived,
    )


def is_same_index(index: pd.DataFrame, published: pd.DataFrame) -> bool:
    """Return whether two indexes have equal columns and values."""
    has_same_columns = list(index.columns) == list(published.columns) and len(index) == len(published)
    return has_same_columns and index.equals(published.astype(index.dtypes.to_dict()))


def _shuffle_keys(frame_ids: np.ndarray) -> np.ndarray:
    digests = (hashlib.blake2b(name.encode(), digest_size=8, person=b"row order").digest() for name in frame_ids)
    return np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)

"""Dead rows that become live again: a frame whose key comes back takes the row that an older revision lists for it.

While an older revision is on disk, so are its shards. A frame that left the data set and returns, for example because a
disk was not mounted, is then listed again and not computed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from pipeline.errors import StoreError
from pipeline.store.plan import NO_ROW, Unit
from pipeline.store.revisions import Records, Revision, load_revision, revision_numbers, shard_sizes
from pipeline.store.shards import ArraySpec, FileRecord, shard_name

Sizes = Mapping[tuple[str, str], Mapping[str, int]]
"""Bytes of each shard file, by (group, array) and file name."""


def find_dead_rows(
    newest: Revision, missing: pd.DataFrame, groups: Collection[str], *, records: Records, damaged: Collection[Unit]
) -> tuple[pd.DataFrame, Records]:
    """Return the dead rows that hold what is `missing`, and the shard files of their units that `records` lacks.

    missing: frame_id and key of frames without a row. groups: in which each row must have values. records: intact units
    of the newest revision and of an unfinished refresh. The rows found have the columns frame_id, key and row. A row
    counts if the older revision has all groups, and the files of its block are those of that revision: nothing is
    ever computed into a block that an older revision may share.
    """
    found, revived = [missing.assign(row=0)[:0]], Records()
    sizes = shard_sizes(newest.folder)
    for number in reversed(revision_numbers(newest.folder)):
        revision = _load(newest, number) if number < newest.number and len(missing) else None
        if revision is None or not set(groups) <= set(revision.groups):
            continue
        live = revision.index.loc[revision.index["row"] != NO_ROW, ["frame_id", "key", "row"]]
        rows = live.merge(missing, on=["frame_id", "key"])
        blocks = rows["row"] // revision.block_rows
        is_whole = {}
        for block in blocks.unique().tolist():
            units = {unit: revision.records[unit] for unit in (Unit(block, group) for group in groups)}
            is_whole[block] = all(
                unit not in damaged
                and records.get(unit, files) == files
                and has_recorded_sizes(unit, files, revision.arrays.values(), sizes)
                for unit, files in units.items()
            )
            if is_whole[block]:
                revived.update({unit: files for unit, files in units.items() if unit not in records})
        found.append(rows[blocks.map(is_whole).astype(bool)])
        missing = missing[
            ~pd.MultiIndex.from_frame(missing).isin(pd.MultiIndex.from_frame(found[-1].drop(columns="row")))
        ]
    return pd.concat(found, ignore_index=True), revived


def _load(newest: Revision, number: int) -> Revision | None:
    """Return an older revision with its index; None if it is damaged, or pruned by now."""
    try:
        revision = load_revision(newest.folder, number)
        return revision if revision is not None and len(revision.index) and revision.records else None
    except StoreError:
        return None


def has_recorded_sizes(
    unit: Unit, files: Mapping[str, FileRecord], arrays: Collection[ArraySpec], sizes: Sizes
) -> bool:
    """Return whether every shard of a unit exists and has its recorded size."""
    return all(
        sizes.get((unit.group, spec.name), {}).get(shard_name(spec, unit.block)) == files[spec.name].num_bytes
        for spec in arrays
    )

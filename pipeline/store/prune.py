"""Free dead rows, stale revisions and orphaned files, except those that a reader pins or that are young."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.atomic import fsync_folder
from pipeline.store.format import StoreFormat
from pipeline.store.lock import exclusive
from pipeline.store.mirror import MIRROR_NAME, copy_paths
from pipeline.store.plan import NO_ROW, Unit
from pipeline.store.reader import StoreReader
from pipeline.store.revisions import (
    Revision,
    array_folder,
    load_revision,
    manifest_name,
    revision_files,
    revision_numbers,
    shard_path,
    shard_sizes,
)
from pipeline.store.shards import stored_slots
from pipeline.store.writer import StoreWriter, open_writer

DEFAULT_GRACE_S = 24 * 3600.0
_FULL_ENOUGH = 0.75


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """Counts of what `prune_store` freed, moved and kept."""

    num_bytes: int
    num_files: int
    num_revisions: int
    num_moved_rows: int
    num_pinned: int
    """Stale revisions that were kept because a reader pins them."""
    num_young: int
    """Stale revisions and orphans that were kept because they are younger than the grace period."""

    def __str__(self) -> str:
        """Return a summary in one line."""
        kept = [f"{n} {why}" for n, why in ((self.num_pinned, "pinned by readers"), (self.num_young, "too young")) if n]
        return (
            f"freed {self.num_bytes / 1e6:,.1f} MB in {self.num_files:,} files, {self.num_revisions} revisions; "
            f"moved {self.num_moved_rows:,} rows" + (f"; kept: {', '.join(kept)}" if kept else "")
        )


def prune_store(folder: Path, format: StoreFormat, *, grace_s: float = DEFAULT_GRACE_S) -> PruneResult:
    """Free everything that only stale revisions need, unless a reader pins it or it is younger than `grace_s` seconds.

    First, blocks of the newest revision with dead rows or many empty ones are merged into full blocks, and published as
    a new revision. Their space is freed when the previous revision goes. Ages are file times: after the clock was set
    back, files look young and stay. Raises `StoreError` if another process writes the store.
    """
    with open_writer(folder, format) as writer:
        num_moved = _compact(writer)
        newest = load_revision(folder)
        if newest is None:
            return PruneResult(num_bytes=0, num_files=0, num_revisions=0, num_moved_rows=0, num_pinned=0, num_young=0)
        kept, dropped, num_pinned, num_young = [newest], [], 0, 0
        for number in revision_numbers(folder):
            if number == newest.number:
                continue
            if number < newest.number and _is_young(folder / manifest_name(number), grace_s):
                num_young += 1
            elif not _drop_revision(folder, number):
                num_pinned += 1
            else:
                dropped.append(number)
                continue
            revision = load_revision(folder, number)
            assert revision is not None
            kept.append(revision)
        needed = {unit for revision in kept for unit in revision.records} | writer.unpublished
        files, sizes, young = _orphans(folder, needed, grace_s)
        for path in files:
            path.unlink()
        return PruneResult(
            num_bytes=sum(sizes),
            num_files=len(files),
            num_revisions=len(dropped),
            num_moved_rows=num_moved,
            num_pinned=num_pinned,
            num_young=num_young + young,
        )


def _is_young(path: Path, grace_s: float) -> bool:
    return path.exists() and time.time() - path.stat().st_mtime < grace_s


def _drop_revision(folder: Path, number: int) -> bool:
    """Remove a stale revision's files, the manifest first; False if a reader pins it."""
    manifest = folder / manifest_name(number)
    if manifest.exists():
        try:
            with exclusive(manifest):
                (folder / MIRROR_NAME / manifest.name).unlink(missing_ok=True)
                manifest.unlink()
        except BlockingIOError:
            return False
    for name in revision_files(number):
        for path in copy_paths(folder, name):
            path.unlink(missing_ok=True)
    fsync_folder(folder)
    return True


def _orphans(folder: Path, needed: set[Unit], grace_s: float) -> tuple[list[Path], list[int], int]:
    """Return shards that no needed unit owns and that are old enough, their sizes, and the number of younger ones."""
    files, sizes, num_young = [], [], 0
    for (group, array), shards in shard_sizes(folder).items():
        for name, size in shards.items():
            path = array_folder(folder, group, array) / name
            if Unit(int(name.split(".")[1]), group) in needed:
                continue
            if _is_young(path, grace_s):
                num_young += 1
                continue
            files.append(path)
            sizes.append(size)
    return files, sizes, num_young


def _compact(writer: StoreWriter) -> int:
    """Move the live rows of wasteful blocks into new, full blocks and publish; return the number of moved rows.

    Does nothing while a killed refresh has unpublished units, which would be lost. A killed move is resumed.
    """
    revision = writer.revision
    if revision is None or writer.damaged or not writer.has_only_moved_rows:
        return 0
    moved = frozenset(_wasteful_blocks(writer.folder, revision))
    if not moved:
        return 0
    plan = writer.plan(revision.index.drop(columns="row"), revision.groups, moved=moved)
    old, old_rows = StoreReader(writer.folder), revision.index.set_index("frame_id")["row"]
    for unit in plan.units:
        rows = plan.rows_in(unit.block)
        here = old_rows[rows["frame_id"]].to_numpy()
        values = {name: old.read_rows(name, here, group=unit.group) for name in revision.arrays}
        writer.write_unit(unit, rows, values)
    writer.publish(plan, provenance=revision.manifest["provenance"])
    return int((revision.index["row"] // revision.block_rows).isin(moved).sum())


def _wasteful_blocks(folder: Path, revision: Revision) -> Iterable[int]:
    """Yield each part's blocks with dead or many empty rows, if merging them saves bytes or blocks."""
    live = revision.index[revision.index["row"] != NO_ROW]
    per_block = live.groupby(live["row"] // revision.block_rows).agg(num=("row", "size"), part=("part", "first"))
    candidates = per_block[per_block["num"] < _FULL_ENOUGH * revision.block_rows]
    spec = min(revision.arrays.values(), key=lambda spec: spec.row_bytes)
    for _, blocks in candidates.groupby("part"):
        num_stored = sum(
            int(
                stored_slots(
                    shard_path(folder, Unit(block, revision.groups[0]), spec), block_rows=revision.block_rows
                ).sum()
            )
            for block in blocks.index
        )
        num_live = int(blocks["num"].sum())
        if num_live < num_stored or -(-num_live // revision.block_rows) < len(blocks):
            yield from blocks.index

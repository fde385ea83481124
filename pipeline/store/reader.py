"""Read rows of one pinned revision straight from the shards into the caller's buffers."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.errors import StoreError, StoreNotFoundError
from pipeline.store.plan import NO_ROW, Unit
from pipeline.store.revisions import pin_revision, read_fingerprint, shard_path
from pipeline.store.shards import ArraySpec, read_shard


class StoreReader:
    """One pinned revision of a store. Later refreshes do not change its values; threads may share it."""

    def __init__(self, folder: Path, *, revision: int | None = None) -> None:
        """Pin `revision`, or the newest. Raises `StoreError` if the folder has none."""
        self.folder = folder
        pinned, lock = pin_revision(folder, revision)
        self.document: dict[str, Any] = read_fingerprint(folder)
        if pinned is None:
            raise StoreNotFoundError(f"{folder} has no finished revision; run `fantrans refresh` to the end")
        if lock >= 0:
            weakref.finalize(self, os.close, lock)
        self._revision = pinned
        self._specs = pinned.arrays

    @property
    def revision(self) -> int:
        """Number of the pinned revision."""
        return self._revision.number

    @property
    def block_rows(self) -> int:
        """Rows per block, and so per shard."""
        return self._revision.block_rows

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups; each has all rows."""
        return self._revision.groups

    @property
    def manifest(self) -> dict[str, Any]:
        """Manifest of the revision: counts, arrays and provenance."""
        return dict(self._revision.manifest)

    @cached_property
    def listed(self) -> pd.DataFrame:
        """Every frame of the index, including those without values (row -1): frame_id, row, key and further columns."""
        return self._revision.index

    @cached_property
    def index(self) -> pd.DataFrame:
        """Frames with stored values, sorted by row."""
        return self.listed[self.listed["row"] != NO_ROW].reset_index(drop=True)

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the arrays in every group."""
        return tuple(self._specs)

    def spec(self, array: str) -> ArraySpec:
        """Return shape and dtype of an array's rows."""
        return self._specs[array]

    def read_rows(
        self, array: str, rows: Iterable[int] | np.ndarray, *, group: str = "", out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return an array's `rows` (n,) in the given order, (n, *row_shape); fills `out`, C-contiguous, if given.

        Verifies the checksum of each row. Raises `StoreError` for rows that are missing or damaged.
        """
        rows = np.asarray(rows, np.int64)
        spec = self.spec(array)
        if out is None:
            out = np.empty((len(rows), *spec.row_shape), spec.dtype)
        assert out.shape == (len(rows), *spec.row_shape), f"{array}: buffer {out.shape}"
        assert out.dtype == np.dtype(spec.dtype), f"{array}: buffer {out.dtype}"
        block_rows = self._revision.block_rows
        blocks, slots = np.divmod(rows, block_rows)
        for block in np.unique(blocks).tolist():
            at = np.flatnonzero(blocks == block)
            path = shard_path(self.folder, Unit(block, group), spec)
            try:
                read_shard(path, slots[at], spec=spec, block_rows=block_rows, out=out, at=at)
            except StoreError as error:
                raise type(error)(f"{self._frames_in(rows[at])}: {error}") from None
        return out

    def _frames_in(self, rows: np.ndarray) -> str:
        """Return one row's frame, or the first and the number of several rows' frames, for an error."""
        names = self.index.loc[self.index["row"].isin(rows), "frame_id"].tolist()
        if not names:
            return f"{len(rows)} dead rows"
        return f"frame {names[0]}" if len(names) == 1 else f"one of {len(names)} frames from {names[0]}"


def readable_rows(
    folder: Path, arrays: Iterable[ArraySpec], unit: Unit, slots: np.ndarray, *, block_rows: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return which `slots` (n,) of a unit are readable in every array, bool (n,), and their values by array name."""
    is_good = np.ones(len(slots), bool)
    values = {}
    for spec in arrays:
        values[spec.name] = np.zeros((len(slots), *spec.row_shape), spec.dtype)
        for i, slot in enumerate(slots):
            try:
                read_shard(
                    shard_path(folder, unit, spec),
                    np.array([slot]),
                    spec=spec,
                    block_rows=block_rows,
                    out=values[spec.name],
                    at=np.array([i]),
                )
            except StoreError:
                is_good[i] = False
    return is_good, values

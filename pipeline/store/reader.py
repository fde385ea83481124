"""Reading one pinned revision of a store: rows straight from the shards into the caller's buffers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.errors import CacheError
from pipeline.store.plan import NO_ROW
from pipeline.store.revisions import ARRAYS_NAME, METADATA_NAME, load_revision, read_fingerprint
from pipeline.store.shards import ArraySpec, read_array_metadata, read_shard, shard_name


class StoreReader:
    """One revision of a store. Later refreshes do not change what it reads; threads may share it."""

    def __init__(self, folder: Path, *, revision: int | None = None) -> None:
        """Pin `revision`, or the newest. Raises `CacheError` for a folder without one."""
        self.folder = folder
        self.document: dict[str, Any] = read_fingerprint(folder)
        pinned = load_revision(folder, revision)
        if pinned is None:
            raise CacheError(f"{folder} has no finished revision; run `fantrans refresh` to the end")
        self._revision = pinned
        self._specs: dict[tuple[str, str], ArraySpec] = {}

    @property
    def revision(self) -> int:
        """The pinned revision's number."""
        return self._revision.number

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups, each with all rows."""
        return self._revision.groups

    @property
    def manifest(self) -> dict[str, Any]:
        """The revision's counts and provenance."""
        return dict(self._revision.manifest)

    @cached_property
    def listed(self) -> pd.DataFrame:
        """Every frame of the index, also those with nothing stored (row -1): frame_id, row, key and further columns."""
        return self._revision.index

    @cached_property
    def index(self) -> pd.DataFrame:
        """Frames with stored values, by row."""
        return self.listed[self.listed["row"] != NO_ROW].reset_index(drop=True)

    def spec(self, array: str, *, group: str = "") -> ArraySpec:
        """Shape and dtype of an array's rows."""
        if (group, array) not in self._specs:
            path = self._array_folder(group, array) / METADATA_NAME
            if not path.is_file():
                raise CacheError(f"{path} is not there; run `fantrans refresh` to make {group or 'the store'} anew")
            self._specs[group, array] = read_array_metadata(path)
        return self._specs[group, array]

    def read_rows(
        self, array: str, rows: Iterable[int] | np.ndarray, *, group: str = "", out: np.ndarray | None = None
    ) -> np.ndarray:
        """Rows (n,) of an array in the order asked for, (n, *row_shape); `out`, C-contiguous of that shape, is filled.

        Each row is checked against its checksum. Raises `CacheError` for what is missing or damaged.
        """
        rows = np.asarray(rows, np.int64)
        spec = self.spec(array, group=group)
        if out is None:
            out = np.empty((len(rows), *spec.row_shape), spec.dtype)
        assert out.shape == (len(rows), *spec.row_shape), f"{array}: buffer {out.shape}"
        assert out.dtype == np.dtype(spec.dtype), f"{array}: buffer {out.dtype}"
        block_rows = self._revision.block_rows
        blocks, slots = np.divmod(rows, block_rows)
        for block in np.unique(blocks).tolist():
            at = np.flatnonzero(blocks == block)
            path = self._array_folder(group, array) / shard_name(spec, block)
            read_shard(path, slots[at], block_rows=block_rows, out=out, at=at)
        return out

    def _array_folder(self, group: str, array: str) -> Path:
        return self.folder / ARRAYS_NAME / group / array

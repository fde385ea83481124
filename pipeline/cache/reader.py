"""Reading a feature cache: one pinned revision, by rows and views. Loads no detector, no FAN and no Prefect."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.cache.codecs import Codec
from pipeline.cache.format import codec_in, view_group
from pipeline.errors import StoreError
from pipeline.store.fingerprint import fingerprint
from pipeline.store.reader import StoreReader
from pipeline.store.shards import ArraySpec


def open_cache(folder: Path, *, revision: int | None = None) -> CacheReader:
    """Pin a cache's newest revision, or the given one.

    Raises `StoreError`, one sentence, if `folder` holds no cache, or no such revision.
    """
    cache = CacheReader(folder, revision=revision)
    if cache.document.get("kind") != "features":
        raise StoreError(f"{folder} holds {cache.document.get('kind')}, not features; give a folder of the cache root")
    return cache


class CacheReader(StoreReader):
    """Features of one revision. Every view has the same rows."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the values."""
        return fingerprint(self.document)

    @property
    def num_views(self) -> int:
        """Views 0..n-1: clean, flipped, augmented."""
        return len(self.groups)

    @cached_property
    def codec(self) -> Codec:
        """How rows are encoded; `StoreError` if the file of its basis is missing or damaged."""
        return codec_in(self.folder)

    @property
    def num_channels(self) -> int:
        """Channels of lf, h1 and h2."""
        return self.codec.shapes["lf"][0]

    @property
    def map_size(self) -> int:
        """Rows, and columns, of every map."""
        return self.codec.shapes["lf"][1]

    @property
    def input_specs(self) -> tuple[ArraySpec, ...]:
        """Shape and dtype of a row of each array that `codec.decode` takes."""
        return tuple(self.spec(name) for name in self.codec.inputs)

    def rows(self, parts: Collection[str] | None = None) -> np.ndarray:
        """Rows, ascending, of the frames that were in `parts` at the refresh; all without."""
        index = self.index if parts is None else self.index[self.index["part"].isin(list(parts))]
        return index["row"].to_numpy()

    def read(
        self, rows: np.ndarray, *, view: int = 0, out: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Stored arrays (n, *row_shape) by name, in the order of `rows`; fills and returns `out` if given.

        `codec.decode` turns them into a head's input. Raises `StoreError` for an unknown view and for damage.
        """
        if view not in range(self.num_views):
            raise StoreError(
                f"{self.folder} has views 0 to {self.num_views - 1} in revision {self.revision}, not {view}; "
                f"run `fantrans refresh` with --views {view + 1}"
            )
        buffers = out or dict.fromkeys(self.codec.inputs)
        return {name: self.read_rows(name, rows, group=view_group(view), out=buffers[name]) for name in buffers}

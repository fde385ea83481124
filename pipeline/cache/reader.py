"""Read one pinned revision of a feature cache by rows and views. Imports no detector, FAN or Prefect."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.cache.codecs import Codec
from pipeline.cache.format import load_codec, view_group
from pipeline.errors import StoreError
from pipeline.store.hashing import hash_document
from pipeline.store.reader import StoreReader
from pipeline.store.shards import ArraySpec


def open_cache(folder: Path, *, revision: int | None = None) -> CacheReader:
    """Pin a cache's newest revision, or the given one, and return its reader.

    Raises `StoreError` if `folder` is not a feature cache, or does not have this revision.
    """
    cache = CacheReader(folder, revision=revision)
    if cache.document.get("kind") != "features":
        raise StoreError(f"{folder} holds {cache.document.get('kind')}, not features; pass a folder of the cache root")
    return cache


class CacheReader(StoreReader):
    """Features of one pinned revision. Every view has the same rows."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides stored values."""
        return hash_document(self.document)

    @property
    def num_views(self) -> int:
        """Number of views: clean, flipped, then augmented ones."""
        return len(self.groups)

    @cached_property
    def codec(self) -> Codec:
        """Codec of the rows; `StoreError` if the file of its basis is missing or damaged."""
        return load_codec(self.folder)

    @property
    def num_channels(self) -> int:
        """Number of channels of lf, h1 and h2."""
        return self.codec.shapes["lf"][0]

    @property
    def map_size(self) -> int:
        """Height and width of every map."""
        return self.codec.shapes["lf"][1]

    @property
    def input_specs(self) -> tuple[ArraySpec, ...]:
        """Specs of the arrays that `codec.decode` takes."""
        return tuple(self.spec(name) for name in self.codec.inputs)

    def rows(self, parts: Collection[str] | None = None) -> np.ndarray:
        """Return the rows, ascending, of the frames that were in `parts` at the refresh (default: all)."""
        index = self.index if parts is None else self.index[self.index["part"].isin(list(parts))]
        return index["row"].to_numpy()

    def read(
        self, rows: np.ndarray, *, view: int = 0, out: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Return stored arrays (n, *row_shape) by name, in the order of `rows`; fills `out` if given.

        `codec.decode` turns them into a head's input. Raises `StoreError` for an unknown view or damaged rows.
        """
        if view not in range(self.num_views):
            raise StoreError(
                f"{self.folder} has views 0 to {self.num_views - 1} in revision {self.revision}, not {view}; "
                f"run `fantrans refresh` with --views {view + 1}"
            )
        buffers = out or dict.fromkeys(self.codec.inputs)
        return {name: self.read_rows(name, rows, group=view_group(view), out=buffers[name]) for name in buffers}

"""Read features by row and view: of one pinned revision of a cache. Imports no detector, FAN or Prefect."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from pipeline.cache.codecs import Codec
from pipeline.cache.format import load_codec, view_group
from pipeline.errors import StoreError
from pipeline.store.hashing import hash_document
from pipeline.store.reader import StoreReader


class Features(Protocol):
    """Features of frames, as heads read them: from a cache (`CacheReader`), or computed each time (`LiveFeatures`)."""

    @property
    def folder(self) -> Path:
        """Folder of the store that they come from."""

    @property
    def revision(self) -> int:
        """Number of the store's pinned revision."""

    @property
    def document(self) -> dict[str, Any]:
        """Everything that decides the values."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the values."""

    @property
    def index(self) -> pd.DataFrame:
        """Frames with features, sorted by row: frame_id, row, key, part and more."""

    @property
    def index_sha256(self) -> str:
        """Hash of all listed frames with their rows."""

    @property
    def codec(self) -> Codec:
        """Codec of the rows."""

    @property
    def num_views(self) -> int:
        """Number of views: clean, flipped, then augmented ones. Every view has the same rows."""

    def read(
        self, rows: np.ndarray, *, view: int = 0, out: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Return the codec's arrays (n, *row_shape) by name, in the order of `rows`; fills `out` if given.

        `codec.decode` turns them into a head's input. Threads may call it. Raises `StoreError` for an unknown view or
        damaged rows.
        """


def open_cache(folder: Path, *, revision: int | None = None) -> CacheReader:
    """Pin a cache's newest revision, or the given one, and return its reader.

    Raises `StoreError` if `folder` is not a feature cache, or does not have this revision.
    """
    cache = CacheReader(folder, revision=revision)
    if cache.document.get("kind") != "features":
        raise StoreError(f"{folder} holds {cache.document.get('kind')}, not features; pass a folder of the cache root")
    return cache


class CacheReader(StoreReader):
    """The `Features` of one pinned revision of a cache."""

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
    def index_sha256(self) -> str:
        """Hash of the revision's index."""
        sha256: str = self.manifest["index"]["sha256"]
        return sha256

    def rows(self, parts: Collection[str] | None = None) -> np.ndarray:
        """Return the rows, ascending, of the frames that were in `parts` at the refresh (default: all)."""
        index = self.index if parts is None else self.index[self.index["part"].isin(list(parts))]
        return index["row"].to_numpy()

    def read(
        self, rows: np.ndarray, *, view: int = 0, out: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Return stored arrays, see `Features.read`."""
        if view not in range(self.num_views):
            raise StoreError(
                f"{self.folder} has views 0 to {self.num_views - 1} in revision {self.revision}, not {view}; "
                f"run `fantrans refresh` with --views {view + 1}"
            )
        buffers = out or dict.fromkeys(self.codec.inputs)
        return {name: self.read_rows(name, rows, group=view_group(view), out=buffers[name]) for name in buffers}

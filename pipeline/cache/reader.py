"""Reading a feature cache: one pinned revision, by rows and views. Loads no detector, no FAN and no Prefect."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.cache.format import FEATURES, view_group
from pipeline.errors import CacheError
from pipeline.fingerprint import fingerprint
from pipeline.store.reader import StoreReader
from pipeline.store.revisions import FINGERPRINT_NAME


def open_cache(folder: Path, *, revision: int | None = None) -> CacheReader:
    """Pin a cache's newest revision, or the given one.

    Raises `CacheError`, one sentence, if `folder` holds no cache, or no such revision.
    """
    cache = CacheReader(folder, revision=revision)
    if cache.document.get("kind") != "features":
        raise CacheError(f"{folder} holds {cache.document.get('kind')}, not features; give a folder of the cache root")
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

    @property
    def num_channels(self) -> int:
        """Channels of lf, h1 and h2."""
        return self.shapes["lf"][0]

    @property
    def map_size(self) -> int:
        """Rows, and columns, of every map."""
        return self.shapes["lf"][1]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape (C, H, W) of each stored array."""
        return {name: self.spec(name, group=self.groups[0]).row_shape for name in FEATURES}

    def rows(self, parts: Collection[str] | None = None) -> np.ndarray:
        """Rows, ascending, of the frames that were in `parts` at the refresh; all without."""
        index = self.index if parts is None else self.index[self.index["part"].isin(list(parts))]
        return index["row"].to_numpy()

    def read(
        self, rows: np.ndarray, *, view: int = 0, out: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Stored arrays by name, fp16 (n, C, H, W) in the order of `rows`; fills and returns `out` if given.

        `decode` turns them into a head's input. Raises `CacheError` for a view that is not there and for damage.
        """
        if view not in range(self.num_views):
            raise CacheError(
                f"{self.folder} has views 0 to {self.num_views - 1} in revision {self.revision}, not {view}; "
                f"run `fantrans refresh` with --views {view + 1}"
            )
        buffers = out or dict.fromkeys(FEATURES)
        return {name: self.read_rows(name, rows, group=view_group(view), out=buffers[name]) for name in FEATURES}


class CacheSummary(NamedTuple):
    """A line of `fantrans cache ls`."""

    fingerprint: str
    revision: int
    num_frames: int
    num_views: int
    megabytes: int
    weights: str
    profile: str


def list_caches(root: Path) -> list[CacheSummary]:
    """The caches below `root` that have a finished revision, by name."""
    summaries = []
    for path in sorted(root.glob(f"*/{FINGERPRINT_NAME}")):
        try:
            cache = open_cache(path.parent)
        except CacheError:
            continue  # a first refresh that has not finished
        features = cache.document["features"]
        summaries.append(CacheSummary(
            cache.fingerprint, cache.revision, cache.manifest["num_rows"], cache.num_views,
            round(cache.manifest["num_bytes"] / 1e6), f"FAN {features['width']} {features['sha256'][:8]}",
            features["profile"],
        ))
    return summaries

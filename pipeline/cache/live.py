"""Features that are computed from crops each time they are read: those of a cache of the same settings, without one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import pandas as pd

from pipeline.cache.build import CacheBuild
from pipeline.cache.codecs import Codec
from pipeline.cache.crops import CropReader
from pipeline.cache.prepare import cache_build, open_crops
from pipeline.cache.units import Extractor
from pipeline.catalog import Catalog
from pipeline.config import ExperimentConfig
from pipeline.errors import StoreError, StoreNotFoundError
from pipeline.faces.views import render_views
from pipeline.store.hashing import hash_document
from pipeline.store.plan import NO_ROW
from pipeline.store.revisions import table_bytes

Source = Literal["cache", "crops"]


def feature_opener(source: Source, device: str) -> Callable[..., LiveFeatures] | None:
    """Return what opens the features of a training: None for the cache; for crops, a FAN on `device` computes them."""
    return partial(open_live_features, device=device) if source == "crops" else None


def open_live_features(
    catalog: Catalog, dataset: str, experiment: ExperimentConfig, frames: pd.DataFrame, *, device: str
) -> LiveFeatures:
    """Open the features of an experiment; `StoreError` if the data set has no crops with its settings."""
    settings = experiment.cache
    try:
        crops = open_crops(settings, catalog, dataset=dataset)
    except StoreNotFoundError:
        raise StoreNotFoundError(
            f"{dataset} has no crops with the settings of {experiment.name}; run "
            f"`fantrans refresh {dataset} --experiment {experiment.refresh_args} --until crop`"
        ) from None
    return LiveFeatures(cache_build(settings, catalog, dataset=dataset, device=device), frames, crops)


class LiveFeatures:
    """The `Features` of a cache that need not exist: every read renders views of crops and runs the FAN.

    On a CPU, values, rows and hashes are those that a refresh of the cache would give, so heads and scores are equal.
    """

    def __init__(self, build: CacheBuild, frames: pd.DataFrame, crops: CropReader) -> None:
        """build: the cache and how it is computed. frames: frame_id, part."""
        listed = build.plan(frames, crops.listed).index
        self.folder: Path = crops.folder
        self.revision: int = crops.revision
        self.document: dict[str, Any] = dict(build.format.document)
        self.fingerprint = hash_document(self.document)
        self.index = listed[listed["row"] != NO_ROW].reset_index(drop=True)
        self.index_sha256 = hashlib.sha256(table_bytes(listed)).hexdigest()
        self.codec: Codec = build.codec
        self.num_views = build.views.num_views
        self._build, self._crops, self._one_at_a_time = build, crops, Lock()
        self._frame_by_row = self.index.set_index("row")["frame_id"]
        self._crop_by_frame = crops.index.set_index("frame_id")["row"]

    @cached_property
    def _extract(self) -> Extractor:
        return self._build.make_extractor()

    def read(
        self, rows: np.ndarray, *, view: int = 0, out: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Compute the arrays of rows, see `Features.read`; one call at a time uses all threads."""
        if view not in range(self.num_views):
            raise StoreError(f"the experiment has views 0 to {self.num_views - 1}, not {view}; raise `num_views`")
        frame_ids = self._frame_by_row.loc[np.asarray(rows)].tolist()
        crops = self._crops.read_crops(self._crop_by_frame.loc[frame_ids].to_numpy())
        images = render_views(crops, frame_ids, view=view, settings=self._build.views, view_px=self._build.view_px)
        with self._one_at_a_time:
            arrays = self._extract(images)
        if out is None:
            return {name: arrays[name] for name in self.codec.inputs}
        for name, values in out.items():
            values[...] = arrays[name]
        return dict(out)

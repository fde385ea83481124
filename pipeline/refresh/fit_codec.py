"""Fit the basis of the profile compact: without labels, on a recorded sample of a data set's faces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from dask.base import compute
from safetensors.numpy import save

from pipeline.cache.reader import CacheReader
from pipeline.cache.statistics import codec_moments
from pipeline.datasets import index as frames
from pipeline.errors import DataError
from pipeline.refresh.job import RefreshJob, cache_build, crop_reader, with_profile
from pipeline.runtime.atomic import write_bytes_atomically
from pipeline.runtime.progress import track
from pipeline.store.plan import NO_ROW

NUM_FRAMES = 96
NUM_VIEWS = 3
"""Views per frame: clean, flipped, augmented."""
COMPONENTS_FRAC = {"lf": 3 / 4, "hm_h1": 3 / 4, "hm_h2": 3 / 4}
"""Number of components over number of channels, by map; further components would be nearly all zero."""
STEP = 0.5
"""Quantiser step where each channel has rms 1; `benchmarks/fidelity.py` measures what it costs in bytes and F1."""


def fit_codec(job: RefreshJob, out: Path, *, num_frames: int = NUM_FRAMES) -> Path:
    """Fit the basis of the job's FAN on `num_frames` faces of its data set and write it to `out` (safetensors).

    The crops must exist (`fantrans refresh`). The sample's features are in a small cache of the profile exact, below
    the work folder. The file lists the sample's frames. Raises `DataError` for fewer than `num_frames` crops.
    """
    views = job.config.views.model_copy(update={"num_views": NUM_VIEWS})
    job = with_profile(replace(job, config=job.config.model_copy(update={"views": views})), "exact")
    table, crops = frames.read_index(job.work, dataset=job.dataset), crop_reader(job)
    sample = sample_frames(table, crops.listed, num_frames=num_frames)
    build = replace(cache_build(job), root=job.work / "codec-sample")
    with track("extract a sample", total=len(sample) * NUM_VIEWS, unit="views") as on_progress:
        cache = build.run(sample, crops, on_progress=on_progress)
    tensors = fit_basis(cache)
    names = sorted(cache.index["frame_id"])
    record: dict[str, object] = {
        "dataset": job.dataset,
        "fan_sha256": job.catalog.get_weights(job.config.features.weights).recorded_sha256(),
        "num_views": NUM_VIEWS,
        "frames": names,
    }
    metadata = {"sample": json.dumps(record)}  # a single key: safetensors writes several in no order
    write_bytes_atomically(out, save(tensors, metadata=metadata))
    return out


def sample_frames(table: pd.DataFrame, listed: pd.DataFrame, *, num_frames: int) -> pd.DataFrame:
    """Return the rows of `table` of `num_frames` frames with a crop, chosen by a hash of their names."""
    has_crop = set(listed.loc[listed["row"] != NO_ROW, "frame_id"])
    found = table[table["frame_id"].isin(has_crop)]
    if len(found) < num_frames:
        raise DataError(
            f"only {len(found)} frames have crops, and the basis is fitted on {num_frames}; "
            "ask for fewer with --frames, or refresh more of the data set first"
        )
    order = found["frame_id"].map(lambda name: hashlib.sha256(name.encode()).hexdigest())
    return found.loc[order.sort_values().index[:num_frames]].sort_index().reset_index(drop=True)


def fit_basis(cache: CacheReader, *, components_frac: Mapping[str, float] = COMPONENTS_FRAC) -> dict[str, np.ndarray]:
    """Return the tensors of a basis file from an exact cache: `{map}.vectors`, `.channel_rms`, `.step` per stored map.

    A map's channels are divided by their rms and projected on the leading eigenvectors of their second moments.
    """
    (moments,) = compute(codec_moments(cache, cache.rows(), views=range(cache.num_views)))
    tensors = {}
    for name, moment_CC in moments.items():
        rms_C = np.sqrt(np.maximum(np.diag(moment_CC), np.finfo(np.float32).tiny))
        _, vectors_CC = np.linalg.eigh(moment_CC / np.outer(rms_C, rms_C))
        num = max(1, round(len(rms_C) * components_frac[name]))
        vectors_CK = vectors_CC[:, ::-1][:, :num]
        signs_K = np.sign(np.take_along_axis(vectors_CK, np.abs(vectors_CK).argmax(0)[None], 0))
        tensors[f"{name}.vectors"] = np.ascontiguousarray(vectors_CK * signs_K, np.float32)
        tensors[f"{name}.channel_rms"] = rms_C.astype(np.float32)
        tensors[f"{name}.step"] = np.array(STEP, np.float32)
    return tensors

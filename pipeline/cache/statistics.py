"""Statistics of a cache, as Dask graphs over its Zarr arrays.

Each function returns lazy arrays; `dask.compute` runs them on local threads or on the active client's cluster.
"""

# N rows, A action units, C channels, H W rows and columns of a map
from __future__ import annotations

from collections.abc import Sequence

import dask.array as da
import numpy as np
import pandas as pd

from pipeline.cache.codecs import COMPACT_MAPS, HEATMAPS, RELATIVE_L2, SCALE
from pipeline.cache.format import view_group
from pipeline.cache.reader import CacheReader
from pipeline.store.revisions import ARRAYS_NAME
from pipeline.tables import UNKNOWN, au_column


def stored(cache: CacheReader, name: str, *, view: int, rows: np.ndarray) -> da.Array:
    """Return an array's `rows` (n,), ascending, as stored: one Dask chunk per shard."""
    group = view_group(view)
    shape = cache.spec(name).row_shape
    values = da.from_zarr(cache.folder / ARRAYS_NAME, component=f"{group}/{name}", chunks=(cache.block_rows, *shape))
    of_rows: da.Array = values[rows]
    return of_rows


def channels(cache: CacheReader, name: str, *, view: int, rows: np.ndarray) -> da.Array:
    """Return a map's channels or stored components, float32 (n, C, H, W)."""
    values: da.Array = stored(cache, name, view=view, rows=rows).astype(np.float32)
    if cache.codec.profile == "exact":
        return values
    of = cache.spec(SCALE).attributes["of"]
    if name not in of:
        return values
    widths = [cache.spec(each).row_shape[0] for each in of]
    first = sum(widths[: of.index(name)])
    scale = stored(cache, SCALE, view=view, rows=rows)[:, first : first + values.shape[1]]
    scaled: da.Array = values * scale[:, :, None, None]
    return scaled


def gated(cache: CacheReader, name: str, *, view: int, rows: np.ndarray) -> da.Array:
    """Return a map times the heatmaps' sum, which is rounded to fp16 as in the codecs."""
    hm = channels(cache, HEATMAPS, view=view, rows=rows).sum(1, keepdims=True).astype(np.float16).astype(np.float32)
    values: da.Array = channels(cache, name, view=view, rows=rows) * hm
    return values


def second_moments(maps: Sequence[da.Array]) -> da.Array:
    """Return E[x x'] over frames and positions of maps (n, C, H, W): float64 (C, C)."""
    num_positions = sum(each.shape[0] * each.shape[2] * each.shape[3] for each in maps)
    products = [da.tensordot(each, each, axes=((0, 2, 3), (0, 2, 3))).astype(np.float64) for each in maps]
    moments_CC: da.Array = sum(products[1:], products[0]) / num_positions
    return moments_CC


def channel_ranges(cache: CacheReader, *, view: int, rows: np.ndarray) -> dict[str, dict[str, da.Array]]:
    """Return min, max, mean and rms (C,) of each stored map's channels or components."""
    ranges = {}
    for name in cache.codec.inputs:
        if name == SCALE:
            continue
        values = channels(cache, name, view=view, rows=rows)
        axes = (0, 2, 3)
        ranges[name] = {
            "min": values.min(axes),
            "max": values.max(axes),
            "mean": values.mean(axes),
            "rms": da.sqrt((values**2).mean(axes)),
        }
    return ranges


def mean_relative_l2(cache: CacheReader, *, view: int, rows: np.ndarray) -> dict[str, da.Array]:
    """Return each map's relative L2 error, measured at encoding and averaged over rows; {} for the profile exact."""
    if cache.codec.profile == "exact":
        return {}
    errors = stored(cache, RELATIVE_L2, view=view, rows=rows)
    names = cache.spec(RELATIVE_L2).attributes["of"]
    return {name: errors[:, i].mean() for i, name in enumerate(names)}


def base_rates(frames: pd.DataFrame, aus: Sequence[int], *, chunk_rows: int = 65536) -> dict[str, da.Array]:
    """Return the percentage (A,) of positive among known labels, by part and for "all".

    frames: part, and labels in columns `au_01` etc.
    """
    labels_NA = da.from_array(frames[[au_column(au) for au in aus]].to_numpy(np.int8), chunks=(chunk_rows, len(aus)))
    parts = frames["part"].to_numpy()
    rates = {}
    for part in (*sorted(set(parts)), "all"):
        here = labels_NA if part == "all" else labels_NA[np.flatnonzero(parts == part)]
        rates[part] = (here == 1).sum(0) * 100.0 / da.maximum((here != UNKNOWN).sum(0), 1)
    return rates


def codec_moments(cache: CacheReader, rows: np.ndarray, *, views: Sequence[int]) -> dict[str, da.Array]:
    """Return `second_moments` of each map that the profile compact stores, from a cache of the profile exact."""
    assert cache.codec.profile == "exact"

    def maps(name: str) -> list[da.Array]:
        read = gated if name.startswith("hm_") else channels
        return [read(cache, name.removeprefix("hm_"), view=view, rows=rows) for view in views]

    return {name: second_moments(maps(name)) for name in COMPACT_MAPS}

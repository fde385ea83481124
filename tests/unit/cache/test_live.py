"""Features computed from crops are those that a refresh would store, under the same rows and hashes."""

import numpy as np
import pandas as pd
import pytest

from pipeline.cache.live import LiveFeatures
from pipeline.errors import StoreError
from tests.unit.small_cache import VIEWS, cache_build, make_boxes, make_cache, make_crops, make_frames, write_images


@pytest.fixture
def world(tmp_path):
    frames = make_frames()
    write_images(tmp_path / "raw", frames)
    return frames, make_crops(tmp_path, frames, make_boxes(frames))


def test_they_equal_those_of_a_cache_that_is_built_later(tmp_path, world):
    frames, crops = world
    live = LiveFeatures(cache_build(tmp_path), frames, crops)
    assert not (tmp_path / "cache").exists()
    cache = make_cache(tmp_path, frames, crops)
    pd.testing.assert_frame_equal(live.index, cache.index)
    assert (live.index_sha256, live.fingerprint, live.num_views) == (
        cache.index_sha256,
        cache.fingerprint,
        cache.num_views,
    )
    rows = live.index["row"].to_numpy()[[7, 0, 3]]
    for view in range(VIEWS.num_views):
        stored = cache.read(rows, view=view)
        out = {name: np.zeros_like(values) for name, values in stored.items()}
        for found in (live.read(rows, view=view), live.read(rows, view=view, out=out), out):
            assert found.keys() == stored.keys()
            for name, values in stored.items():
                np.testing.assert_array_equal(found[name], values)


def test_they_keep_the_rows_of_a_cache_that_exists(tmp_path, world):
    frames, crops = world
    make_cache(tmp_path, frames[8:], crops)
    cache = make_cache(tmp_path, frames, crops)
    live = LiveFeatures(cache_build(tmp_path), frames, crops)
    pd.testing.assert_frame_equal(live.index, cache.index)
    assert live.index_sha256 == cache.index_sha256


def test_a_view_beyond_those_of_the_experiment_is_refused(tmp_path, world):
    live = LiveFeatures(cache_build(tmp_path), *world)
    with pytest.raises(StoreError, match="has views 0 to 2, not 3"):
        live.read(np.array([0]), view=3)

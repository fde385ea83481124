import threading

import numpy as np
import pytest
import torch

from pipeline.cache.codecs import make_codec
from pipeline.config import ViewConfig
from pipeline.errors import CacheError, DataError
from pipeline.loader import CachedBatches
from tests.unit import small_cache
from tests.unit.small_cache import AUS, SHAPES, make_cache


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Frames of which one has no face, and a cache of four views."""
    folder = tmp_path_factory.mktemp("world")
    frames, boxes = small_cache.make_world(folder, num_frames=7)
    boxes.loc[5, "status"] = "no_face"
    crops = small_cache.make_crops(folder, frames, boxes)
    return frames, crops, make_cache(folder, frames, crops, views=ViewConfig(num_views=4))


def training(world, **more):
    frames, _, cache = world
    arguments = {"aus": AUS, "batch_size": 5, "is_training": True, "parts": ("P1", "P3"), **more}
    return CachedBatches(cache, frames, **arguments)


def evaluation(world, **more):
    frames, _, cache = world
    return CachedBatches(cache, frames, aus=AUS, batch_size=4, is_training=False, parts=["P2"], **more)


def assert_rows_belong_together(world, batch, *, view):
    """Features, labels and names of each place in a batch are of one frame."""
    frames, _, cache = world
    rows = cache.index.set_index("frame_id")["row"]
    labels = frames.set_index("frame_id")[["au_01", "au_02"]]
    for i, frame_id in enumerate(batch.frame_ids):
        stored = cache.read(rows.loc[[frame_id]].to_numpy(), view=view)
        for name in SHAPES:
            np.testing.assert_array_equal(batch.features[name][i].numpy(), stored[name][0])
        assert batch.labels_BA[i].tolist() == labels.loc[frame_id].tolist()


def test_an_epoch_gives_each_frame_of_the_parts_at_most_once_in_whole_batches(world):
    frames, _, _ = world
    batches = training(world)
    epoch = list(batches.epoch(0))
    assert batches.num_batches == len(epoch) == 27 // 5
    assert {len(batch.frame_ids) for batch in epoch} == {5}
    names = [frame_id for batch in epoch for frame_id in batch.frame_ids]
    assert len(set(names)) == len(names) == 25
    assert set(names) <= set(frames.loc[frames["part"].isin(["P1", "P3"]), "frame_id"])
    for batch in epoch:
        assert batch.labels_BA.dtype == torch.int8
        assert {name: (tuple(values.shape), values.dtype) for name, values in batch.features.items()} == {
            name: ((5, *shape), torch.float16) for name, shape in SHAPES.items()}
        assert_rows_belong_together(world, batch, view=2)


def test_epochs_read_the_augmented_views_in_turn(world):
    batches = training(world)
    assert [batches.view_of(epoch) for epoch in range(5)] == [2, 3, 2, 3, 2]
    for epoch in (1, 2):
        for batch in batches.epoch(epoch):
            assert_rows_belong_together(world, batch, view=2 + epoch % 2)


def test_views_beyond_the_experiments_are_not_read(world):
    frames, _, cache = world
    batches = CachedBatches(cache, frames, aus=AUS, batch_size=5, is_training=True, num_views=3)
    assert [batches.view_of(epoch) for epoch in range(3)] == [2, 2, 2]


def test_without_augmented_views_training_reads_the_clean_one(world, tmp_path):
    frames, crops, _ = world
    cache = make_cache(tmp_path, frames, crops, views=ViewConfig(num_views=2))
    batches = CachedBatches(cache, frames, aus=AUS, batch_size=8, is_training=True)
    assert [batches.view_of(epoch) for epoch in range(3)] == [0, 0, 0]
    assert_rows_belong_together((frames, crops, cache), next(batches.epoch(1)), view=0)


def test_order_depends_on_seed_and_epoch_and_on_nothing_else(world):
    def names(epoch, **more):
        return [frame_id for batch in training(world, **more).epoch(epoch) for frame_id in batch.frame_ids]

    first = names(0, seed=3)
    assert first == names(0, seed=3, num_threads=5, num_ahead=1)
    assert first != names(1, seed=3)
    assert first != names(0, seed=4)
    epochs = training(world, seed=3)
    list(epochs.epoch(0))
    assert [f for batch in epochs.epoch(1) for f in batch.frame_ids] == names(1, seed=3)


def test_shuffling_mixes_the_whole_window():
    """Mean distance of neighbours in a random order of n rows is n / 3."""
    batches = object.__new__(CachedBatches)
    batches._rows, batches._seed = np.arange(4096), 0
    order = batches._shuffled(0)
    assert sorted(order) == list(range(4096))
    np.testing.assert_allclose(np.abs(np.diff(order)).mean() / 4096, 1 / 3, atol=0.02)
    batches._rows = np.arange(3 * 4096)
    order = batches._shuffled(1)
    assert sorted(order) == list(range(3 * 4096))
    reach = np.ptp(order[:4096])
    assert reach > 2.9 * 4096  # a window holds runs from everywhere


def test_evaluation_reads_every_frame_of_the_view_in_a_fixed_order(world):
    frames, _, _ = world
    batches = evaluation(world, view=1)
    epoch = list(batches.epoch())
    names = [frame_id for batch in epoch for frame_id in batch.frame_ids]
    assert names == batches.frame_ids
    assert sorted(names) == sorted(frames.loc[frames["part"] == "P2", "frame_id"])
    assert [len(batch.frame_ids) for batch in epoch] == [4, 4, 4, 2]
    np.testing.assert_array_equal(torch.cat([batch.labels_BA for batch in epoch]).numpy(), batches.labels_NA)
    for batch in epoch:
        assert_rows_belong_together(world, batch, view=1)


def test_evaluation_never_reads_an_augmented_view(world):
    with pytest.raises(DataError, match="view 2 is an augmented one, and evaluation reads 0 or 1"):
        evaluation(world, view=2)


def test_frames_without_a_face_are_counted_as_missing(world):
    assert training(world).num_missing == 1  # row 5 is of subject F000, in P1
    assert evaluation(world).num_missing == 0


def test_labels_are_those_of_the_table_at_hand(world):
    frames, crops, cache = world
    relabelled = (frames.assign(au_01=-1), crops, cache)
    assert (training(relabelled).labels_NA[:, 0] == -1).all()
    assert sorted(np.unique(training(world).labels_NA)) == [-1, 0, 1]


def test_tensors_stay_as_they_are_when_the_buffers_are_reused(world):
    batches = training(world, num_ahead=1)
    kept, copies = [], []
    for batch in batches.epoch(0):
        kept.append(batch.features["lf"])
        copies.append(batch.features["lf"].clone())
    torch.testing.assert_close(kept, copies, rtol=0, atol=0)


def test_all_landmark_maps_are_summed(world, tmp_path):
    frames, crops, _ = world
    shapes = {**SHAPES, "hm": (68, 8, 8)}

    def extract(images):
        features = small_cache.extract(images)
        return features | {"hm": np.repeat(features["hm"] / np.float16(1024), 68, 1)}

    cache = make_cache(tmp_path, frames, crops, format=small_cache.make_format(shapes), extractor=extract,
                       codec=make_codec("exact", shapes), views=ViewConfig(num_views=2))
    batch = next(CachedBatches(cache, frames, aus=AUS, batch_size=8, is_training=False).epoch())
    assert batch.features["hm"].shape == (8, 1, 8, 8)
    stored = cache.read(cache.rows()[:8])["hm"].astype(np.float64).sum(1, keepdims=True)
    np.testing.assert_allclose(batch.features["hm"].numpy(), stored, rtol=1e-3)


def test_too_few_frames_for_a_batch_are_refused(world):
    with pytest.raises(CacheError, match="holds 27 of the 28 frames asked for, too few for one batch of 28"):
        training(world, batch_size=28)
    frames, _, cache = world
    with pytest.raises(CacheError, match="holds 0 of the 42 frames"):
        CachedBatches(cache, frames.assign(frame_id="x"), aus=AUS, batch_size=1, is_training=False)


def test_damage_reaches_the_consumer_and_threads_end_with_the_epoch(world, tmp_path):
    frames, crops, _ = world
    cache = make_cache(tmp_path, frames, crops)
    num_threads = threading.active_count()
    epoch = CachedBatches(cache, frames, aus=AUS, batch_size=4, is_training=False).epoch()
    next(epoch)
    epoch.close()
    assert threading.active_count() == num_threads
    (cache.folder / "arrays.zarr/view_00/h2/c.3.0.0.0").unlink()
    with pytest.raises(CacheError, match=r"view_00/h2/c.3.0.0.0 is not there"):
        list(CachedBatches(cache, frames, aus=AUS, batch_size=4, is_training=False).epoch())
    assert threading.active_count() == num_threads

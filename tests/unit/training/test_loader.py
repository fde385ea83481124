import threading

import numpy as np
import pytest
import torch

from pipeline.cache.codecs import make_codec
from pipeline.config import ViewConfig
from pipeline.errors import DataError, StoreError
from pipeline.training import loader
from pipeline.training.loader import CachedFrames, HeadBatches, TrainingPages, evaluation_batches, page_order
from tests.unit import small_cache
from tests.unit.small_cache import AUS, SHAPES, make_cache


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Frames of which one has no face, and a cache of four views."""
    folder = tmp_path_factory.mktemp("loader")
    frames, boxes = small_cache.make_world(folder, num_frames=7)
    boxes.loc[5, "status"] = "no_face"
    crops = small_cache.make_crops(folder, frames, boxes)
    return frames, crops, make_cache(folder, frames, crops, views=ViewConfig(num_views=4))


def training(world, *, parts=("P1", "P3"), read=("P1", "P3"), num_views=None, batch_size=5, seed=0):
    """Pages that read the parts `read`, and batches of `parts` out of them."""
    frames, _, cache = world
    pages = TrainingPages(cache, frames, parts=read, num_views=num_views)
    found = CachedFrames(cache, frames, aus=AUS, parts=parts, at_least=batch_size)
    return pages, HeadBatches(cache, found, batch_size=batch_size, seed=seed)


def epoch_of(made, number):
    pages, batches = made
    return [batch for page in pages.epochs(number, number + 1) for batch in batches.from_page(page)]


def names_of(batches):
    return [batch.frame_ids for batch in batches]


def flat(lists):
    return [each for one in lists for each in one]


def evaluation(world, *, batch_size=4, view=0, parts=("P2",)):
    frames, _, cache = world
    found = CachedFrames(cache, frames, aus=AUS, parts=parts)
    return found, list(evaluation_batches(cache, found, batch_size=batch_size, view=view))


@pytest.fixture
def small_pages(monkeypatch):
    """Pages of few rows, so that batches go over their ends."""
    monkeypatch.setattr(loader, "MAX_PAGE_ROWS", 8)
    monkeypatch.setattr(loader, "NEIGHBOUR_ROWS", 2)


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


@pytest.mark.usefixtures("small_pages")
def test_an_epoch_gives_each_frame_of_the_parts_at_most_once_in_whole_batches(world):
    frames, _, _ = world
    made = training(world)
    epoch = epoch_of(made, 0)
    assert made[1].num_batches == len(epoch) == 27 // 5
    names = flat(names_of(epoch))
    assert {len(batch.frame_ids) for batch in epoch} == {5}
    assert len(set(names)) == len(names) == 25
    assert set(names) <= set(frames.loc[frames["part"].isin(["P1", "P3"]), "frame_id"])
    for batch in epoch:
        assert batch.labels_BA.dtype == torch.int8
        assert {name: (tuple(values.shape), values.dtype) for name, values in batch.features.items()} == {
            name: ((5, *shape), torch.float16) for name, shape in SHAPES.items()
        }
        assert_rows_belong_together(world, batch, view=2)


def test_epochs_read_the_augmented_views_in_turn(world):
    made = training(world)
    assert [made[0].view_in(epoch) for epoch in range(5)] == [2, 3, 2, 3, 2]
    for epoch in (1, 2):
        for batch in epoch_of(made, epoch):
            assert_rows_belong_together(world, batch, view=2 + epoch % 2)


def test_views_beyond_the_experiments_are_not_read(world):
    pages, _ = training(world, num_views=3)
    assert [pages.view_in(epoch) for epoch in range(3)] == [2, 2, 2]


def test_without_augmented_views_training_reads_the_clean_one(world, tmp_path):
    frames, crops, _ = world
    cache = make_cache(tmp_path, frames, crops, views=ViewConfig(num_views=2))
    made = training((frames, crops, cache))
    assert [made[0].view_in(epoch) for epoch in range(3)] == [0, 0, 0]
    assert_rows_belong_together((frames, crops, cache), epoch_of(made, 1)[0], view=0)


@pytest.mark.usefixtures("small_pages")
def test_a_heads_batches_depend_on_seed_and_epoch_and_not_on_who_reads_along(world):
    first = names_of(epoch_of(training(world, seed=3), 0))
    assert first == names_of(epoch_of(training(world, seed=3, read=("P1", "P2", "P3")), 0))
    assert first != names_of(epoch_of(training(world, seed=3), 1))
    assert first != names_of(epoch_of(training(world, seed=4), 0))
    made = training(world, seed=3)
    epoch_of(made, 1)
    assert first == names_of(epoch_of(made, 0))


@pytest.mark.usefixtures("small_pages")
def test_one_reading_feeds_heads_of_all_folds(world, monkeypatch):
    _, _, cache = world
    read = []
    whole_read = type(cache).read

    def noted(self, rows, **more):
        read.extend(rows)
        return whole_read(self, rows, **more)

    monkeypatch.setattr(type(cache), "read", noted)
    heads = [training(world, parts=parts)[1] for parts in (("P1", "P2"), ("P2", "P3"), ("P1", "P3"))]
    pages, _ = training(world, read=("P1", "P2", "P3"))
    together = [[], [], []]
    for page in pages.epochs(0, 1):
        for head, seen in zip(heads, together, strict=True):
            seen.extend(head.from_page(page))
    assert sorted(read) == sorted(cache.rows())
    for parts, seen in zip((("P1", "P2"), ("P2", "P3"), ("P1", "P3")), together, strict=True):
        alone = epoch_of(training(world, parts=parts, read=parts), 0)
        assert names_of(seen) == names_of(alone)
        for ours, theirs in zip(seen, alone, strict=True):
            assert all(torch.equal(ours.features[name], theirs.features[name]) for name in SHAPES)


@pytest.mark.parametrize("num_rows", [1, 31, 512, 3000, 6 * 512])
def test_the_pages_of_an_epoch_hold_every_row_once(num_rows):
    pages = page_order(num_rows, epoch=1, page_rows=512)
    assert sorted(np.concatenate(pages)) == list(range(num_rows))
    assert [len(page) for page in pages[:-1]] == [512] * (len(pages) - 1)
    assert 0 < len(pages[-1]) <= 512


def test_a_page_holds_runs_of_neighbours_from_everywhere():
    num_rows = 6 * 512
    for page in page_order(num_rows, epoch=1, page_rows=512, neighbour_rows=32):
        assert np.ptp(page) > 0.6 * num_rows
        runs = page.reshape(-1, 32)
        assert (np.diff(runs, axis=1) == 1).all()
        assert (np.diff(runs[:, 0]) != 32).any()


def test_the_epoch_decides_the_order_of_the_pages():
    first, again, other = (np.concatenate(page_order(3000, epoch=epoch, page_rows=512)) for epoch in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_evaluation_reads_every_frame_of_the_view_in_a_fixed_order(world):
    frames, _, _ = world
    found, epoch = evaluation(world, view=1)
    names = flat(names_of(epoch))
    assert names == found.frame_ids
    assert sorted(names) == sorted(frames.loc[frames["part"] == "P2", "frame_id"])
    assert [len(batch.frame_ids) for batch in epoch] == [4, 4, 4, 2]
    np.testing.assert_array_equal(torch.cat([batch.labels_BA for batch in epoch]).numpy(), found.labels_NA)
    for batch in epoch:
        assert_rows_belong_together(world, batch, view=1)


def test_evaluation_never_reads_an_augmented_view(world):
    with pytest.raises(DataError, match="view 2 is augmented; evaluation reads view 0"):
        evaluation(world, view=2)


def test_frames_without_a_face_are_counted_as_missing(world):
    assert training(world)[1].frames.num_missing == 1  # row 5 is of subject F000, in P1
    assert evaluation(world)[0].num_missing == 0


def test_labels_are_those_of_the_table_at_hand(world):
    frames, crops, cache = world
    relabelled = (frames.assign(au_01=-1), crops, cache)
    assert (training(relabelled)[1].frames.labels_NA[:, 0] == -1).all()
    assert sorted(np.unique(training(world)[1].frames.labels_NA)) == [-1, 0, 1]


def test_all_landmark_maps_are_summed(world, tmp_path):
    frames, crops, _ = world
    shapes = {**SHAPES, "hm": (68, 8, 8)}

    def extract(images):
        features = small_cache.extract(images)
        return features | {"hm": np.repeat(features["hm"] / np.float16(1024), 68, 1)}

    cache = make_cache(
        tmp_path,
        frames,
        crops,
        format=small_cache.make_format(shapes),
        extractor=extract,
        codec=make_codec("exact", shapes),
        views=ViewConfig(num_views=2),
    )
    _, (batch, *_) = evaluation((frames, crops, cache), batch_size=8, parts=None)
    assert batch.features["hm"].shape == (8, 1, 8, 8)
    stored = cache.read(cache.rows()[:8])["hm"].astype(np.float64).sum(1, keepdims=True)
    np.testing.assert_allclose(batch.features["hm"].numpy(), stored, rtol=1e-3)


def test_too_few_frames_for_a_batch_are_refused(world):
    with pytest.raises(
        StoreError, match=r"has 27 of 28 frames.*, fewer than a batch of 28; run `fantrans refresh`, or lower"
    ):
        training(world, batch_size=28)
    frames, crops, cache = world
    with pytest.raises(StoreError, match="has 0 of 42 frames, fewer than a batch of 1"):
        evaluation((frames.assign(frame_id="x"), crops, cache), parts=None)


def test_damage_reaches_the_consumer_and_threads_end_with_the_epoch(world, tmp_path):
    frames, crops, _ = world
    cache = make_cache(tmp_path, frames, crops)
    num_threads = threading.active_count()
    found = CachedFrames(cache, frames, aus=AUS)
    batches = evaluation_batches(cache, found, batch_size=4)
    next(batches)
    batches.close()
    assert threading.active_count() == num_threads
    (cache.folder / "arrays.zarr/view_00/h2/c.3.0.0.0").unlink()
    with pytest.raises(StoreError, match=r"view_00/h2/c.3.0.0.0 does not exist"):
        list(evaluation_batches(cache, found, batch_size=4))
    assert threading.active_count() == num_threads


@pytest.mark.usefixtures("small_pages")
def test_shifted_batches_have_the_frames_and_labels_of_others_and_other_maps(world):
    pages, plain = training(world, batch_size=2)
    frames, _, cache = world
    found = CachedFrames(cache, frames, aus=AUS, parts=("P1", "P3"), at_least=2)
    moving = HeadBatches(cache, found, batch_size=2, seed=0, max_shift_cells=1)
    for epoch in (0, 1):
        ours, theirs, again = (epoch_of((pages, batches), epoch) for batches in (moving, plain, moving))
        assert names_of(ours) == names_of(theirs)
        assert all(torch.equal(a.labels_BA, b.labels_BA) for a, b in zip(ours, theirs, strict=True))
        assert all(torch.equal(a.features["lf"], b.features["lf"]) for a, b in zip(ours, again, strict=True))
        assert not all(torch.equal(a.features["lf"], b.features["lf"]) for a, b in zip(ours, theirs, strict=True))

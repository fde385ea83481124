"""Verify, repair, prune, and measure: maintenance of a cache between refreshes."""

import multiprocessing
import os
import time

import cv2
import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import zarr

from pipeline.cache import statistics
from pipeline.cache.codecs import make_codec
from pipeline.cache.crops import stored_crops_format
from pipeline.cache.format import features_format, stored_format
from pipeline.cache.reader import open_cache
from pipeline.config import ViewConfig
from pipeline.errors import StoreError
from pipeline.store.plan import NO_ROW, Unit
from pipeline.store.prune import prune_store
from pipeline.store.revisions import read_damage
from pipeline.store.verify import mark_damaged, verify_store
from tests.processes import make_process
from tests.unit import small_cache
from tests.unit.small_cache import AUS, BLOCK_ROWS, FORMAT, make_cache, make_crops, stored_bytes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Frames, crops, and a cache of them that no test changes."""
    folder = tmp_path_factory.mktemp("maintenance")
    frames, boxes = small_cache.make_world(folder)
    crops = make_crops(folder, frames, boxes)
    return frames, crops, make_cache(folder, frames, crops)


@pytest.fixture
def own(world, tmp_path):
    frames, crops, _ = world
    return make_cache(tmp_path, frames, crops)


def counting_extractor():
    seen = []

    def extractor(images):
        seen.append(len(images))
        return small_cache.extract(images)

    return extractor, seen


def all_values(cache):
    """Return the bytes of all values by frame, view and array."""
    names = cache.index["frame_id"].tolist()
    return {
        (name, view, array): values[i].tobytes()
        for view in range(cache.num_views)
        for array, values in cache.read(cache.rows(), view=view).items()
        for i, name in enumerate(names)
    }


# --- verify and repair


def damage(shard, kind):
    data = shard.read_bytes()
    if kind == "missing":
        shard.unlink()
    elif kind == "truncated":
        shard.write_bytes(data[:-30])
    elif kind == "a flipped bit in a row":
        shard.write_bytes(data[:7] + bytes([data[7] ^ 1]) + data[8:])
    else:
        shard.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


@pytest.mark.parametrize(
    ("kind", "is_found_shallow", "num_affected"),
    [
        ("missing", True, 4),
        ("truncated", True, 4),
        ("a flipped bit in a row", False, 1),
        ("a flipped bit in its index", False, 4),
    ],
)
def test_damage_is_located_and_only_its_frames_are_recomputed(
    world, own, tmp_path, kind, is_found_shallow, num_affected
):
    frames, crops, undisturbed = world
    assert verify_store(own.folder, is_deep=True) == []
    shard = own.folder / "arrays.zarr/view_01/h1/c.1.0.0.0"
    damage(shard, kind)
    assert bool(verify_store(own.folder, is_deep=False)) == is_found_shallow
    (found,) = verify_store(own.folder, is_deep=True)
    assert str(shard) in found.message
    assert found.unit == Unit(1, "view_01")
    rows = own.index.loc[own.index["row"] // BLOCK_ROWS == 1, "frame_id"]
    assert set(found.frame_ids) == set(rows[:num_affected])
    before = open_cache(own.folder)
    mark_damaged(own.folder, [found])
    extractor, seen = counting_extractor()
    make_cache(tmp_path, frames, crops, extractor=extractor)
    assert sum(seen) == num_affected  # the shard's other frames were kept
    assert stored_bytes(own.folder) == stored_bytes(undisturbed.folder)
    assert all_values(before) == all_values(undisturbed)
    assert read_damage(own.folder) == set()


def test_a_repair_keeps_rows_that_only_a_stale_revision_lists(world, tmp_path):
    frames, crops, _ = world
    first = make_cache(tmp_path, frames, crops)
    values = all_values(first)
    fewer = frames[frames["frame_id"] != first.index["frame_id"][1]]
    folder = make_cache(tmp_path, fewer, crops).folder
    shard = folder / "arrays.zarr/view_00/lf/c.0.0.0.0"
    intact = shard.read_bytes()
    damage(shard, "a flipped bit in a row")  # row 0; row 1 is dead
    mark_damaged(folder, verify_store(folder, is_deep=True))
    extractor, seen = counting_extractor()
    make_cache(tmp_path, fewer, crops, extractor=extractor)
    assert sum(seen) == 1
    assert shard.read_bytes() == intact
    assert all_values(first) == values


def test_damaged_crops_are_cut_again(world, tmp_path):
    frames, boxes = small_cache.make_world(tmp_path)
    crops = make_crops(tmp_path, frames, boxes)
    intact = stored_bytes(crops.folder)
    damage(crops.folder / "arrays.zarr/crops/c.1.0.0.0", "a flipped bit in a row")
    (found,) = verify_store(crops.folder, is_deep=True)
    assert found.frame_ids == (frames["frame_id"][4],)
    mark_damaged(crops.folder, [found])
    make_crops(tmp_path, frames, boxes)
    assert stored_bytes(crops.folder) == intact


# --- prune


def changed_twice(tmp_path, world):
    """A cache of three revisions: images replaced, frames removed."""
    frames, boxes = small_cache.make_world(tmp_path)
    make_cache(tmp_path, frames, make_crops(tmp_path, frames, boxes))
    for number, file in enumerate(frames["source_file"][:9]):
        cv2.imwrite(str(tmp_path / "raw" / file), small_cache.draw_image(5000 + number))
    make_cache(tmp_path, frames, make_crops(tmp_path, frames, boxes))
    frames, boxes = frames[3:].reset_index(drop=True), boxes[3:].reset_index(drop=True)
    crops = make_crops(tmp_path, frames, boxes)
    return frames, crops, make_cache(tmp_path, frames, crops)


def test_prune_frees_dead_rows_and_stale_revisions_and_keeps_every_value(world, tmp_path):
    frames, crops, cache = changed_twice(tmp_path, world)
    values, folder = all_values(cache), cache.folder
    size = sum(path.stat().st_size for path in folder.rglob("c.*"))
    del cache
    first = prune_store(folder, FORMAT, grace_s=3600)
    assert (first.num_files, first.num_revisions) == (0, 0)
    assert first.num_moved_rows > 0
    assert first.num_young >= 3
    second = prune_store(folder, FORMAT, grace_s=0)
    assert second.num_revisions == 3
    assert second.num_bytes > 0.25 * size
    after = open_cache(folder)
    assert after.revision == 4
    assert all_values(after) == values
    rows = after.index["row"]
    full = rows.groupby(rows // BLOCK_ROWS).size()
    part_by_block = after.index.groupby(rows // BLOCK_ROWS)["part"].first()
    assert (full < 0.75 * BLOCK_ROWS).groupby(part_by_block).sum().max() <= 1
    assert verify_store(folder, is_deep=True) == []
    assert {int(path.name.split(".")[1]) for path in folder.rglob("c.*")} == set(full.index)
    assert str(prune_store(folder, FORMAT, grace_s=0)) == "freed 0.0 MB in 0 files, 0 revisions; moved 0 rows"
    make_cache(tmp_path, frames, crops, extractor=lambda images: pytest.fail("computed although nothing was missing"))
    assert open_cache(folder).revision == 4


def read_at_a_signal(folder, connection):
    """In a process of its own: open a cache, and read all of it at a signal."""
    cache = open_cache(folder)
    connection.send("open")
    connection.recv()
    for view in range(3):
        cache.read(cache.rows(), view=view)
    connection.send(len(cache.index))


def test_prune_keeps_what_a_reader_pins(world, tmp_path):
    frames, boxes = small_cache.make_world(tmp_path)
    folder = make_cache(tmp_path, frames, make_crops(tmp_path, frames, boxes)).folder
    here, there = multiprocessing.Pipe()
    reader = make_process(target=read_at_a_signal, args=(folder, there))
    reader.start()
    assert here.recv() == "open"
    fewer, boxes = frames[12:].reset_index(drop=True), boxes[12:].reset_index(drop=True)
    make_cache(tmp_path, fewer, make_crops(tmp_path, fewer, boxes))
    kept = prune_store(folder, FORMAT, grace_s=0)
    assert kept.num_pinned == 1
    assert "1 pinned by readers" in str(kept)
    here.send("read")
    assert here.recv() == 30
    reader.join()
    assert reader.exitcode == 0
    freed = prune_store(folder, FORMAT, grace_s=0)
    assert freed.num_pinned == 0
    assert freed.num_revisions >= 1
    with pytest.raises(StoreError, match="has no revision 1"):
        open_cache(folder, revision=1)


def test_files_are_young_after_the_clock_was_set_back(world, tmp_path):
    _, _, cache = changed_twice(tmp_path, world)
    folder, values = cache.folder, all_values(cache)
    for path in folder.rglob("*"):
        os.utime(path, (time.time() + 86400,) * 2)
    done = prune_store(folder, FORMAT, grace_s=60)
    assert (done.num_files, done.num_revisions) == (0, 0)
    assert "too young" in str(done)
    assert all_values(open_cache(folder)) == values


def test_prune_keeps_the_finished_units_of_a_killed_refresh(world, tmp_path):
    frames, crops, _ = world
    make_cache(tmp_path, frames.iloc[::2], crops)
    finished = 0

    def extract_then_die(images):
        nonlocal finished
        finished += 1
        if finished > 3:
            raise KeyboardInterrupt
        return small_cache.extract(images)

    with pytest.raises(KeyboardInterrupt):
        make_cache(tmp_path, frames, crops, extractor=extract_then_die)
    done = prune_store(tmp_path / "cache" / FORMAT.folder_in(tmp_path).name, FORMAT, grace_s=0)
    assert (done.num_files, done.num_moved_rows) == (0, 0)
    extractor, seen = counting_extractor()
    cache = make_cache(tmp_path, frames, crops, extractor=extractor)
    assert sum(seen) <= 15 * 3 - 2 * 2  # at least two finished units were reused
    assert verify_store(cache.folder, is_deep=True) == []


def test_crops_are_pruned_too(world, tmp_path):
    _, crops, cache = changed_twice(tmp_path, world)
    folder = crops.folder
    before = {
        name: crops.read_crops(crops.index.loc[[i], "row"])[0].tobytes()
        for i, name in enumerate(crops.index["frame_id"])
    }
    del crops
    for _ in range(2):
        prune_store(folder, stored_crops_format(folder), grace_s=0)
    after = type(cache).__bases__[0](folder)
    assert after.revision == 4
    for row, name in zip(after.index["row"], after.index["frame_id"], strict=True):
        assert after.read_rows("crops", [row])[0].tobytes() == before[name]


# --- other readers


def test_xarray_and_dask_read_a_cache_without_this_package(world):
    _, _, cache = world
    rows = cache.rows()
    expected = cache.read(rows, view=1)
    place = cache.folder / "arrays.zarr"
    lazy = da.from_zarr(place, component="view_01/h1")
    np.testing.assert_array_equal(lazy[rows].compute(), expected["h1"])
    dataset = xr.open_zarr(place, group="view_01", consolidated=False)
    assert dataset["h1"].dims == ("row", "h1_channel", "y", "x")
    np.testing.assert_array_equal(dataset["h1"].isel(row=rows).to_numpy(), expected["h1"])
    index = pd.read_parquet(cache.folder / "index-000001.parquet")
    assert index.loc[index["row"] != NO_ROW, "frame_id"].tolist() == cache.index["frame_id"].tolist()
    assert zarr.open(place, mode="r").attrs["kind"] == "features"


# --- statistics


def test_statistics_match_the_stored_values(world):
    frames, _, cache = world
    rows = cache.rows()
    graphs = statistics.base_rates(frames, AUS), statistics.channel_ranges(cache, view=0, rows=rows)
    rates, ranges = dask.compute(*graphs)
    stored = cache.read(rows)
    for name, each in ranges.items():
        values = stored[name].astype(np.float32)
        np.testing.assert_allclose(each["min"], values.min((0, 2, 3)))
        np.testing.assert_allclose(each["max"], values.max((0, 2, 3)))
        np.testing.assert_allclose(each["mean"], values.mean((0, 2, 3)), rtol=1e-5)
    known = frames["au_02"][frames["au_02"] >= 0]
    assert rates["all"][1] == pytest.approx(100 * (known == 1).mean())
    moments = dask.compute(statistics.codec_moments(cache, rows, views=[0, 1]))[0]
    both = np.concatenate([cache.read(rows, view=view)["lf"] for view in (0, 1)]).astype(np.float64)
    np.testing.assert_allclose(moments["lf"], np.einsum("nchw,ndhw->cd", both, both) / (both.size / 4), rtol=1e-5)


def test_stored_formats_are_those_of_the_writer(world):
    _, crops, cache = world
    assert stored_format(cache.folder).arrays == FORMAT.arrays
    assert stored_crops_format(crops.folder).arrays == small_cache.CROPS_FORMAT.arrays


def test_another_profile_is_encoded_from_an_exact_cache_without_the_fan(world, tmp_path):
    frames, crops, exact = world
    codec = make_codec("standard", small_cache.SHAPES)
    format = features_format(small_cache.features_document(profile="standard"), codec, block_rows=BLOCK_ROWS)

    seen = []

    def encoding(images):
        seen.append(len(images))
        maps = {name: torch.from_numpy(values) for name, values in small_cache.extract(images).items()}
        return {name: values.numpy() for name, values in codec.encode(maps).items()}

    extracted = make_cache(tmp_path / "a", frames, crops, format=format, codec=codec, extractor=encoding)
    assert sum(seen) == 3 * 30
    seen.clear()
    derived = make_cache(
        tmp_path / "b",
        frames,
        crops,
        format=format,
        codec=codec,
        exact=exact.folder,
        extractor=lambda images: pytest.fail("the FAN was run"),
    )
    assert stored_bytes(derived.folder) == stored_bytes(extracted.folder)
    four = make_cache(
        tmp_path / "b",
        frames,
        crops,
        format=format,
        codec=codec,
        exact=exact.folder,
        views=ViewConfig(num_views=4),
        extractor=encoding,
    )
    assert four.num_views == 4
    assert sum(seen) == 30  # the view that the exact cache lacks
    fidelity = derived.manifest["provenance"]["fidelity"]
    assert set(fidelity["relative_l2"]) == {"lf", "h1", "h2"}
    assert 0 < fidelity["relative_l2"]["lf"] < 0.01

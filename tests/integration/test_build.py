import errno
import hashlib
import os
import random
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import zarr

from pipeline.cache.codecs import make_codec
from pipeline.cache.format import CODEC_NAME, features_format, view_group
from pipeline.cache.reader import open_cache
from pipeline.config import ViewConfig
from pipeline.errors import DataError, StoreError, WriteError
from pipeline.faces.views import render_view, view_params
from pipeline.store import writer as store_writer
from pipeline.store.mirror import read_sealed_json, sealed_json
from pipeline.store.shards import stage_shard
from pipeline.store.verify import verify_store
from pipeline.store.writer import open_writer
from tests.processes import make_process
from tests.steps import kind_of
from tests.unit import small_cache
from tests.unit.cache.test_codecs import random_basis
from tests.unit.small_cache import BLOCK_ROWS, FORMAT, SHAPES, VIEWS, cache_build, make_cache, make_frames, stored_bytes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Frames, crops, and a cache of them of an undisturbed refresh."""
    folder = tmp_path_factory.mktemp("build")
    frames, boxes = small_cache.make_world(folder)
    crops = small_cache.make_crops(folder, frames, boxes)
    return frames, crops, make_cache(folder, frames, crops)


def no_extractor(images):
    raise AssertionError("computed although nothing was missing")


def expected_features(crops, frame_id, view):
    row = crops.index.set_index("frame_id").loc[[frame_id], "row"]
    image = render_view(crops.read_crops(row)[0], view_params(frame_id, view, VIEWS), view_px=small_cache.CROP.size_px)
    return {name: values[0] for name, values in small_cache.extract(image[None]).items()}


def test_every_frame_has_its_own_features_in_every_view(world):
    frames, crops, cache = world
    assert sorted(cache.index["frame_id"]) == sorted(frames["frame_id"])
    assert (cache.num_views, cache.codec.num_channels, cache.codec.map_size, cache.revision) == (3, 4, 8, 1)
    some = cache.index.iloc[[20, 3, 11]]
    for view in range(3):
        found = cache.read(some["row"].to_numpy(), view=view)
        for i, frame_id in enumerate(some["frame_id"]):
            for name, values in expected_features(crops, frame_id, view).items():
                np.testing.assert_array_equal(found[name][i], values)


def test_zarr_opens_a_cache(world):
    _, _, cache = world
    root = zarr.open(cache.folder / "arrays.zarr", mode="r")
    assert sorted(root.group_keys()) == ["view_00", "view_01", "view_02"]
    assert root.attrs["kind"] == "features"
    for view in range(3):
        group = root[view_group(view)]
        assert group.attrs["view"] == view
        stored = cache.read(cache.rows(), view=view)
        for name, shape in SHAPES.items():
            array = group[name]
            assert array.chunks == (1, *shape)
            assert array.shards == (BLOCK_ROWS, *shape)
            assert array.metadata.dimension_names == ("row", f"{name}_channel", "y", "x")
            np.testing.assert_array_equal(array[:][cache.rows()], stored[name])
            empty = np.setdiff1d(np.arange(array.shape[0]), cache.rows())
            assert np.isnan(array[:][empty]).all()
        params = [view_params(frame_id, view, VIEWS).as_row() for frame_id in cache.index["frame_id"]]
        np.testing.assert_array_equal(group["params"][:][cache.rows()], params)


def test_shards_have_the_bytes_that_zarr_writes(world, tmp_path):
    _, _, cache = world
    group = zarr.open(cache.folder / "arrays.zarr", mode="r")["view_02"]
    copy = zarr.create_array(
        tmp_path / "copy",
        shape=group["h1"].shape,
        chunks=group["h1"].chunks,
        shards=group["h1"].shards,
        dtype="float16",
        compressors=[zarr.codecs.Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    copy[:BLOCK_ROWS] = group["h1"][:BLOCK_ROWS]
    name = "c.0.0.0.0"
    assert (tmp_path / "copy" / name).read_bytes() == (cache.folder / "arrays.zarr/view_02/h1" / name).read_bytes()


def test_rows_are_shuffled_inside_parts_and_blocks_hold_one_part(world):
    frames, _, cache = world
    parts_in_block = cache.index.groupby(cache.index["row"] // BLOCK_ROWS)["part"].nunique()
    assert (parts_in_block == 1).all()
    order = {frame_id: i for i, frame_id in enumerate(frames["frame_id"])}
    for _, rows in cache.index.groupby("part"):
        distances = np.abs(np.diff([order[frame_id] for frame_id in rows["frame_id"]]))
        assert (distances == 1).mean() < 0.5
    assert set(cache.rows(["P2"])) == set(cache.index.loc[cache.index["part"] == "P2", "row"])


def test_a_second_refresh_does_nothing_even_with_changed_labels(world, tmp_path):
    frames, crops, cache = world
    before = stored_bytes(cache.folder)
    relabelled = frames.assign(au_01=1 - frames["au_01"])
    again = make_cache(cache.folder.parent.parent, relabelled, crops, extractor=no_extractor)
    assert again.revision == 1
    assert stored_bytes(cache.folder) == before


def test_the_plan_of_a_first_refresh_counts_frames_and_bytes(world, tmp_path):
    frames, crops, cache = world
    plan = cache_build(tmp_path / "elsewhere").plan(frames, crops.listed)
    assert (plan.num_kept, plan.num_computed, plan.num_dropped) == (0, 30, 0)
    assert plan.num_bytes == 30 * 3 * (13 * 64 * 2 + 5 * 8)
    assert not any(tmp_path.iterdir())
    done = cache_build(cache.folder.parents[1]).plan(frames, crops.listed)
    assert (done.num_kept, done.num_computed, done.num_bytes, done.is_new) == (30, 0, 0, False)


def test_frames_whose_disk_was_away_are_taken_up_again_without_computing(tmp_path):
    frames, boxes = small_cache.make_world(tmp_path)
    first = make_cache(tmp_path, frames, small_cache.make_crops(tmp_path, frames, boxes))
    before = {path: path.read_bytes() for path in tmp_path.rglob("c.*")}
    for subject in ("F000", "F001", "F002"):
        (tmp_path / "raw" / subject).rename(tmp_path / subject)
    half = make_cache(tmp_path, frames, small_cache.make_crops(tmp_path, frames, boxes))
    assert (len(first.index), len(half.index)) == (30, 15)
    for subject in ("F000", "F001", "F002"):
        (tmp_path / subject).rename(tmp_path / "raw" / subject)
    crops = small_cache.make_crops(tmp_path, frames, boxes)
    again = make_cache(tmp_path, frames, crops, extractor=no_extractor)
    assert again.index.equals(first.index)
    assert {path: path.read_bytes() for path in tmp_path.rglob("c.*")} == before
    assert [verify_store(folder, is_deep=True) for folder in (crops.folder, again.folder)] == [[], []]


def test_only_new_and_changed_frames_are_computed(tmp_path):
    frames, boxes = small_cache.make_world(tmp_path)
    early = frames["frame"] < 4
    first = make_cache(
        tmp_path,
        frames[early],
        small_cache.make_crops(tmp_path, frames[early].reset_index(drop=True), boxes[early].reset_index(drop=True)),
    )
    before = first.read(first.rows(), view=2)

    changed, moved, removed, added = "F000/T1/1", "F001/T1/2", "F002/T1/3", frames.loc[~early, "frame_id"].tolist()
    cv2.imwrite(str(tmp_path / "raw/F000/1.png"), small_cache.draw_image(1000))
    boxes.loc[boxes["frame_id"] == moved, "y2"] += 4
    frames, boxes = (table[table["frame_id"] != removed].reset_index(drop=True) for table in (frames, boxes))
    seen = 0

    def extractor(images):
        nonlocal seen
        seen += len(images)
        return small_cache.extract(images)

    crops = small_cache.make_crops(tmp_path, frames, boxes)
    second = make_cache(tmp_path, frames, crops, extractor=extractor)
    assert second.revision == 2
    assert seen == 3 * (len(added) + 2)
    assert sorted(second.index["frame_id"]) == sorted(frames["frame_id"])
    kept = set(second.index.merge(first.index, on=["frame_id", "row"])["frame_id"])
    assert set(frames["frame_id"]) - kept == {changed, moved, *added}
    for frame_id in (changed, moved, added[0], added[-1], "F000/T1/0"):
        found = second.read(second.index.loc[second.index["frame_id"] == frame_id, "row"].to_numpy(), view=2)
        np.testing.assert_array_equal(found["h2"][0], expected_features(crops, frame_id, 2)["h2"])

    for name, values in first.read(first.rows(), view=2).items():  # a reader keeps its pinned revision
        np.testing.assert_array_equal(values, before[name])
    assert open_cache(first.folder, revision=1).index.equals(first.index)


def test_more_views_are_added_to_the_same_cache(world, tmp_path):
    frames, crops, undisturbed = world
    two = make_cache(tmp_path, frames, crops, views=ViewConfig(num_views=2))
    three = make_cache(tmp_path, frames, crops)
    assert (two.num_views, three.num_views, three.revision) == (2, 3, 2)
    for view in range(3):
        for name, values in three.read(three.rows(), view=view).items():
            np.testing.assert_array_equal(values, undisturbed.read(undisturbed.rows(), view=view)[name])
    assert make_cache(tmp_path, frames, crops, views=ViewConfig(num_views=2), extractor=no_extractor).num_views == 3


def test_another_fingerprint_gets_its_own_folder_and_a_foreign_folder_is_refused(world, tmp_path):
    frames, crops, _ = world
    other = small_cache.make_format(fan="b")
    first = make_cache(tmp_path, frames, crops, views=ViewConfig(num_views=2))
    second = make_cache(tmp_path, frames, crops, format=other, views=ViewConfig(num_views=2))
    assert first.fingerprint == first.folder.name != second.folder.name
    second.folder.rename(tmp_path / "moved")
    first.folder.rename(second.folder)
    message = f"holds a store of fingerprint {first.fingerprint}, expected {second.fingerprint}"
    with pytest.raises(StoreError, match=message):
        make_cache(tmp_path, frames, crops, format=other)


def test_the_manifest_records_provenance(world, tmp_path):
    frames, crops, _ = world
    cache = make_cache(tmp_path, frames, crops, provenance={"device": "cpu"})
    provenance = cache.manifest["provenance"]
    assert provenance["device"] == "cpu"
    assert provenance["crops"] == {"folder": crops.folder.name, "revision": 1}
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    assert cache.manifest["num_bytes"] == sum(p.stat().st_size for p in cache.folder.rglob("c.*"))


def test_frames_without_crops_are_refused(world, tmp_path):
    _, crops, _ = world
    with pytest.raises(DataError, match=r"6 frames, such as F000/T1/5, have no crop; refresh the crops first"):
        make_cache(tmp_path, make_frames(num_frames=6), crops)


# --- kills


def test_a_refresh_killed_at_random_moments_ends_with_the_same_bytes(world, tmp_path):
    _, crops, undisturbed = world
    rng = random.Random(0)
    num_kills = 0
    while num_kills < 6:
        process = make_process(target=small_cache.refresh_slowly, args=(tmp_path, crops.folder, 0.05))
        process.start()
        process.join(rng.uniform(0.03, 0.25))
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        num_kills += 1
    assert num_kills >= 2
    finished = make_cache(tmp_path, make_frames(), crops)
    assert stored_bytes(finished.folder) == stored_bytes(undisturbed.folder)


SHARD = "rename shard"
JOURNAL = "rename journal/N.view_N.json"
MANIFEST = "rename mirror/manifest-N.json"
NUM_UNITS = 9 * 3  # blocks, views
REPEATED = (SHARD, JOURNAL, JOURNAL.replace("rename", "unlink"), "rename array/zarr.json", "rename view_N/zarr.json")
SINGLE = (
    "rename N/current.json",
    "rename arrays.zarr/zarr.json",
    *(f"rename {at}/{name}" for at in ("mirror", "N") for name in ("fingerprint.json", "manifest-N.json")),
    *(f"rename {at}/{name}" for at in ("mirror", "N") for name in ("index-N.parquet", "shards-N.parquet")),
    "unlink N/damage.json",
)


def refresh_and_die(folder, crops, kill_before):
    process = make_process(
        target=small_cache.refresh_watched, args=(folder, crops.folder), kwargs={"kill_before": kill_before}
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def steps(world, tmp_path_factory):
    """The changes of names of an undisturbed refresh, in their order."""
    _, crops, undisturbed = world
    place = tmp_path_factory.mktemp("traced")
    trace = place / "trace"
    process = make_process(target=small_cache.refresh_watched, args=(place, crops.folder), kwargs={"trace": trace})
    process.start()
    process.join()
    assert process.exitcode == 0
    folder = place / "cache" / undisturbed.folder.name
    assert stored_bytes(folder) == stored_bytes(undisturbed.folder)
    steps = trace.read_text().splitlines()
    names = [kind_of_step(step) for step in steps]
    assert names.count(SHARD) == NUM_UNITS * 5
    assert names.count(JOURNAL) == NUM_UNITS, "each unit is entered in the journal once"
    assert names.index(SHARD) < names.index(JOURNAL)
    return steps


def kind_of_step(step):
    """A step's kind; shards of all arrays are one, and so is the metadata of all arrays."""
    kind = re.sub(r"\w+/c\.N\.?.*", "shard", kind_of(step))
    return re.sub(r" (lf|hN|hm|params)/zarr", " array/zarr", kind)


def test_the_kinds_of_steps_at_which_refreshes_are_killed_are_all_that_change_a_file(steps):
    kinds = [kind for kind in map(kind_of_step, steps) if "/temp " not in kind]
    assert set(kinds) == {*REPEATED, *SINGLE}
    assert all(kinds.count(kind) == 1 for kind in SINGLE)


@pytest.mark.parametrize(
    ("kind", "at"),
    [*((kind, at) for kind in REPEATED for at in ("first", "middle", "last")), *((k, "only") for k in SINGLE)],
)
def test_a_refresh_killed_before_a_step_keeps_what_was_finished(world, steps, tmp_path, kind, at):
    """A unit is finished once its journal entry has its name; how many are is counted in the undisturbed refresh."""
    frames, crops, undisturbed = world
    places = [i for i, step in enumerate(steps) if kind_of_step(step) == kind]
    killed_at = {"first": places[0], "middle": places[len(places) // 2]}.get(at, places[-1])
    before = [kind_of_step(step) for step in steps[:killed_at]]
    refresh_and_die(tmp_path, crops, steps[killed_at])
    folder = tmp_path / "cache" / undisturbed.folder.name
    if MANIFEST in before:  # without a pointer, the newest whole manifest counts
        assert open_cache(folder).index.equals(undisturbed.index)
    else:
        with pytest.raises(StoreError):
            open_cache(folder)
    num_computed = 0

    def extractor(images):
        nonlocal num_computed
        num_computed += 1
        return small_cache.extract(images)

    finished = make_cache(tmp_path, frames, crops, extractor=extractor)
    assert num_computed == NUM_UNITS - before.count(JOURNAL)
    assert stored_bytes(finished.folder) == stored_bytes(undisturbed.folder)


@pytest.mark.parametrize("num_threads", [0, 1])
def test_other_blocks_are_kept_if_one_fails_and_a_rerun_computes_only_that(world, tmp_path, num_threads):
    frames, crops, undisturbed = world
    calls = tmp_path / "calls"
    with ThreadPoolExecutor(1) as pool:
        executor = pool if num_threads else None
        with pytest.raises(StoreError, match=r"1 of 9 blocks of .* failed \(block 1: out of memory\); the others"):
            make_cache(tmp_path, frames, crops, extractor=partial(extract_with_a_fault, calls, 4), executor=executor)
        with pytest.raises(StoreError):
            open_cache(FORMAT.folder_in(tmp_path / "cache"))
        calls.write_text("")
        repaired = partial(extract_with_a_fault, calls, 0)
        cache = make_cache(tmp_path, frames, crops, extractor=repaired, executor=executor)
    assert calls.stat().st_size == (3 if num_threads else 1), "views of the block that failed"
    assert stored_bytes(cache.folder) == stored_bytes(undisturbed.folder)


def test_a_full_disk_ends_the_refresh_and_leaves_no_temporary_files(world, tmp_path, monkeypatch):
    frames, crops, _ = world
    staged = []

    def stage_until_full(path, *arguments, **more):
        if len(staged) == 12:
            raise WriteError("the disk is full", errno.ENOSPC)
        staged.append(path)
        return stage_shard(path, *arguments, **more)

    monkeypatch.setattr(store_writer, "stage_shard", stage_until_full)
    with ThreadPoolExecutor(1) as pool, pytest.raises(WriteError, match="the disk is full"):
        make_cache(tmp_path, frames, crops, executor=pool)
    folder = FORMAT.folder_in(tmp_path / "cache")
    assert not list(folder.rglob(".tmp-*"))


def extract_with_a_fault(calls, at, images):
    """Extract, but fail at call number `at`; calls are counted in a file."""
    with calls.open("a") as file:
        file.write(".")
    if calls.stat().st_size == at:
        raise RuntimeError("out of memory")
    return small_cache.extract(images)


def test_a_killed_second_refresh_leaves_the_first_revision_and_resumes(world, tmp_path):
    frames, crops, undisturbed = world
    some = frames.iloc[::2]
    make_cache(tmp_path, some, crops)
    undisturbed_twice = tmp_path / "twice"
    make_cache(undisturbed_twice, some, crops)
    make_cache(undisturbed_twice, frames, crops)
    refresh_and_die(tmp_path, crops, f"{JOURNAL}#5")
    folder = tmp_path / "cache" / undisturbed.folder.name
    left = open_cache(folder)
    assert left.revision == 1
    assert sorted(left.index["frame_id"]) == sorted(some["frame_id"])
    left.read(left.rows(), view=2)
    assert make_cache(tmp_path, frames, crops).revision == 2
    assert stored_bytes(folder) == stored_bytes(undisturbed_twice / "cache" / folder.name)


def test_what_changed_between_a_kill_and_the_next_refresh_is_recomputed(world, tmp_path):
    frames, crops, _ = world
    refresh_and_die(tmp_path, crops, f"{JOURNAL}#15")
    fewer = frames.iloc[7:]
    finished = make_cache(tmp_path, fewer, crops)
    assert sorted(finished.index["frame_id"]) == sorted(fewer["frame_id"])
    for frame_id in fewer["frame_id"]:
        found = finished.read(finished.index.loc[finished.index["frame_id"] == frame_id, "row"].to_numpy(), view=1)
        np.testing.assert_array_equal(found["lf"][0], expected_features(crops, frame_id, 1)["lf"])


# --- writers


def test_the_second_of_two_writers_ends_with_an_error_that_names_the_first(world, tmp_path):
    frames, crops, undisturbed = world
    process = make_process(target=small_cache.refresh_slowly, args=(tmp_path, crops.folder, 0.1))
    process.start()
    folder = tmp_path / "cache" / undisturbed.folder.name
    while not list(folder.rglob("c.*")):
        time.sleep(0.01)
    message = f"is being written by process {process.pid} on {socket.gethostname()} since 20"
    with pytest.raises(StoreError, match=message):
        make_cache(tmp_path, frames, crops)
    process.kill()
    process.join()
    make_cache(tmp_path, frames, crops)  # the lock died with its holder
    assert stored_bytes(folder) == stored_bytes(undisturbed.folder)
    with (
        open_writer(folder, FORMAT),
        pytest.raises(StoreError, match=f"process {os.getpid()}"),
        open_writer(folder, FORMAT),
    ):
        pass


# --- damage


@pytest.fixture
def own_cache(world, tmp_path):
    frames, crops, _ = world
    return make_cache(tmp_path, frames, crops)


def test_the_error_names_a_missing_shard_and_the_next_refresh_repairs_it(world, own_cache, tmp_path):
    frames, crops, undisturbed = world
    shard = own_cache.folder / "arrays.zarr/view_01/h1/c.2.0.0.0"
    shard.unlink()
    with pytest.raises(StoreError) as caught:
        own_cache.read(own_cache.rows(), view=1)
    assert f": shard {shard} does not exist; run `fantrans cache verify --deep`, then the refresh" in str(caught.value)
    own_cache.read(own_cache.rows(), view=0)
    plan = cache_build(tmp_path).plan(frames, crops.listed)
    assert [(unit.block, unit.group) for unit in plan.units] == [(2, "view_01")]
    repaired = make_cache(tmp_path, frames, crops)
    for name, values in repaired.read(repaired.rows(), view=1).items():
        np.testing.assert_array_equal(values, undisturbed.read(undisturbed.rows(), view=1)[name])


def test_damaged_rows_and_truncated_shards_are_never_returned(own_cache):
    cache, shard = own_cache, own_cache.folder / "arrays.zarr/view_00/lf/c.0.0.0.0"
    intact = shard.read_bytes()
    row_bytes = 4 * 64 * 2 + 4
    shard.write_bytes(intact[: row_bytes + 7] + bytes([intact[row_bytes + 7] ^ 4]) + intact[row_bytes + 8 :])
    cache.read(np.array([0, 2]), view=0)
    with pytest.raises(StoreError, match=rf"row 1 of shard {shard} fails its checksum; run `fantrans cache verify"):
        cache.read(np.array([0, 1, 2]), view=0)
    for damaged in (intact[:-30], intact[:-20] + b"\xff" + intact[-19:], b""):
        shard.write_bytes(damaged)
        with pytest.raises(StoreError, match=rf"shard {shard} is cut short or its index is damaged"):
            cache.read(np.array([0]), view=0)


def flip_bit(path, *, at=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 4
    path.write_bytes(data)


SMALL_FILES = (
    "index-000001.parquet",
    "shards-000001.parquet",
    "manifest-000001.json",
    "current.json",
    "fingerprint.json",
    "arrays.zarr/zarr.json",
    "arrays.zarr/view_00/zarr.json",
    "arrays.zarr/view_00/lf/zarr.json",
)


@pytest.mark.parametrize("damage", [Path.unlink, flip_bit])
@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_missing_or_damaged_small_file_is_restored_without_computing(world, own_cache, tmp_path, name, damage):
    """Readers use the other copy; the next refresh restores the file and computes nothing."""
    frames, crops, undisturbed = world
    damage(own_cache.folder / name)
    found = open_cache(own_cache.folder)
    assert found.index.equals(undisturbed.index)
    for array, values in found.read(found.rows()).items():
        np.testing.assert_array_equal(values, undisturbed.read(undisturbed.rows())[array])
    make_cache(tmp_path, frames, crops, extractor=no_extractor)
    assert stored_bytes(own_cache.folder) == stored_bytes(undisturbed.folder)


@pytest.mark.parametrize("name", ["index-000001.parquet", "manifest-000001.json", "fingerprint.json"])
def test_a_table_that_is_damaged_in_both_copies_is_refused(own_cache, name):
    for at in (own_cache.folder, own_cache.folder / "mirror"):
        flip_bit(at / name)
    folder = own_cache.folder
    if name.startswith("manifest"):
        (folder / "current.json").write_bytes(sealed_json({"revision": 1}))
    message = rf"{folder / name} is damaged, and so is its copy in mirror/; restore one from a backup, or remove"
    with pytest.raises(StoreError, match=message):
        _ = open_cache(folder).index


def test_another_schema_is_refused(own_cache):
    folder = own_cache.folder
    document = read_sealed_json(folder / "manifest-000001.json")
    document.pop("crc32c")
    (folder / "manifest-000001.json").write_bytes(sealed_json({**document, "schema": 3}))
    with pytest.raises(StoreError, match="is written in schema 3, this version reads schema 2; use the version"):
        open_cache(folder)


def test_errors_name_unknown_views_revisions_and_folders(world, tmp_path):
    _, crops, cache = world
    with pytest.raises(StoreError, match="has views 0 to 2 in revision 1, not 3; run `fantrans refresh`"):
        cache.read(cache.rows(), view=3)
    with pytest.raises(StoreError, match="has no revision 7; its newest is 1"):
        open_cache(cache.folder, revision=7)
    with pytest.raises(StoreError, match="nowhere is not a store"):
        open_cache(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="holds crops, not features"):
        open_cache(crops.folder)


def test_a_row_that_was_never_stored_is_an_error(world):
    _, _, cache = world
    empty = np.setdiff1d(np.arange(12), cache.rows())[:1]
    with pytest.raises(StoreError, match=r"does not hold row 2; run `fantrans cache verify --deep`"):
        cache.read(empty)


def test_a_compact_cache_keeps_its_basis_and_a_refresh_restores_it(tmp_path):
    frames, boxes = small_cache.make_world(tmp_path, num_subjects=3, num_frames=1)
    crops = small_cache.make_crops(tmp_path, frames, boxes)
    basis = random_basis(SHAPES["lf"][0])
    codec = make_codec("compact", SHAPES, basis=basis)
    document = small_cache.features_document(SHAPES, profile="compact")
    document["features"]["codec"] = {"sha256": hashlib.sha256(basis).hexdigest()}

    def extractor(images):
        maps = {name: torch.from_numpy(values) for name, values in small_cache.extract(images).items()}
        return {name: values.numpy() for name, values in codec.encode(maps).items()}

    settings = {"format": features_format(document, codec, block_rows=BLOCK_ROWS), "codec": codec, "basis": basis}
    folder = make_cache(tmp_path, frames, crops, extractor=extractor, **settings).folder
    file = folder / CODEC_NAME
    assert file.read_bytes() == basis
    written = file.stat().st_mtime_ns
    make_cache(tmp_path, frames, crops, extractor=no_extractor, **settings)
    assert file.stat().st_mtime_ns == written
    assert not cache_build(tmp_path, **settings).plan(frames, crops.listed).is_new
    for damage in (b"half", None):
        file.unlink() if damage is None else file.write_bytes(damage)
        with pytest.raises(StoreError, match=r"codec\.safetensors is missing or damaged; run `fantrans refresh`"):
            open_cache(folder).codec.decode({})
        assert cache_build(tmp_path, **settings).plan(frames, crops.listed).is_new
        make_cache(tmp_path, frames, crops, extractor=no_extractor, **settings)
        assert file.read_bytes() == basis


@pytest.mark.parametrize("num_threads", [0, 1])
def test_progress_counts_every_view_and_names_a_block_when_it_is_complete(world, tmp_path, num_threads):
    frames, crops, _ = world
    calls = []
    with ThreadPoolExecutor(1) as pool:
        workers = {"workers": small_cache.ThreadWorkers(pool)} if num_threads else {}
        cache_build(tmp_path).run(frames, crops, on_progress=lambda *call: calls.append(call), **workers)
    assert sum(num for num, _ in calls) == len(frames) * VIEWS.num_views
    assert sorted(name for _, name in calls if name) == sorted(f"block {i}" for i in range(9))
    seen = {}
    for num, name in calls:
        seen[name] = seen.get(name, 0) + num
    assert num_threads == 0 or "" not in seen


def test_after_a_failed_commit_nothing_works_on_and_the_error_is_its_own(world, tmp_path, monkeypatch):
    frames, crops, undisturbed = world

    def fail(writer, unit):
        raise KeyError("a defect")

    before = set(threading.enumerate())
    with monkeypatch.context() as patch:
        patch.setattr(store_writer.StoreWriter, "commit_unit", fail)
        with pytest.raises(KeyError, match="a defect"):
            make_cache(tmp_path, frames, crops)
    assert set(threading.enumerate()) <= before
    assert stored_bytes(make_cache(tmp_path, frames, crops).folder) == stored_bytes(undisturbed.folder)

"""A frame whose key comes back takes its dead row again; whatever else happened, no frame gets another one's values."""

import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline.store.dead_rows import find_dead_rows
from pipeline.store.plan import Unit
from pipeline.store.prune import prune_store
from pipeline.store.reader import StoreReader
from pipeline.store.revisions import load_revision, write_damage
from pipeline.store.verify import mark_damaged, verify_store
from pipeline.store.writer import plan_store
from tests.unit.store.small_store import FORMAT, fill, make_wanted, values_for

ALL = make_wanted("abcdefghij").assign(key=list("qrstuvwxyz"))
HALF = ALL[:2]  # of block 0; the blocks 1 and 2 are dead


def assert_holds(folder, wanted, groups=("one",)):
    """The newest revision has exactly these frames, each with its own values in every group, and is intact."""
    reader = StoreReader(folder)
    assert sorted(reader.index["frame_id"]) == sorted(wanted["frame_id"])
    rows = reader.index["row"].to_numpy()
    for group in groups:
        for name, values in values_for(reader.index["key"]).items():
            np.testing.assert_array_equal(reader.read_rows(name, rows, group=group), values)
    assert verify_store(folder, is_deep=True) == []


def shards(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("c.*"))}


@pytest.fixture
def store(tmp_path):
    """Revision 1 has all frames, revision 2 has half of them."""
    fill(tmp_path, ALL)
    return fill(tmp_path, HALF)


def test_frames_that_come_back_are_listed_again_and_no_file_is_written_for_them(store):
    before, first = shards(store), StoreReader(store, revision=1)
    plan = plan_store(store, FORMAT, ALL, ["one"])
    assert (plan.units, plan.num_kept, plan.num_computed, plan.num_dropped) == ((), len(ALL), 0, 0)
    fill(store.parent, ALL)
    assert shards(store) == before
    assert StoreReader(store).index.equals(first.index)
    assert StoreReader(store).manifest["num_bytes"] == first.manifest["num_bytes"]
    assert_holds(store, ALL)


def test_after_a_prune_they_are_computed_again(store):
    prune_store(store, FORMAT, grace_s=0)
    assert plan_store(store, FORMAT, ALL, ["one"]).num_computed == len(ALL) - len(HALF)
    fill(store.parent, ALL)
    assert_holds(store, ALL)


def test_a_changed_frame_takes_no_dead_row_until_its_old_key_comes_back(store):
    changed = ALL.assign(key=["q", "r", "S", *ALL["key"][3:]])
    plan = plan_store(store, FORMAT, changed, ["one"])
    assert plan.num_computed == 1
    fill(store.parent, changed)
    assert_holds(store, changed)
    assert plan_store(store, FORMAT, ALL, ["one"]).units == ()


def test_rows_that_lack_a_later_group_are_computed_in_new_blocks(store):
    fill(store.parent, HALF, groups=("one", "two"))
    plan = plan_store(store, FORMAT, ALL, ["one", "two"])
    assert {unit.block for unit in plan.units} == {3, 4}
    fill(store.parent, ALL, groups=("one", "two"))
    assert_holds(store, ALL, ("one", "two"))


def test_no_file_of_an_older_revision_is_written_again(store):
    """A reader of revision 3 keeps its values while rows of revision 1, which lacks a group, come back."""
    fill(store.parent, ALL[4:6], groups=("one", "two"))
    reader = StoreReader(store)
    before = {name: reader.read_rows(name, reader.index["row"].to_numpy(), group="two") for name in reader.array_names}
    fill(store.parent, HALF, groups=("one", "two"))
    fill(store.parent, ALL, groups=("one", "two"))
    for name, values in before.items():
        found = reader.read_rows(name, reader.index["row"].to_numpy(), group="two")
        np.testing.assert_array_equal(found, values)
    assert_holds(store, ALL, ("one", "two"))


def test_a_killed_refresh_that_took_rows_again_resumes(store):
    more = pd.concat([ALL, make_wanted("klmnop").assign(key=list("ghijkl"))], ignore_index=True)
    fill(store.parent, more, num_units=1)
    plan = plan_store(store, FORMAT, more, ["one"])
    assert plan.units == (Unit(4, "one"),)
    fill(store.parent, more)
    assert_holds(store, more)


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_rows_in_a_missing_or_cut_shard_are_computed(store, change):
    change(next(store.glob("arrays.zarr/one/plain/c.1.*")))
    plan = plan_store(store, FORMAT, ALL, ["one"])
    assert plan.units == (Unit(3, "one"),)
    fill(store.parent, ALL)
    assert_holds(store, ALL)


def test_a_unit_that_was_repaired_without_its_dead_rows_lends_none(store):
    next(store.glob("arrays.zarr/one/plain/c.0.*")).unlink()
    mark_damaged(store, verify_store(store, is_deep=False))
    assert plan_store(store, FORMAT, ALL, ["one"]).units == (Unit(0, "one"), Unit(3, "one"))
    fill(store.parent, HALF)
    fill(store.parent, ALL)
    assert_holds(store, ALL)


def test_a_unit_whose_files_have_other_checksums_now_lends_none(store):
    """Its sizes on disk are those of the older revision; only the newest revision's record tells them apart."""
    newest = load_revision(store, 2)
    (unit,) = [unit for unit in newest.records if unit.block == 0]
    changed = {name: replace(file, crc32c=file.crc32c ^ 1) for name, file in newest.records[unit].items()}
    found, revived = find_dead_rows(newest, ALL[2:], ["one"], records={unit: changed}, damaged=())
    assert sorted(found["row"] // newest.block_rows) == [1, 1, 1, 1, 2, 2]
    assert unit not in revived


def test_a_unit_that_is_listed_as_damaged_lends_none(store):
    write_damage(store, [Unit(1, "one")])
    assert plan_store(store, FORMAT, ALL, ["one"]).units == (Unit(3, "one"),)


def test_a_damaged_older_revision_is_passed_over(store):
    for path in store.rglob("index-000001.parquet"):
        path.write_bytes(b"")
    assert plan_store(store, FORMAT, ALL, ["one"]).num_computed == len(ALL) - len(HALF)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_comes_and_goes_each_frame_has_its_own_values(tmp_path, seed):
    chance = random.Random(seed)
    folder, groups = FORMAT.folder_in(tmp_path), ["one"]
    num_computed = num_back = 0
    for _ in range(20):
        chosen = ALL[[chance.random() < 0.6 for _ in range(len(ALL))]]
        wanted = chosen.assign(key=[chance.choice(key + key.upper()) for key in chosen["key"]])
        if len(groups) < 3 and chance.random() < 0.05:
            groups.append("two" if len(groups) == 1 else "three")
        if chance.random() < 0.3:
            fill(tmp_path, wanted, groups=groups, num_units=chance.randrange(3))
        if chance.random() < 0.3:
            continue
        plan = plan_store(folder, FORMAT, wanted, groups)
        num_computed += plan.num_computed
        num_back += len(plan.revived)
        fill(tmp_path, wanted, groups=groups)
        assert_holds(folder, wanted, groups)
        if chance.random() < 0.1:
            prune_store(folder, FORMAT, grace_s=chance.choice([0, 3600]))
            assert_holds(folder, wanted, groups)
    assert num_computed > 0
    assert num_back > 0

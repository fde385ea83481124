import dataclasses

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.store.plan import Unit
from pipeline.store.reader import StoreReader
from pipeline.store.revisions import read_damage, write_damage
from pipeline.store.verify import verify_store
from pipeline.store.writer import open_writer, plan_store
from tests.unit.store.small_store import FORMAT, fill, make_wanted, values_for

WANTED = make_wanted("abcdef").assign(key=list("uvwxyz"))


def assert_holds(folder, wanted):
    """The store's newest revision has these frames, each with its own values."""
    reader = StoreReader(folder)
    assert sorted(reader.index["frame_id"]) == sorted(wanted["frame_id"])
    for name, values in values_for(reader.index["key"]).items():
        found = reader.read_rows(name, reader.index["row"].to_numpy(), group="one")
        np.testing.assert_array_equal(found, values)
    assert verify_store(folder, is_deep=True) == []


def test_units_that_were_finished_are_not_planned_again_and_the_next_writer_publishes_them(tmp_path):
    folder = fill(tmp_path, WANTED, num_units=1)
    with pytest.raises(StoreError):
        _ = StoreReader(folder).index
    plan = plan_store(folder, FORMAT, WANTED, ["one"])
    assert plan.units == (Unit(1, "one"),)
    fill(tmp_path, WANTED)
    assert_holds(folder, WANTED)
    assert not list((folder / "journal").iterdir())


def test_a_damaged_journal_entry_costs_its_unit_alone(tmp_path):
    folder = fill(tmp_path, WANTED, num_units=2)
    entry = folder / "journal" / "000000.one.json"
    entry.write_bytes(entry.read_bytes()[:-9])
    assert plan_store(folder, FORMAT, WANTED, ["one"]).units == (Unit(0, "one"),)
    fill(tmp_path, WANTED)
    assert_holds(folder, WANTED)


def test_a_finished_unit_that_lacks_a_row_of_its_block_is_written_again(tmp_path):
    """A killed refresh adds a group to fewer frames than the next one wants."""
    fill(tmp_path, WANTED)
    folder = fill(tmp_path, WANTED[1:4], groups=("one", "two"), num_units=1)
    plan = plan_store(folder, FORMAT, WANTED[2:], ["one", "two"])
    assert plan.units == (Unit(1, "two"),)
    plan = plan_store(folder, FORMAT, WANTED, ["one", "two"])
    assert plan.units == (Unit(0, "two"), Unit(1, "two"))
    fill(tmp_path, WANTED, groups=("one", "two"))
    assert_holds(folder, WANTED)
    reader = StoreReader(folder)
    found = reader.read_rows("plain", reader.index["row"].to_numpy(), group="two")
    np.testing.assert_array_equal(found, values_for(reader.index["key"])["plain"])


def test_units_of_another_block_size_are_not_reused(tmp_path):
    fill(tmp_path, WANTED, num_units=1)
    halved = dataclasses.replace(FORMAT, block_rows=2)
    assert plan_store(FORMAT.folder_in(tmp_path), halved, WANTED, ["one"]).num_computed == len(WANTED)
    assert_holds(fill(tmp_path, WANTED, format=halved), WANTED)


def test_a_published_store_keeps_its_block_size(tmp_path):
    fill(tmp_path, WANTED)
    doubled = dataclasses.replace(FORMAT, block_rows=8)
    more = make_wanted("abcdefgh").assign(key=list("uvwxyzst"))
    assert_holds(fill(tmp_path, more, format=doubled), more)
    assert StoreReader(FORMAT.folder_in(tmp_path)).manifest["block_rows"] == 4


def test_half_written_files_and_shards_that_nothing_names_are_removed(tmp_path):
    folder = fill(tmp_path, WANTED)
    array = folder / "arrays.zarr" / "one" / "plain"
    left = [array / ".tmp-00000000-c.5.0", array / "c.5.0", folder / ".tmp-00000000-current.json"]
    for path in left:
        path.write_bytes(b"half")
    with open_writer(folder, FORMAT):
        pass
    assert not any(path.exists() for path in left)
    assert_holds(folder, WANTED)


def test_a_unit_that_was_marked_damaged_is_written_again_once(tmp_path):
    folder = fill(tmp_path, WANTED)
    write_damage(folder, [Unit(1, "one")])
    assert plan_store(folder, FORMAT, WANTED, ["one"]).units == (Unit(1, "one"),)
    fill(tmp_path, WANTED)
    assert read_damage(folder) == set()
    assert plan_store(folder, FORMAT, WANTED, ["one"]).units == ()
    assert_holds(folder, WANTED)


def test_a_frame_without_values_leaves_the_index_and_is_listed(tmp_path):
    folder = FORMAT.folder_in(tmp_path)
    with open_writer(folder, FORMAT) as writer:
        plan = writer.plan(WANTED.assign(status="ok")[:3], ["one"])
        (unit,) = plan.units
        rows = plan.rows_in(unit.block)
        is_present = (rows["frame_id"] != "b").to_numpy()
        writer.write_unit(unit, rows, values_for(rows["key"][is_present]), is_present=is_present)
        writer.publish(plan, provenance={}, absent_as={"status": "unreadable"})
    assert_holds(folder, WANTED[WANTED["frame_id"].isin(["a", "c"])])
    listed = StoreReader(folder).listed.set_index("frame_id")
    assert listed.loc["b", ["row", "key", "status"]].tolist() == [-1, "", "unreadable"]

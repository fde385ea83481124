import pytest

from pipeline.errors import StoreError
from pipeline.store.plan import Unit
from pipeline.store.revisions import read_damage, shard_path
from pipeline.store.verify import mark_damaged, verify_store
from tests.unit.store.small_store import ARRAYS, fill, make_wanted


@pytest.fixture
def store(tmp_path):
    return fill(tmp_path, make_wanted("abcdef"), groups=("one", "two"))


def flip_bit(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_whole_store_has_no_damage_and_every_unit_is_looked_at(store):
    seen = []
    assert verify_store(store, is_deep=True, on_progress=seen.append) == []
    assert len(seen) == 4


def test_a_deep_look_finds_each_flipped_bit_and_names_the_frames_it_affects(store):
    flip_bit(shard_path(store, Unit(1, "two"), ARRAYS[0]), 0)
    assert verify_store(store, is_deep=False) == []
    (found,) = verify_store(store, is_deep=True)
    assert found.unit == Unit(1, "two")
    assert found.frame_ids == ("e",)
    assert "does not have the checksum that it was written with" in found.message


def test_a_shard_of_another_size_or_none_is_found_by_a_shallow_look(store):
    shard_path(store, Unit(0, "one"), ARRAYS[0]).unlink()
    cut = shard_path(store, Unit(1, "one"), ARRAYS[1])
    cut.write_bytes(cut.read_bytes()[:-1])
    missing, short = verify_store(store, is_deep=False)
    assert (missing.unit, missing.frame_ids) == (Unit(0, "one"), tuple("abcd"))
    assert missing.message.endswith("is missing")
    assert (short.unit, short.frame_ids) == (Unit(1, "one"), tuple("ef"))
    assert "bytes, expected" in short.message


def test_a_damaged_table_is_found_and_belongs_to_no_unit(store):
    flip_bit(store / "mirror" / "index-000001.parquet", 50)
    (found,) = verify_store(store, is_deep=False)
    assert (found.unit, found.frame_ids) == (None, ())
    mark_damaged(store, [found])
    assert not (store / "damage.json").exists()


def test_marked_units_are_those_that_were_found(store):
    for unit in (Unit(0, "two"), Unit(1, "one")):
        flip_bit(shard_path(store, unit, ARRAYS[0]), 0)
    mark_damaged(store, verify_store(store, is_deep=True))
    assert read_damage(store) == {Unit(0, "two"), Unit(1, "one")}


def test_a_store_without_a_revision_cannot_be_verified(tmp_path):
    with pytest.raises(StoreError, match="has no finished revision to verify; run `fantrans refresh`"):
        verify_store(tmp_path, is_deep=False)

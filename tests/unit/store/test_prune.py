import errno
import fcntl
import os
import time

import pytest

from pipeline.errors import LockError
from pipeline.store.prune import prune_store
from pipeline.store.reader import StoreReader
from pipeline.store.revisions import revision_numbers
from tests.unit.store.small_store import FORMAT, fill, make_wanted, values_for

HOUR_S = 3600.0


def set_age(paths, hours):
    then = time.time() - hours * HOUR_S
    for path in paths:
        os.utime(path, (then, then))


def shards(folder, block):
    """A block's files, one per array."""
    return sorted(folder.glob(f"arrays.zarr/*/*/c.{block}.*"))


@pytest.fixture
def store(tmp_path):
    """Revision 1 has block 0 (key a), revision 2 has block 1 (key b) alone; every file is two hours old."""
    fill(tmp_path, make_wanted("abcd", key="a"))
    folder = fill(tmp_path, make_wanted("abcd", key="b"))
    set_age((path for path in folder.rglob("*") if path.is_file()), 2)
    return folder


def test_old_orphans_go_and_what_the_newest_revision_needs_stays_however_old(store):
    done = prune_store(store, FORMAT, grace_s=HOUR_S)
    assert (done.num_revisions, done.num_files, done.num_young, done.num_pinned) == (1, 2, 0, 0)
    assert shards(store, 0) == []
    assert len(shards(store, 1)) == 2
    assert revision_numbers(store) == [2]
    reader = StoreReader(store)
    expected = values_for(reader.index["key"])
    for name, values in expected.items():
        assert (reader.read_rows(name, reader.index["row"].to_numpy(), group="one") == values).all()


def test_young_orphans_stay_while_old_ones_go(store):
    young, old = shards(store, 0)
    set_age([young], 0.5)
    done = prune_store(store, FORMAT, grace_s=HOUR_S)
    assert young.exists()
    assert not old.exists()
    assert (done.num_files, done.num_young) == (1, 1)
    set_age([young], 1.5)
    assert prune_store(store, FORMAT, grace_s=HOUR_S).num_files == 1
    assert not young.exists()


def test_a_young_stale_revision_stays_with_all_its_shards(store):
    set_age([store / "manifest-000001.json"], 0.5)
    done = prune_store(store, FORMAT, grace_s=HOUR_S)
    assert (done.num_revisions, done.num_files, done.num_young) == (0, 0, 1)
    assert len(shards(store, 0)) == 2
    reader = StoreReader(store, revision=1)
    assert len(reader.read_rows("plain", reader.index["row"].to_numpy(), group="one")) == 4


def test_a_revision_that_a_reader_holds_stays_with_all_its_shards(store):
    reader = StoreReader(store, revision=1)
    done = prune_store(store, FORMAT, grace_s=HOUR_S)
    assert (done.num_revisions, done.num_files, done.num_pinned) == (0, 0, 1)
    assert len(reader.read_rows("plain", reader.index["row"].to_numpy(), group="one")) == 4
    del reader
    assert prune_store(store, FORMAT, grace_s=HOUR_S).num_files == 2


def test_a_pin_in_another_folder_of_locks_keeps_a_revision_too_and_leaves_the_folder_alone(store, monkeypatch):
    monkeypatch.setenv("FANTRANS_LOCKS", str(store.parent / "locks"))
    reader = StoreReader(store, revision=1)
    assert prune_store(store, FORMAT, grace_s=HOUR_S).num_pinned == 1
    del reader
    assert prune_store(store, FORMAT, grace_s=HOUR_S).num_files == 2


def test_without_locks_the_grace_period_alone_keeps_what_is_read(store, monkeypatch):
    monkeypatch.setenv("FANTRANS_LOCKS", "none")
    reader = StoreReader(store, revision=1)
    assert prune_store(store, FORMAT, grace_s=3 * HOUR_S).num_young > 0
    assert len(reader.read_rows("plain", reader.index["row"].to_numpy(), group="one")) == 4
    assert prune_store(store, FORMAT, grace_s=HOUR_S).num_files == 2


def test_a_disk_without_locks_is_read_but_not_written(store, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert len(StoreReader(store).index) == 4
    with pytest.raises(LockError, match="cannot be locked: No locks available"):
        prune_store(store, FORMAT)

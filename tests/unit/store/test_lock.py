import json
import os
import socket

import pytest

from pipeline.errors import StoreError
from pipeline.store.lock import LOCK_NAME, exclusive, is_held, shared, writer_lock


def test_readers_share_and_keep_the_others_out(tmp_path):
    path = tmp_path / "manifest"
    assert not is_held(path)
    path.write_text("{}")
    path.chmod(0o444)
    assert not is_held(path)
    one, two = shared(path), shared(path)
    for descriptor in (one, two):
        assert is_held(path)
        with pytest.raises(BlockingIOError), exclusive(path, os.O_RDONLY):
            pass
        os.close(descriptor)
    assert not is_held(path)


def test_one_holds_alone_and_is_asked_about_without_being_disturbed(tmp_path):
    path = tmp_path / "manifest"
    path.touch()
    with exclusive(path):
        assert is_held(path)
        assert is_held(path)
        with pytest.raises(BlockingIOError), exclusive(path):
            pass
    assert not is_held(path)


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    folder = tmp_path / "store"
    with (
        writer_lock(folder),
        pytest.raises(StoreError, match=rf"being written by process {os.getpid()} on .+ since .+"),
        writer_lock(folder),
    ):
        pass
    with exclusive(folder / LOCK_NAME), pytest.raises(StoreError, match="another process"), writer_lock(folder):
        pass
    with writer_lock(folder):
        pass
    assert (folder / LOCK_NAME).read_bytes() == b""


def test_an_error_of_the_writer_is_its_own(tmp_path):
    with pytest.raises(BlockingIOError, match="mine"), writer_lock(tmp_path):
        raise BlockingIOError("mine")
    assert not is_held(tmp_path / LOCK_NAME)


def test_a_second_writer_is_refused_with_the_name_of_the_first(tmp_path):
    folder = tmp_path / "new" / "store"
    refused = f"store is being written by process {os.getpid()} on {socket.gethostname()} since 20.*; wait until"
    with writer_lock(folder), pytest.raises(StoreError, match=refused), writer_lock(folder):
        pytest.fail("two writers at once")


def test_the_lock_is_free_after_its_writer_however_that_ended(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), writer_lock(tmp_path):
        raise RuntimeError("stop")
    assert (tmp_path / LOCK_NAME).read_bytes() == b""
    with writer_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_bytes())["pid"] == os.getpid()


def test_a_file_that_a_dead_writer_left_locks_nothing_and_is_written_over(tmp_path):
    (tmp_path / LOCK_NAME).write_text('{"pid": 1, "host": "elsewhere", "since": "then", "much": "longer than ours"}')
    with writer_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_bytes())["host"] == socket.gethostname()


def test_a_writer_that_has_not_signed_yet_is_another_process(tmp_path):
    with writer_lock(tmp_path):
        (tmp_path / LOCK_NAME).write_bytes(b"")
        with pytest.raises(StoreError, match="is being written by another process; wait"), writer_lock(tmp_path):
            pytest.fail("two writers at once")

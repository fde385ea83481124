import os

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

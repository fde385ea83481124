import errno
import fcntl
import json
import os
import socket
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, LockError, StoreError
from pipeline.store.lock import LOCK_NAME, exclusive, is_current, is_held, shared, writer_lock


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


# --- disks without locks


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF])
def disk_without_locks(request, monkeypatch, tmp_path):
    """Every file but those of tmp_path/locks refuses flock, as on NFS without its lock daemon or Lustre."""
    flock = fcntl.flock

    def refuse(descriptor, operation):
        if Path(f"/proc/self/fd/{descriptor}").readlink().parent != tmp_path / "locks":
            raise OSError(request.param, os.strerror(request.param))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_disk_without_locks_is_one_sentence_with_two_ways_out(tmp_path, disk_without_locks):
    with pytest.raises(LockError, match=r"\.lock cannot be locked: .+; .+ FANTRANS_LOCKS to a folder"):
        writer_lock(tmp_path / "store").__enter__()
    (tmp_path / "manifest").touch()
    with pytest.raises(LockError, match="none and run one writer at a time"):
        shared(tmp_path / "manifest")
    assert not is_held(tmp_path / "manifest")


def test_locks_in_another_folder_do_what_those_on_the_disk_do(tmp_path, monkeypatch, disk_without_locks):
    monkeypatch.setenv("FANTRANS_LOCKS", str(tmp_path / "locks"))
    store, other, manifest = tmp_path / "store", tmp_path / "other", tmp_path / "store" / "manifest"
    refused = rf"store is being written by process {os.getpid()} on {socket.gethostname()}"
    with writer_lock(store), writer_lock(other):
        with pytest.raises(StoreError, match=refused):
            writer_lock(store).__enter__()
        assert is_held(store / LOCK_NAME)
    assert not is_held(store / LOCK_NAME)
    with pytest.raises(FileNotFoundError):
        shared(manifest)
    manifest.touch()
    (tmp_path / "link").symlink_to(store)
    descriptor = shared(manifest)
    assert is_current(descriptor, manifest)
    with pytest.raises(BlockingIOError), exclusive(tmp_path / "link/manifest"):  # the same file by another path
        pass
    manifest.unlink()
    assert not is_current(descriptor, manifest)
    os.close(descriptor)
    assert sorted(path.name for path in store.iterdir()) == []


def test_without_locks_a_writer_writes_and_a_reader_reads(tmp_path, monkeypatch, disk_without_locks):
    monkeypatch.setenv("FANTRANS_LOCKS", "none")
    with writer_lock(tmp_path), writer_lock(tmp_path):
        assert not is_held(tmp_path / LOCK_NAME)
    os.close(shared(tmp_path / LOCK_NAME))


def test_a_folder_for_locks_must_be_absolute_and_writable(tmp_path, monkeypatch):
    monkeypatch.setenv("FANTRANS_LOCKS", "locks")
    with pytest.raises(ConfigError, match="FANTRANS_LOCKS is 'locks'; expected the absolute path"):
        writer_lock(tmp_path).__enter__()
    (tmp_path / "file").touch()
    monkeypatch.setenv("FANTRANS_LOCKS", str(tmp_path / "file"))
    with pytest.raises(LockError, match=r"cannot be opened for a lock on .+: (File exists|Not a directory); set"):
        writer_lock(tmp_path).__enter__()


def test_a_lock_is_current_until_its_file_is_replaced(tmp_path):
    path = tmp_path / "manifest"
    path.touch()
    descriptor = shared(path)
    assert is_current(descriptor, path)
    (tmp_path / "new").touch()
    (tmp_path / "new").replace(path)
    assert not is_current(descriptor, path)
    os.close(descriptor)


def test_whether_a_file_is_held_is_asked_with_a_descriptor_that_nfs_locks(tmp_path, monkeypatch):
    """NFS locks alone only what is open for writing; what is not writable counts as not held there."""
    flock = fcntl.flock

    def lock_as_nfs(descriptor, operation):
        is_writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_RDWR
        if operation & fcntl.LOCK_EX and not is_writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    path = tmp_path / "manifest"
    path.touch()
    monkeypatch.setattr(fcntl, "flock", lock_as_nfs)
    assert not is_held(path)
    descriptor = shared(path)
    assert is_held(path)
    os.close(descriptor)

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.errors import StoreNotFoundError, WriteError
from pipeline.runtime.atomic import (
    file_sha256,
    fsync_folder,
    put_in_place,
    stage_file,
    write_atomically,
    write_bytes_atomically,
    write_json,
    write_safetensors,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "folder" / "value"
    write_bytes_atomically(path, b"old")

    def fail(temp):
        temp.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(WriteError, match="value cannot be written: disk full; free space or fix permissions"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [found.name for found in path.parent.iterdir()] == ["value"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "value"
    write_bytes_atomically(path, b"old")
    script = (
        "import sys, time, pathlib; from pipeline.runtime.atomic import write_atomically\n"
        "def slow(temp):\n    temp.write_bytes(b'half'); print('writing', flush=True); time.sleep(60)\n"
        "write_atomically(pathlib.Path(sys.argv[1]), slow)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_an_error_of_what_is_written_is_not_one_of_the_disk(tmp_path):
    def fail(temp):
        temp.write_bytes(b"half")
        raise StoreNotFoundError("a shard does not exist")

    with pytest.raises(StoreNotFoundError, match=r"^a shard does not exist$"):
        write_atomically(tmp_path / "value", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_document_is_indented_json(tmp_path):
    write_json(tmp_path / "folder/a.json", {"b": [1, None]})
    assert (tmp_path / "folder/a.json").read_bytes() == json.dumps({"b": [1, None]}, indent=2).encode()


def test_weights_are_stored_as_given_or_in_half_precision(tmp_path):
    state = {"w": torch.rand(4, 3).t().requires_grad_(), "num_steps": torch.tensor(3)}
    write_safetensors(tmp_path / "a", state, metadata={"of": "test"})
    write_safetensors(tmp_path / "b", state, half=True)
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"of": "test"}
        assert torch.equal(file.get_tensor("w"), state["w"])
    half = load_file(tmp_path / "b")
    assert torch.equal(half["w"], state["w"].half())
    assert half["num_steps"].dtype == torch.int64
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert state["w"].dtype == torch.float32


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def note_changes(monkeypatch):
    """A list of what is made to last: (fsync, inode, size) and (rename, old name, new name), in their order."""
    changes = []
    fsync = os.fsync

    def noted_fsync(descriptor):
        status = os.fstat(descriptor)
        changes.append(("fsync", status.st_ino, status.st_size if stat.S_ISREG(status.st_mode) else None))
        fsync(descriptor)

    def noted(rename):
        def renaming(old, new, **more):
            changes.append(("rename", Path(old), Path(new)))
            rename(old, new, **more)

        return renaming

    monkeypatch.setattr(os, "fsync", noted_fsync)
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, noted(getattr(os, name)))
    return changes


def write_in_two_steps(path, data):
    put_in_place(stage_file(path, lambda temp: temp.write_bytes(data)), path)


@pytest.mark.parametrize("write", [write_bytes_atomically, write_in_two_steps])
def test_the_file_is_fsynced_whole_before_its_rename_and_the_folder_after_it(tmp_path, monkeypatch, write):
    path = tmp_path / "value"
    changes = note_changes(monkeypatch)
    write(path, b"content")
    fsynced_file, renamed, fsynced_folder = changes
    assert fsynced_file == ("fsync", path.stat().st_ino, len(b"content"))
    assert (renamed[0], renamed[1].parent, renamed[2]) == ("rename", tmp_path, path)
    assert fsynced_folder == ("fsync", tmp_path.stat().st_ino, None)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_disk_that_refuses_the_fsync_of_folders_is_written_all_the_same(tmp_path, monkeypatch, code):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_bytes_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_disk_that_fails_the_fsync_of_a_folder_is_an_error(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        fsync_folder(tmp_path)

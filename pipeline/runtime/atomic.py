"""Atomic writes: fill a temporary file beside the target, fsync it, rename it, fsync the folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from pipeline.errors import FantransError, WriteError

TEMP_PREFIX = ".tmp-"

_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES)
"""What disks answer that have no fsync of folders; the last two where a folder must be open for writing."""


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut; does nothing on a disk that cannot fsync folders (CIFS, FUSE)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the content of `path` survive a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def stage_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write(temp_path)` to fill a file beside `path`, fsync it, and return its path for `put_in_place`.

    Creates parent folders. A failure leaves nothing; a kill leaves at most a `.tmp-*` file. The file's permissions are
    those that the umask gives, also if `write` puts a private file in its place, as safetensors' `save_file` does.
    Raises `WriteError` if the disk is full or not writable.
    """
    temp = path.parent / f"{TEMP_PREFIX}{secrets.token_hex(4)}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp.touch()
        mode = temp.stat().st_mode
        write(temp)
        temp.chmod(mode)
        fsync_file(temp)
    except FantransError:  # of what `write` reads; some are OSErrors, too
        discard(temp)
        raise
    except OSError as error:
        discard(temp)
        reason = error.strerror or str(error)
        raise WriteError(
            f"{path} cannot be written: {reason}; free space or fix permissions, then rerun: finished work is kept",
            error.errno,
        ) from None
    except BaseException:
        discard(temp)
        raise
    return temp


def discard(temp: Path) -> None:
    """Remove a staged file, if it exists and can be removed."""
    with suppress(OSError):
        temp.unlink(missing_ok=True)


def put_in_place(temp: Path, path: Path) -> None:
    """Rename a staged file to `path`, durably; `WriteError` if a folder is there."""
    try:
        temp.replace(path)
    except IsADirectoryError as error:
        raise WriteError(f"{path} is a folder, expected a file; move it away, then rerun", error.errno) from None
    fsync_folder(path.parent)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write `path` by `stage_file` and `put_in_place`: a kill at any line leaves the old or the new file."""
    temp = stage_file(path, write)
    try:
        put_in_place(temp, path)
    finally:
        discard(temp)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write bytes to `path` atomically."""
    write_atomically(path, lambda temp: temp.write_bytes(data))


def write_json(path: Path, document: Any) -> None:
    """Write a document as JSON, indented by two spaces, with `write_atomically`."""
    write_bytes_atomically(path, json.dumps(document, indent=2).encode())


def write_safetensors(
    path: Path, state: Mapping[str, Any], *, half: bool = False, metadata: dict[str, str] | None = None
) -> None:
    """Write a state dict (name to torch tensor, on any device) as safetensors with `write_atomically`.

    half: whether floating-point tensors are stored in fp16. metadata: strings for the file's header.
    """
    from safetensors.torch import save  # noqa: PLC0415 - the store writes files, too, and needs no torch

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    write_bytes_atomically(path, save(tensors, metadata))


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading; `OSError` for a folder, and for a pipe or device, which could block or never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise IsADirectoryError(errno.EISDIR, "Not a regular file", str(path))
    return path.open("rb")


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a file; raises as `open_regular` does."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

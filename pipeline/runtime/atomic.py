"""Files that are either whole or absent: write beside, fsync, rename, fsync the folder."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.errors import WriteError

TEMP_PREFIX = ".tmp-"


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the content of `path` survive a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def stage_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write(temp_path)` fill a file beside `path` and make it last; returns the temp path for `put_in_place`.

    Parents are made. If writing fails, nothing is left; a kill leaves at most a `.tmp-*` file. Raises `WriteError` for
    a disk that is full or cannot be written.
    """
    temp = path.parent / f"{TEMP_PREFIX}{secrets.token_hex(4)}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temp)
        fsync_file(temp)
    except OSError as error:
        discard(temp)
        reason = error.strerror or str(error)
        raise WriteError(
            f"{path} cannot be written: {reason}; fix the place and run this again, what was finished is kept",
            error.errno,
        ) from None
    except BaseException:
        discard(temp)
        raise
    return temp


def discard(temp: Path) -> None:
    """Remove a staged file that nobody wants any more, if it is there and that can be done."""
    with suppress(OSError):
        temp.unlink(missing_ok=True)


def put_in_place(temp: Path, path: Path) -> None:
    """Give a staged file its name, in one step that lasts."""
    temp.replace(path)
    fsync_folder(path.parent)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`stage_file`, then `put_in_place`: a kill at any line leaves `path` as it was."""
    temp = stage_file(path, write)
    try:
        put_in_place(temp, path)
    finally:
        discard(temp)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """`write_atomically` for bytes at hand."""
    write_atomically(path, lambda temp: temp.write_bytes(data))


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

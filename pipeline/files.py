"""Files that are either whole or absent: write beside, fsync, rename, fsync the folder."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temp_path)` fill a file, then put it at `path` in one step; parents are made.

    A kill at any line leaves `path` as it was, and at most a `.tmp-*` file beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.parent / f"{TEMP_PREFIX}{secrets.token_hex(4)}-{path.name}"
    try:
        write(temp)
        fsync_file(temp)
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """`write_atomically` for bytes at hand."""
    write_atomically(path, lambda temp: temp.write_bytes(data))


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

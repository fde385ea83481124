"""Atomic writes: a file is either complete or absent. Write to a temporary file, fsync, rename, fsync the folder."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

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
    """Let `write(temp_path)` fill a temporary file beside `path`, fsync it and return its path for `put_in_place`.

    Missing folders are created. If writing fails, nothing remains; a kill leaves at most a `.tmp-*` file. Raises
    `WriteError` if the disk is full or not writable.
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
            f"{path} cannot be written: {reason}; free space or fix permissions, then rerun (completed work is kept)",
            error.errno,
        ) from None
    except BaseException:
        discard(temp)
        raise
    return temp


def discard(temp: Path) -> None:
    """Remove a staged file if it exists; errors are ignored."""
    with suppress(OSError):
        temp.unlink(missing_ok=True)


def put_in_place(temp: Path, path: Path) -> None:
    """Rename a staged file to `path` and fsync the folder."""
    temp.replace(path)
    fsync_folder(path.parent)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Stage a file by `write(temp_path)` and put it in place; a kill at any moment leaves the old or the new file.

    Raises `WriteError` as `stage_file` does.
    """
    temp = stage_file(path, write)
    try:
        put_in_place(temp, path)
    finally:
        discard(temp)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write bytes with `write_atomically`."""
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


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the bytes of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

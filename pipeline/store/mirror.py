"""A store's small files: JSON with its own checksum, and a second copy of each file in `mirror/`.

A file that is missing or damaged is read from its copy, and the next writer restores it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from pipeline.errors import StoreError
from pipeline.runtime.atomic import write_bytes_atomically
from pipeline.store.hashing import canonical_json

logger = logging.getLogger("fantrans")

MIRROR_NAME = "mirror"

_SEAL = "crc32c"

Validator = Callable[[bytes], bool]
"""Whether the bytes of a file are intact."""


def sealed_json(document: Mapping[str, Any]) -> bytes:
    """Return the document as JSON with the checksum of its content as the last key."""
    crc = google_crc32c.value(canonical_json(document))
    return json.dumps({**document, _SEAL: crc}, indent=2).encode() + b"\n"


def is_sealed(data: bytes) -> bool:
    """Return whether bytes are intact JSON of `sealed_json`."""
    try:
        document = json.loads(data)
        is_intact: bool = document.pop(_SEAL) == google_crc32c.value(canonical_json(document))
        return is_intact
    except (ValueError, KeyError, AttributeError, TypeError):
        return False


def read_sealed_json(path: Path, *, fallback: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a `sealed_json` file. If it is missing or damaged, return `fallback`; raise `StoreError` without one."""
    if (data := _read_if_valid(path, is_sealed)) is not None:
        document: dict[str, Any] = json.loads(data)
        return document
    if fallback is None:
        raise StoreError(f"{path} is missing or damaged; run `fantrans refresh` to restore it")
    return fallback


def has_sha256(expected: str) -> Validator:
    """Return a validator for bytes of this hex sha256."""
    return lambda data: hashlib.sha256(data).hexdigest() == expected


def is_intact(path: Path, is_valid: Validator) -> bool:
    """Return whether the file exists and is intact."""
    return _read_if_valid(path, is_valid) is not None


def _read_if_valid(path: Path, is_valid: Validator) -> bytes | None:
    return data if path.is_file() and is_valid(data := path.read_bytes()) else None


def copy_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the two paths of a file: in the folder, and in its mirror."""
    return folder / name, folder / MIRROR_NAME / name


def has_copy(folder: Path, name: str) -> bool:
    """Return whether either copy exists, intact or not."""
    return any(path.is_file() for path in copy_paths(folder, name))


def find_intact_copy(folder: Path, name: str, is_valid: Validator) -> bytes | None:
    """Return the bytes of the first intact copy; None if neither is."""
    found = (_read_if_valid(path, is_valid) for path in copy_paths(folder, name))
    return next((data for data in found if data is not None), None)


def read_copy(folder: Path, name: str, is_valid: Validator) -> bytes:
    """Read a file, or its copy with a warning; `StoreError` if neither is intact."""
    path, mirror = copy_paths(folder, name)
    if (data := _read_if_valid(path, is_valid)) is not None:
        return data
    if (data := _read_if_valid(mirror, is_valid)) is not None:
        logger.warning(
            "%s is missing or damaged: reading its copy in %s/; `fantrans refresh` restores it", path, MIRROR_NAME
        )
        return data
    fault = "damaged" if path.is_file() else "missing"
    raise StoreError(
        f"{path} is {fault}, and so is its copy in {MIRROR_NAME}/; restore one from a backup, or "
        f"remove {folder} and run `fantrans refresh` again"
    )


def write_copies(folder: Path, name: str, data: bytes) -> None:
    """Write a file and its copy, the copy first."""
    for path in reversed(copy_paths(folder, name)):
        write_bytes_atomically(path, data)


def repair(folder: Path, name: str, is_valid: Validator) -> None:
    """Restore a damaged or missing copy from the other one; if neither is intact, both stay as they are."""
    good = find_intact_copy(folder, name, is_valid)
    for path in copy_paths(folder, name):
        if good is not None and not is_intact(path, is_valid):
            write_bytes_atomically(path, good)

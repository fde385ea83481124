"""Small files that hold a store together: JSON that carries its own checksum, and each file twice.

What lies in the folder lies again in `mirror/`. A file that is missing or damaged is read from there, and the next
writer puts it back.
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
from pipeline.store.fingerprint import canonical_json

logger = logging.getLogger("fantrans")

MIRROR_NAME = "mirror"

_SEAL = "crc32c"

Check = Callable[[bytes], bool]
"""Whether bytes are what they should be."""


def sealed_json(document: Mapping[str, Any]) -> bytes:
    """JSON with the checksum of its content as the last key."""
    crc = google_crc32c.value(canonical_json(document))
    return json.dumps({**document, _SEAL: crc}, indent=2).encode() + b"\n"


def is_sealed(data: bytes) -> bool:
    """Whether bytes are whole JSON of `sealed_json`."""
    try:
        document = json.loads(data)
        return document.pop(_SEAL) == google_crc32c.value(canonical_json(document))
    except (ValueError, KeyError, AttributeError, TypeError):
        return False


def read_sealed_json(path: Path, *, fallback: dict[str, Any] | None = None) -> dict[str, Any]:
    """A `sealed_json` file's content; if it is missing or damaged `fallback`, or `StoreError` without one."""
    if (data := _bytes_if_good(path, is_sealed)) is not None:
        return json.loads(data)
    if fallback is None:
        raise StoreError(f"{path} is missing or damaged; run `fantrans refresh`, which puts it back")
    return fallback


def has_sha256(expected: str) -> Check:
    """A check that bytes have this hex sha256."""
    return lambda data: hashlib.sha256(data).hexdigest() == expected


def is_good(path: Path, check: Check) -> bool:
    """Whether a file is there and passes."""
    return _bytes_if_good(path, check) is not None


def _bytes_if_good(path: Path, check: Check) -> bytes | None:
    return data if path.is_file() and check(data := path.read_bytes()) else None


def copies(folder: Path, name: str) -> tuple[Path, Path]:
    """Where a file lies: in the folder, and in its mirror."""
    return folder / name, folder / MIRROR_NAME / name


def is_there(folder: Path, name: str) -> bool:
    """Whether either copy exists, good or not."""
    return any(path.is_file() for path in copies(folder, name))


def good_copy(folder: Path, name: str, check: Check) -> bytes | None:
    """The bytes of a copy that passes; None if neither does."""
    found = (_bytes_if_good(path, check) for path in copies(folder, name))
    return next((data for data in found if data is not None), None)


def read_copy(folder: Path, name: str, check: Check) -> bytes:
    """A file's bytes, or those of its copy with a warning; `StoreError` if neither passes."""
    path, mirror = copies(folder, name)
    if (data := _bytes_if_good(path, check)) is not None:
        return data
    if (data := _bytes_if_good(mirror, check)) is not None:
        logger.warning(
            "%s is missing or damaged: reading its copy in %s/; `fantrans refresh` puts it back", path, MIRROR_NAME
        )
        return data
    what = "damaged" if path.is_file() else "missing"
    raise StoreError(
        f"{path} is {what}, and so is its copy in {MIRROR_NAME}/; restore one from a backup, or "
        f"remove {folder} and run `fantrans refresh` again"
    )


def write_copies(folder: Path, name: str, data: bytes) -> None:
    """Write a file and its copy, the copy first."""
    for path in reversed(copies(folder, name)):
        write_bytes_atomically(path, data)


def repair(folder: Path, name: str, check: Check) -> None:
    """Put back a copy that does not pass from the other one; both stay as they are if neither passes."""
    good = good_copy(folder, name, check)
    for path in copies(folder, name):
        if good is not None and not is_good(path, check):
            write_bytes_atomically(path, good)

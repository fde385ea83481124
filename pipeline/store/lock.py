"""Locks on files, which the kernel drops when their process ends: one writer at a time, and pinned revisions."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import StoreError

LOCK_NAME = ".lock"


@contextmanager
def exclusive(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """Hold `path`, opened with `flags`, alone; gives its descriptor. `BlockingIOError` if another process holds it."""
    descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def shared(path: Path) -> int:
    """Hold `path`, which needs no right to write, together with others; the descriptor holds it until it is closed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_held(path: Path) -> bool:
    """Return whether a process holds `path`, alone or with others; False for a missing file."""
    try:
        with exclusive(path, os.O_RDONLY):
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for writing; creates it. Raises `StoreError` that names the holder's process, host and start.

    The kernel releases the lock when the process ends, even by a kill. A lock file that is left over locks nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_NAME
    with ExitStack() as held:
        try:
            descriptor = held.enter_context(exclusive(path, os.O_RDWR | os.O_CREAT))
        except BlockingIOError:
            raise StoreError(
                f"{folder} is being written by {_holder(path)}; wait until it ends, then run this again"
            ) from None
        since = datetime.now(UTC).isoformat(timespec="seconds")
        own = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(own).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except ValueError:  # the holder has locked the file, but not written its name yet
        return "another process"

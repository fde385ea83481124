"""Locks on files, which the kernel drops when their process ends: one writer at a time, and pinned revisions.

A disk may have no locks (NFS without its lock daemon, Lustre without `-o flock`, some FUSE). FANTRANS_LOCKS then names
a folder of another disk whose files are locked in place of the data's own, or is `none`: nothing is locked, and the
user runs one writer at a time.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import ConfigError, LockError, StoreError

LOCK_NAME = ".lock"

_NO_LOCKS = "none"

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def exclusive(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """Hold `path`, opened with `flags`, alone; gives its descriptor.

    Raises `BlockingIOError` if another process holds it, `LockError` where it cannot be locked.
    """
    descriptor = _open(path, flags)
    try:
        _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
        yield descriptor
    finally:
        os.close(descriptor)


def shared(path: Path) -> int:
    """Hold `path`, which needs no right to write, together with others; the descriptor holds it until it is closed.

    Raises `FileNotFoundError` if `path` does not exist, `LockError` where it cannot be locked.
    """
    path.stat()  # its lock file may be another one, which exists in any case
    descriptor = _open(path, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_SH, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_current(descriptor: int, path: Path) -> bool:
    """Return whether the descriptor of a lock still locks `path`: the file was neither removed nor replaced."""
    file = _lock_file(path)
    return path.exists() and file.exists() and os.path.samestat(os.fstat(descriptor), file.stat())


def is_held(path: Path) -> bool:
    """Return whether a process holds `path`, alone or with others; False for a missing file, and without locks."""
    if not _lock_file(path).exists():
        return False
    for flags in (os.O_RDWR, os.O_RDONLY):  # NFS locks alone only what is open for writing
        try:
            with exclusive(path, flags):
                return False
        except BlockingIOError:
            return True
        except LockError:
            continue
        except OSError as error:
            if error.errno not in (*_NOT_WRITABLE, errno.ENOENT):
                raise
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
                f"{folder} is being written by {_holder(_lock_file(path))}; wait until it ends, then run this again"
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


def _setting() -> str | None:
    """Return FANTRANS_LOCKS: `_NO_LOCKS`, or the absolute path of a folder; None if it is not set."""
    named = os.environ.get("FANTRANS_LOCKS")
    if not named or named == _NO_LOCKS:
        return named or None
    if not Path(named).is_absolute():
        raise ConfigError(f"FANTRANS_LOCKS is {named!r}; expected the absolute path of a folder, or {_NO_LOCKS}")
    return named


def _lock_file(path: Path) -> Path:
    """Return the file that is locked for `path`: itself, or one named by its hash in the folder of FANTRANS_LOCKS."""
    setting = _setting()
    if setting is None or setting == _NO_LOCKS:
        return path
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return Path(setting) / f"{digest[:16]}-{path.name}"


def _open(path: Path, flags: int) -> int:
    file = _lock_file(path)
    if file == path:
        return os.open(path, flags, 0o666)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(file, flags | os.O_CREAT, 0o666)
    except OSError as error:
        raise LockError(
            f"{file} cannot be opened for a lock on {path}: {error.strerror}; set FANTRANS_LOCKS to a folder in which "
            "you may write"
        ) from None


def _lock(descriptor: int, operation: int, path: Path) -> None:
    if _setting() == _NO_LOCKS:
        return
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        raise LockError(
            f"{_lock_file(path)} cannot be locked: {error.strerror}; if its disk has no locks, set FANTRANS_LOCKS to a "
            "folder of a disk that has them, or to none and run one writer at a time (docs/operations.md)"
        ) from None

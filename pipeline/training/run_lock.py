"""Whether a run is being trained: each training holds the run's lock, which the kernel drops when its process ends."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.errors import DataError
from pipeline.store.lock import LOCK_NAME, exclusive, is_current, is_held, shared


@contextmanager
def training_locks(folders: Iterable[Path]) -> Iterator[None]:
    """Mark runs as being trained while the context is open; several trainings may hold one run, each other folds."""
    with ExitStack() as held:
        for folder in dict.fromkeys(folders):
            held.callback(os.close, _hold(folder / LOCK_NAME))
        yield


def _hold(path: Path) -> int:
    """Open and hold the lock file; again if `removal_lock` removed it in the meantime."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.touch()
            descriptor = shared(path)
            try:
                if is_current(descriptor, path):
                    return os.dup(descriptor)
            finally:
                os.close(descriptor)


def is_in_training(folder: Path) -> bool:
    """Return whether a training of any fold of the run is in progress."""
    return is_held(folder / LOCK_NAME)


def being_trained(folder: Path) -> DataError:
    """Return the error of a removal during a training."""
    return DataError(f"{folder.name} is being trained; wait until the training ends, or pass --force to remove it now")


@contextmanager
def removal_lock(folder: Path) -> Iterator[None]:
    """Keep trainings out of a run's folder while it is removed; `DataError` if one is in progress."""
    path = folder / LOCK_NAME
    with ExitStack() as held:
        try:
            held.enter_context(exclusive(path, os.O_RDWR | os.O_CREAT))
        except BlockingIOError:
            raise being_trained(folder) from None
        yield

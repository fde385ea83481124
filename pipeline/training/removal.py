"""Removal of runs: refused while a run is trained or needed, and never left half readable."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path

from pipeline.errors import DataError
from pipeline.runtime.atomic import TEMP_PREFIX, fsync_folder
from pipeline.training.run_files import RECORD_NAME
from pipeline.training.run_lock import being_trained, is_in_training, removal_lock


def dependent_runs(folder: Path, *, besides: Collection[Path] = ()) -> list[str]:
    """Return the names of the runs beside a run that were initialised from it, without `besides`."""
    ignored = {path.resolve() for path in besides}
    return [
        record.parent.name
        for record in sorted(folder.parent.glob(f"*/{RECORD_NAME}"))
        if record.parent.resolve() not in ignored and _source(record) == folder.name
    ]


def _source(record: Path) -> str | None:
    try:
        content = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return None
    return content.get("init_from") if isinstance(content, dict) else None


def remove_runs(folders: Collection[Path], *, is_forced: bool = False) -> None:
    """Remove runs; a kill leaves each of them either whole or no longer listed.

    Raises `DataError`, before anything is removed, for a run that initialises others which stay, and for one that is
    being trained; not with `is_forced`.
    """
    if not is_forced:
        for folder in folders:
            check_removable(folder, besides=folders)
    for folder in folders:
        with nullcontext() if is_forced else removal_lock(folder):
            gone = folder.with_name(f"{TEMP_PREFIX}{secrets.token_hex(4)}-{folder.name}")
            folder.rename(gone)
            fsync_folder(folder.parent)
        _discard(gone)
    for parent in {folder.parent for folder in folders}:
        for left in parent.glob(f"{TEMP_PREFIX}*"):  # by a removal that was killed
            _discard(left)


def check_removable(folder: Path, *, besides: Collection[Path] = ()) -> None:
    """Raise `DataError` if a run is being trained, or if runs other than `besides` were initialised from it."""
    dependents = dependent_runs(folder, besides=besides)
    if dependents:
        raise DataError(
            f"{folder.name} initialises {', '.join(dependents)}; remove them too, or pass --force to remove it all "
            "the same"
        )
    if is_in_training(folder):
        raise being_trained(folder)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

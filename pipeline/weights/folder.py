"""The project's weights folder: converted files, and beside each one its entry, which the catalog reads.

NAME.safetensors, then NAME.json (the entry); NAME-codec.safetensors if a basis was fitted. A file without its entry is
not part of the catalog, so a kill between the two leaves nothing that a refresh could read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import CatalogError, UsageError
from pipeline.runtime.atomic import file_sha256, write_bytes_atomically, write_json


def entry_path(folder: Path, name: str) -> Path:
    """Return the path of the entry of added weights."""
    return folder / f"{name}.json"


def read_entries(folder: Path) -> dict[str, Any]:
    """Return the entries of a weights folder by name, sorted; {} if it does not exist.

    Raises `CatalogError` for an entry that is not JSON.
    """
    entries = {}
    for path in sorted(folder.glob("*.json")):
        try:
            entries[path.name.removesuffix(".json")] = json.loads(path.read_bytes())
        except ValueError:
            raise CatalogError(
                f"entry {path} is damaged; delete it, then add the weights with `fantrans weights add` again"
            ) from None
    return entries


def is_added(folder: Path, name: str) -> bool:
    """Return whether a weights folder has weights of that name, and their file is undamaged."""
    entry, path = read_entries(folder).get(name), folder / f"{name}.safetensors"
    return entry is not None and path.is_file() and file_sha256(path).startswith(entry["sha256"].lower())


def add_codec(folder: Path, name: str, basis: Path) -> Path:
    """Copy a fitted basis into a weights folder and enter it for added weights; return the copy's path."""
    entry = read_entries(folder)[name]
    target = folder / f"{name}-codec.safetensors"
    write_bytes_atomically(target, basis.read_bytes())
    write_json(entry_path(folder, name), {**entry, "codec": {"path": target.name, "sha256": file_sha256(target)}})
    return target


def remove_weights(folder: Path, name: str) -> list[Path]:
    """Remove added weights, entry first; return what was removed. Raises `UsageError` for a name without an entry."""
    if not entry_path(folder, name).is_file():
        raise UsageError(f"{folder} has no weights {name!r}; list them with `fantrans weights ls`")
    removed = [entry_path(folder, name), *(folder / f"{name}{end}.safetensors" for end in ("", "-codec"))]
    removed = [path for path in removed if path.exists()]
    for path in removed:
        path.unlink()
    return removed

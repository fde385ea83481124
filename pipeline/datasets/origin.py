"""What an index was made from: the keys of the catalog and the label files, so that training notices a change.

{work}/{dataset}/labels.json    settings; size, modification time and sha256 of each label file and frame list; size,
                                modification time and number of frames of each video
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.datasets.layout import Layout
from pipeline.datasets.settings import DatasetSettings
from pipeline.datasets.sources import SOURCE_COLUMNS, source_hashes
from pipeline.errors import DataError, DataNotFoundError
from pipeline.runtime.atomic import write_bytes_atomically

ORIGIN_NAME = "labels.json"

Origin = Mapping[str, Any]
"""`settings`; `files`, one list per column of `SOURCE_COLUMNS`; after a refresh `videos`, see `VideoCounts`."""


def describe_origin(
    root: Path, layout: Layout, settings: DatasetSettings, *, protocol: str, known: Origin | None
) -> Origin:
    """Return what an index that is made now is made from; files that `known` has with their size and time are not read.

    Raises `DataNotFoundError` if the folder of labels does not exist.
    """
    labels = layout.label_files(layout.open(root, settings))
    lists = [os.path.relpath(each, root) for each in settings.frames]
    files = pd.Series([*map(str, labels), *lists], dtype=object)
    hashes = source_hashes(root, files, known=None if known is None else pd.DataFrame(known["files"]))
    table = hashes.rename_axis(SOURCE_COLUMNS[0]).reset_index()
    chosen = {"layout": layout.name, "protocol": protocol, **settings.index_document()}
    if lists:
        chosen["frames"] = [hashes.loc[name, "source_sha256"] for name in lists]
    return {
        "settings": chosen,
        "files": {name: table[name].tolist() for name in SOURCE_COLUMNS},
    }


def read_origin(folder: Path) -> Origin | None:
    """Read what the index in `folder` was made from; None if that is not known, as of an index of an older version."""
    try:
        origin = json.loads((folder / ORIGIN_NAME).read_bytes())
        is_whole = set(origin["files"]) == set(SOURCE_COLUMNS) and isinstance(origin["settings"], dict)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return origin if is_whole else None


def write_origin(folder: Path, origin: Origin) -> None:
    """Write what the index in `folder` was made from."""
    write_bytes_atomically(folder / ORIGIN_NAME, json.dumps(origin).encode())


def changed_keys(before: Origin, now: Origin) -> list[str]:
    """Return the keys of the catalog in which two indexes differ; `frames` as well if a list has other names."""
    old, new = before["settings"], now["settings"]
    return sorted(name for name in {**old, **new} if old.get(name) != new.get(name))


def check_origin(
    folder: Path, root: Path, layout: Layout, settings: DatasetSettings, *, protocol: str, dataset: str
) -> None:
    """Raise `DataError` if labels or keys of the catalog changed since the index in `folder` was made.

    Passes where the labels are not on this machine, and for an index of which it is not known.
    """
    before = read_origin(folder)
    if before is None:
        return
    try:
        now = describe_origin(root, layout, settings, protocol=protocol, known=before)
    except DataNotFoundError:
        return
    remedy = f"run `fantrans refresh {dataset} --until index`"
    files, known = (
        dict(zip(each["files"]["source_file"], each["files"]["source_sha256"], strict=True)) for each in (now, before)
    )
    changed, is_edited = changed_keys(before, now), any(known.get(name, sha) != sha for name, sha in files.items())
    if changed and not is_edited:
        raise DataError(f"`{changed[0]}` of {dataset} in the catalog has changed since the index was made; {remedy}")
    different = sorted(name for name in files.keys() | known.keys() if files.get(name) != known.get(name))
    if different:
        kind = "is new" if different[0] not in known else "is gone" if different[0] not in files else "has changed"
        more = f", as have {len(different) - 1} more" if len(different) > 1 else ""
        raise DataError(f"{root / different[0]} {kind} since the labels of {dataset} were indexed{more}; {remedy}")

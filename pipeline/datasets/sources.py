"""Hash the image and video files of a data set."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from pipeline.runtime.atomic import file_sha256

SOURCE_COLUMNS = ("source_file", "source_bytes", "source_mtime_ns", "source_sha256")
_NAMES_PER_TASK = 256


def source_hashes(root: Path, files: pd.Series, *, known: pd.DataFrame | None, num_threads: int = 4) -> pd.DataFrame:
    """Return size, modification time and sha256 of each distinct file, by `source_file`; -1, -1, "" for a missing one.

    Files whose size and time are those in `known` (with `SOURCE_COLUMNS`) keep their hash; all others are read. The
    hash decides reuse; size and time only save reading.
    """
    names = pd.unique(files)
    before = {}
    if known is not None:
        columns = [known[name] for name in SOURCE_COLUMNS]
        before = {(name, size, time): sha for name, size, time, sha in zip(*columns, strict=True) if sha}

    def describe(name: str) -> tuple[int, int, str]:
        try:
            status = os.stat(f"{root}/{name}")  # noqa: PTH116 - 150,000 paths as objects cost a second
        except FileNotFoundError:
            return -1, -1, ""
        if not stat.S_ISREG(status.st_mode):
            return -1, -1, ""
        size, time = status.st_size, status.st_mtime_ns
        return size, time, before.get((name, size, time)) or file_sha256(root / name)

    def describe_all(names: Sequence[str]) -> list[tuple[int, int, str]]:
        return [describe(name) for name in names]

    chunks = [names[start : start + _NAMES_PER_TASK] for start in range(0, len(names), _NAMES_PER_TASK)]
    with ThreadPoolExecutor(num_threads) as pool:
        rows = [row for chunk in pool.map(describe_all, chunks) for row in chunk]
    return pd.DataFrame(rows, columns=list(SOURCE_COLUMNS[1:]), index=names)

"""Finished chunks of a prediction, in the folder OUT.part beside the output: what a killed run resumes from.

OUT.part/
    run.json                         inputs, model and options; another run does not continue it
    .lock                            held by the run that writes
    000003-000000.parquet            chunk 0 of job 3: rows of `rows.to_rows`
    000003.finished                  written after its last chunk
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UsageError
from pipeline.runtime.atomic import write_bytes_atomically, write_json
from pipeline.store.lock import writer_lock
from pipeline.tables import read_table, write_table

_RECORD_NAME = "run.json"


@dataclass(frozen=True)
class ChunkFolder:
    """Chunks of the jobs of a prediction. Processes may write different jobs at once."""

    path: Path

    def files(self, job: int) -> list[Path]:
        """Return the files of a job's finished chunks, in order and without a gap."""
        return list(takewhile(Path.is_file, (self._file(job, chunk) for chunk in count())))

    def is_finished(self, job: int) -> bool:
        """Return whether all chunks of a job are finished."""
        return self._mark(job).is_file()

    def write(self, job: int, chunk: int, rows: pd.DataFrame) -> None:
        """Write a chunk atomically."""
        write_table(self._file(job, chunk), rows)

    def finish(self, job: int) -> None:
        """Mark a job as finished."""
        write_bytes_atomically(self._mark(job), b"")

    def read(self, job: int) -> Iterator[pd.DataFrame]:
        """Yield the rows of a job's finished chunks, one chunk at a time."""
        return map(read_chunk, self.files(job))

    def _file(self, job: int, chunk: int) -> Path:
        return self.path / f"{job:06d}-{chunk:06d}.parquet"

    def _mark(self, job: int) -> Path:
        return self.path / f"{job:06d}.finished"


def read_chunk(path: Path) -> pd.DataFrame:
    """Read the rows of a chunk; `DataError` if the file is damaged."""
    return read_table(path, columns=("input", "frame", "status"), made_by="fantrans predict")


def part_folder(out: Path) -> Path:
    """Return the folder of unfinished chunks beside an output."""
    return out.with_name(f"{out.name}.part")


@contextmanager
def open_chunks(out: Path, record: Mapping[str, Any], *, force: bool) -> Iterator[ChunkFolder]:
    """Yield the chunks of the output's unfinished run, or none; removes them when the context ends without an error.

    record: everything that decides the rows. force: whether chunks of another run are dropped. Raises `UsageError` if
    there are some and force is False, `StoreError` if another process writes the same output.
    """
    folder = part_folder(out)
    with writer_lock(folder):
        path = folder / _RECORD_NAME
        wanted = json.loads(json.dumps(record))
        if _read_record(path) != wanted:
            if path.is_file() and not force:
                raise UsageError(
                    f"{folder} holds unfinished predictions of other inputs, files, options or another model; run "
                    f"that command again to finish them, or pass --force to drop them"
                )
            for file in (*folder.glob("*.finished"), *folder.glob("*.parquet")):
                file.unlink()
            write_json(path, wanted)
        yield ChunkFolder(folder)
        shutil.rmtree(folder)


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None

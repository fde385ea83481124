"""What a kind of store holds, and the Zarr metadata that describes it to any Zarr reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.runtime.atomic import write_bytes_atomically
from pipeline.store.hashing import hash_document
from pipeline.store.revisions import ARRAYS_NAME, METADATA_NAME
from pipeline.store.shards import ArraySpec, array_metadata, group_metadata

DEFAULT_BLOCK_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class StoreFormat:
    """A store's fingerprint document, the arrays of every group, and attributes for other Zarr readers.

    The group "" is the root: its arrays are directly in `arrays.zarr`.
    """

    document: Mapping[str, Any]
    arrays: tuple[ArraySpec, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    group_attributes: Callable[[str], Mapping[str, Any]] = lambda _: {}
    is_shuffled: bool
    block_rows: int = DEFAULT_BLOCK_ROWS

    def folder_in(self, root: Path) -> Path:
        """Return the folder below `root` that is named by the document's fingerprint."""
        return root / hash_document(self.document)


def is_metadata_current(
    folder: Path, format: StoreFormat, groups: Sequence[str], *, num_rows: int, block_rows: int
) -> bool:
    """Return whether every `zarr.json` has the expected content."""
    files = _metadata_files(folder, format, groups, num_rows=num_rows, block_rows=block_rows)
    return all(_has_content(path, content) for path, content in files)


def write_metadata(folder: Path, format: StoreFormat, groups: Sequence[str], *, num_rows: int, block_rows: int) -> None:
    """Write each `zarr.json` that differs. It may cover unpublished blocks, because readers follow the index."""
    for path, content in _metadata_files(folder, format, groups, num_rows=num_rows, block_rows=block_rows):
        if not _has_content(path, content):
            write_bytes_atomically(path, content)


def _metadata_files(
    folder: Path, format: StoreFormat, groups: Sequence[str], *, num_rows: int, block_rows: int
) -> Iterator[tuple[Path, bytes]]:
    """Yield path and content of each `zarr.json`, the root last."""
    arrays = folder / ARRAYS_NAME
    for group in groups:
        for spec in format.arrays:
            content = array_metadata(spec, num_rows=num_rows, block_rows=block_rows)
            yield arrays / group / spec.name / METADATA_NAME, content
        if group:
            yield arrays / group / METADATA_NAME, group_metadata(format.group_attributes(group))
    yield arrays / METADATA_NAME, group_metadata(format.attributes)


def _has_content(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content

"""The version of this package, which stands in what it writes."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any

FILE_METADATA_KEY = "fantrans"
"""Key of safetensors, ONNX and Parquet metadata under which `file_metadata` stands."""


@cache
def package_version() -> str:
    """Return the version of the installed package, such as "0.1.0"."""
    return metadata.version("fantrans")


def written_by(schema: int, **versions: str) -> dict[str, Any]:
    """Return the keys `schema` and `versions` of a JSON file; `versions` names this package before the given ones."""
    return {"schema": schema, "versions": {"fantrans": package_version(), **versions}}


def file_metadata(schema: int) -> str:
    """Return `{"version": ..., "schema": ...}` as text, for the metadata of a file that is not JSON.

    One text under one key: safetensors writes several keys in a random order, and equal files have equal bytes.
    """
    return f'{{"version": "{package_version()}", "schema": {schema}}}'

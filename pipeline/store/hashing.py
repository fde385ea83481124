"""Canonical bytes and short hash of a JSON document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_NUM_HEX = 16


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """Return the document's only byte string: sorted keys, no spaces, ASCII, shortest floats; `ValueError` for NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def hash_document(document: Mapping[str, Any]) -> str:
    """Return the first 16 hex digits of the document's sha256: a folder's name."""
    return hashlib.sha256(canonical_json(document)).hexdigest()[:_NUM_HEX]

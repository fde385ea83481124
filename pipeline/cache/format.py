"""Format of a feature cache: a store with one group per view, which holds the codec's arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.cache.codecs import Codec, make_codec
from pipeline.errors import StoreError
from pipeline.store.format import DEFAULT_BLOCK_ROWS, StoreFormat
from pipeline.store.hashing import canonical_json
from pipeline.store.revisions import read_fingerprint
from pipeline.store.shards import ArraySpec

CODEC_NAME = "codec.safetensors"
"""File with the basis of the profile compact, copied from the file that the catalog names."""

PARAMS = "params"
"""Array of the view's parameters, one row per frame, in the order of `ViewParams`' fields."""
PARAM_NAMES = ("rotation_deg", "scale", "shift_x_px", "shift_y_px", "is_flipped")

_VIEW_PREFIX = "view_"


def view_group(view: int) -> str:
    """Return the Zarr group of a view: `view_group(2) == "view_02"`."""
    return f"{_VIEW_PREFIX}{view:02d}"


def view_number(group: str) -> int:
    """Return the view of a group."""
    return int(group.removeprefix(_VIEW_PREFIX))


def features_format(document: Mapping[str, Any], codec: Codec, *, block_rows: int = DEFAULT_BLOCK_ROWS) -> StoreFormat:
    """Return the format of a cache with this fingerprint document."""
    params = ArraySpec(
        name=PARAMS,
        row_shape=(len(PARAM_NAMES),),
        dtype="float64",
        axes=("param",),
        attributes={"names": list(PARAM_NAMES)},
    )
    return StoreFormat(
        document=document,
        arrays=(*codec.arrays, params),
        attributes={"kind": "features", "document": json.loads(canonical_json(document))},
        group_attributes=lambda group: {"view": view_number(group)},
        is_shuffled=True,
        block_rows=block_rows,
    )


def load_codec(folder: Path) -> Codec:
    """Load the codec of a cache folder; `StoreError` if the file of its basis is missing or damaged."""
    features = read_fingerprint(folder)["features"]
    shapes = {name: tuple(shape) for name, shape in features["shapes"].items()}
    if "codec" not in features:
        return make_codec(features["profile"], shapes)
    path = folder / CODEC_NAME
    basis = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(basis).hexdigest() != features["codec"]["sha256"]:
        raise StoreError(f"{path} is missing or damaged; run `fantrans refresh` to restore it")
    return make_codec(features["profile"], shapes, basis=basis)


def stored_format(folder: Path) -> StoreFormat:
    """Return the format of an existing cache folder."""
    return features_format(read_fingerprint(folder), load_codec(folder))

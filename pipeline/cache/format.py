"""What a feature cache holds, and how its arrays become the maps that heads take."""

# B frames, C channels, P landmarks, H W rows and columns of a map
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.store.shards import ArraySpec
from pipeline.store.writer import DEFAULT_BLOCK_ROWS, StoreFormat

FEATURES = ("lf", "h1", "h2", "hm")
PARAMS = "params"
"""Array of the views' parameters, a row a frame, in the order of `ViewParams`' fields."""
PARAM_NAMES = ("rotation_deg", "scale", "shift_x_px", "shift_y_px", "is_flipped")

_VIEW_PREFIX = "view_"


def view_group(view: int) -> str:
    """Zarr group of a view: `view_group(2) == "view_02"`."""
    return f"{_VIEW_PREFIX}{view:02d}"


def view_number(group: str) -> int:
    """The view of a group."""
    return int(group.removeprefix(_VIEW_PREFIX))


def features_format(
    document: Mapping[str, Any], shapes: Mapping[str, tuple[int, int, int]], *, block_rows: int = DEFAULT_BLOCK_ROWS
) -> StoreFormat:
    """What a cache folder holds. shapes: (C, H, W) of the stored `FEATURES`; hm has 68 channels or, summed, one."""
    features = tuple(
        ArraySpec(name=name, row_shape=shapes[name], dtype="float16", axes=("channel", "y", "x"),
                  attributes={"tap": name, "is_landmark_sum": name == "hm" and shapes[name][0] == 1})
        for name in FEATURES
    )
    params = ArraySpec(name=PARAMS, row_shape=(len(PARAM_NAMES),), dtype="float64", axes=("param",),
                       attributes={"names": list(PARAM_NAMES)})
    return StoreFormat(
        document=document,
        arrays=(*features, params),
        attributes={"kind": "features", "document": dict(document)},
        group_attributes=lambda group: {"view": view_number(group)},
        is_shuffled=True,
        block_rows=block_rows,
    )


def decode(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored arrays (B, C, H, W) to a head's input: lf, h1, h2 as they are, hm summed over landmarks to (B, 1, H, W).

    The sum is taken in fp32 and kept in fp16, as at extraction with the profile `standard`.
    """
    hm = stored["hm"]
    if hm.shape[1] > 1:
        hm = hm.float().sum(1, keepdim=True).half()
    return {**stored, "hm": hm}

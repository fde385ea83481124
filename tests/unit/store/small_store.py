"""A store of a few small rows, whose values follow from their keys."""

import hashlib

import numpy as np
import pandas as pd

from pipeline.store.shards import ArraySpec
from pipeline.store.writer import StoreFormat, open_writer

BLOCK_ROWS = 4
ARRAYS = (
    ArraySpec(name="plain", row_shape=(3,), dtype="float32", axes=("x",)),
    ArraySpec(name="packed", row_shape=(2, 2), dtype="int8", axes=("y", "x"), compressor="zstd"),
)
FORMAT = StoreFormat(document={"kind": "small"}, arrays=ARRAYS, is_shuffled=False, block_rows=BLOCK_ROWS)


def make_wanted(names, *, part="P1", key="a"):
    """A table of frames that are wanted, in one part, with the same key."""
    return pd.DataFrame({"frame_id": list(names), "key": key, "part": part})


def values_for(keys):
    """What is stored for frames of these keys."""
    seeds = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") for key in keys]
    rows = [np.random.default_rng(seed).integers(-99, 99, 7) for seed in seeds]
    whole = np.array(rows).reshape(-1, 7)
    return {"plain": whole[:, :3].astype(np.float32), "packed": whole[:, 3:].reshape(-1, 2, 2).astype(np.int8)}


def fill(root, wanted, *, groups=("one",), format=FORMAT, num_units=None):
    """Bring the store below `root` up to date; its folder. With `num_units`, stop unpublished after that many units."""
    folder = format.folder_in(root)
    with open_writer(folder, format) as writer:
        plan = writer.plan(wanted, groups)
        for unit in plan.units[:num_units]:
            rows = plan.rows_in(unit.block)
            writer.write_unit(unit, rows, values_for(rows["key"]))
        if num_units is None:
            writer.publish(plan, provenance={})
    return folder

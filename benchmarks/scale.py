"""Measure the bookkeeping of a store per frame: a refresh without features, on arrays of one byte per row.

    python benchmarks/scale.py --frames 10000 100000 --out var/scale.json

Six arrays (`standard` has seven) and two views, in blocks of 64 rows, on the disk of `--folder`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from pipeline.store.format import StoreFormat
from pipeline.store.reader import StoreReader
from pipeline.store.shards import ArraySpec
from pipeline.store.writer import open_writer, plan_store

GROUPS = ["view_00", "view_01"]
ARRAYS = tuple(ArraySpec(name=f"a{i}", row_shape=(1,), dtype="uint8", axes=("byte",)) for i in range(6))


def main() -> None:
    """Measure each size, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", type=Path, default=Path("var"))
    parser.add_argument("--out", type=Path, default=Path("var/scale.json"))
    arguments = parser.parse_args()
    found = []
    for num_frames in arguments.frames:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=arguments.folder) as folder:
            found.append(measure(Path(folder), num_frames))
        sys.stdout.write(json.dumps(found[-1]) + "\n")
    arguments.out.write_text(json.dumps(found, indent=2))


def measure(root: Path, num_frames: int) -> dict[str, float]:
    """Return seconds and bytes of a first refresh, of nothing to do, of one more frame, and of opening."""
    format = StoreFormat(document={"kind": "scale", "frames": num_frames}, arrays=ARRAYS, is_shuffled=True)
    folder, frames = format.folder_in(root), table(num_frames)
    found: dict[str, float] = {"frames": num_frames}
    with open_writer(folder, format) as writer:
        with timed(found, "first_plan_s"):
            plan = writer.plan(frames, GROUPS)
        with timed(found, "units_s"):
            for unit in plan.units:
                rows = plan.rows_in(unit.block)
                writer.write_unit(unit, rows, {spec.name: np.zeros((len(rows), 1), np.uint8) for spec in ARRAYS})
        with timed(found, "publish_s"):
            writer.publish(plan, provenance={})
    found["units_per_s"] = round(len(plan.units) / found["units_s"], 1)
    found["index_bytes_per_frame"] = round((folder / "index-000001.parquet").stat().st_size / num_frames, 1)
    found["shard_table_bytes_per_unit"] = round((folder / "shards-000001.parquet").stat().st_size / len(plan.units), 1)
    with timed(found, "nothing_to_do_s"):
        assert not plan_store(folder, format, frames, GROUPS).is_new
    with timed(found, "one_more_frame_s"), open_writer(folder, format) as writer:
        plan = writer.plan(table(num_frames + 1), GROUPS)
        for unit in plan.units:
            rows = plan.rows_in(unit.block)
            writer.write_unit(unit, rows, {spec.name: np.zeros((len(rows), 1), np.uint8) for spec in ARRAYS})
        writer.publish(plan, provenance={})
    with timed(found, "open_s"):
        assert len(StoreReader(folder).index) == num_frames + 1
    found["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


def table(num_frames: int) -> pd.DataFrame:
    """Return a refresh's table of frames: names like BP4D's, one key each, three parts."""
    numbers = np.arange(num_frames)
    return pd.DataFrame(
        {
            "frame_id": [f"F{n // 4000:06d}/T{n // 500 % 8 + 1}/{n % 500}" for n in numbers],
            "key": [f"{n * 0x9E3779B97F4A7C15 % 2**128:032x}" for n in numbers.tolist()],
            "part": [f"P{n // 4000 % 3 + 1}" for n in numbers],
            "status": "ok",
        }
    )


@contextmanager
def timed(found: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of the block to `found`."""
    started = time.monotonic()
    yield
    found[name] = round(time.monotonic() - started, 3)


if __name__ == "__main__":
    main()

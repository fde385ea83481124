"""A data set of small random pictures, its crops, and a feature cache whose "FAN" averages blocks of pixels.

Everything real but the sizes; several tests and the processes that they kill share it.
"""

import os
import signal
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pipeline.cache.codecs import make_codec
from pipeline.cache.crops import CropReader, crops_format, refresh_crops
from pipeline.cache.format import features_format
from pipeline.cache.writer import refresh
from pipeline.config import CropConfig, ViewConfig
from pipeline.tables import BOX_COLUMNS
from tests.steps import RENAMES, watch_steps

CROP = CropConfig(size_px=32)
VIEWS = ViewConfig(num_views=3)
SHAPES = {"lf": (4, 8, 8), "h1": (4, 8, 8), "h2": (4, 8, 8), "hm": (1, 8, 8)}
BLOCK_ROWS = 4
AUS = (1, 2)
CROPS_FORMAT = crops_format({"kind": "crops", "detector": "a", "crop": CROP.model_dump()}, CROP, block_rows=BLOCK_ROWS)


def features_document(shapes=SHAPES, *, profile="exact", **more):
    features = {"width": 4, "sha256": "ab" * 32, "profile": profile, "shapes": {n: list(s) for n, s in shapes.items()}}
    return {"kind": "features", "fan": "a", "features": features, **more}


def make_format(shapes=SHAPES, **more):
    return features_format(features_document(shapes, **more), make_codec("exact", shapes), block_rows=BLOCK_ROWS)


FORMAT = make_format()
CODEC = make_codec("exact", SHAPES)


def picture(seed):
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(blocks, (80, 60), interpolation=cv2.INTER_LINEAR)


def make_frames(num_subjects=6, num_frames=5):
    rows = [
        (
            f"F{s:03d}/T1/{f}",
            f"F{s:03d}",
            "T1",
            f,
            f"F{s:03d}/{f}.png",
            -1,
            f"P{s % 3 + 1}",
            (s + f) % 2,
            -1 if f == 1 else f % 2,
        )
        for s in range(num_subjects)
        for f in range(num_frames)
    ]
    columns = ["frame_id", "subject", "task", "frame", "source_file", "source_frame", "part", "au_01", "au_02"]
    return pd.DataFrame(rows, columns=columns).astype({"au_01": "Int8", "au_02": "Int8"})


def make_boxes(frames):
    random = np.random.default_rng(1)
    corner = random.uniform(5, 25, (len(frames), 2))
    boxes = pd.DataFrame(np.nan, index=range(len(frames)), columns=list(BOX_COLUMNS[1:-2]))
    boxes[["x1", "y1"]], boxes[["x2", "y2"]] = corner, corner + random.uniform(20, 30, (len(frames), 2))
    boxes.insert(0, "frame_id", frames["frame_id"])
    return boxes.astype(dict.fromkeys(BOX_COLUMNS[1:-2], np.float32)).assign(num_faces=1, status="ok")


def write_pictures(root, frames):
    for seed, file in enumerate(frames["source_file"]):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(seed)[..., ::-1])


def make_crops(folder, frames, boxes):
    images_root = folder / "raw"
    return refresh_crops(folder / "crops", frames, boxes, images_root=images_root, settings=CROP, format=CROPS_FORMAT)


def extract(images):
    """Feature c of a place: the mean of 4 x 4 px, times c + 1 (and one more a map)."""
    size = SHAPES["lf"][1]
    means = images.reshape(len(images), size, 4, size, 4, 3).mean((2, 4, 5), dtype=np.float64)[:, None]
    return {
        name: (means * np.arange(i + 1, i + 1 + shape[0])[:, None, None]).astype(np.float16)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def make_cache(folder, frames, crops, *, extractor=extract, views=VIEWS, format=FORMAT, codec=CODEC, **more):
    return refresh(
        folder / "cache",
        frames,
        crops,
        partial(_same, extractor),
        format=format,
        codec=codec,
        views=views,
        view_px=CROP.size_px,
        **more,
    )


def _same(it):
    return it


def make_world(folder, **sizes):
    frames = make_frames(**sizes)
    write_pictures(folder / "raw", frames)
    return frames, make_boxes(frames)


def stored_bytes(folder):
    """Every file of a store with its bytes, but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def refresh_slowly(folder, crops_folder, unit_s):
    """In a process of its own: a refresh that takes `unit_s` a unit."""

    def extractor(images):
        time.sleep(unit_s)
        return extract(images)

    make_cache(Path(folder), make_frames(), CropReader(Path(crops_folder)), extractor=extractor)


def refresh_watched(folder, crops_folder, *, kill_before=None, trace=None):
    """In a process of its own: a refresh whose renames and unlinks are named in `trace`, or that dies before one."""
    watch_steps(kill_before=kill_before, trace=trace, verbs=RENAMES)
    make_cache(Path(folder), make_frames(), CropReader(Path(crops_folder)))


def refresh_all_until_step(folder, frames, boxes, views, step):
    """In a process of its own: crops and features, until it kills itself; or to the end, with exit code 0."""
    _die_before(step)
    make_cache(folder, frames, make_crops(folder, frames, boxes), views=views)


def _die_before(step):
    num_steps = 0

    def count(change):
        def counted(self, *arguments, **more):
            nonlocal num_steps
            num_steps += 1
            if num_steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(self, *arguments, **more)

        return counted

    Path.replace, Path.unlink = count(Path.replace), count(Path.unlink)

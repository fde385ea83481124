"""A data set of small random images, its crops, and a feature cache whose "FAN" averages blocks of pixels.

Only the sizes differ from real use. Tests, and the processes that they kill, share it.
"""

import os
import signal
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pipeline.cache.build import CacheBuild
from pipeline.cache.codecs import make_codec
from pipeline.cache.crops import CropReader, crops_format, refresh_crops
from pipeline.cache.format import features_format
from pipeline.config import CropConfig, ViewConfig
from pipeline.runtime.executors import WorkerPool, drop_state, keep_state, new_state_name
from pipeline.tables import VALUE_COLUMNS
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


def draw_image(seed):
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
    boxes = pd.DataFrame(np.nan, index=range(len(frames)), columns=list(VALUE_COLUMNS))
    boxes[["x1", "y1"]], boxes[["x2", "y2"]] = corner, corner + random.uniform(20, 30, (len(frames), 2))
    boxes.insert(0, "frame_id", frames["frame_id"])
    return boxes.astype(dict.fromkeys(VALUE_COLUMNS, np.float32)).assign(num_faces=1, status="ok")


def write_images(root, frames):
    for seed, file in enumerate(frames["source_file"]):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw_image(seed)[..., ::-1])


def make_crops(folder, frames, boxes):
    images_root = folder / "raw"
    return refresh_crops(folder / "crops", frames, boxes, images_root=images_root, settings=CROP, format=CROPS_FORMAT)


def extract(images):
    """Return maps whose channel c is the mean of 4 x 4 px times c + 1, plus one per map."""
    size = SHAPES["lf"][1]
    means = images.reshape(len(images), size, 4, size, 4, 3).mean((2, 4, 5), dtype=np.float64)[:, None]
    return {
        name: (means * np.arange(i + 1, i + 1 + shape[0])[:, None, None]).astype(np.float16)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def cache_build(folder, *, extractor=extract, views=VIEWS, format=FORMAT, codec=CODEC, **more):
    """Return the build of a feature cache below `folder`; `more` are fields of `CacheBuild`."""
    return CacheBuild(
        root=folder / "cache",
        format=format,
        codec=codec,
        views=views,
        view_px=CROP.size_px,
        make_extractor=partial(_return_extractor, extractor),
        **more,
    )


def make_cache(folder, frames, crops, *, executor=None, **settings):
    """Build the cache, in this process or by an executor of threads."""
    workers = {} if executor is None else {"workers": ThreadWorkers(executor)}
    return cache_build(folder, **settings).run(frames, crops, **workers)


class ThreadWorkers:
    """Workers that are threads of this process."""

    def __init__(self, executor):
        self._executor = executor

    @contextmanager
    def open(self, state, *, num_tasks):
        name = new_state_name()
        keep_state(name, state)
        try:
            yield WorkerPool(self._executor, name)
        finally:
            drop_state(name)


def _return_extractor(extractor):
    return extractor


def make_world(folder, **sizes):
    frames = make_frames(**sizes)
    write_images(folder / "raw", frames)
    return frames, make_boxes(frames)


def stored_bytes(folder):
    """Return the bytes of every file of a store except the lock, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def refresh_slowly(folder, crops_folder, unit_s):
    """Refresh at `unit_s` seconds per unit, in its own process."""

    def extractor(images):
        time.sleep(unit_s)
        return extract(images)

    make_cache(Path(folder), make_frames(), CropReader(Path(crops_folder)), extractor=extractor)


def refresh_watched(folder, crops_folder, *, kill_before=None, trace=None):
    """In a process of its own: a refresh whose renames and unlinks are named in `trace`, or that dies before one."""
    watch_steps(kill_before=kill_before, trace=trace, verbs=RENAMES)
    make_cache(Path(folder), make_frames(), CropReader(Path(crops_folder)))


def refresh_all_until_step(folder, frames, boxes, views, step):
    """Refresh crops and features until the process kills itself before `step`, or to the end."""
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

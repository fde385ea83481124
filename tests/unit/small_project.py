"""A catalog with one data set whose frames are missed in every way, its cache in the profile standard, and runs."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import yaml

from pipeline.cache.codecs import encode_rows, make_codec
from pipeline.cache.crops import crops_format, refresh_crops
from pipeline.cache.format import features_format
from pipeline.catalog import load_catalog
from pipeline.config import DetectorConfig
from pipeline.datasets.index import write_index
from pipeline.store.hashing import hash_document
from pipeline.tables import BOX_COLUMNS, VALUE_COLUMNS, Flaw, Status, write_table
from tests.unit import small_cache
from tests.unit.small_cache import BLOCK_ROWS, CROP, SHAPES, write_images

NAME = "small"
SUBJECTS, TASKS, NUM_FRAMES = ("F001", "F002", "M001"), ("T1", "T2", "T10"), 4
MISSED = {
    "F001/T1/1": Status.NO_FACE,
    "F001/T2/1": Status.NO_FACE,
    "F001/T1/2": Status.IMPLAUSIBLE,
    "F002/T2/3": Status.UNREADABLE,
    "M001/T10/0": Status.NO_SOURCE,
}
SWITCHED, CROWDED = "M001/T1", "F002/T1/0"
DETECTOR = DetectorConfig().model_dump(exclude={"weights"})


def make_frames():
    rows = [
        (f"{subject}/{task}/{frame}", subject, task, frame, f"{subject}/{task}/{frame}.png", -1, "P1", frame % 2)
        for subject in SUBJECTS
        for task in TASKS
        for frame in range(NUM_FRAMES)
    ]
    columns = ["frame_id", "subject", "task", "frame", "source_file", "source_frame", "part", "au_01"]
    frames = pd.DataFrame(rows, columns=columns).astype({"au_01": "Int8"})
    frames.loc[frames["frame_id"].map(MISSED) == Status.NO_SOURCE, "source_file"] = ""
    return frames


def make_boxes(frames):
    """Boxes of 24 px in frames of 80 x 60 px, with a face that is turned clockwise by 45 degrees."""
    values = {"x1": 20, "y1": 10, "x2": 44, "y2": 34, "score": 0.9, "p0x": 28, "p0y": 16, "p1x": 36, "p1y": 24}
    values |= {"p2x": 34, "p2y": 22, "p3x": 26, "p3y": 26, "p4x": 32, "p4y": 30}
    boxes = pd.DataFrame({"frame_id": frames["frame_id"], **values}).astype(dict.fromkeys(VALUE_COLUMNS, np.float32))
    boxes = boxes.assign(num_faces=1, status="ok", track=0, flaw="", width_px=80, height_px=60)
    status = boxes["frame_id"].map({name: each.value for name, each in MISSED.items()})
    boxes["status"] = status.fillna("ok")
    boxes.loc[status.notna() & (status != Status.IMPLAUSIBLE), [*VALUE_COLUMNS]] = np.nan
    boxes.loc[status.notna() & (status != Status.IMPLAUSIBLE), ["num_faces", "track"]] = (0, -1)
    boxes.loc[status == Status.IMPLAUSIBLE, "flaw"] = Flaw.SMALL.value
    boxes.loc[boxes["frame_id"] == f"{SWITCHED}/3", "track"] = 1
    boxes.loc[boxes["frame_id"] == CROWDED, "num_faces"] = 2
    return boxes[list(BOX_COLUMNS)]


def _extract(images, codec):
    return encode_rows(codec, small_cache.extract(images))


def make_project(folder):
    """Write the catalog, tables, crops, cache and two runs below `folder`; return the catalog and the cache."""
    entry = {"root": "raw", "layout": "bp4d", "protocol": "rendered_bp4d", "experiment": "demo_quick"}
    content = {"roots": {"work": "work", "cache": "cache", "runs": "runs"}, "datasets": {NAME: entry}}
    path = folder / "data_catalog.yaml"
    path.write_text(yaml.safe_dump(content))
    catalog = load_catalog(path)
    frames = make_frames()
    boxes = make_boxes(frames)
    write_images(folder / "raw", frames[frames["source_file"] != ""])
    (folder / "raw/F002/T2/3.png").write_bytes(b"no image")
    work = catalog.work_folder(NAME)
    write_index(work, frames)
    document = {"version": 3, "detector": DETECTOR}
    write_table(work / f"boxes-{hash_document({'kind': 'boxes', **document})}.parquet", boxes)
    document |= {"crop": CROP.model_dump()}
    crops = refresh_crops(
        catalog.crops_folder(NAME),
        frames,
        boxes,
        images_root=folder / "raw",
        settings=CROP,
        format=crops_format({"kind": "crops", **document}, CROP, block_rows=BLOCK_ROWS),
    )
    features = {"family": "fan", "width": 4, "sha256": "ab" * 32, "profile": "standard", "precision": "fp32"}
    features["shapes"] = {name: list(shape) for name, shape in SHAPES.items()}
    codec = make_codec("standard", SHAPES)
    format = features_format({"kind": "features", **document, "features": features}, codec, block_rows=BLOCK_ROWS)
    build = small_cache.cache_build(
        folder, format=format, codec=codec, extractor=partial(_extract, codec=codec), provenance={"device": "cpu"}
    )
    cache = replace(build, root=catalog.caches_folder(NAME)).run(frames, crops)
    for name in ("small-a", "small-b & c"):
        run = catalog.roots.runs / name
        run.mkdir(parents=True)
        record = {"experiment": "demo_quick", "dataset": NAME, "cache": cache.fingerprint, "head": {}, "aus": [1]}
        (run / "run.json").write_text(json.dumps(record))
    (catalog.roots.runs / "small-b & c/report.html").write_text("<!doctype html><title>b</title>")
    return catalog, cache

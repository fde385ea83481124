"""Measure a refresh with little to do: 1 % new frames on the demo, and nothing new at BP4D's size.

    fantrans render bp4d-synthetic && python benchmarks/refresh_cost.py --out var/refresh_cost.json

more: refresh the demo with each frame four times, without one of a hundred subjects; then refresh with that subject.
nothing: refresh a data set in BP4D's layout with 150,000 frames that is up to date. Its images link to one small image,
its boxes are constant and its features are zeros, but every table, shard and check is real.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.torch import save_file

from models.fan import FAN
from pipeline.cache import crops
from pipeline.catalog import load_catalog
from pipeline.datasets.bp4d import CODES, IMAGES
from pipeline.protocols import PROTOCOLS
from pipeline.refresh.job import RefreshJob, cache_build, crop_reader, prepare_refresh
from pipeline.refresh.stages import CropStage, DetectStage, IndexStage, refresh_cache, run_stage
from pipeline.runtime.atomic import file_sha256
from pipeline.tables import FACE_COLUMNS, VALUE_COLUMNS, write_table

PLACE = Path("var/refresh_cost")
NUM_COPIES, COPY_STEP = 4, 100_000
NUM_TASKS, NUM_FRAMES = 8, 150_000
LINKS_PER_FILE = 30_000
SIDE_PX = 64


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("var/refresh_cost.json"))
    parser.add_argument("--only", choices=["more", "nothing"])
    arguments = parser.parse_args()
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    result = {}
    if arguments.only != "nothing":
        result["more"] = one_percent_more()
    if arguments.only != "more":
        result["nothing"] = nothing_to_do()
    shutil.rmtree(PLACE)
    arguments.out.write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


def use_catalog(root: Path, protocol: str, weights: dict[str, object]) -> None:
    """Use a catalog with one data set, "measured", that writes below `PLACE`."""
    known = load_catalog()
    entries = {name: json.loads(entry.model_dump_json(exclude_none=True)) for name, entry in known.weights.items()}
    roots = {name: str((PLACE / name).resolve()) for name in ("work", "cache", "runs")}
    path = PLACE / "catalog.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "roots": roots,
                "weights": {**entries, **weights},
                "datasets": {"measured": {"root": str(root.resolve()), "layout": "bp4d", "protocol": protocol}},
            }
        )
    )
    os.environ["FANTRANS_CATALOG"] = str(path)


def timed(config: str) -> float:
    """Return the seconds of a complete refresh."""
    started = time.perf_counter()
    refresh_cache("measured", experiment=config)
    return time.perf_counter() - started


def one_percent_more() -> dict[str, float]:
    """Return the seconds of three refreshes: 99 % of the subjects, then all subjects, then nothing new."""
    demo_root, root = load_catalog().get_dataset("bp4d-synthetic").root, PLACE / "demo"
    subjects = sorted(path.name for path in (demo_root / IMAGES).iterdir())

    def link(subject: str) -> None:
        """Add a subject with each frame `NUM_COPIES` times."""
        for path in (demo_root / CODES).glob(f"{subject}_*"):
            codes, task = pd.read_csv(path), path.stem.partition("_")[2]
            copies = [codes.assign(**{"0": codes["0"] + copy * COPY_STEP}) for copy in range(NUM_COPIES)]
            pd.concat(copies).to_csv(root / CODES / path.name, index=False)
            folder = root / IMAGES / subject / task
            folder.mkdir(parents=True)
            for image in (demo_root / IMAGES / subject / task).iterdir():
                for copy in range(NUM_COPIES):
                    (folder / f"{int(image.stem) + copy * COPY_STEP}.jpg").symlink_to(image.resolve())

    (root / CODES).mkdir(parents=True)
    for subject in subjects[:-1]:
        link(subject)
    use_catalog(root, "rendered_bp4d", {})
    full_s = timed("demo")
    link(subjects[-1])
    more_s, nothing_s = timed("demo"), timed("demo")
    return {
        "num_frames": NUM_COPIES * len(list((demo_root / IMAGES).glob("*/*/*.jpg"))),
        "full_s": full_s,
        "one_percent_more_s": more_s,
        "nothing_more_s": nothing_s,
        "more_of_full_percent": 100 * more_s / full_s,
    }


def nothing_to_do() -> dict[str, float]:
    """Return the seconds of two refreshes of 150,000 frames with nothing to do."""
    root = PLACE / "big"
    write_layout(root)
    torch.manual_seed(0)
    fan = PLACE / "fan.safetensors"
    save_file(FAN(16).state_dict(), fan)
    entry = {
        "path": str(fan.resolve()),
        "sha256": file_sha256(fan),
        "family": "fan",
        "width": 16,
        "num_stacks": 2,
        "pooling": "avg",
    }
    use_catalog(root, "bp4d", {"tiny": entry})
    config = PLACE / "big.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "base": "fan_trans",
                "cache": {
                    "views": {"num_views": 2, "max_shift_px": 0.0},
                    "crop": {"size_px": 16},
                    "features": {"weights": "tiny"},
                },
            }
        )
    )
    job = prepare_refresh("measured", experiment=str(config))
    run_stage(IndexStage(), job, job.workers)
    make_up_faces(job)
    run_stage(DetectStage(), job, job.workers)
    run_stage(CropStage(), job, job.workers)
    make_up_features(job)
    num = len(crop_reader(job).index)
    return {"num_frames": num, "num_views": 2, "nothing_s": timed(str(config)), "nothing_again_s": timed(str(config))}


def write_layout(root: Path) -> None:
    """Write images and labels of BP4D's 41 subjects and 8 tasks, at least `NUM_FRAMES` in total."""
    rules = PROTOCOLS["bp4d"]
    subjects = list(rules.subject_parts)
    num = -(-NUM_FRAMES // (len(subjects) * NUM_TASKS))
    header = pd.DataFrame(0, index=range(1, num + 1), columns=list(rules.aus)).rename_axis("0")
    (root / CODES).mkdir(parents=True)
    made = 0
    image = root / "image.jpg"
    for subject in subjects:
        for task in range(1, NUM_TASKS + 1):
            header.to_csv(root / CODES / f"{subject}_T{task}.csv")
            folder = root / IMAGES / subject / f"T{task}"
            folder.mkdir(parents=True)
            for frame in range(1, num + 1):
                if made % LINKS_PER_FILE == 0:
                    image = root / f"image-{made}.jpg"
                    cv2.imwrite(str(image), np.full((SIDE_PX, SIDE_PX, 3), 127, np.uint8))
                (folder / f"{frame:04d}.jpg").hardlink_to(image)
                made += 1


def make_up_faces(job: RefreshJob) -> None:
    """Write a face in the centre of every image, as the stage detect would."""
    table = pd.read_parquet(job.catalog.index_path(job.dataset))
    hashes = crops.source_hashes(job.entry.root, table["source_file"], known=None)
    faces = pd.DataFrame(np.float32(SIDE_PX / 2), index=table.index, columns=list(VALUE_COLUMNS))
    faces[["x1", "y1", "x2", "y2"]] = np.array([8, 8, SIDE_PX - 8, SIDE_PX - 8], np.float32)
    side, zero = np.int32(SIDE_PX), np.int32(0)
    faces = faces.assign(
        frame_id=table["frame_id"], face=zero, status="ok", width_px=side, height_px=side, turned_deg=zero
    ).assign(thumbnail=[bytes(range(256))] * len(table), score=np.float32(1))[list(FACE_COLUMNS)]
    write_table(job.faces_path, faces.merge(table[["frame_id", "source_file"]].join(hashes, on="source_file")))


def make_up_features(job: RefreshJob) -> None:
    """Write a cache of zeros."""
    build, table = cache_build(job), pd.read_parquet(job.catalog.index_path(job.dataset))

    def zeros(images: np.ndarray) -> dict[str, np.ndarray]:
        return {spec.name: np.zeros((len(images), *spec.row_shape), spec.dtype) for spec in build.codec.arrays}

    dataclasses.replace(build, make_extractor=lambda: zeros).run(table, crop_reader(job))


if __name__ == "__main__":
    main()

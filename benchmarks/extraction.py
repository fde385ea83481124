"""Measure a folder of frames to cached features, beside face-alignment on the same frames, and beside the FAN alone.

    python benchmarks/extraction.py --out var/extraction.json

Renders frames of 512 px. The shipped FANs run in their experiments' precision and in fp32, and a FAN of width 256 with
four stacks and random weights, which face-alignment takes as well. Ours: detection, crop, and one view of the cache in
the profile standard, each stage at its rate in a refresh. Theirs: `FaceAlignment` with its RetinaFace and the shipped
detector's weights, without flipping, as its README uses it. Limits: the FAN alone in batches of
8, and a matrix product.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import face_alignment
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.origin import origin
from models.fan import FAN
from pipeline.cache import prepare
from pipeline.cache.crops import CropReader
from pipeline.catalog import Catalog, WeightsEntry, load_catalog
from pipeline.datasets.images import read_image
from pipeline.datasets.index import write_index
from pipeline.faces.features import extract_features, load_fan
from pipeline.refresh.boxes import DetectionWorker
from pipeline.refresh.job import RefreshJob, cache_build, crop_reader, prepare_refresh
from pipeline.refresh.stages import CropStage, DetectStage, IndexStage
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.atomic import file_sha256
from pipeline.runtime.device import exact_convolutions, map_batches

DATASET, EXPERIMENT = "frames", "demo"
BATCH = 8
PRODUCT_SIDE = 2048
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=48, help="rendered frames, a multiple of 12")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=["fan-64", "fan-128", "fan-256-4"])
    parser.add_argument("--out", type=Path, default=Path("var/extraction.json"))
    arguments = parser.parse_args()
    tune_allocator()
    with TemporaryDirectory() as folder:
        catalog = make_catalog(Path(folder), arguments.frames)
        result: dict[str, Any] = {
            **origin(),
            "num_frames": arguments.frames,
            "product_gflops": {name: product_rate(dtype) for name, dtype in DTYPES.items()},
        }
        for name in arguments.networks:
            result[name] = measure(catalog, name, arguments.rounds)
            print(json.dumps({name: result[name]}, indent=2), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2))


def make_catalog(folder: Path, num_frames: int) -> Catalog:
    """Return a catalog with rendered frames below `folder`, and the FAN with random weights."""
    catalog = load_catalog()
    torch.manual_seed(0)
    path = folder / "fan-256-4.safetensors"
    save_file(FAN(256, 4, pooling="avg").state_dict(), path)
    wide = WeightsEntry(
        path=path, sha256=file_sha256(path), family="fan", width=256, num_stacks=4, pooling="avg", codec=None
    )
    entry = catalog.get_dataset("demo_quick").model_copy(update={"root": folder / "raw"})
    rendered = entry.rendered
    assert rendered is not None
    sizes = {"num_subjects": 12, "num_tasks": num_frames // 12, "num_frames": 1, "size_px": 512}
    entry = entry.model_copy(update={"rendered": rendered.model_copy(update=sizes)})
    roots = {name: folder / name for name in ("work", "cache", "runs")}
    catalog = catalog.model_copy(
        update={
            "roots": catalog.roots.model_copy(update=roots),
            "datasets": {DATASET: entry},
            "weights": catalog.weights | {"fan-256-4": wide},
        }
    )
    entry.render()
    return catalog


def product_rate(dtype: torch.dtype) -> float:
    """Return GFLOP/s of a matrix product."""
    left, right = (torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, dtype=dtype) for _ in range(2))
    left @ right
    seconds = median(seconds_of(lambda: left @ right) for _ in range(7))
    return round(2 * PRODUCT_SIDE**3 / seconds / 1e9, 1)


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(catalog: Catalog, name: str, rounds: int) -> dict[str, Any]:
    """Return frames (or views) per second of one network, medians of rounds in which all take turns."""
    entry = catalog.get_weights(name)
    job = make_job(catalog, name, "fp32")
    frames = IndexStage().plan(job).expected.frames
    assert frames is not None
    write_index(job.work, frames)
    for stage in (DetectStage(), CropStage()):
        stage.run(job, stage.plan(job), job.workers)
    crops, network = crop_reader(job), load_fan(entry, "cpu")
    images = [read_image(job.entry.root / file) for file in frames["source_file"]]
    views = np.random.default_rng(0).integers(0, 256, (2 * BATCH * torch.get_num_threads(), 256, 256, 3), np.uint8)
    encode = prepare.load_codec(job.config, catalog)[0].encode
    worker = DetectionWorker(job)
    works: dict[str, tuple[int, Callable[[], float]]] = {
        "detection": (len(frames), lambda: seconds_of(lambda: worker.detect(frames))),
        "crops": (len(frames), lambda: seconds_of(lambda: cut_crops(job))),
    }
    for precision in DTYPES:
        works[f"FAN alone, {precision}"] = (
            len(views),
            lambda p=precision: seconds_of(lambda: alone(network, views, p)),
        )
        works[f"FAN and codec, {precision}"] = (
            len(views),
            lambda p=precision: seconds_of(
                lambda: extract_features(network, views, encode=encode, precision=p)
            ),
        )  # fmt: skip
        of_precision = make_job(catalog, name, precision)
        works[f"views of a refresh, {precision}"] = (1, lambda j=of_precision: view_seconds(j, frames, crops))
    peer = make_peer(catalog, entry) if entry.width == 256 else None
    if peer is not None:
        works["face-alignment"] = (
            len(images), lambda: seconds_of(lambda: [peer.get_landmarks_from_image(image) for image in images])
        )  # fmt: skip
    rates: dict[str, list[float]] = {work: [] for work in works}
    for number in range(rounds + 1):  # the first round warms up and does not count
        for work, (num, run) in works.items():
            rate = num / run()
            if number:
                rates[work].append(rate)
    found: dict[str, Any] = {
        work: {"median": round(median(each), 2), "range": [round(min(each), 2), round(max(each), 2)]}
        for work, each in rates.items()
    }
    with FlopCounterMode(display=False) as counter:
        network.taps(torch.zeros(1, 3, 256, 256))
    found["gflop_per_view"] = round(counter.get_total_flops() / 1e9, 2)
    for precision in DTYPES:
        seconds = [median(rates[work]) for work in ("detection", "crops", f"views of a refresh, {precision}")]
        found[f"frames end to end, {precision}"] = round(1 / sum(1 / rate for rate in seconds), 2)
    if peer is not None:
        found["largest difference of the heatmaps"] = heatmap_difference(network, peer, views[:2])
    return found


def make_job(catalog: Catalog, name: str, precision: str) -> RefreshJob:
    """Return a job with a network and a precision; two views in the profile standard."""
    settings = prepare_refresh("demo_quick", num_views=2, profile="standard", checks_weights=False).config
    features = settings.features.model_copy(update={"weights": name, "precision": precision})
    config = settings.model_copy(update={"features": features})
    return RefreshJob(dataset=DATASET, catalog=catalog, config=config, limit=None, device="cpu")


def cut_crops(job: RefreshJob) -> None:
    """Cut the crops into an empty store."""
    with TemporaryDirectory() as folder:
        roots = job.catalog.roots.model_copy(update={"work": Path(folder)})
        there = dataclasses.replace(job, catalog=job.catalog.model_copy(update={"roots": roots}))
        there.work.mkdir()
        for path in job.work.glob("*.parquet"):
            (there.work / path.name).symlink_to(path)
        stage = CropStage()
        stage.run(there, stage.plan(there), there.workers)


@torch.inference_mode()
def alone(network: FAN, views: np.ndarray, precision: str) -> None:
    """Run a FAN on views, as many batches at once as there are threads, as an extraction does."""

    @torch.inference_mode()
    def forward(batch: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), exact_convolutions():
            network.taps(batch)

    images = torch.from_numpy(views).permute(0, 3, 1, 2).float().div(255)
    for _ in map_batches(forward, images.split(BATCH), torch.device("cpu")):
        pass


def view_seconds(job: RefreshJob, frames: Any, crops: CropReader) -> float:
    """Build a cache of two views; return seconds per view, without the loading of the network."""
    with TemporaryDirectory() as folder:
        build = dataclasses.replace(cache_build(job), root=Path(folder))
        load_s = seconds_of(build.make_extractor)
        return (seconds_of(lambda: build.run(frames, crops)) - load_s) / (2 * len(crops.index))


def make_peer(catalog: Catalog, entry: WeightsEntry) -> face_alignment.FaceAlignment:
    """Return face-alignment with the same weights in place of its downloads."""
    with TemporaryDirectory() as folder:
        files = {"2DFAN": Path(folder) / "fan.pth", "retinaface": Path(folder) / "detector.pth"}
        torch.save(load_file(entry.path), files["2DFAN"])
        torch.save(load_file(catalog.get_weights("retinaface-mobilenet").path), files["retinaface"])
        face_alignment.api.load_file_from_url = lambda *_, **__: str(files["2DFAN"])
        return face_alignment.FaceAlignment(
            face_alignment.LandmarksType.TWO_D,
            device="cpu",
            flip_input=False,
            face_detector="retinaface",
            face_detector_kwargs={"path_to_detector": str(files["retinaface"])},
        )


@torch.inference_mode()
def heatmap_difference(network: FAN, peer: face_alignment.FaceAlignment, views: np.ndarray) -> float:
    """Return the largest difference of the last heatmaps, relative to their largest value."""
    images = torch.from_numpy(views).permute(0, 3, 1, 2).float().div(255)
    with exact_convolutions():
        ours, theirs = network(images)[-1], peer.face_alignment_net(images)[-1]
    return float((ours - theirs).abs().max() / theirs.abs().max())


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()

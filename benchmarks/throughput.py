"""Measure frames per second of extraction, loading and head training, each with a peer on the same data.

    fantrans demo && python benchmarks/throughput.py --out var/throughput.json

extract: our extraction, and face-alignment's own network called eagerly on the same crops and weights. loader: our
batches, and zarr-python reading the same shuffled rows. train: forward, backward and step of the head (no peer).
Timings are noisy: compare the numbers of one run, not of different runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import face_alignment.models
import numpy as np
import torch
import zarr

from models.losses import class_weights, total_loss
from pipeline.cache.format import view_group
from pipeline.catalog import load_catalog
from pipeline.faces.features import extract_features, load_fan
from pipeline.protocols import PARTS
from pipeline.training.heads import build_head
from pipeline.training.loader import CachedFrames, HeadBatches, TrainingPages, evaluation_batches
from pipeline.training.runs import TrainingRun, prepare_run
from pipeline.training.trainer import tune_allocator

NUM_CROPS = 64
REPEATS = 3


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="bp4d-synthetic")
    parser.add_argument("--experiment", default="demo")
    parser.add_argument("--out", type=Path, default=Path("var/throughput.json"))
    arguments = parser.parse_args()
    run = prepare_run(arguments.experiment, dataset=arguments.dataset)
    result = {
        "threads": torch.get_num_threads(),
        "extract": extraction(run),
        "loader": loading(run),
        "train": training(run),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


def frames_per_s(work: Callable[[], int]) -> float:
    """Return the best rate of a few calls after a warm-up; `work` returns its number of frames."""
    work()
    rates = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        rates.append(work() / (time.perf_counter() - started))
    return round(max(rates), 1)


def extraction(run: TrainingRun) -> dict[str, float]:
    """Return rates of ours with encoding, in the experiment's precision and in fp32, and of the peer in fp32."""
    settings, encode = run.experiment.cache.features, run.cache.codec.encode
    entry = load_catalog().get_weights(settings.weights)
    fan = load_fan(entry, "cpu")
    crops = np.random.default_rng(0).integers(0, 256, (NUM_CROPS, 256, 256, 3), np.uint8)
    result = {}
    for precision in sorted({settings.precision, "fp32"}):

        def ours(precision: str = precision) -> int:
            return len(extract_features(fan, crops, encode=encode, precision=precision)["lf"])

        result[f"ours_{precision}"] = frames_per_s(ours)
    if entry.width == 256:  # the peer's width is fixed
        peer = face_alignment.models.FAN(num_modules=entry.num_stacks).eval()
        peer.load_state_dict(fan.state_dict())

        @torch.inference_mode()
        def theirs() -> int:
            for crop in crops:
                peer(torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255)
            return len(crops)

        result["face_alignment_fp32"] = frames_per_s(theirs)
    return result


def loading(run: TrainingRun) -> dict[str, float]:
    """Return rates of a shuffled epoch by our loader, and of shuffled rows by zarr-python, batch by batch."""
    batches = HeadBatches(run.cache, CachedFrames(run.cache, run.frames, aus=run.rules.aus), batch_size=32, seed=0)
    pages = TrainingPages(run.cache, run.frames, parts=PARTS)
    group = zarr.open_group(run.cache.folder / "arrays.zarr", mode="r")[view_group(0)]
    rows = np.random.default_rng(0).permutation(run.cache.rows())[:256]

    def theirs() -> int:
        for start in range(0, len(rows), 32):
            for name in run.cache.codec.inputs:
                group[name].oindex[np.sort(rows[start : start + 32])]
        return len(rows)

    def ours() -> int:
        return sum(len(batch.frame_ids) for page in pages.epochs(0, 1) for batch in batches.from_page(page))

    return {"ours": frames_per_s(ours), "zarr_python": frames_per_s(theirs)}


def training(run: TrainingRun) -> dict[str, float]:
    """Return the rate of the complete two-branch head on one batch in memory."""
    tune_allocator()
    frames = CachedFrames(run.cache, run.frames, aus=run.rules.aus)
    batch = next(evaluation_batches(run.cache, frames, batch_size=32))
    head = build_head(run).head.train()
    weights_A = class_weights(torch.from_numpy(frames.labels_NA))
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-4, fused=True)

    def step() -> int:
        loss = total_loss(head(batch.features), batch.labels_BA, weights_A).total
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return len(batch.labels_BA)

    return {"ours": frames_per_s(step)}


if __name__ == "__main__":
    main()

"""Measure what `pipeline.runtime.allocator` gains: detection, extraction and training with and without it, in turn.

    fantrans demo && python benchmarks/allocator.py --repeats 3

Each measurement is a process of its own on the data set of the demo. Prints, for each kind of work, the median rate
with and without, their ratio, the seconds spent in the kernel, and the peak memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from pipeline.refresh.boxes import DetectionWorker
from pipeline.refresh.job import cache_build, crop_reader, prepare_refresh
from pipeline.runtime.allocator import tune_allocator
from pipeline.training import trainer
from pipeline.training.runs import resolve_runs

DATASET = "bp4d-synthetic"
NUM_FRAMES = 384
WORK = ("detect", "extract", "train")


def main() -> None:
    """Run the measurements in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("WORK", "TUNED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], is_tuned=arguments.one[1] == "yes")))
        return
    print("| work | items/s without | with | ratio | kernel s without | with | peak MB without | with |")
    print("|---|---|---|---|---|---|---|---|")
    for work in WORK:
        found: dict[str, list[dict[str, float]]] = {"no": [], "yes": []}
        for _ in range(arguments.repeats):
            for tuned, results in found.items():
                command = [sys.executable, __file__, "--one", work, tuned]
                results.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
        (rate0, rate1), (kernel0, kernel1), (peak0, peak1) = (
            [statistics.median(each[name] for each in found[tuned]) for tuned in ("no", "yes")]
            for name in ("rate", "kernel_s", "peak_mb")
        )
        print(
            f"| {work} | {rate0:.1f} | {rate1:.1f} | {rate1 / rate0:.2f} | {kernel0:.1f} | {kernel1:.1f} | "
            f"{peak0:.0f} | {peak1:.0f} |"
        )


def measure(work: str, *, is_tuned: bool) -> dict[str, float]:
    """Do one kind of work in this process; return its rate in items per second, kernel time and peak memory."""
    trainer.tune_allocator = lambda: None
    if is_tuned:
        tune_allocator()
    num_items, seconds = {"detect": detect, "extract": extract, "train": train}[work]()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"rate": num_items / seconds, "kernel_s": usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def detect() -> tuple[int, float]:
    """Detect faces; return frames and seconds."""
    job = prepare_refresh(DATASET)
    frames = pd.read_parquet(job.catalog.index_path(DATASET)).iloc[:NUM_FRAMES]
    worker = DetectionWorker(job)
    worker.detect(frames.iloc[:8])  # loads the network
    started = time.monotonic()
    worker.detect(frames)
    return len(frames), time.monotonic() - started


def extract() -> tuple[int, float]:
    """Build a cache of two views; return views and seconds."""
    job = prepare_refresh(DATASET, num_views=2)
    frames = pd.read_parquet(job.catalog.index_path(DATASET)).iloc[:NUM_FRAMES]
    with tempfile.TemporaryDirectory() as folder:
        build = dataclasses.replace(cache_build(job), root=Path(folder))
        started = time.monotonic()
        build.run(frames, crop_reader(job))
        return 2 * len(frames), time.monotonic() - started


def train() -> tuple[int, float]:
    """Train two folds for two epochs; return frames and seconds."""
    (run,) = resolve_runs("demo", dataset=DATASET)
    short = run.experiment.train.model_copy(update={"num_epochs": 2})
    experiment = run.experiment.model_copy(update={"train": short})
    with tempfile.TemporaryDirectory() as folder:
        run = dataclasses.replace(run, experiment=experiment, folder=Path(folder) / "run")
        started = time.monotonic()
        trainer.train_heads([(run, part) for part in ("P1", "P2")])
        seconds = time.monotonic() - started
    num_frames = sum(int((run.frames["part"] != part).sum()) for part in ("P1", "P2"))
    return 2 * num_frames, seconds


if __name__ == "__main__":
    main()

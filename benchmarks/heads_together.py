"""Compare training many heads on one pass over the cache with training them one by one.

    fantrans demo && python benchmarks/heads_together.py --set table1 --out var/heads_together.json

Trains one epoch of every member and fold of the set, on the data set's own cache. "alone" uses one torch thread per
head, as `fantrans train` does; "alone_all_threads" uses all cores per head, so its last bits differ. Times include
reading and decoding, but not scoring.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pipeline.catalog import load_catalog
from pipeline.experiments import resolve
from pipeline.protocols import train_parts
from pipeline.runtime.broadcast import broadcast
from pipeline.runtime.progress import no_progress
from pipeline.training.loader import Page, TrainingPages
from pipeline.training.runs import Runs, TrainingRun
from pipeline.training.trainer import HeadTraining, tune_allocator


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="table1")
    parser.add_argument("--dataset", default="bp4d-synthetic")
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("var/heads_together.json"))
    arguments = parser.parse_args()
    catalog = load_catalog()
    members = resolve(catalog, arguments.dataset, arguments.set).members
    prepared = Runs(catalog, arguments.dataset)
    with TemporaryDirectory() as place:
        runs = [
            replace(prepared.resolve(member.experiments[0]), folder=Path(place) / member.name)
            for member in members[: arguments.members]
        ]
        result = measure(runs)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


def measure(runs: list[TrainingRun]) -> dict[str, float]:
    """Return seconds and rates of each method, and the percentage of time spent waiting for data."""
    tune_allocator()
    num_threads = torch.get_num_threads()
    seconds = {"together": timed(partial(together, runs, num_threads))}
    share = seconds["together"][1]
    seconds["alone"] = timed(lambda: [together([run], 1, parts=(part,)) for run in runs for part in tested_parts(run)])
    torch.set_num_threads(num_threads)
    seconds["alone_all_threads"] = timed(lambda: [alone(run, part) for run in runs for part in tested_parts(run)])
    frames = sum(head.batches.num_batches * head.settings.batch_size for head in start_heads(runs))
    return {
        "num_heads": len(start_heads(runs)),
        "num_threads": num_threads,
        "head_frames": frames,
        **{f"{name}_s": took for name, (took, _) in seconds.items()},
        **{f"{name}_head_frames_per_s": frames / took for name, (took, _) in seconds.items()},
        "together_of_alone": seconds["together"][0] / seconds["alone"][0],
        "together_of_alone_all_threads": seconds["together"][0] / seconds["alone_all_threads"][0],
        "waiting_for_data_percent": 100 * share,
    }


def tested_parts(run: TrainingRun) -> tuple[str, ...]:
    """Return the parts that the run's folds test."""
    return run.experiment.parts


def start_heads(runs: Iterable[TrainingRun], parts: tuple[str, ...] | None = None) -> list[HeadTraining]:
    """Start a new head for every run and fold."""
    for run in runs:
        shutil.rmtree(run.folder, ignore_errors=True)  # saved by an earlier measurement
    return [HeadTraining.start(run, part, "cpu") for run in runs for part in parts or tested_parts(run)]


def epoch_pages(run: TrainingRun, parts: Iterable[str]) -> Iterable[Page]:
    """Yield the pages of one epoch."""
    return TrainingPages(run.cache, run.frames, parts=set(parts)).epochs(0, 1)


def together(runs: list[TrainingRun], num_threads: int, parts: tuple[str, ...] | None = None) -> float:
    """Train one epoch of all heads on one pass; return the share of time spent waiting for pages."""
    heads = start_heads(runs, parts)
    needed = {part for head in heads for part in train_parts(head.test_part)}
    return broadcast(
        epoch_pages(runs[0], needed),
        [partial(head.train_on_page, on_progress=no_progress) for head in heads],
        num_threads=num_threads,
    )


def alone(run: TrainingRun, part: str) -> None:
    """Train one epoch of one head, with kernels on all threads."""
    (head,) = start_heads([run], (part,))
    for page in epoch_pages(run, train_parts(part)):
        head.train_on_page(page, on_progress=no_progress)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of `work`, and its result if that is a float, else 0."""
    started = time.perf_counter()
    returned = work()
    return time.perf_counter() - started, returned if isinstance(returned, float) else 0.0


if __name__ == "__main__":
    main()

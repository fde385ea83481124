"""Measure the time to train and score three folds: from each profile, from crops, and in a plain PyTorch loop.

    python benchmarks/training.py --out var/training.json

Renders a data set, fills its caches (not timed), then all ways take turns. The plain loop is what one writes without
this project: one fp16 array per map, read through numpy's memmap by a `Dataset`, a `DataLoader` that shuffles, the same
head, losses, optimiser and schedule, one fold after the other. Every way trains the same epochs on clean and augmented
views alike (two views, of which the clean one is read), so their F1 can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.origin import origin
from models.losses import total_loss
from pipeline.cache.live import feature_opener
from pipeline.cache.reader import CacheReader
from pipeline.catalog import Catalog, load_catalog
from pipeline.config import PROFILES, ExperimentConfig
from pipeline.experiments import load_experiment
from pipeline.protocols import train_parts
from pipeline.refresh.job import RefreshJob
from pipeline.refresh.stages import job_stages, run_stage
from pipeline.report.run import read_report
from pipeline.runtime.allocator import tune_allocator
from pipeline.tables import au_column
from pipeline.training.fold_weights import fold_weights
from pipeline.training.head_training import learning_rate
from pipeline.training.heads import build_head
from pipeline.training.metrics import compute_scores
from pipeline.training.predict import count, predict
from pipeline.training.runs import Runs, TrainingRun
from pipeline.training.trainer import train_heads

DATASET = "faces"
WORKERS = (0, 2)


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="fan_trans")
    parser.add_argument("--subjects", type=int, default=36)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("var/training.json"))
    arguments = parser.parse_args()
    tune_allocator()
    with TemporaryDirectory() as name:
        folder = Path(name)
        catalog = make_catalog(folder, arguments.subjects, arguments.tasks)
        experiment = short(load_experiment(arguments.experiment), arguments.epochs)
        for profile in PROFILES:
            fill(catalog, experiment, profile, arguments.device)
        student = StudentData(Runs(catalog, DATASET).resolve(of_profile(experiment, "exact")), folder / "plain")
        ways: dict[str, Callable[[Path], float]] = {
            profile: lambda out, p=profile: train(at(catalog, out), of_profile(experiment, p), arguments.device)
            for profile in PROFILES
        }
        ways["crops"] = lambda out: train(at(catalog, out), experiment, arguments.device, source="crops")
        for workers in WORKERS:
            ways[f"plain loop, {workers} workers"] = lambda _, w=workers: student.train(w, arguments.device)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        f1 = {}
        for number in range(arguments.rounds):
            for way, run in ways.items():
                started = time.perf_counter()
                f1[way] = run(folder / f"runs-{number}-{way}")
                seconds[way].append(time.perf_counter() - started)
                print(f"{way}: {seconds[way][-1]:.1f} s, F1 {f1[way]:.1f}", flush=True)
        result = {
            **origin(arguments.device),
            "num_frames": len(student.frames),
            "num_epochs": arguments.epochs,
            "ways": {
                way: {
                    "seconds": round(median(each), 1),
                    "range": [round(min(each), 1), round(max(each), 1)],
                    "f1": f1[way],
                }
                for way, each in seconds.items()
            },
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


def make_catalog(folder: Path, num_subjects: int, num_tasks: int, num_frames: int = 1) -> Catalog:
    """Return a catalog with one rendered data set below `folder`."""
    catalog = load_catalog()
    entry = catalog.get_dataset("demo_quick")
    assert entry.rendered is not None
    sizes = {"num_subjects": num_subjects, "num_tasks": num_tasks, "num_frames": num_frames, "size_px": 256}
    entry = entry.model_copy(update={"root": folder / "raw", "rendered": entry.rendered.model_copy(update=sizes)})
    roots = {name: folder / name for name in ("work", "cache", "runs")}
    return catalog.model_copy(
        update={"roots": catalog.roots.model_copy(update=roots), "datasets": {DATASET: entry}, "tracking": "none"}
    )


def at(catalog: Catalog, runs: Path) -> Catalog:
    """Return the catalog with another folder for runs."""
    return catalog.model_copy(update={"roots": catalog.roots.model_copy(update={"runs": runs})})


def short(experiment: ExperimentConfig, num_epochs: int) -> ExperimentConfig:
    """Return the experiment with few epochs and two views."""
    views = experiment.cache.views.model_copy(update={"num_views": 2})
    return experiment.model_copy(
        update={
            "cache": experiment.cache.model_copy(update={"views": views}),
            "train": experiment.train.model_copy(update={"num_epochs": num_epochs}),
        }
    )


def of_profile(experiment: ExperimentConfig, profile: str) -> ExperimentConfig:
    """Return the experiment on the cache of another profile."""
    features = experiment.cache.features.model_copy(update={"profile": profile})
    return experiment.model_copy(update={"cache": experiment.cache.model_copy(update={"features": features})})


def fill(catalog: Catalog, experiment: ExperimentConfig, profile: str, device: str) -> None:
    """Refresh the cache of a profile."""
    config = of_profile(experiment, profile).cache
    job = RefreshJob(dataset=DATASET, catalog=catalog, config=config, limit=None, device=device)
    for stage in job_stages(job):
        run_stage(stage, job, job.workers)


def train(catalog: Catalog, experiment: ExperimentConfig, device: str, *, source: Any = "cache") -> float:
    """Train and score all folds; return the mean F1 in percent."""
    run = Runs(catalog, DATASET, open_features=feature_opener(source, device)).resolve(experiment)
    train_heads([(run, part) for part in experiment.parts], device=device)
    return round(read_report(run.folder).scores.f1_percent, 2)


class Maps(Dataset[tuple[dict[str, np.ndarray], np.ndarray]]):
    """Rows of one fp16 array per map, and their labels."""

    def __init__(self, folder: Path, names: tuple[str, ...], rows: np.ndarray, labels_NA: np.ndarray) -> None:
        self._maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        self._rows, self._labels_NA = rows, labels_NA

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return {name: np.array(values[self._rows[at]]) for name, values in self._maps.items()}, self._labels_NA[at]


class StudentData:
    """The features as plain arrays, and a plain loop over them."""

    def __init__(self, run: TrainingRun, folder: Path) -> None:
        self.run, self._folder, self._cache = run, folder, run.cache
        assert isinstance(run.cache, CacheReader)
        folder.mkdir()
        stored = run.cache.read(run.cache.rows(), view=0)
        for name, values in stored.items():
            summed = values.astype(np.float32).sum(1, keepdims=True).astype(np.float16) if name == "hm" else values
            np.save(folder / f"{name}.npy", summed)
        self._names = tuple(stored)
        self.frames = run.cache.index[["frame_id"]].merge(run.frames, on="frame_id")
        self._aus = run.rules.aus

    def train(self, num_workers: int, device: str) -> float:
        """Train and score one fold after the other; return the mean F1 in percent."""
        counts = []
        for part in self.run.experiment.parts:
            is_used = self.frames["part"].isin(train_parts(part)).to_numpy()
            labels_NA = self.frames.loc[is_used, [au_column(au) for au in self._aus]].to_numpy(np.int8)
            settings = self.run.experiment.train
            torch.manual_seed(settings.seed)
            head = build_head(self.run).head.to(device).train()
            weights_A = fold_weights(labels_NA, aus=self._aus, dataset=DATASET).to(device)
            optimiser = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
            loader = DataLoader(
                Maps(self._folder, self._names, np.flatnonzero(is_used), labels_NA),
                batch_size=settings.batch_size,
                shuffle=True,
                drop_last=True,
                num_workers=num_workers,
            )
            step = 0
            for _ in range(settings.num_epochs):
                for maps, labels_BA in loader:
                    for group in optimiser.param_groups:
                        group["lr"] = learning_rate(step, settings=settings, steps_per_epoch=len(loader))
                    with torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bf16"):
                        output = head({name: values.to(device) for name, values in maps.items()})
                    terms = total_loss(
                        output,
                        labels_BA.to(device),
                        weights_A,
                        kd_weight=settings.kd_weight,
                        kd_form=settings.kd_form,
                        kd_temperature=settings.kd_temperature,
                    )
                    optimiser.zero_grad()
                    terms.total.backward()
                    optimiser.step()
                    step += 1
            table = predict(
                head.deployed(), self._cache, self.run.frames, aus=self._aus, test_part=part, device=device,
                averages_flip=settings.averages_flip,
            )  # fmt: skip
            counts.append(count(table, aus=self._aus, test_part=part))
        return round(compute_scores(pd.concat(counts)).f1_percent, 2)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()

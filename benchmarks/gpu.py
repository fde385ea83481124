"""Measure this project on a GPU, beside what the card and the disk can do, in one run of a few minutes.

    python benchmarks/gpu.py --out var/gpu.json                    # a FAN of width 256 with random weights
    python benchmarks/gpu.py --weights fan-64 --small --device cpu       # tries the script itself

Renders a data set and fills the caches of all profiles, then reads them and trains from them. Prints one line of JSON
per finding, so that a run that is cut short has shown what it found until then. Rates are per second: views of
extraction and frames of the stages before it, each in one run with its start; frames of reading, and frames times heads
of training, each after a first epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.extraction import BATCH, DTYPES, PRODUCT_SIDE, alone
from benchmarks.origin import origin
from benchmarks.training import DATASET, make_catalog, of_profile
from models.fan import FAN
from pipeline.cache.live import feature_opener
from pipeline.catalog import Catalog, FileEntry, WeightsEntry
from pipeline.config import PROFILES, ExperimentConfig, Profile
from pipeline.experiments import load_experiment
from pipeline.faces.features import load_fan
from pipeline.protocols import PARTS
from pipeline.refresh.fit_codec import fit_codec
from pipeline.refresh.job import RefreshJob
from pipeline.refresh.stages import CropStage, DetectStage, ExtractStage, IndexStage, run_stage
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.atomic import file_sha256
from pipeline.training.fold_weights import fold_weights
from pipeline.training.heads import build_head
from pipeline.training.loader import CachedFrames, HeadBatches, TrainingPages
from pipeline.training.run_files import RESULT_NAME
from pipeline.training.runs import Runs, TrainingRun
from pipeline.training.step import CudaGraphs, GraphedStep, Step
from pipeline.training.trainer import train_heads

WIDE = "fan-256"
NUM_VIEWS = 3
BYTES_WRITTEN = 2**29


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--weights", default=WIDE, help=f"a FAN of the catalog; default: {WIDE}, with random weights")
    parser.add_argument("--subjects", type=int, default=48)
    parser.add_argument("--frames", type=int, default=4, help="frames of each of the 8 tasks of a subject")
    parser.add_argument("--heads", type=int, default=30, help="heads of one reading in the last measurement")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--small", action="store_true", help="few frames, steps and heads")
    parser.add_argument("--out", type=Path, default=Path("var/gpu.json"))
    arguments = parser.parse_args()
    if arguments.small:
        arguments.subjects, arguments.frames, arguments.heads, arguments.epochs = 12, 1, 6, 1
    tune_allocator()
    found: dict[str, Any] = {}

    def say(name: str, value: Any) -> None:
        found[name] = value
        print(json.dumps({name: value}), flush=True)

    with TemporaryDirectory(dir=".") as name:
        measure(Path(name).absolute(), arguments, say)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=2))


def measure(folder: Path, arguments: argparse.Namespace, say: Callable[[str, Any], None]) -> None:
    """Measure everything; `say` receives each finding by name."""
    device = torch.device(arguments.device)
    say("machine", {**origin(arguments.device), "cores": os.cpu_count(), "torch": torch.__version__})
    say("limits", limits(device, folder, arguments.small))
    catalog = with_random_weights(make_catalog(folder, arguments.subjects, 8, arguments.frames), folder)
    catalog.get_dataset(DATASET).render()
    experiment = make_experiment(arguments.weights, arguments.epochs)
    job = refresh_of(catalog, experiment, "exact", arguments.device)
    for stage in (IndexStage(), DetectStage(), CropStage()):
        say(f"stage {stage.name}", stage_rate(job, stage))
    entry = catalog.get_weights(arguments.weights)
    network = load_fan(entry, device)
    views = np.random.default_rng(0).integers(0, 256, (BATCH if arguments.small else 64, 256, 256, 3), np.uint8)
    say("FAN alone, bf16", rate(lambda: fan_alone(network, views, device), len(views), device))
    if entry.codec is None:
        path = fit_codec(job, folder / "codec.safetensors", num_frames=min(96, 8 * arguments.subjects // 2))
        entry.codec = FileEntry(path=path, sha256=file_sha256(path))
    runs = {}
    for profile in PROFILES:
        roots = catalog.roots.model_copy(update={"cache": folder / profile})  # else it is encoded from the exact cache
        catalog = catalog.model_copy(update={"roots": roots})
        of_this = refresh_of(catalog, experiment, profile, arguments.device)
        say(f"extraction, {profile}", round(NUM_VIEWS * stage_rate(of_this, ExtractStage()), 1))
        settings = experiment.model_copy(update={"cache": of_this.config})
        runs[profile] = Runs(catalog, DATASET).resolve(settings)
        say(f"reading to the device, {profile}", reading_rate(runs[profile], device))
    for precision in ("fp32", "bf16"):
        say(f"one step again and again, {precision}", step_rates(runs["standard"], precision, device, arguments.small))
    for profile in PROFILES:
        for num_heads in (1, 3):
            say(f"training, {profile}, {num_heads} heads", training_rate(runs[profile], num_heads, device, folder))
    say(f"training, compact, {arguments.heads} heads", training_rate(runs["compact"], arguments.heads, device, folder))
    settings = experiment.model_copy(update={"cache": job.config})
    from_crops = Runs(catalog, DATASET, open_features=feature_opener("crops", arguments.device)).resolve(settings)
    say("training, crops, 3 heads", training_rate(from_crops, 3, device, folder))


def with_random_weights(catalog: Catalog, folder: Path) -> Catalog:
    """Return the catalog with a FAN of width 256 and random weights, in a file in `folder`."""
    torch.manual_seed(0)
    path = folder / f"{WIDE}.safetensors"
    save_file(FAN(256, 2, pooling="max").state_dict(), path)
    wide = WeightsEntry(
        path=path, sha256=file_sha256(path), family="fan", width=256, num_stacks=2, pooling="max", codec=None
    )
    return catalog.model_copy(update={"weights": catalog.weights | {WIDE: wide}})


def make_experiment(weights: str, num_epochs: int) -> ExperimentConfig:
    """Return the paper's experiment in bf16, with few epochs, three views and batches of 64."""
    experiment = load_experiment("fan_trans")
    features = experiment.cache.features.model_copy(update={"weights": weights, "precision": "bf16"})
    views = experiment.cache.views.model_copy(update={"num_views": NUM_VIEWS})
    return experiment.model_copy(
        update={
            "cache": experiment.cache.model_copy(update={"features": features, "views": views}),
            "train": experiment.train.model_copy(
                update={"num_epochs": num_epochs, "batch_size": 64, "precision": "bf16"}
            ),
        }
    )


def refresh_of(catalog: Catalog, experiment: ExperimentConfig, profile: Profile, device: str) -> RefreshJob:
    """Return the refresh of a profile."""
    config = of_profile(experiment, profile).cache
    return RefreshJob(dataset=DATASET, catalog=catalog, config=config, limit=None, device=device)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(work: Callable[[], object], num: int, device: torch.device, *, least_s: float = 1.0) -> float:
    """Return `num` per second of calls to `work`, after a warm-up."""
    work()
    wait_for(device)
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < least_s:
        work()
        wait_for(device)
        calls += 1
    return round(num * calls / (time.perf_counter() - started), 1)


def limits(device: torch.device, folder: Path, is_small: bool) -> dict[str, float]:
    """Return GFLOP/s of matrix products, and bytes per second of copies to the device and of writes to the disk."""
    side = PRODUCT_SIDE if is_small or device.type == "cpu" else 4 * PRODUCT_SIDE
    found = {}
    for name, dtype in DTYPES.items():
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        found[f"product_{name}_gflops"] = rate(lambda a=left, b=right: a @ b, 2 * side**3, device) / 1e9
    data = torch.randint(0, 256, (BYTES_WRITTEN // (8 if is_small else 1),), dtype=torch.uint8)
    if device.type == "cuda":
        pinned = data.pin_memory()
        found["copy_to_device_gb"] = rate(lambda: pinned.to(device, non_blocking=True), len(data), device) / 1e9

    def write() -> None:
        with (folder / "written").open("wb") as file:
            file.write(data.numpy())
            file.flush()
            os.fsync(file.fileno())

    found["disk_write_gb"] = rate(write, len(data), device) / 1e9
    (folder / "written").unlink()
    return {name: round(value, 2) for name, value in found.items()}


@torch.inference_mode()
def fan_alone(network: FAN, views: np.ndarray, device: torch.device) -> None:
    """Run the FAN in bf16 on one batch."""
    if device.type == "cpu":
        alone(network, views, "bf16")
        return
    images = torch.from_numpy(views).to(device).permute(0, 3, 1, 2).float().div(255)
    with torch.autocast(device.type, torch.bfloat16):
        network.taps(images)


def stage_rate(job: RefreshJob, stage: Any) -> float:
    """Run a stage; return frames per second."""
    started = time.perf_counter()
    summary = run_stage(stage, job, job.workers)
    return round(summary.num_computed / (time.perf_counter() - started), 1)


def reading_rate(run: TrainingRun, device: torch.device) -> float:
    """Return frames per second of three epochs of pages on the device, decoded, without a head."""
    pages = TrainingPages(run.cache, run.frames, parts=PARTS, device=device)
    frames = CachedFrames(run.cache, run.frames, aus=run.rules.aus)
    batches = HeadBatches(run.cache, frames, batch_size=64, seed=0)
    num, started = 0, 0.0
    for page in pages.epochs(0, 4):
        if page.epoch == 1 and not started:
            wait_for(device)
            num, started = 0, time.perf_counter()
        num += sum(len(batch.frame_ids) for batch in batches.from_page(page))
    wait_for(device)
    return round(num / (time.perf_counter() - started), 1)


def step_rates(run: TrainingRun, precision: str, device: torch.device, is_small: bool) -> dict[str, float]:
    """Return frames per second of a head's step on one batch in the device's memory, ordinary and recorded."""
    inputs = CachedFrames(run.cache, run.frames, aus=run.rules.aus)
    batches = HeadBatches(run.cache, inputs, batch_size=8 if is_small else 64, seed=0)
    pages = TrainingPages(run.cache, run.frames, parts=PARTS, device=device)
    batch = next(batch for page in pages.epochs(0, 1) for batch in batches.from_page(page))
    settings = run.experiment.train.model_copy(update={"precision": precision})
    found = {}
    for name in ("ordinary", "recorded") if device.type == "cuda" else ("ordinary",):
        head = build_head(run).head.to(device).train()
        weights_A = fold_weights(inputs.labels_NA, aus=run.rules.aus, dataset=DATASET).to(device)
        optimiser = torch.optim.AdamW(head.parameters(), lr=1e-4, fused=True)
        step = Step(head, optimiser, weights_A, settings, nullcontext())
        take = step if name == "ordinary" else GraphedStep(step, CudaGraphs.of(device))

        def many(take: Callable[..., object] = take) -> None:
            for _ in range(2 if is_small else 20):
                take(batch.features, batch.labels_BA)

        found[name] = rate(many, len(batch.frame_ids) * (2 if is_small else 20), device)
    return found


def training_rate(run: TrainingRun, num_heads: int, device: torch.device, folder: Path) -> dict[str, float]:
    """Return frames times heads per second of further epochs, and the share of the time in which heads wait for data.

    Heads differ by part and seed, and share a reading. Trains for one epoch, and once more for further ones:
    what the difference takes is without the start and the scoring.
    """
    seconds, num_epochs = [], run.experiment.train.num_epochs
    for epochs in (1, 1 + num_epochs):
        folds = []
        for number in range(num_heads):
            train = run.experiment.train.model_copy(update={"seed": number // len(PARTS), "num_epochs": epochs})
            experiment = run.experiment.model_copy(update={"train": train})
            place = folder / "runs" / f"{time.time_ns()}-{train.seed}"
            folds.append((replace(run, experiment=experiment, folder=place), PARTS[number % len(PARTS)]))
        started = time.perf_counter()
        share = train_heads(folds, device=str(device))
        seconds.append(time.perf_counter() - started)
    results = [json.loads((each.fold_folder(part) / RESULT_NAME).read_bytes()) for each, part in folds]
    batch_size = run.experiment.train.batch_size
    num_frames = num_epochs * sum(result["num_train_frames"] // batch_size * batch_size for result in results)
    return {"per_s": round(num_frames / (seconds[1] - seconds[0]), 1), "waiting": round(share, 3)}


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()

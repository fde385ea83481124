"""A small feature cache that heads train on in a blink, and runs of experiments on it."""

from pathlib import Path

import numpy as np

from pipeline.cache.codecs import make_codec
from pipeline.cache.reader import open_cache
from pipeline.config import ExperimentConfig, HeadConfig, TrainConfig
from pipeline.protocols import Protocol
from pipeline.training.runs import TrainingRun
from pipeline.training.trainer import train_heads
from tests.unit import small_cache

RULES = Protocol(name="small", aus=(1, 2), subject_parts={}, assigns_by_number=True, bad_frames={})
HEAD = HeadConfig(dim=8, num_blocks=1)
TRAIN = TrainConfig(num_epochs=3, batch_size=4, lr=1e-2)
SHAPES = {name: (channels, 16, 16) for name, (channels, _, _) in small_cache.SHAPES.items()}


def extract(images):
    """Feature c of a place: the mean of 2 x 2 px over 255, times c + 1."""
    means = images.reshape(len(images), 16, 2, 16, 2, 3).mean((2, 4, 5), dtype=np.float64)[:, None] / 255
    return {
        name: (means * np.arange(1, 1 + channels)[:, None, None]).astype(np.float16)
        for name, (channels, _, _) in SHAPES.items()
    }


def make_cache(folder: Path):
    """Frames below `folder`, and a reader of their cache."""
    frames, boxes = small_cache.make_world(folder)
    return frames, small_cache.make_cache(
        folder,
        frames,
        small_cache.make_crops(folder, frames, boxes),
        format=small_cache.make_format(SHAPES),
        codec=make_codec("exact", SHAPES),
        extractor=extract,
    )


def make_run(folder: Path, *, name="a", head=HEAD, train=TRAIN, **changes) -> TrainingRun:
    """A run on the cache of `make_cache` below `folder`, in a folder of its own by name."""
    cache = open_cache(next(iter((folder / "cache").glob("*/current.json"))).parent)
    experiment = ExperimentConfig(name="small", refresh_args="small", head=head, train=train)
    fields = {
        "experiment": experiment,
        "dataset": "small",
        "rules": RULES,
        "frames": small_cache.make_frames(),
        "cache": cache,
        "folder": folder / "runs" / name,
        "init_from": None,
        "record": {"aus": list(RULES.aus), "cache": cache.fingerprint, "head": experiment.head.document()},
    }
    return TrainingRun(**fields | changes)


def train_fold(run: TrainingRun, part: str, *, device: str = "cpu") -> Path:
    """Train and score one fold; its folder."""
    train_heads([(run, part)], device=device)
    return run.fold_folder(part)

"""Helpers for kill tests: a rendered data set before and after changes, and processes that refresh it."""

import os
import shutil
from pathlib import Path

import cv2
import torch
from safetensors.torch import save_file

from models.fan import FAN
from pipeline.catalog import CATALOG_FILE, WeightsEntry, load_catalog
from pipeline.runtime.atomic import file_sha256
from pipeline.store.revisions import load_revision
from pipeline.store.verify import verify_store
from tests.processes import make_process
from tests.steps import watch_steps

CONFIG = """base: demo
cache: {views: {num_views: 3}, features: {weights: tiny}}
"""
CATALOG = """roots:
  work: ${{oc.env:FANTRANS_WORK}}
  cache: ${{oc.env:FANTRANS_CACHE}}
  runs: ${{oc.env:FANTRANS_RUNS}}
datasets:
  faces: {{root: "${{oc.env:FACES}}", layout: bp4d, protocol: rendered_bp4d, max_lost_frac: 1}}
weights:
{weights}
"""
UNCOMPARED = ("rates.json", "refresh.html", "index.html", ".lock")  # times, paths, lock holders


class World:
    """A data set in two states: "late" has one more subject, one replaced image and one lost image than "early"."""

    def __init__(self, folder: Path) -> None:
        from pipeline.synthetic.dataset import write_dataset

        self.folder = folder
        write_dataset(folder / "late", layout="bp4d", num_subjects=6, num_tasks=2, num_frames=1, seed=5, size_px=192)
        shutil.copytree(folder / "late", folder / "early")
        images = sorted((folder / "late/BP4D-training").rglob("*.jpg"))
        cv2.imwrite(str(images[0]), cv2.flip(cv2.imread(str(images[0])), 1))
        images[3].unlink()
        new_subject = sorted(path.name for path in (folder / "late/BP4D-training").iterdir())[-1]
        for path in (folder / "early").rglob(f"*{new_subject}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        torch.manual_seed(0)
        tiny = folder / "tiny.safetensors"
        save_file(FAN(16).state_dict(), tiny)
        detector = load_catalog(CATALOG_FILE).get_weights("retinaface-mobilenet")
        entries = {
            "retinaface-mobilenet": detector,
            "tiny": WeightsEntry(
                path=tiny, sha256=file_sha256(tiny), family="fan", width=16, num_stacks=2, pooling="avg"
            ),
        }
        weights = [f"  {name}: {entry.model_dump_json(exclude_none=True)}" for name, entry in entries.items()]
        (folder / "catalog.yaml").write_text(CATALOG.format(weights="\n".join(weights)))
        (folder / "small.yaml").write_text(CONFIG)

    def environment(self, state: Path, data: str) -> dict[str, str]:
        """Return variables for a refresh of the data set's state `data` that writes below `state`."""
        return {
            "FANTRANS_CATALOG": str(self.folder / "catalog.yaml"),
            "FACES": str(self.folder / data),
            **{f"FANTRANS_{name}": str(state / name.lower()) for name in ("WORK", "CACHE", "RUNS")},
        }

    def variables(self, state: Path, data: str) -> dict[str, str]:
        """Return the environment of a command line that works on `state`."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FANTRANS_"))},
            **self.environment(state, data),
        }

    @property
    def config(self) -> str:
        """Path of the experiment's file."""
        return str(self.folder / "small.yaml")

    def start(self, state: Path, data: str, *, kill_before: str | None = None, trace: Path | None = None):
        """Start a refresh in its own process."""
        arguments = (self.environment(state, data), self.config, kill_before, trace)
        process = make_process(target=_refresh, args=arguments)
        process.start()
        return process

    def refresh(self, state: Path, data: str, **more) -> int:
        """Refresh, wait, and return the exit code."""
        process = self.start(state, data, **more)
        process.join()
        return process.exitcode


def stores(state: Path) -> list[Path]:
    """Return the folders of crops and features that have a revision."""
    folders = [*state.glob("work/faces/crops/*"), *state.glob("cache/faces/*")]
    return [folder for folder in folders if folder.is_dir() and load_revision(folder) is not None]


def check_last_revisions(state: Path) -> int:
    """Check that every store opens and verifies deep; return the number of stores."""
    for folder in stores(state):
        revision = load_revision(folder)
        assert len(revision.index)
        shard_damage = [damage for damage in verify_store(folder, is_deep=True) if damage.unit is not None]
        assert shard_damage == []
    return len(stores(state))


def finished_units(caches: Path) -> list[Path]:
    """Return the journal entries of finished, unpublished units in a data set's caches."""
    return list(caches.glob("*/journal/[0-9]*.json"))  # skips half-written files


def finished_shards(caches: Path) -> dict[Path, int]:
    """Return the shards of those units, with their modification times."""
    shards: list[Path] = []
    for entry in finished_units(caches):
        block, group = entry.stem.split(".")
        shards += (entry.parents[1] / "arrays.zarr" / group).glob(f"*/c.{int(block)}.*")
    return {shard: shard.stat().st_mtime_ns for shard in shards}


def written(state: Path) -> dict[str, bytes]:
    """Return the bytes of every file that a refresh left, by path."""
    return {
        str(path.relative_to(state)): path.read_bytes()
        for path in sorted(state.rglob("*"))
        if path.is_file() and path.name not in UNCOMPARED
    }


def _refresh(environment: dict[str, str], config: str, kill_before: str | None, trace: Path | None) -> None:
    from pipeline.refresh.stages import refresh_cache

    os.environ.update(environment)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if kill_before is not None or trace is not None:
        watch_steps(kill_before=kill_before, trace=trace)
    refresh_cache("faces", experiment=config)

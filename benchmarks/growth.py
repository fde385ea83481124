"""Measure time and peak memory of the commands at 1, 2, 4 and 8 times the frames.

    python benchmarks/growth.py --out var/growth.json

Rendered frames of 128 px, two views in the profile standard of FAN-64, one epoch of three folds. Memory is the greatest
resident size of any process of a command.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks.origin import origin
from pipeline.catalog import CATALOG_FILE

FACTORS = (1, 2, 4, 8)
NUM_TASKS = 8
EXPERIMENT = """base: demo
cache: {views: {num_views: 2}}
train: {num_epochs: 1}
"""
COMMANDS = {
    "refresh": "refresh {name} --device cpu",
    "refresh, nothing to do": "refresh {name} --device cpu",
    "train": "train {name} --device cpu",
    "report": "report {name}",
    "cache verify --deep": "cache verify {name} --deep",
    "cache export": "cache export {name} --out exported",
    "predict": "predict raw/{name} --recursive --out predicted.parquet --force --device cpu",
}


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=48, help="each has 8 frames at the smallest size")
    parser.add_argument("--factors", type=int, nargs="+", default=FACTORS)
    parser.add_argument("--place", type=Path, default=None, help="folder for a temporary project")
    parser.add_argument("--out", type=Path, default=Path("var/growth.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        **origin(),
        "num_frames": [factor * arguments.subjects * NUM_TASKS for factor in arguments.factors],
        "commands": {command: [] for command in COMMANDS},
    }
    with TemporaryDirectory(dir=arguments.place) as name:
        folder = Path(name)
        write_project(folder, arguments.subjects, arguments.factors)
        for factor in arguments.factors:
            run(folder, f"render x{factor}")
            for command, words in COMMANDS.items():
                seconds, peak_mb = run(folder, words.format(name=f"x{factor}"))
                result["commands"][command].append({"seconds": seconds, "peak_mb": peak_mb})
                sys.stdout.write(f"x{factor} {command}: {seconds} s, {peak_mb} MB\n")
                sys.stdout.flush()
            for place in ("exported", f"cache/x{factor}"):
                shutil.rmtree(folder / place)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2))


def write_project(folder: Path, num_subjects: int, factors: list[int]) -> None:
    """Write a catalog with one data set of rendered faces per factor."""
    (folder / "growth.yaml").write_text(EXPERIMENT)
    content = yaml.safe_load(CATALOG_FILE.read_text())
    content["roots"] = {"work": "work", "cache": "cache", "runs": "runs"}
    content["datasets"] = {
        f"x{factor}": {
            "root": f"raw/x{factor}",
            "layout": "bp4d",
            "protocol": "rendered_bp4d",
            "experiment": str(folder / "growth.yaml"),
            "rendered": {
                "num_subjects": num_subjects,
                "num_tasks": NUM_TASKS,
                "num_frames": factor,
                "size_px": 128,
                "seed": 8,
            },
        }
        for factor in factors
    }
    del content["weights"]  # the shipped ones are known in every catalog
    (folder / "data_catalog.yaml").write_text(yaml.safe_dump(content))


def run(folder: Path, words: str) -> tuple[float, int]:
    """Run a command of fantrans; return its seconds and its peak memory in MB."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("FANTRANS_", "PREFECT_"))}
    environment["FANTRANS_CATALOG"] = str(folder / "data_catalog.yaml")
    program = Path(sys.executable).with_name("fantrans")
    started = time.perf_counter()
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            [program, "--quiet", *words.split()], cwd=folder, env=environment, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            log.seek(0)
            raise SystemExit(f"fantrans {words} failed: {log.read()}")
    return round(time.perf_counter() - started, 1), round(usage.ru_maxrss / 1024)


if __name__ == "__main__":
    main()

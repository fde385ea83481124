"""Measure extraction by 1, 2 and 4 processes of a Dask cluster, one core each: views per second, and equal bytes.

    fantrans demo && python benchmarks/cluster.py --dataset bp4d-synthetic --out var/cluster.json

Each process is pinned to one core; otherwise its reading and writing threads would use others. With more processes than
cores, processes share cores. Start of the cluster and imports of the workers are not counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from distributed import Client, LocalCluster

from flows.cluster_workers import ClusterWorkers
from pipeline.cache.prepare import make_extractor
from pipeline.refresh.job import RefreshJob, prepare_refresh
from pipeline.refresh.plan import StageSummary
from pipeline.refresh.stages import ExtractStage, run_stage


def main() -> None:
    """Measure each number of workers, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="bp4d-synthetic")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("var/cluster.json"))
    arguments = parser.parse_args()
    num_cores = len(os.sched_getaffinity(0))
    found = [measure(arguments.dataset, num_workers, arguments.views) for num_workers in arguments.workers]
    one = found[0]
    for each in found:
        linear = min(int(each["workers"]), num_cores) / int(one["workers"])
        each["of_linear"] = round(float(each["views_per_s"]) / float(one["views_per_s"]) / linear, 3)
        each["has_same_bytes"] = each["sha256"] == one["sha256"]
    document = {"cores": num_cores, "runs": found}
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    arguments.out.write_text(json.dumps(document, indent=2))


def measure(dataset: str, num_workers: int, num_views: int) -> dict[str, object]:
    """Extract into a new cache on a cluster of `num_workers` processes; return times and a hash of the cache."""
    Path("var").mkdir(exist_ok=True)
    with TemporaryDirectory(dir="var") as folder:
        os.environ["FANTRANS_CACHE"] = str(Path(folder).resolve())
        job = prepare_refresh(dataset, num_views=num_views)
        settings = {"n_workers": num_workers, "threads_per_worker": 1, "dashboard_address": None}
        with LocalCluster(**settings) as cluster, Client(cluster) as client:
            cores = sorted(os.sched_getaffinity(0))
            for i, address in enumerate(client.scheduler_info(n_workers=-1)["workers"]):
                client.run(warm_up, job, cores[i % len(cores)], workers=[address])
            started = time.monotonic()
            summary = client.submit(extract, job, pure=False).result()
            seconds = time.monotonic() - started
        return {
            "workers": num_workers,
            "views": summary.num_computed * num_views,
            "seconds": round(seconds, 1),
            "views_per_s": round(summary.num_computed * num_views / seconds, 2),
            "sha256": digest(Path(folder)),
        }


def extract(job: RefreshJob) -> StageSummary:
    """Coordinate the extraction from one of the workers, as a flow run's task does."""
    return run_stage(ExtractStage(), job, ClusterWorkers(job.device))


def warm_up(job: RefreshJob, core: int) -> None:
    """Pin a worker to a core, then import modules and load weights."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})
    make_extractor(job.config, job.catalog, job.device)


def digest(folder: Path) -> str:
    """Return the sha256 of every file below a cache's arrays."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("arrays.zarr/**/*")):
        if path.is_file():
            sha.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return sha.hexdigest()


if __name__ == "__main__":
    main()

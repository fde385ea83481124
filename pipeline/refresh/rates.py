"""How long the stages of a refresh take: at their last rates on the data set, or at typical ones before its first."""

from __future__ import annotations

import json
import os

from pipeline.catalog import WeightsEntry
from pipeline.refresh.job import RefreshJob
from pipeline.refresh.plan import Duration
from pipeline.runtime.atomic import write_bytes_atomically

_NAME = "rates.json"
_MIN_RATED_S = 10.0
"""Rates of shorter stages are not recorded: they measure start-up."""

_CORE_RATES = {"render": 8.0, "detect": 29.0, "crop": 300.0, "encode": 37.0}
"""Frames of 384 px, or views of `encode`, per second and CPU core: half of what `fantrans refresh demo_quick` logs on 2
cores, first with `--profile exact`, then with `--profile standard`."""
_CORE_FLOPS = 55e9
"""Operations per second of a FAN on a CPU core: 58 views/s of FAN-64 on 2 cores (docs/scale.md)."""
_CUDA_FLOPS = 11e12
"""The same of one H100, all of the extraction included."""
_CUDA_DETECTED = 120.0
"""Frames per second of the MobileNet detector on one H100, reading JPEG files of 384 px included."""
_RESNET18_FLOPS = 4.8e9
"""Operations per view of ResNet-18 at 256 x 256 px."""


def remember_rate(job: RefreshJob, stage: str, num: int, *, seconds: float) -> None:
    """Record a stage's rate, from which later plans estimate times."""
    if num and seconds >= _MIN_RATED_S:
        rates = {**_read_rates(job), stage: num / seconds}
        write_bytes_atomically(job.work / _NAME, json.dumps(rates).encode())


def expected_duration(job: RefreshJob, stage: str, num: int) -> Duration:
    """Return how long a stage would take for `num` items: views of an extraction, frames of other stages."""
    last = _read_rates(job).get(stage)
    return Duration(num / (last or _typical_rate(job, stage)), is_typical=num > 0 and last is None)


def _typical_rate(job: RefreshJob, stage: str) -> float:
    """Return items per second of a stage that has not run yet, on all cores of this machine or on one GPU."""
    is_cuda, num_cores = job.device.startswith("cuda"), os.cpu_count() or 1
    if stage == "extract":
        speed = _CUDA_FLOPS if is_cuda else _CORE_FLOPS * num_cores
        return speed / view_flops(job.catalog.get_weights(job.config.features.weights))
    if stage == "detect" and is_cuda:
        return _CUDA_DETECTED
    return _CORE_RATES[stage] * num_cores


def view_flops(entry: WeightsEntry) -> float:
    """Return the operations of a network for one view of 256 x 256 px, within 10 % (torch.utils.flop_counter)."""
    if entry.width is None or entry.num_stacks is None:
        return _RESNET18_FLOPS
    return entry.width**2 * (85e3 + 178e3 * entry.num_stacks)


def _read_rates(job: RefreshJob) -> dict[str, float]:
    """Read the last rate of each stage, in items per second."""
    path = job.work / _NAME
    try:
        return json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError:  # damaged: the next rates replace it
        return {}

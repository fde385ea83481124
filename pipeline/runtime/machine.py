"""The machine that computes: what decides the last bits of a result beside versions and settings."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch


def describe_machine(device: str) -> dict[str, Any]:
    """Return processor, cores and kernels, and the GPU if `device` is one; the same for every process of a machine."""
    is_cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
    return {
        "system": platform.platform(),
        **_processor(),
        "num_cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "has_mkldnn": torch.backends.mkldnn.is_available(),
        "gpu": torch.cuda.get_device_name(device) if is_cuda else None,
        "cudnn": torch.backends.cudnn.version() if is_cuda else None,
    }


def machine_name(device: str = "cpu") -> str:
    """Return the name of the GPU if `device` is one, else of the processor with its number of cores."""
    machine = describe_machine(device)
    return machine["gpu"] or f"{machine['cpu']}, {machine['num_cores']} cores"


def describe_threads() -> dict[str, Any]:
    """Return the threads of this process.

    `parallel` has the lines of torch's own report on its threads, MKL and oneDNN (mkldnn), without indentation.
    """
    return {
        "num_threads": torch.get_num_threads(),
        "parallel": [line.strip() for line in torch.__config__.parallel_info().splitlines() if line.strip()],
    }


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return the processor's name, and which bfloat16 instructions it has, as Linux knows them."""
    try:
        pairs = [line.partition(":")[::2] for line in cpuinfo.read_text().splitlines()]
    except OSError:
        pairs = []
    known = {name.strip(): value.strip() for name, value in reversed(pairs)}  # the first core's
    flags = known.get("flags", known.get("Features", "")).split()
    return {
        "cpu": known.get("model name") or platform.processor() or platform.machine(),
        "cpu_bf16": [flag for flag in flags if "bf16" in flag],
    }

"""Crops to frozen FAN features: the maps of `models.fan.TAPS` in half precision.

On one kind of device the bytes of a crop's features do not depend on the crops beside it, on their order or on their
number: kernels, and with them the last bits, are chosen by a batch's shape, so every batch is filled up to one size.

Shapes: N crops, C channels, H W rows and columns of a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.fan import FAN, INPUT_SIZE_PX, TAPS
from pipeline.catalog import WeightsEntry
from pipeline.errors import DataError, WeightsError

Profile = Literal["exact", "standard"]
Precision = Literal["fp32", "bf16", "fp16"]

_BATCH_SIZES = {"cpu": 8, "cuda": 64}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def load_fan(entry: WeightsEntry, device: torch.device | str) -> FAN:
    """A frozen FAN with its weights, in evaluation mode, fp32 and channels last on `device`.

    Raises `WeightsError` for weights that are missing, changed, or of another network.
    """
    if entry.family != "fan":
        raise WeightsError(f"weights {entry.path} are of the family {entry.family!r}; features need the family 'fan'")
    assert entry.width is not None
    assert entry.num_stacks is not None
    assert entry.pooling is not None  # the entry sees to all three
    path = entry.checked_path()
    fan = FAN(entry.width, entry.num_stacks, pooling=entry.pooling)
    try:
        fan.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        fault = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"weights {path} are not those of a FAN of width {entry.width} with {entry.num_stacks} stacks: {fault}; "
            "mend `width`, `num_stacks` or `path` in the catalog"
        ) from None
    return frozen(fan, device)


def frozen(fan: FAN, device: torch.device | str) -> FAN:
    """`fan` in evaluation mode, without gradients and channels last on `device`."""
    fan.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    return fan


def feature_shapes(width: int, *, profile: Profile) -> dict[str, tuple[int, int, int]]:
    """Shape (C, H, W) of one crop's arrays by name; with the profile `standard`, hm has one channel."""
    shapes = {tap.name: (tap.channels(width), tap.size(), tap.size()) for tap in TAPS}
    return shapes if profile == "exact" else shapes | {"hm": (1, *shapes["hm"][1:])}


@torch.inference_mode()
def extract_features(
    fan: FAN, crops: np.ndarray, *, profile: Profile = "exact", precision: Precision = "fp32"
) -> dict[str, np.ndarray]:
    """Features of N crops by name, float16 (N, *`feature_shapes`).

    `crops` are RGB (N, 256, 256, 3): uint8, or float32 in [0, 1]. `standard` keeps the sum over the 68 heatmaps, taken
    in fp32 of their fp16 values, so that both profiles give a head the same numbers. `precision` is the arithmetic of
    the forward pass; fp32 is never lowered to TF32. Raises `DataError` for other crops and for values beyond fp16.
    """
    if crops.shape[1:] != (INPUT_SIZE_PX, INPUT_SIZE_PX, 3) or crops.dtype not in (np.uint8, np.float32):
        raise DataError(
            f"a FAN takes crops uint8 or float32 (N, {INPUT_SIZE_PX}, {INPUT_SIZE_PX}, 3), "
            f"found {crops.dtype} {crops.shape}; cut them with the crop settings' size_px = {INPUT_SIZE_PX}"
        )
    device = next(fan.parameters()).device
    shapes = feature_shapes(fan.width, profile=profile)
    out = {name: np.empty((len(crops), *shape), np.float16) for name, shape in shapes.items()}
    for rows, maps in _forward_batches(fan, crops, device, profile, precision):
        for name, values in maps.items():
            out[name][rows] = values[: rows.stop - rows.start].numpy()
            if not np.isfinite(out[name][rows]).all():
                raise DataError(f"feature {name} exceeds half precision; a cache of fp16 needs other weights")
    return out


def _forward_batches(
    fan: FAN, crops: np.ndarray, device: torch.device, profile: Profile, precision: Precision
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Rows and their maps on the CPU; a GPU works on the next batch while one is copied back and handed out."""
    size = _BATCH_SIZES[device.type]
    waiting = None
    for first in range(0, len(crops), size):
        rows = slice(first, min(first + size, len(crops)))
        maps = _maps(fan, _to_device(crops[rows], size, device), profile, precision)
        maps = {name: values.to("cpu", non_blocking=True) for name, values in maps.items()}
        copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = rows, maps, copied
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(rows: slice, maps: dict[str, Tensor], copied: torch.cuda.Event | None) -> tuple[slice, dict[str, Tensor]]:
    if copied is not None:
        copied.synchronize()
    return rows, maps


def _to_device(crops: np.ndarray, size: int, device: torch.device) -> Tensor:
    """Images float32 (size, 3, 256, 256) in [0, 1], channels last; the last crop fills up."""
    filled = np.concatenate((crops, np.repeat(crops[-1:], size - len(crops), 0))) if len(crops) < size else crops
    images = torch.from_numpy(np.ascontiguousarray(filled))
    if device.type == "cuda":
        images = images.pin_memory().to(device, non_blocking=True)
    images = images.permute(0, 3, 1, 2)
    return images.float().div(255) if images.dtype == torch.uint8 else images


def _maps(fan: FAN, images: Tensor, profile: Profile, precision: Precision) -> dict[str, Tensor]:
    autocast = torch.autocast(images.device.type, dtype=_DTYPES[precision]) if precision in _DTYPES else nullcontext()
    with autocast, torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
        maps = {name: values.half() for name, values in fan.taps(images).items()}
    if profile == "standard":
        maps["hm"] = maps["hm"].float().sum(1, keepdim=True).half()
    return maps

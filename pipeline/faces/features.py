"""From crops to frozen features in fp16: the maps of a FAN (`models.maps.TAPS`) or of a ResNet-18.

On one kind of device, the bytes of a crop's features do not depend on number and order of the other crops. Kernels, and
so the last bits, depend on a batch's shape, therefore every batch is padded to one size. Nor do the bytes depend on the
number of threads (see `map_batches`).

Shapes: N crops, C channels, H W rows and columns of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from models.fan import FAN
from models.maps import INPUT_SIZE_PX
from models.resnet import ResNet18Features
from pipeline.catalog import WeightsEntry
from pipeline.errors import DataError, WeightsError
from pipeline.faces.weights import load_weights
from pipeline.runtime.device import exact_convolutions, map_batches, pad_batch

Encode = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Encodes maps fp16 (N, C, H, W) by name to arrays with one row per crop, on the maps' device."""

_N = TypeVar("_N", bound=nn.Module)

Precision = Literal["fp32", "bf16", "fp16"]

_BATCH_SIZES = {"cpu": 8, "cuda": 64}
_EXPONENT_BITS = 0x7C00
"""Of an fp16 number."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


Network = FAN | ResNet18Features


def load_network(entry: WeightsEntry, device: torch.device | str) -> Network:
    """Load the frozen network of the entry's family; see `load_fan` and `load_resnet18`."""
    return load_resnet18(entry, device) if entry.family == "resnet18" else load_fan(entry, device)


def load_resnet18(entry: WeightsEntry, device: torch.device | str) -> ResNet18Features:
    """Load the frozen early layers of a ResNet-18, from weights with timm's keys; keys of later layers are ignored.

    Raises `WeightsError` as `load_fan` does.
    """
    return freeze(cast(ResNet18Features, load_weights(entry)), device)


def load_fan(entry: WeightsEntry, device: torch.device | str) -> FAN:
    """Load a frozen FAN with its weights, in evaluation mode, fp32 and channels last on `device`.

    Raises `WeightsError` for weights that are missing, changed, or of another network.
    """
    if entry.family != "fan":
        raise WeightsError(f"weights {entry.path} have the family {entry.family!r}; features need the family 'fan'")
    return freeze(cast(FAN, load_weights(entry)), device)


def freeze(network: _N, device: torch.device | str) -> _N:
    """Put `network` on `device` in evaluation mode, without gradients and channels last; return it."""
    network.eval().requires_grad_(False).to(device)
    network.to(memory_format=torch.channels_last)
    return network


@torch.inference_mode()
def extract_features(
    network: Network, crops: np.ndarray, *, encode: Encode = dict, precision: Precision = "fp32"
) -> dict[str, np.ndarray]:
    """Return the encoded maps of N crops by name; by default the maps, float16 (N, *`network.map_shapes`).

    crops: RGB (N, 256, 256, 3), uint8, or float32 in [0, 1]. precision: arithmetic of the forward pass; fp32 never uses
    TF32. Raises `DataError` for crops of another shape or dtype, and for values beyond fp16.
    """
    if crops.shape[1:] != (INPUT_SIZE_PX, INPUT_SIZE_PX, 3) or crops.dtype not in (np.uint8, np.float32):
        raise DataError(
            f"expected crops uint8 or float32 (N, {INPUT_SIZE_PX}, {INPUT_SIZE_PX}, 3), "
            f"found {crops.dtype} {crops.shape}; set the crop settings' size_px to {INPUT_SIZE_PX}"
        )
    device = next(network.parameters()).device
    if not len(crops):
        shapes = {name: (1, *shape) for name, shape in network.map_shapes.items()}
        none = encode({name: torch.zeros(shape, dtype=torch.float16, device=device) for name, shape in shapes.items()})
        return {name: values[:0].cpu().numpy() for name, values in none.items()}
    out: dict[str, np.ndarray] = {}
    for rows, kept, is_finite, _ in _forward_batches(network, crops, device, encode, precision):
        for name, found in is_finite.items():
            if not found:
                raise DataError(f"feature {name} has values beyond fp16; use other weights")
        for name, values in kept.items():
            here = values[: rows.stop - rows.start].numpy()
            if len(here) == len(crops):  # one batch holds them all: no copy
                out[name] = here
                continue
            if name not in out:
                out[name] = np.empty((len(crops), *here.shape[1:]), here.dtype)
            out[name][rows] = here
    return out


class _EncodedBatch(NamedTuple):
    """Encoded maps of a batch, complete on the CPU after `copied`, and whether each map is finite."""

    rows: slice
    kept: dict[str, Tensor]
    is_finite: dict[str, Tensor]
    copied: torch.cuda.Event | None


def _forward_batches(
    network: Network, crops: np.ndarray, device: torch.device, encode: Encode, precision: Precision
) -> Iterator[_EncodedBatch]:
    """Yield encoded batches; a GPU computes the next batch while one is copied back."""
    size = _BATCH_SIZES[device.type]

    @torch.inference_mode()
    def forward(rows: slice) -> _EncodedBatch:
        maps = _maps(network, _to_device(crops[rows], size, device), precision)
        finite = {name: _is_finite(values[: rows.stop - rows.start]) for name, values in maps.items()}
        kept, is_finite = (
            {name: values.to("cpu", non_blocking=True) for name, values in tensors.items()}
            for tensors in (encode(maps), finite)
        )
        copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        return _EncodedBatch(rows, kept, is_finite, copied)

    waiting = None
    for batch in map_batches(forward, _slices(len(crops), size), device):
        if waiting is not None:
            yield _wait_for_copy(waiting)
        waiting = batch
    if waiting is not None:
        yield _wait_for_copy(waiting)


def _is_finite(values: Tensor) -> Tensor:
    """Return whether all values, fp16, are finite: then no exponent has all its bits set. `torch.isfinite` is slow."""
    return (values.view(torch.int16) & _EXPONENT_BITS).amax() < _EXPONENT_BITS


def _slices(num: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, num)) for first in range(0, num, size))


def _wait_for_copy(batch: _EncodedBatch) -> _EncodedBatch:
    if batch.copied is not None:
        batch.copied.synchronize()
    return batch


def _to_device(crops: np.ndarray, size: int, device: torch.device) -> Tensor:
    """Return images float32 (size, 3, 256, 256) in [0, 1], channels last, padded with the last crop."""
    images = torch.from_numpy(pad_batch(crops, size))
    if device.type == "cuda":
        images = images.pin_memory().to(device, non_blocking=True)
    images = images.permute(0, 3, 1, 2)
    return images.float().div(255) if images.dtype == torch.uint8 else images


def _maps(network: Network, images: Tensor, precision: Precision) -> dict[str, Tensor]:
    autocast = torch.autocast(images.device.type, dtype=_DTYPES[precision]) if precision in _DTYPES else nullcontext()
    with autocast, exact_convolutions():
        return {name: values.half() for name, values in network.taps(images).items()}

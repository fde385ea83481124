"""The deployed head: one branch in one safetensors file, with a description of how to use it.

    head.safetensors     tensors of `models.head.DeployedHead`, without the parts that only training needs
    head.json            shape, action units, threshold, and the features that the head reads
    head.onnx            the same head for other runtimes: maps in, logits out

Imports no Prefect, no detector and no FAN weights.
"""

# B frames, A action units, C channels, H W rows and columns of a map
from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.head import DeployedHead, HeadShape
from pipeline.errors import ConfigError, DataError, DataNotFoundError
from pipeline.runtime.atomic import write_atomically, write_json, write_safetensors
from pipeline.training.metrics import THRESHOLD

WEIGHTS_NAME = "head.safetensors"
DESCRIPTION_NAME = "head.json"
ONNX_NAME = "head.onnx"
ONNX_TOLERANCE = 1e-5
"""Greatest allowed difference between the logits of onnxruntime and torch, relative where a logit exceeds 1."""


@dataclass(frozen=True)
class DeployedModel:
    """A head in eval mode, the action units of its logits in order, and the content of head.json."""

    head: DeployedHead
    aus: tuple[int, ...]
    description: Mapping[str, Any]

    @torch.inference_mode()
    def probabilities(self, features: Mapping[str, Tensor]) -> np.ndarray:
        """Maps as `Codec.decode` returns them -> fp32 (B, A) in 0..1; at least the `threshold` means present."""
        probabilities_BA: np.ndarray = self.head(features).sigmoid().numpy()
        return probabilities_BA


def write_deployed(
    folder: Path, head: DeployedHead, *, aus: tuple[int, ...], features: Mapping[str, Any], averages_flip: bool
) -> None:
    """Write weights and description into `folder`; raises `WriteError` if that fails.

    aus: action units of the logits, in order. features: the part of the cache's fingerprint that describes the maps.
    averages_flip: whether the head was scored on logits averaged with those of the flipped view.
    """
    description = {
        "shape": asdict(head.shape),
        "aus": list(aus),
        "threshold": THRESHOLD,
        "features": dict(features),
        "averages_flip": averages_flip,
    }
    write_safetensors(folder / WEIGHTS_NAME, head.state_dict())
    write_json(folder / DESCRIPTION_NAME, description)


def load_deployed(folder: Path | str) -> DeployedModel:
    """Read what `write_deployed` wrote, of this or an older version; `DataNotFoundError` if it does not exist."""
    folder = Path(folder)
    for name in (WEIGHTS_NAME, DESCRIPTION_NAME):
        if not (folder / name).is_file():
            raise DataNotFoundError(f"{folder / name} does not exist; train that fold first, or pass another folder")
    description = json.loads((folder / DESCRIPTION_NAME).read_bytes())
    head = DeployedHead(HeadShape.resolved(**description["shape"]))
    head.load_state_dict(load_file(folder / WEIGHTS_NAME))
    return DeployedModel(head.eval(), tuple(description["aus"]), description)


def export_deployed(source: Path, out: Path) -> float:
    """Copy a fold's deployed head to the folder `out` and add ONNX; return the greatest difference (`write_onnx`)."""
    model = load_deployed(source)
    write_deployed(
        out,
        model.head,
        aus=model.aus,
        features=model.description["features"],
        averages_flip=model.description["averages_flip"],
    )
    return write_onnx(out)


class _ByPosition(nn.Module):
    """A head that takes its maps as positional arguments, as torch's ONNX exporter needs them."""

    def __init__(self, head: DeployedHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, *maps: Tensor) -> Tensor:
        logits_BA: Tensor = self.head(dict(zip(self.head.shape.feature_names, maps, strict=True)))
        return logits_BA


def write_onnx(folder: Path) -> float:
    """Write the head of `folder` as ONNX, compare onnxruntime with torch and return the greatest difference of logits.

    Differences are relative where a logit exceeds 1. Inputs are the maps of `HeadShape.feature_names`, fp32
    (B, C, H, W) and hm (B, 1, H, W), for any B; the output is `logits` (B, A). Raises `ConfigError` if a package is
    missing, or if the difference exceeds `ONNX_TOLERANCE`; then nothing is written.
    """
    try:
        onnxruntime, _ = (import_module(name) for name in ("onnxruntime", "onnxscript"))  # torch's exporter needs both
    except ImportError as error:
        raise ConfigError(f"ONNX export needs the package {error.name}; run `pip install 'fantrans[onnx]'`") from None
    model = load_deployed(folder)
    shape = model.head.shape
    generator = torch.Generator().manual_seed(0)
    maps = {
        name: torch.randn(
            3, 1 if name == "hm" else shape.fan_width, shape.map_size, shape.map_size, generator=generator
        )
        for name in shape.feature_names
    }
    batch = torch.export.Dim("batch")
    gaps = []

    def export(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _ByPosition(model.head),
                tuple(maps.values()),
                str(path),
                input_names=list(maps),
                output_names=["logits"],
                dynamic_shapes=(tuple({0: batch} for _ in maps),),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for num in (1, 3):
            here = {name: values[:num] for name, values in maps.items()}
            (theirs,) = session.run(["logits"], {name: values.numpy() for name, values in here.items()})
            with torch.inference_mode():
                ours = model.head(here).numpy()
            gaps.append(float((np.abs(ours - theirs) / np.maximum(1, np.abs(ours))).max()))
        if max(gaps) > ONNX_TOLERANCE:
            raise DataError(
                f"{folder / ONNX_NAME} is not written: its logits differ from torch by {max(gaps):.1e}, more than "
                f"{ONNX_TOLERANCE}"
            )

    write_atomically(folder / ONNX_NAME, export)
    return max(gaps)

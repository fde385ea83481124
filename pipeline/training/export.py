"""The model that is used after training: one branch in one safetensors file, with what it needs to be read.

    head.safetensors     tensors of `models.head.DeployedHead`, nothing of what training drops
    head.json            its shape, action units, threshold, and the features that it reads
    head.onnx            the same for other runtimes: maps in, logits out

Loads no Prefect, no detector and no FAN weights.
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.head import DeployedHead, HeadShape
from pipeline.errors import ConfigError, DataNotFoundError
from pipeline.runtime.atomic import write_atomically, write_bytes_atomically
from pipeline.training.metrics import THRESHOLD

WEIGHTS_NAME = "head.safetensors"
DESCRIPTION_NAME = "head.json"
ONNX_NAME = "head.onnx"
ONNX_TOLERANCE = 1e-5


@dataclass(frozen=True)
class DeployedModel:
    """A head in eval mode and the action units that its logits are of, in order."""

    head: DeployedHead
    aus: tuple[int, ...]
    description: Mapping[str, Any]

    @torch.inference_mode()
    def probabilities(self, features: Mapping[str, Tensor]) -> np.ndarray:
        """Maps as `Codec.decode` gives them -> fp32 (B, A) in 0..1; present where at least `threshold`."""
        return self.head(features).sigmoid().numpy()


def write_deployed(
    folder: Path, head: DeployedHead, *, aus: tuple[int, ...], features: Mapping[str, Any], averages_flip: bool
) -> None:
    """Write weights and description.

    features: the part of the cache's fingerprint that says what it reads. averages_flip: whether its scores are of
    logits averaged with those of the flipped view.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    description = {
        "shape": asdict(head.shape),
        "aus": list(aus),
        "threshold": THRESHOLD,
        "features": dict(features),
        "averages_flip": averages_flip,
    }
    write_atomically(folder / WEIGHTS_NAME, lambda temp: save_file(tensors, temp))
    write_bytes_atomically(folder / DESCRIPTION_NAME, json.dumps(description, indent=2).encode())


def load_deployed(folder: Path | str) -> DeployedModel:
    """Read what `write_deployed` wrote; `DataError` if it does not exist."""
    folder = Path(folder)
    for name in (WEIGHTS_NAME, DESCRIPTION_NAME):
        if not (folder / name).is_file():
            raise DataNotFoundError(f"{folder / name} does not exist; train that fold first, or name another folder")
    description = json.loads((folder / DESCRIPTION_NAME).read_bytes())
    head = DeployedHead(HeadShape(**description["shape"]))
    head.load_state_dict(load_file(folder / WEIGHTS_NAME))
    return DeployedModel(head.eval(), tuple(description["aus"]), description)


def export_deployed(source: Path, out: Path) -> float:
    """Copy the model of a fold to a folder of its own, add ONNX; returns how far the two differ at most."""
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
    """A head whose maps come one after the other, as ONNX wants them."""

    def __init__(self, head: DeployedHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, *maps: Tensor) -> Tensor:
        return self.head(dict(zip(self.head.shape.feature_names, maps, strict=True)))


def write_onnx(folder: Path) -> float:
    """Write the model of `folder` as ONNX too, run it with onnxruntime beside torch, return the greatest difference.

    A difference counts relative to the logit where that is beyond 1.

    Inputs are the maps of `HeadShape.feature_names`, fp32 (B, C, H, W) and hm (B, 1, H, W), any B; output `logits`
    (B, A). Raises `ConfigError` without the packages, or where the two differ by more than 1e-5.
    """
    try:
        onnxruntime, _ = (import_module(name) for name in ("onnxruntime", "onnxscript"))  # torch's exporter needs both
    except ImportError as error:
        raise ConfigError(f"ONNX needs {error.name}; run `pip install 'fantrans[onnx]'`") from None
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
            raise ConfigError(
                f"{folder / ONNX_NAME} would differ from the model by {max(gaps):.1e}, more than "
                f"{ONNX_TOLERANCE}, and is not written"
            )

    write_atomically(folder / ONNX_NAME, export)
    return max(gaps)

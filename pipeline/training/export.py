"""The deployed head: one branch in one safetensors file, with a description of how to use it.

    head.safetensors     tensors of the deployed head, without the parts that only training needs
    head.json            what the head is built from, action units, threshold, and how its maps come from an image
    head.onnx            the same head for other runtimes: maps in, logits out

Imports no Prefect, no detector and no FAN weights.
"""

# B frames, A action units, C channels, H W rows and columns of a map
from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.head import HeadInputs
from pipeline.errors import DataError, DataNotFoundError
from pipeline.runtime.atomic import file_sha256, write_atomically, write_json, write_safetensors
from pipeline.runtime.extras import optional_packages
from pipeline.runtime.version import FILE_METADATA_KEY, file_metadata, package_version
from pipeline.training.heads import BUILT_FROM, described_inputs, described_maps, rebuild_deployed, rebuild_head
from pipeline.training.metrics import THRESHOLD
from pipeline.training.run_files import DEPLOYED_NAME, HEAD_NAME, RESULT_NAME, SOURCE_NAME, check_schema

WEIGHTS_NAME = "head.safetensors"
DESCRIPTION_NAME = "head.json"
ONNX_NAME = "head.onnx"
DESCRIPTION_VERSION = 2
"""Of head.json: 2 has `detector` and `crop`, so that raw images can be predicted; 1 has no version and neither."""
IMAGE_KEYS = ("detector", "crop")
"""Parts of a cache's document that decide crops; kept in head.json beside `features`."""
ONNX_TOLERANCE = 1e-4
"""Greatest allowed difference between the logits of onnxruntime and torch, relative where a logit exceeds 1."""


@dataclass(frozen=True)
class DeployedModel:
    """A head in eval mode, the action units of its logits in order, and the content of head.json."""

    head: nn.Module
    aus: tuple[int, ...]
    description: Mapping[str, Any]

    @property
    def inputs(self) -> HeadInputs:
        """Sizes of the maps and the number of action units."""
        return described_inputs(self.description)

    @property
    def map_names(self) -> tuple[str, ...]:
        """Maps that the head reads, among lf, h1, h2 and hm."""
        return described_maps(self.description, self.head)

    @torch.inference_mode()
    def probabilities(self, features: Mapping[str, Tensor]) -> np.ndarray:
        """Maps as `Codec.decode` returns them -> fp32 (B, A) in 0..1; `description` has the threshold."""
        probabilities_BA: np.ndarray = self.head(features).sigmoid().numpy()
        return probabilities_BA


def write_deployed(
    folder: Path,
    head: nn.Module,
    built_from: Mapping[str, Any],
    *,
    aus: tuple[int, ...],
    features: Mapping[str, Any],
    averages_flip: bool,
    images: Mapping[str, Any] | None = None,
    threshold: float | Sequence[float] = THRESHOLD,
) -> None:
    """Write weights and description into `folder`; raises `WriteError` if that fails.

    built_from: the head's description, see pipeline/training/heads.py. aus: action units of the logits, in order.
    features: the part of the cache's fingerprint that describes the maps. averages_flip: whether the head was scored on
    logits averaged with those of the flipped view. images: a mapping with the settings of detector and crops
    (`IMAGE_KEYS`; others are left out), such as the cache's document; without it, prediction uses the defaults.
    threshold: the probability from which an action unit is present, one for all or one per action unit.
    """
    description = {
        "version": DESCRIPTION_VERSION,
        "fantrans": package_version(),
        **built_from,
        "aus": list(aus),
        "threshold": threshold if isinstance(threshold, float) else list(threshold),
        "features": dict(features),
        "averages_flip": averages_flip,
        **{name: images[name] for name in IMAGE_KEYS if images is not None and name in images},
    }
    metadata = {FILE_METADATA_KEY: file_metadata(DESCRIPTION_VERSION)}
    write_safetensors(folder / WEIGHTS_NAME, head.state_dict(), metadata=metadata)
    write_json(folder / DESCRIPTION_NAME, description | {"sha256": file_sha256(folder / WEIGHTS_NAME)})


def load_deployed(folder: Path | str) -> DeployedModel:
    """Read what `write_deployed` wrote, of this or an older version.

    Raises `DataNotFoundError` if it does not exist, `DataError` if a file is damaged or of a later version, or if the
    source of a head of one's own has changed since.
    """
    folder = Path(folder)
    tensors = read_tensors(folder / WEIGHTS_NAME)
    description = _read_description(folder)
    if description.get("sha256", "") not in ("", file_sha256(folder / WEIGHTS_NAME)):  # "": of an older version
        raise _damaged(folder / WEIGHTS_NAME, f"its sha256 is not that of {DESCRIPTION_NAME}", "pass another folder")
    head = rebuild_deployed(description, source=_source_of(folder.parent))
    _load_into(head, tensors, folder / WEIGHTS_NAME)
    return DeployedModel(head.eval(), tuple(description["aus"]), description)


def _source_of(fold: Path) -> Path:
    """Return where the run of a fold keeps the source of a head of one's own."""
    return fold.parent / SOURCE_NAME


def load_trained(fold: Path) -> nn.Module:
    """Read a finished fold's head as it was trained, with all branches, in eval mode; raises as `load_deployed`."""
    tensors = read_tensors(fold / HEAD_NAME)
    head = rebuild_head(_read_description(fold / DEPLOYED_NAME), source=_source_of(fold))
    _load_into(head, tensors, fold / HEAD_NAME)
    return head.eval()


def read_tensors(path: Path, *, otherwise: str = "pass another folder") -> dict[str, Tensor]:
    """Read the tensors of a head's file, on the CPU.

    otherwise: what the user can do in place of training, for the messages. Raises `DataNotFoundError`, or
    `DataError` for a damaged file.
    """
    if not path.is_file():
        raise DataNotFoundError(f"{path} does not exist; train that fold first, or {otherwise}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, str(error), otherwise) from None


def _load_into(head: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise _damaged(path, f"not the head that {DESCRIPTION_NAME} describes, {error}") from None


def _read_description(folder: Path) -> dict[str, Any]:
    """Read a deployed head's description; raises `DataNotFoundError`, or `DataError` for a damaged file."""
    path = folder / DESCRIPTION_NAME
    if not path.is_file():
        raise DataNotFoundError(f"{path} does not exist; train that fold first, or pass another folder")
    try:
        description = json.loads(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(description, dict) or "aus" not in description or not description.keys() & {"shape", "class"}:
        raise _damaged(path, "it does not describe a head")
    check_schema(path, description.get("version", 1), DESCRIPTION_VERSION, description)
    return description


def _damaged(path: Path, reason: str, otherwise: str = "pass another folder") -> DataError:
    """Return the error for a damaged file of a fold or of an exported head."""
    fold = next((folder for folder in path.parents[:2] if (folder / RESULT_NAME).is_file()), None)
    again = (
        "write it again with `fantrans export`"
        if fold is None
        else f"delete {fold / RESULT_NAME} and repeat the run's `fantrans train` to train this fold again"
    )
    return DataError(f"{path} is damaged ({' '.join(reason.split())[:160]}); {again}, or {otherwise}")


def export_deployed(source: Path, out: Path, *, threshold: float | Sequence[float] = THRESHOLD) -> float:
    """Copy a fold's deployed head to the folder `out` and add ONNX; return the greatest difference (`write_onnx`).

    threshold: the probability from which an action unit is present, one for all or one per action unit.
    """
    model = load_deployed(source)
    write_deployed(
        out,
        model.head,
        {name: model.description[name] for name in model.description if name in BUILT_FROM},
        aus=model.aus,
        features=model.description["features"],
        averages_flip=model.description["averages_flip"],
        images=model.description,
        threshold=threshold,
    )
    return write_onnx(out)


def add_onnx_metadata(path: Path, **metadata: Any) -> None:
    """Add metadata as JSON texts to an ONNX file, and the versions under `FILE_METADATA_KEY`."""
    onnx = import_module("onnx")
    file = onnx.load(str(path))
    for name, value in metadata.items():
        file.metadata_props.add(key=name, value=json.dumps(value))
    file.metadata_props.add(key=FILE_METADATA_KEY, value=file_metadata(DESCRIPTION_VERSION))
    onnx.save(file, str(path))


class _ByPosition(nn.Module):
    """A head that takes its maps as positional arguments, as torch's ONNX exporter needs them."""

    def __init__(self, model: DeployedModel) -> None:
        super().__init__()
        self.head, self.names = model.head, model.map_names

    def forward(self, *maps: Tensor) -> Tensor:
        logits_BA: Tensor = self.head(dict(zip(self.names, maps, strict=True)))
        return logits_BA


def write_onnx(folder: Path) -> float:
    """Write the head of `folder` as ONNX, compare onnxruntime with torch and return the greatest difference of logits.

    Differences are relative where a logit exceeds 1. Inputs are the maps of `DeployedModel.map_names`, fp32
    (B, C, H, W) and hm (B, 1, H, W), for any B; the output is `logits` (B, A). The file's metadata have the action
    units, the threshold and the versions. Raises `ConfigError` if a package is
    missing, or if the difference exceeds `ONNX_TOLERANCE`; then nothing is written.
    """
    with optional_packages("onnx", for_what="ONNX export"):
        onnxruntime, *_ = (import_module(name) for name in ("onnxruntime", "onnx", "onnxscript"))  # torch needs all
    model = load_deployed(folder)
    inputs = model.inputs
    generator = torch.Generator().manual_seed(0)
    maps = {
        name: torch.randn(
            3, 1 if name == "hm" else inputs.num_channels, inputs.map_size, inputs.map_size, generator=generator
        )
        for name in model.map_names
    }
    batch = torch.export.Dim("batch")
    gaps = []

    def export(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _ByPosition(model),
                tuple(maps.values()),
                str(path),
                input_names=list(maps),
                output_names=["logits"],
                dynamic_shapes=(tuple({0: batch} for _ in maps),),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        add_onnx_metadata(path, aus=list(model.aus), threshold=model.description["threshold"])
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
                f"{ONNX_TOLERANCE}; {WEIGHTS_NAME} and {DESCRIPTION_NAME} beside it are written and can be used"
            )

    write_atomically(folder / ONNX_NAME, export)
    return max(gaps)

"""One ONNX file from a face's crop to the probabilities of action units: network, gate and head, without codec."""

# B crops, A action units, S side of the crop
from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.maps import INPUT_SIZE_PX
from pipeline.catalog import Catalog
from pipeline.errors import DataError
from pipeline.faces.features import load_network
from pipeline.predict.model import open_model
from pipeline.runtime.atomic import write_atomically
from pipeline.runtime.extras import optional_packages
from pipeline.training.export import add_onnx_metadata, load_deployed

WHOLE_NAME = "model.onnx"
WHOLE_TOLERANCE = 1e-4
"""Greatest allowed difference between the probabilities of onnxruntime and torch."""


class WholeModel(nn.Module):
    """RGB uint8 (B, 3, 256, 256) -> probabilities (B, A), all in fp32; averages the flipped crop if the head does."""

    def __init__(self, network: nn.Module, head: nn.Module, *, is_compact: bool, averages_flip: bool) -> None:
        super().__init__()
        self.network, self.head = network, head
        self.is_compact, self.averages_flip = is_compact, averages_flip

    def forward(self, crops: Tensor) -> Tensor:
        """Return the probabilities."""
        images = crops.float() / 255
        if self.averages_flip:  # in one pass, so that the file holds the network once
            logits_2BA = self._logits(torch.cat((images, images.flip(3)))).unflatten(0, (2, -1))
            probabilities_BA: Tensor = logits_2BA.mean(0).sigmoid()
            return probabilities_BA
        return self._logits(images).sigmoid()

    def _logits(self, images: Tensor) -> Tensor:
        maps = dict(self.network.taps(images))  # type: ignore[operator]  # of a FAN or a ResNet
        if "hm" in maps:
            maps["hm"] = maps["hm"].sum(1, keepdim=True)
        if self.is_compact:  # the head reads the products, as the profile keeps them
            maps = {"lf": maps["lf"], "hm_h1": maps["hm"] * maps["h1"], "hm_h2": maps["hm"] * maps["h2"]}
        logits_BA: Tensor = self.head(maps)
        return logits_BA


def export_whole(model_folder: Path, out: Path, catalog: Catalog) -> float:
    """Write `out`/model.onnx and return the greatest difference of probabilities between onnxruntime and torch.

    Input `crop`: RGB uint8 (B, 3, 256, 256), for any B. Output `probabilities`: (B, A). The file's metadata have the
    action units, the threshold, how the crop is cut and the versions. Raises `DataError` if the difference exceeds
    `WHOLE_TOLERANCE`; then nothing is written.
    """
    with optional_packages("onnx", for_what="ONNX export"):
        onnxruntime, *_ = (import_module(name) for name in ("onnxruntime", "onnx", "onnxscript"))
    model = open_model(model_folder, catalog)
    whole = WholeModel(
        load_network(model.network_weights, "cpu"),
        load_deployed(model_folder).head,
        is_compact=model.codec.profile == "compact",
        averages_flip=model.averages_flip,
    ).eval()
    size = (3, 3, INPUT_SIZE_PX, INPUT_SIZE_PX)
    crops = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    metadata: dict[str, Any] = {
        "aus": list(model.aus),
        "threshold": model.threshold_A.tolist(),
        "crop": {
            "colour": "RGB",
            "size_px": model.crop.size_px,
            "centre": "of the detected box",
            "side": f"(width + height) * {model.crop.side_per_box_frac!r}",
            "outside_frame": 0,
            "interpolation": "bilinear",
        },
    }
    gaps: list[float] = []

    def export(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                whole,
                (crops,),
                str(path),
                input_names=["crop"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        add_onnx_metadata(path, **metadata)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for num in (1, 3):
            (theirs,) = session.run(["probabilities"], {"crop": crops[:num].numpy()})
            with torch.inference_mode():
                gaps.append(float(np.abs(whole(crops[:num]).numpy() - theirs).max()))
        if max(gaps) > WHOLE_TOLERANCE:
            raise DataError(
                f"{out / WHOLE_NAME} is not written: its probabilities differ from torch by {max(gaps):.1e}, more than "
                f"{WHOLE_TOLERANCE}; use head.onnx with the maps of the network"
            )

    write_atomically(out / WHOLE_NAME, export)
    return max(gaps)

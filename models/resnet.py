"""Early features of a ResNet-18 classifier, which replace those of the FAN in one row of Table 2.

The map is the output of conv2_x ("layer1" in timm): 64 channels, 64 x 64 cells. A head reads it as `lf`, without
heatmaps.
"""

# B images, H W rows and columns
from __future__ import annotations

import torch
from torch import Tensor, nn

from models.maps import RESNET_SHAPES

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation of RGB in [0, 1] that timm's weights expect."""


class ResNet18Features(nn.Module):
    """timm's `resnet18` up to `layer1`; state-dict keys are those of timm's `conv1`, `bn1` and `layer1`."""

    map_shapes = RESNET_SHAPES

    def __init__(self) -> None:
        super().__init__()
        import timm  # noqa: PLC0415 - takes two seconds, which users of a FAN need not wait for

        self.net = timm.create_model("resnet18", features_only=True, out_indices=(1,))
        self.mean = nn.Buffer(torch.tensor(MEAN)[:, None, None], persistent=False)
        self.std = nn.Buffer(torch.tensor(STD)[:, None, None], persistent=False)

    def taps(self, images: Tensor) -> dict[str, Tensor]:
        """RGB float (B, 3, 256, 256) in [0, 1] -> `lf` (B, 64, 64, 64), non-negative."""
        (lf,) = self.net((images - self.mean) / self.std)
        return {"lf": lf}

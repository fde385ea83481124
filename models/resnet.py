"""ResNet-18's early features: a network that was trained to classify, in place of the FAN (paper, Table 2).

The map of 64 x 64 is the one after the second stage (conv2_x; "layer1" to timm), with 64 channels. A head reads it as
`lf`, without heatmaps.
"""

# B images, H W rows and columns
from __future__ import annotations

import torch
from torch import Tensor, nn

MAP_SHAPES = {"lf": (64, 64, 64)}
"""Shape (C, H, W) of the map of a 256 x 256 image."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in [0, 1], as timm's weights expect it."""


class ResNet18Features(nn.Module):
    """timm's `resnet18` up to its second stage; state-dict keys are timm's, `conv1`, `bn1` and `layer1` alone."""

    map_shapes = MAP_SHAPES

    def __init__(self) -> None:
        super().__init__()
        import timm  # noqa: PLC0415 - takes two seconds, which nobody else should wait for

        self.net = timm.create_model("resnet18", features_only=True, out_indices=(1,))
        self.mean = nn.Buffer(torch.tensor(MEAN)[:, None, None], persistent=False)
        self.std = nn.Buffer(torch.tensor(STD)[:, None, None], persistent=False)

    def taps(self, images: Tensor) -> dict[str, Tensor]:
        """RGB float (B, 3, 256, 256) in [0, 1] -> `lf` (B, 64, 64, 64), not negative."""
        (lf,) = self.net((images - self.mean) / self.std)
        return {"lf": lf}

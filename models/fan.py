"""The frozen face-alignment trunk (FAN) and the feature maps that the heads read from it.

State-dict keys are those of `face_alignment.models.FAN`, so that its weights, and ibug's, load strictly. Pooling is not
in the weights: `avg` for face-alignment's 2DFAN-4 and ibug's 2dfan4, `max` for ibug's 2dfan2 and 2dfan2_alt.
"""

# B frames, P 68 landmarks, C channels, H W rows and columns of a map (a quarter of the image's)
from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.maps import NUM_LANDMARKS, map_shapes

HOURGLASS_DEPTH = 4

Pooling = Literal["avg", "max"]


class ConvBlock(nn.Module):
    """Three pre-activation 3x3 convolutions (1/2, 1/4, 1/4 of the channels), concatenated and added to a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half, quarter = out_channels // 2, out_channels // 4
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, quarter, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(quarter)
        self.conv3 = nn.Conv2d(quarter, quarter, 3, padding=1, bias=False)
        self.downsample = (
            None
            if in_channels == out_channels
            else nn.Sequential(
                nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), nn.Conv2d(in_channels, out_channels, 1, bias=False)
            )
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        half = self.conv1(F.relu(self.bn1(x_BCHW), inplace=True))
        quarter = self.conv2(F.relu(self.bn2(half), inplace=True))
        last = self.conv3(F.relu(self.bn3(quarter), inplace=True))
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return torch.cat((half, quarter, last), 1).add_(shortcut)


def _pool(x_BCHW: Tensor, pooling: Pooling) -> Tensor:
    return F.avg_pool2d(x_BCHW, 2) if pooling == "avg" else F.max_pool2d(x_BCHW, 2)


class Hourglass(nn.Module):
    """Encoder and decoder over `HOURGLASS_DEPTH` halvings of the map, with a ConvBlock on each level's shortcut."""

    def __init__(self, width: int, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling
        for level in range(HOURGLASS_DEPTH, 0, -1):
            for name in ("b1", "b2", "b3"):
                self.add_module(f"{name}_{level}", ConvBlock(width, width))
        self.add_module("b2_plus_1", ConvBlock(width, width))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, width, H, W) -> the same shape; H and W are multiples of 16."""
        return self._level(HOURGLASS_DEPTH, x_BCHW)

    def _level(self, level: int, x_BCHW: Tensor) -> Tensor:
        block = self.get_submodule
        up: Tensor = block(f"b1_{level}")(x_BCHW)
        low = block(f"b2_{level}")(_pool(x_BCHW, self.pooling))
        low = self._level(level - 1, low) if level > 1 else block("b2_plus_1")(low)
        low = block(f"b3_{level}")(low)
        return up + F.interpolate(low, scale_factor=2, mode="nearest")


class FAN(nn.Module):
    """Stem, then `num_stacks` hourglasses, each with its own heatmaps (Bulat and Tzimiropoulos, ICCV 2017).

    width: channels of the trunk, a multiple of 16; the stem has a quarter, then half of it. num_stacks: 2 or more.
    pooling: "avg" or "max". Raises `ValueError` for other values. Images are RGB float (B, 3, 256, 256) in [0, 1],
    without normalisation by mean and standard deviation; other sizes must be multiples of 64.
    """

    def __init__(self, width: int = 256, num_stacks: int = 2, *, pooling: Pooling = "avg") -> None:
        super().__init__()
        if width % 16 or width <= 0:
            raise ValueError(f"width of a FAN must be a positive multiple of 16, found {width}")
        if num_stacks < 2:
            raise ValueError(
                f"a FAN needs 2 stacks or more, since h1 and h2 come from the last two, found {num_stacks}"
            )
        if pooling not in ("avg", "max"):
            raise ValueError(f"pooling of a FAN must be 'avg' or 'max', found {pooling!r}")
        self.width, self.num_stacks, self.pooling = width, num_stacks, pooling
        self.map_shapes = map_shapes(width)
        self.conv1 = nn.Conv2d(3, width // 4, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(width // 4)
        self.conv2 = ConvBlock(width // 4, width // 2)
        self.conv3 = ConvBlock(width // 2, width // 2)
        self.conv4 = ConvBlock(width // 2, width)
        for i in range(num_stacks):
            self.add_module(f"m{i}", Hourglass(width, pooling))
            self.add_module(f"top_m_{i}", ConvBlock(width, width))
            self.add_module(f"conv_last{i}", nn.Conv2d(width, width, 1))
            self.add_module(f"bn_end{i}", nn.BatchNorm2d(width))
            self.add_module(f"l{i}", nn.Conv2d(width, NUM_LANDMARKS, 1))
            if i < num_stacks - 1:
                self.add_module(f"bl{i}", nn.Conv2d(width, width, 1))
                self.add_module(f"al{i}", nn.Conv2d(NUM_LANDMARKS, width, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the raw heatmaps (B, 68, H, W) of every stack; landmark p lies near the maximum of its map."""
        return self._run(images)[-1]

    def taps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of `TAPS` by name: lf, h1, h2 (B, width, H, W) and hm (B, 68, H, W) (paper 3.1)."""
        lf, links, ends, heatmaps = self._run(images)
        return {"lf": lf, "h1": links[-1], "h2": ends[-1], "hm": heatmaps[-1]}

    def _run(self, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """Return the stem's output and, per stack, bl outputs (none for the last), ReLU(bn_end) maps and heatmaps."""
        part = self.get_submodule
        x_BCHW = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x_BCHW = self.conv3(_pool(self.conv2(x_BCHW), self.pooling))
        lf = x_BCHW = self.conv4(x_BCHW)
        links: list[Tensor] = []
        ends: list[Tensor] = []
        heatmaps: list[Tensor] = []
        for i in range(self.num_stacks):
            end = part(f"conv_last{i}")(part(f"top_m_{i}")(part(f"m{i}")(x_BCHW)))
            ends.append(F.relu(part(f"bn_end{i}")(end), inplace=True))
            heatmaps.append(part(f"l{i}")(ends[-1]))
            if i < self.num_stacks - 1:
                links.append(part(f"bl{i}")(ends[-1]))
                x_BCHW = x_BCHW + links[-1] + part(f"al{i}")(heatmaps[-1])
        return lf, links, ends, heatmaps


@torch.no_grad()
def widened(fan: FAN, *, seed: int) -> FAN:
    """Return a FAN of twice the width with the same heatmaps, for further training (Net2Net: Chen et al., ICLR 2016).

    Every channel is duplicated. The weights of the two copies into the next layer are a random split of the original
    weights, so that training can make the copies different. Landmark and colour channels are not duplicated.
    """
    wide = FAN(2 * fan.width, fan.num_stacks, pooling=fan.pooling)
    generator = torch.Generator().manual_seed(seed)
    state = wide.state_dict()
    for name, old in fan.state_dict().items():
        new = old.clone()
        if old.dim() and state[name].shape[0] != old.shape[0]:
            new = new.repeat_interleave(2, 0)
        if old.dim() > 1 and state[name].shape[1] != old.shape[1]:
            share = 0.5 + 0.6 * (torch.rand(new.shape, generator=generator) - 0.5)
            new = torch.stack((new * share, new * (1 - share)), 2).flatten(1, 2)
        state[name] = new
    wide.load_state_dict(state)
    return wide


def decode_landmarks(heatmaps_BPHW: Tensor, *, stride: int = 4) -> Tensor:
    """Return landmarks (B, P, 2), x and y in px of the FAN's input, pixel centres at whole numbers.

    A landmark is the centre of mass of the squared positive values of its map, within an eighth of the map's width
    around the highest cell. This resolves less than a cell, and is more stable than the maximum for maps that are
    spread along an edge, such as those of the jaw. stride: px of the input per cell.
    """
    *_, height, width = heatmaps_BPHW.shape
    values = heatmaps_BPHW.float().clamp_min(0).square()
    peak = heatmaps_BPHW.flatten(2).argmax(2)
    x_BP, y_BP = peak % width, peak // width
    dx = torch.arange(width, device=peak.device) - x_BP[..., None, None]  # (B, P, 1, W)
    dy = torch.arange(height, device=peak.device)[:, None] - y_BP[..., None, None]  # (B, P, H, 1)
    values = values * (dx**2 + dy**2 <= (width / 8) ** 2)
    mass = values.sum((2, 3)).clamp_min(torch.finfo(values.dtype).tiny)
    offset = torch.stack(((values * dx).sum((2, 3)), (values * dy).sum((2, 3))), 2) / mass[..., None]
    return (torch.stack((x_BP, y_BP), 2) + offset + 0.5) * stride - 0.5

"""RetinaFace (Deng et al., CVPR 2020): face boxes, scores and five points of images, with one of two backbones.

State-dict keys are those of the published networks, whose weights load strictly: face-alignment's RetinaFace for
"mobilenet0.25", retinaface-pytorch's for "resnet50".
"""

# B images, A anchors, N faces, C channels, H height, W width
from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 16, 32)
ANCHOR_SIDES_PX = ((16, 32), (64, 128), (256, 512))
"""Sides of the two square anchors per cell, for each stride."""
VARIANCES = (0.1, 0.2)
"""Scales of the encoded values: of a centre's offset in anchor sides, and of the logarithm of a side ratio."""


class Faces(NamedTuple):
    """Faces of one image, best first: boxes xyxy px (N, 4), scores 0..1 (N,), points px (N, 5, 2)."""

    boxes: Tensor
    scores: Tensor
    points: Tensor


class RawOutput(NamedTuple):
    """Outputs per anchor: logits (B, A, 2: background, face), encoded boxes (B, A, 4) and points (B, A, 10)."""

    logits: Tensor
    boxes: Tensor
    points: Tensor


class RetinaFace(nn.Module):
    """Single-shot face detector for RGB images (B, 3, H, W), uint8 or float 0..255, which it normalises itself.

    backbone: "mobilenet0.25" (0.43 M parameters; reads BGR minus its mean) or "resnet50" (27.3 M; ImageNet RGB); else
    `ValueError`.
    """

    mean_31: Tensor
    scale_31: Tensor

    def __init__(self, backbone: str = "mobilenet0.25") -> None:
        super().__init__()
        if backbone == "mobilenet0.25":
            self.body, channels, width = _mobilenet_body(), (64, 128, 256), 64
            mean, std = torch.tensor([123.0, 117.0, 104.0]), torch.ones(3)
        elif backbone == "resnet50":
            self.body, channels, width = _resnet_body(), (512, 1024, 2048), 256
            mean, std = torch.tensor([0.485, 0.456, 0.406]) * 255, torch.tensor([0.229, 0.224, 0.225]) * 255
        else:
            raise ValueError(f"backbone is {backbone!r}; expected mobilenet0.25 or resnet50")
        self.is_bgr = backbone == "mobilenet0.25"
        self.register_buffer("mean_31", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("scale_31", (1 / std).view(3, 1, 1), persistent=False)

        self.fpn = _FeaturePyramid(channels, width)
        self.ssh1, self.ssh2, self.ssh3 = (_ContextModule(width) for _ in STRIDES)
        self.ClassHead = nn.ModuleList(_Head(width, values_per_anchor=2) for _ in STRIDES)
        self.BboxHead = nn.ModuleList(_Head(width, values_per_anchor=4) for _ in STRIDES)
        self.LandmarkHead = nn.ModuleList(_Head(width, values_per_anchor=10) for _ in STRIDES)

    def forward(self, images_B3HW: Tensor, *, score_threshold: float = 0.5, nms_iou: float = 0.4) -> list[Faces]:
        """Return the faces of each image that score above `score_threshold` (0..1), after non-maximum suppression."""
        raw = self.raw(images_B3HW)
        height, width = images_B3HW.shape[-2:]
        scores_BA = raw.logits.softmax(-1)[..., 1]
        image_N, anchor_N = (scores_BA > score_threshold).nonzero(as_tuple=True)
        anchors_N4 = anchors(height, width, device=images_B3HW.device)[anchor_N]
        size_2 = anchors_N4.new_tensor([width, height])
        boxes_N4 = decode_boxes(raw.boxes[image_N, anchor_N], anchors_N4) * size_2.repeat(2)
        points_N52 = decode_points(raw.points[image_N, anchor_N], anchors_N4) * size_2
        scores_N = scores_BA[image_N, anchor_N]

        from torchvision.ops import batched_nms  # noqa: PLC0415 - over a second; checks of weights need none of it

        kept = batched_nms(boxes_N4, scores_N, image_N, nms_iou)  # best first over all images
        kept = kept[image_N[kept].argsort(stable=True)]
        counts = image_N[kept].bincount(minlength=len(images_B3HW)).tolist()
        parts = (values[kept].split(counts) for values in (boxes_N4, scores_N, points_N52))
        return [Faces(*faces) for faces in zip(*parts, strict=True)]

    def raw(self, images_B3HW: Tensor) -> RawOutput:
        """Return the outputs for every anchor, in the order of `anchors`, as the training loss needs them."""
        x = (images_B3HW.float() - self.mean_31) * self.scale_31
        if self.is_bgr:
            x = x.flip(1)
        pyramid = self.fpn(self.body(x))
        levels = [ssh(level) for ssh, level in zip((self.ssh1, self.ssh2, self.ssh3), pyramid, strict=True)]

        def all_anchors(heads: nn.ModuleList) -> Tensor:
            return torch.cat([head(level) for head, level in zip(heads, levels, strict=True)], dim=1)

        return RawOutput(all_anchors(self.ClassHead), all_anchors(self.BboxHead), all_anchors(self.LandmarkHead))


@lru_cache(maxsize=16)
def anchors(height: int, width: int, *, device: torch.device) -> Tensor:
    """Return anchors (A, 4) float32: centre x, y, width, height, as fractions of the image's width and height.

    Ordered by stride, row, column and side; 10,752 for 512 x 512 px.
    """
    levels = []
    with torch.inference_mode(False):  # a tensor created in inference mode could not be used in training later
        for stride, sides in zip(STRIDES, ANCHOR_SIDES_PX, strict=True):
            y = (torch.arange(ceil(height / stride), dtype=torch.float64) + 0.5) * stride / height
            x = (torch.arange(ceil(width / stride), dtype=torch.float64) + 0.5) * stride / width
            side = torch.tensor(sides, dtype=torch.float64)
            y, x, side = torch.meshgrid(y, x, side, indexing="ij")
            levels.append(torch.stack([x, y, side / width, side / height], dim=-1).reshape(-1, 4))
        return torch.cat(levels).float().to(device)


def decode_boxes(encoded_N4: Tensor, anchors_N4: Tensor) -> Tensor:
    """Return boxes xyxy (N, 4), in the units of the anchors (N, 4)."""
    centres_N2 = anchors_N4[:, :2] + encoded_N4[:, :2] * VARIANCES[0] * anchors_N4[:, 2:]
    sides_N2 = anchors_N4[:, 2:] * torch.exp(encoded_N4[:, 2:] * VARIANCES[1])
    low_N2 = centres_N2 - sides_N2 / 2
    return torch.cat([low_N2, sides_N2 + low_N2], dim=1)


def decode_points(encoded_N10: Tensor, anchors_N4: Tensor) -> Tensor:
    """Return points x, y (N, 5, 2), in the units of the anchors (N, 4)."""
    encoded_N52 = encoded_N10.view(-1, 5, 2)
    return anchors_N4[:, None, :2] + encoded_N52 * VARIANCES[0] * anchors_N4[:, None, 2:]


def encode_boxes(boxes_N4: Tensor, anchors_N4: Tensor) -> Tensor:
    """Return encoded boxes (N, 4) for boxes xyxy in the units of the anchors: the inverse of `decode_boxes`."""
    centres_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    offsets_N2 = (centres_N2 - anchors_N4[:, :2]) / (VARIANCES[0] * anchors_N4[:, 2:])
    return torch.cat([offsets_N2, torch.log(sides_N2 / anchors_N4[:, 2:]) / VARIANCES[1]], dim=1)


def encode_points(points_N52: Tensor, anchors_N4: Tensor) -> Tensor:
    """Return encoded points (N, 10) for points (N, 5, 2): the inverse of `decode_points`."""
    return ((points_N52 - anchors_N4[:, None, :2]) / (VARIANCES[0] * anchors_N4[:, None, 2:])).flatten(1)


class _Body(nn.ModuleDict):
    """A sequence of layers; returns the outputs of the three layers in `taps`, at strides 8, 16 and 32."""

    def __init__(self, layers: Mapping[str, nn.Module], taps: tuple[str, str, str]) -> None:
        super().__init__(layers)
        self.taps = taps

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for name, layer in self.items():
            x = layer(x)
            if name in self.taps:
                outputs.append(x)
        return outputs


def _mobilenet_body() -> _Body:
    """MobileNet V1 of a quarter of the width, without the classifier."""

    def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        depthwise = _conv_layers(inputs, inputs, stride=stride, groups=inputs, slope=0.1)
        return nn.Sequential(*depthwise, *_conv_layers(inputs, outputs, kernel=1, slope=0.1))

    stages = {
        "stage1": [
            _conv(3, 8, stride=2, slope=0.1),
            separable(8, 16),
            separable(16, 32, 2),
            separable(32, 32),
            separable(32, 64, 2),
            separable(64, 64),
        ],
        "stage2": [separable(64, 128, 2), *(separable(128, 128) for _ in range(5))],
        "stage3": [separable(128, 256, 2), separable(256, 256)],
    }
    return _Body({name: nn.Sequential(*layers) for name, layers in stages.items()}, ("stage1", "stage2", "stage3"))


def _resnet_body() -> _Body:
    from torchvision.models import resnet50  # noqa: PLC0415 - see `RetinaFace.forward`

    layers = {name: layer for name, layer in resnet50(weights=None).named_children() if name not in ("avgpool", "fc")}
    return _Body(layers, ("layer2", "layer3", "layer4"))


class _FeaturePyramid(nn.Module):
    """Brings three levels to one width and adds each coarser level to the next finer one."""

    def __init__(self, channels: tuple[int, int, int], width: int) -> None:
        super().__init__()
        slope = _slope(width)
        self.output1, self.output2, self.output3 = (_conv(c, width, kernel=1, slope=slope) for c in channels)
        self.merge1, self.merge2 = (_conv(width, width, slope=slope) for _ in range(2))

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = self.output1(stages[0]), self.output2(stages[1]), self.output3(stages[2])
        middle = self.merge2(middle + F.interpolate(coarse, size=middle.shape[-2:], mode="nearest"))
        fine = self.merge1(fine + F.interpolate(middle, size=fine.shape[-2:], mode="nearest"))
        return [fine, middle, coarse]


class _ContextModule(nn.Module):
    """SSH (Najibi et al., ICCV 2017): concatenated convolutions with receptive fields of 3, 5 and 7 cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        slope = _slope(width)
        self.conv3X3 = _conv(width, width // 2)
        self.conv5X5_1 = _conv(width, width // 4, slope=slope)
        self.conv5X5_2 = _conv(width // 4, width // 4)
        self.conv7X7_2 = _conv(width // 4, width // 4, slope=slope)
        self.conv7x7_3 = _conv(width // 4, width // 4)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.conv5X5_1(x)
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))], 1))


class _Head(nn.Module):
    """1x1 convolution for two anchors per cell: (B, C, H, W) -> (B, H * W * 2, `values_per_anchor`)."""

    def __init__(self, channels: int, *, values_per_anchor: int) -> None:
        super().__init__()
        self.values_per_anchor = values_per_anchor
        self.conv1x1 = nn.Conv2d(channels, 2 * values_per_anchor, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.conv1x1(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.values_per_anchor)
        return values


def _slope(width: int) -> float:
    """Slope of the leaky ReLUs: the published networks use 0.1 up to 64 channels, and a plain ReLU above."""
    return 0.1 if width <= 64 else 0.0


def _conv(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, slope: float | None = None) -> nn.Sequential:
    return nn.Sequential(*_conv_layers(inputs, outputs, kernel=kernel, stride=stride, slope=slope))


def _conv_layers(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, groups: int = 1, slope: float | None = None
) -> list[nn.Module]:
    """Convolution, batch norm and, unless `slope` is None, a leaky ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    return layers if slope is None else [*layers, nn.LeakyReLU(slope, inplace=True)]

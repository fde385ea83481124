"""Names and shapes of the frozen networks' maps.

Plain Python, so that fingerprints can be computed without loading torch.
"""

# C channels, H W rows and columns of a map
from __future__ import annotations

from dataclasses import dataclass

NUM_LANDMARKS = 68
INPUT_SIZE_PX = 256


@dataclass(frozen=True)
class Tap:
    """A map that the FAN outputs; `channels_per_width` None means one channel per landmark."""

    name: str
    channels_per_width: int | None
    stride: int
    description: str

    def channels(self, width: int) -> int:
        """Return the number of channels of the map in a FAN of `width`."""
        return NUM_LANDMARKS if self.channels_per_width is None else self.channels_per_width * width

    def size(self, image_size_px: int = INPUT_SIZE_PX) -> int:
        """Return the side of the map, in cells, for a square image of `image_size_px`."""
        return image_size_px // self.stride


TAPS = (
    Tap("lf", 1, 4, "low-level features: output of conv4, signed"),
    Tap("h1", 1, 4, "second last stack: output of its 1x1 convolution bl, signed"),
    Tap("h2", 1, 4, "last stack: ReLU(bn_end(conv_last)), non-negative"),
    Tap("hm", None, 4, "last stack: raw heatmaps, one per landmark"),
)


def map_shapes(width: int) -> dict[str, tuple[int, int, int]]:
    """Return the shape (C, H, W) of each map of a 256 px image by name."""
    return {tap.name: (tap.channels(width), tap.size(), tap.size()) for tap in TAPS}


RESNET_SHAPES = {"lf": (64, 64, 64)}
"""The same of a ResNet-18."""

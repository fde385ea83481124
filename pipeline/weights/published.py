"""The published weights that the networks load unchanged: architecture, address, checksum, licence.

Sources: `models_urls` of face-alignment 1.5.0 (2DFAN-4, MobileNet RetinaFace), `models` of retinaface-pytorch 0.0.8,
`default_cfgs` of timm 1.0.31, `FANPredictor.get_model` of ibug's face_alignment (github.com/hhj1897/face_alignment).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

Family = Literal["fan", "resnet18", "retinaface-mobilenet", "retinaface-resnet50"]
Pooling = Literal["avg", "max"]


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A file of weights on the web, and what cannot be read from its tensors."""

    family: Family
    width: int | None = None
    """Channels of a FAN."""
    num_stacks: int | None = None
    pooling: Pooling | None = None
    url: str
    sha256: tuple[str, ...] = ()
    """First digits of the file's sha256, which its publisher gives in the file's name; then those of earlier files with
    the same weights. Empty if none are given: the sha256 is recorded when the file is added."""
    publisher: str
    licence: str
    """Licence of the package that publishes the file, as that package states it."""

    @property
    def file_name(self) -> str:
        """Name of the file at `url`."""
        return PurePosixPath(urlsplit(self.url).path).name


_IBUG = "https://github.com/hhj1897/face_alignment/raw/master/ibug/face_alignment/fan/weights"
_BULAT = "https://www.adrianbulat.com/downloads/python-fan"

PUBLISHED: dict[str, PublishedWeights] = {
    "2dfan2": PublishedWeights(
        family="fan",
        width=256,
        num_stacks=2,
        pooling="max",
        url=f"{_IBUG}/2dfan2.pth",
        publisher="ibug face_alignment",
        licence="not stated",
    ),
    "2dfan2_alt": PublishedWeights(
        family="fan",
        width=256,
        num_stacks=2,
        pooling="max",
        url=f"{_IBUG}/2dfan2_alt.pth",
        publisher="ibug face_alignment",
        licence="not stated",
    ),
    "2dfan4": PublishedWeights(
        family="fan",
        width=256,
        num_stacks=4,
        pooling="avg",
        url=f"{_BULAT}/2DFAN4-11f355bf06.pth.tar",
        sha256=("11f355bf06", "cd938726ad"),  # the second: 2DFAN4-cd938726ad.zip, TorchScript, of versions before 1.5
        publisher="face-alignment",
        licence="BSD",
    ),
    "retinaface_resnet50": PublishedWeights(
        family="retinaface-resnet50",
        url="https://github.com/ternaus/retinaface/releases/download/0.01/retinaface_resnet50_2020-07-20-f168fae3c.zip",
        publisher="retinaface-pytorch",
        licence="MIT",
    ),  # the package never checks the digits in the name, so they may not be the sha256's
    "retinaface_mobilenet0.25": PublishedWeights(
        family="retinaface-mobilenet",
        url=f"{_BULAT}/retinaface_mobilenet0.25.pth",
        publisher="face-alignment, from Pytorch_Retinaface",
        licence="MIT",
    ),
    "resnet18.a1_in1k": PublishedWeights(
        family="resnet18",
        url="https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights/resnet18_a1_0-d63eafa0.pth",
        sha256=("d63eafa0",),
        publisher="timm",
        licence="Apache-2.0",
    ),
}
"""By the name that `fantrans weights fetch` takes and the catalog then knows."""


def find_published(file_name: str, sha256: str) -> str | None:
    """Return the name of the published weights with this file, by its sha256 or else by its name; None if unknown."""
    by_hash = (name for name, each in PUBLISHED.items() if sha256.startswith(each.sha256))
    by_name = (name for name, each in PUBLISHED.items() if each.file_name == file_name)
    return next(by_hash, None) or next(by_name, None)


_UNFIT_NAME, _UNFIT_SHA256 = "Resnet50_Final.pth", "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d"


def find_misfit(file_name: str, sha256: str) -> str | None:
    """Return why published weights whose names and shapes fit would give wrong values; None for all others.

    Source: ibug's face_detection (github.com/hhj1897/face_detection), its Git LFS pointer and `RetinaFacePredictor`.
    """
    if file_name != _UNFIT_NAME and sha256 != _UNFIT_SHA256:
        return None
    return (
        "it is the ResNet-50 of Pytorch_Retinaface and ibug, which reads BGR minus its mean, and retinaface-resnet50 "
        "reads normalised RGB, so its boxes would be wrong; run `fantrans weights fetch retinaface_resnet50`"
    )

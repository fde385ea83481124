"""Which network a state dict belongs to, and the network of a family with weights loaded into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.fan import FAN
from models.resnet import ResNet18Features
from models.retinaface import RetinaFace
from pipeline.errors import WeightsError
from pipeline.weights.published import Family, Pooling

State = Mapping[str, Tensor]
BACKBONES: dict[Family, str] = {"retinaface-mobilenet": "mobilenet0.25", "retinaface-resnet50": "resnet50"}
"""Detectors, and their backbones by the names of `models.retinaface`."""
_COUNTER = "num_batches_tracked"
"""Buffer of a normalisation layer that files from before PyTorch 0.4.1 lack, and inference never reads."""


class Architecture(NamedTuple):
    """A family, and of a FAN its channels and stacks."""

    family: Family
    width: int | None = None
    num_stacks: int | None = None

    def __str__(self) -> str:
        """Complete the sentence "the weights are those of ..."."""
        if self.family == "fan":
            return f"a FAN of width {self.width} with {self.num_stacks} stacks"
        return "timm's resnet18" if self.family == "resnet18" else self.family


def recognise(state: State) -> Architecture | None:
    """Return the architecture that names and shapes show; None for a network that is none of the families."""
    if "m0.b1_4.conv1.weight" in state and "conv_last0.weight" in state:
        num_stacks = sum(name.startswith("conv_last") and name.endswith(".weight") for name in state)
        return Architecture("fan", len(state["conv_last0.weight"]), num_stacks)
    if "ClassHead.0.conv1x1.weight" in state:
        if "body.layer1.0.conv3.weight" in state:
            return Architecture("retinaface-resnet50")
        return Architecture("retinaface-mobilenet") if "body.stage1.0.0.weight" in state else None
    is_resnet = "conv1.weight" in state and "layer1.0.conv1.weight" in state
    if is_resnet and not {"layer1.0.conv3.weight", "layer1.2.conv1.weight"} & state.keys():
        return Architecture("resnet18")
    return None


def make_network(architecture: Architecture, pooling: Pooling | None = None) -> nn.Module:
    """Return the network, without its weights; pooling: of a FAN. Raises `WeightsError` for a shape that a FAN lacks.

    The network is `models.fan.FAN`, `models.resnet.ResNet18Features` or `models.retinaface.RetinaFace`.
    """
    if architecture.family == "resnet18":
        return ResNet18Features()
    if architecture.family == "fan":
        assert architecture.width is not None
        assert architecture.num_stacks is not None
        try:
            return FAN(architecture.width, architecture.num_stacks, pooling=pooling or "avg")
        except ValueError as error:
            raise WeightsError(f"{error}; name weights of another FAN") from None
    return RetinaFace(BACKBONES[architecture.family])


def without_prefix(state: State) -> dict[str, Tensor]:
    """Return the state without what all its names begin with, such as the `module.` of a parallel training."""
    named = dict(state)
    while named and len({name.split(".")[0] for name in named}) == 1 and all("." in name for name in named):
        named = {name.split(".", 1)[1]: values for name, values in named.items()}
    return named


def load_state(network: nn.Module, state: State, *, what: str, expected: Architecture, fix: str) -> None:
    """Load a state dict into a network of `make_network`: all its names, and no others.

    Of a ResNet-18, the names of later layers are ignored. what: words for the file. fix: what to do about weights of
    another network. Raises `WeightsError` for those, for values that are not finite, and if all are 0.
    """
    target = network.net if isinstance(network, ResNet18Features) else network
    assert isinstance(target, nn.Module)
    own = target.state_dict()
    found = {name: v for name, v in state.items() if name in own} if target is not network else state
    fault = _find_fault(own, found)
    if fault is not None:
        other = recognise(state)
        if other is None and recognise(without_prefix(state)) is not None:
            fault = f"all names begin with {next(iter(state)).split('.')[0]!r}"
        elif other is not None and other != expected:
            fault = f"they are those of {other}"
        raise WeightsError(f"{what} are not those of {expected}: {fault}; {fix}")
    for name, values in found.items():
        if values.is_floating_point() and not torch.isfinite(values).all():
            kind = "NaN" if torch.isnan(values).any() else "infinite values"
            num = int((~torch.isfinite(values)).sum())
            raise WeightsError(
                f"{what} contain {kind}: {num:,} of {values.numel():,} values of {name}; get an undamaged file, "
                "or train the network again"
            )
    if not any(values.any() for name, values in found.items() if not name.endswith(_COUNTER)):
        raise WeightsError(f"{what} are all 0; get the file of a trained network, or train the network again")
    target.load_state_dict(dict(found))


def _find_fault(own: State, found: State) -> str | None:
    """Return what keeps `found` from being the state dict of a network with the state dict `own`."""
    missing = [name for name in own if name not in found and not name.endswith(_COUNTER)]
    unexpected = [name for name in found if name not in own]
    reshaped = [name for name in own if name in found and own[name].shape != found[name].shape]
    for names, fault in ((missing, "missing key"), (unexpected, "unexpected key")):
        if names:
            return f"{fault} {names[0]}" + (f" and {len(names) - 1:,} more" if names[1:] else "")
    if reshaped:
        name = reshaped[0]
        return f"{name} has the shape {tuple(found[name].shape)}, expected {tuple(own[name].shape)}"
    return None


def canonical_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict to store: fp32, with counters at zero, so that equal weights give equal files."""
    target = network.net if isinstance(network, ResNet18Features) else network
    assert isinstance(target, nn.Module)
    state = target.state_dict()
    return {name: torch.zeros_like(v) if name.endswith(_COUNTER) else v for name, v in state.items()}

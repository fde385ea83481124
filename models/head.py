"""What a head is: the contract that training, reports, figures and export rely on.

A head is an `nn.Module` that is built as `Class(inputs, **arguments)`, `inputs` being `HeadInputs`, and whose

    forward(maps)       returns logits (B, A), or a `HeadOutput` with the logits of several branches

`maps` are cached maps by name, as `Codec.decode` returns them; `stack_maps` makes one tensor of them. Optional are

    plain, gated        class attributes: names of the maps that are read as they are, and of those that are multiplied
                        by the heatmaps' sum; default: ("lf",) and ("h1", "h2"), or the maps that the cache has
    deployed()          returns the module, maps -> logits (B, A), that is kept for inference; default: all of the head

`models/registry.py` has the heads of the paper by name. Weights are float32; with `train.precision: bf16`, `forward`
runs under autocast.
"""

# B frames, A action units, C channels of a FAN map, K components of a map, H rows and W columns of a map
from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.variants import INPUT_MAPS

Maps = Mapping[str, Tensor]
"""Cached maps by name: lf, h1, h2 (B, C, H, W) and hm (B, 1, H, W), or what the profile keeps in their place."""


class HeadInputs(NamedTuple):
    """What a head gets from the cache and the protocol.

    num_channels: C of each of lf, h1 and h2. map_size: rows and columns of a map. num_aus: A, logits per frame.
    names: maps of the cache, ("lf", "h1", "h2") of a FAN or ("lf",) of a ResNet.
    """

    num_channels: int
    map_size: int
    num_aus: int
    names: tuple[str, ...] = ("lf", "h1", "h2")

    @property
    def num_stacked_channels(self) -> int:
        """Channels of `stack_maps` over all maps."""
        return self.num_channels * len(self.names)

    def random_maps(self, num_frames: int) -> dict[str, Tensor]:
        """Return maps of random values in 0..1, as a cache of the profile standard gives them, to try a head on."""
        size = (self.map_size, self.map_size)
        maps = {name: torch.rand(num_frames, self.num_channels, *size) for name in self.names}
        return maps | ({"hm": torch.rand(num_frames, 1, *size)} if "h1" in self.names else {})


class HeadOutput(NamedTuple):
    """Logits (B, A) of each branch, the deployed one last, and of their ensemble P_t (Eq. 7); None for one branch."""

    branches: tuple[Tensor, ...]
    ensemble: Tensor | None

    @property
    def deployed(self) -> Tensor:
        """Logits (B, A) of the branch that is kept for inference."""
        return self.branches[-1]


def stack_maps(maps: Maps, *, plain: Sequence[str] | None = None, gated: Sequence[str] | None = None) -> Tensor:
    """Return F_a (B, C x number of maps, H, W), fp32: the maps `plain`, then the maps `gated` times the heatmaps' sum.

    The default is LF, HM * H1, HM * H2 (paper 3.2), or LF alone for a cache that has no other map. Works with the maps
    of every profile: the products HM * H1 and HM * H2 and the components of the profile compact are used as they are.
    """
    if plain is None and gated is None:
        plain, gated = ("lf",), tuple(name for name in ("h1", "h2") if name in maps or f"hm_{name}" in maps)
    _, stacked = concatenate_maps(
        {name: _in_channels(name, maps) for name in maps if not name.endswith("_basis")},
        plain=plain or (),
        gated=gated or (),
        dtype=torch.float32,
    )
    return stacked


def _in_channels(name: str, maps: Maps) -> Tensor:
    """Return a map (B, C, H, W), whether it comes as channels or as components with a basis (C, K)."""
    basis_CK = maps.get(f"{name}_basis")
    return maps[name] if basis_CK is None else torch.einsum("ck,bkhw->bchw", basis_CK, maps[name].float())


def concatenate_maps(
    maps: Maps, *, plain: Sequence[str], gated: Sequence[str], dtype: torch.dtype, is_autocast: bool = False
) -> tuple[list[str], Tensor]:
    """Return the names and the concatenation (B, channels, H, W) of maps, the gated ones times the heatmaps' sum.

    The products `hm_h1` and `hm_h2`, if present, stand for HM * H1 and HM * H2. Maps of K components stay components.
    dtype: of the result. is_autocast: where autocast is on, round each value to its precision, as the matrix product
    that reads it would; a step is faster if fewer bytes are written.
    """
    has_products = bool(gated) and f"hm_{gated[0]}" in maps
    names = [*plain, *(f"hm_{name}" if has_products else name for name in gated)]

    def values(name: str) -> Tensor:
        is_multiplied = name in gated and not has_products
        return maps[name].to(dtype) * maps["hm"] if is_multiplied else maps[name].to(dtype)

    first = maps[names[0]]
    kind = first.device.type
    if not (is_autocast and torch.is_autocast_enabled(kind)):
        return names, torch.cat(list(map(values, names)), 1)
    num_channels = [maps[name].shape[1] for name in names]
    size = (len(first), sum(num_channels), *first.shape[2:])
    stacked = torch.empty(size, dtype=torch.get_autocast_dtype(kind), device=first.device)
    for name, part in zip(names, stacked.split(num_channels, 1), strict=True):
        part.copy_(values(name))
    return names, stacked


def maps_read(head: nn.Module | type[nn.Module], inputs: HeadInputs) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the maps that a head reads as they are, and of those that it reads gated."""
    default = INPUT_MAPS["bl" if "h1" in inputs.names else "lf_only"]
    return tuple(getattr(head, "plain", default[0])), tuple(getattr(head, "gated", default[1]))


def run_head(head: nn.Module, maps: Maps) -> HeadOutput:
    """Return the output of a head as a `HeadOutput` in fp32, also where it returns the logits of a single branch."""
    output = head(maps)
    branches, ensemble = output if isinstance(output, HeadOutput) else ((output,), None)
    return HeadOutput(tuple(map(_in_fp32, branches)), None if ensemble is None else _in_fp32(ensemble))


def _in_fp32(logits: Tensor) -> Tensor:
    """Return logits of a lower precision, as autocast gives them, in fp32; others, be they no tensor, as they are."""
    is_half = isinstance(logits, Tensor) and logits.dtype in (torch.bfloat16, torch.float16)
    return logits.float() if is_half else logits


def branch_names(head: nn.Module, num_branches: int) -> tuple[str, ...]:
    """Return the names of a head's branches: its own `branch_names`, or their numbers."""
    numbered = tuple(f"branch {i + 1}" for i in range(num_branches))
    return tuple(getattr(head, "branch_names", numbered))


class WholeHead(nn.Module):
    """A head as it is trained, in the place of a deployed head: maps in, logits (B, A) of the last branch out."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        for name in ("plain", "gated"):
            if hasattr(head, name):
                setattr(self, name, getattr(head, name))

    def forward(self, maps: Maps) -> Tensor:
        """Maps by name -> logits (B, A); present where the sigmoid is at least 0.5."""
        return run_head(self.head, maps).deployed


@torch.inference_mode(False)  # parameters created in inference mode take kernels that round differently
def deployed_head(head: nn.Module) -> nn.Module:
    """Return a copy, in eval mode, of what is kept of a head for inference: `head.deployed()`, or all of it."""
    own = getattr(head, "deployed", None)
    deployed: nn.Module = WholeHead(copy.deepcopy(head)) if own is None else own()
    return deployed.eval()


def check_contract(head: nn.Module, inputs: HeadInputs) -> bool:
    """Run a copy of a head on two frames; return whether it draws random numbers in training, as dropout does.

    Raises `ValueError`, which says what differs, if the head breaks the contract.
    """
    if not any(parameter.requires_grad for parameter in head.parameters()):
        raise ValueError("has no parameters to train")
    maps = inputs.random_maps(2)
    trial = copy.deepcopy(head).train()
    before = torch.random.get_rng_state()
    output = run_head(trial, maps)
    draws = not torch.equal(before, torch.random.get_rng_state())
    torch.random.set_rng_state(before)
    sources = {f"branch {i + 1}": logits for i, logits in enumerate(output.branches)}
    if output.ensemble is not None:
        sources["the ensemble"] = output.ensemble
    if not output.branches:
        raise ValueError("returns no branch, expected the logits of one or more")
    for name, logits in sources.items():
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != (2, inputs.num_aus):
            raise ValueError(
                f"returns {found} as {name} for 2 frames, expected logits {(2, inputs.num_aus)}: one per action unit"
            )
        if not logits.requires_grad:
            raise ValueError(f"returns {name} without a gradient, so it cannot be trained")
    with torch.no_grad():
        logits = deployed_head(head)(maps)
    if tuple(logits.shape) != (2, inputs.num_aus):
        raise ValueError(f"deployed() returns {tuple(logits.shape)} for 2 frames, expected {(2, inputs.num_aus)}")
    return draws


def carry_over_by_size(head: nn.Module, source: Mapping[str, Tensor]) -> list[str]:
    """Initialise `head` with the tensors of `source` that have its names and sizes; return the names of the others.

    Raises `ValueError` for a tensor that the source does not have.
    """
    state = head.state_dict()
    absent = [name for name in state if name not in source]
    if absent:
        raise ValueError(f"the source head has no tensor {absent[0]}; it must be of the same class and arguments")
    fitting = {name: source[name] for name, tensor in state.items() if source[name].shape == tensor.shape}
    head.load_state_dict(state | fitting)
    return [name for name in state if name not in fitting]

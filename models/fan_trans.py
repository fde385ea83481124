"""The head of FAN-Trans: frozen FAN maps in, one logit per action unit out, in every variant of Table 1."""

# B frames, A action units, C channels of a FAN map, D channels of the head, H rows and W columns of a map,
# N cells of F_c, R branches
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import TransBlock, num_heads
from models.fan import ConvBlock
from models.head import HeadInputs, HeadOutput, Maps, concatenate_maps
from models.variants import ATTENTION_DROPS, INPUT_MAPS, VARIANTS, Branch

NUM_POOLINGS = 4


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """Everything that decides the sizes and names of the head's tensors; `resolved` fills in the paper's D and k.

    fan_width: channels C of each of lf, h1 and h2. num_aus: A. map_size: rows and columns of a map, a multiple of 16.
    variant: a key of `VARIANTS`. attention_drop: one of `ATTENTION_DROPS`. input_features: a key of `INPUT_MAPS`.
    dim: D, a positive multiple of 4 and of the number of attention heads. num_blocks: transblocks per trunk. top_k: k,
    the number of contributions that C_o2m adds up, 1 to A (Eq. 6). mask_start: initial logit of a learned drop; 0 or
    more keeps all connections. Raises `ValueError` for a shape that cannot be built.
    """

    fan_width: int
    num_aus: int
    map_size: int = 64
    variant: str = "t1_o2o_t2_o2m"
    attention_drop: str = "learned"
    input_features: str = "bl"
    dim: int
    num_blocks: int = 5
    top_k: int
    mask_start: float = 0.0

    def __post_init__(self) -> None:
        choices = {"variant": VARIANTS, "attention_drop": ATTENTION_DROPS, "input_features": INPUT_MAPS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {getattr(self, name)!r}")
        if self.map_size % 2**NUM_POOLINGS:
            raise ValueError(f"map_size must be a multiple of {2**NUM_POOLINGS}, found {self.map_size}")
        if self.dim < 1 or self.dim % 4 or self.dim % num_heads(self.dim):
            raise ValueError(
                f"dim must be a positive multiple of 4 and of its {num_heads(self.dim)} attention heads, "
                f"found {self.dim}"
            )
        if not 1 <= self.top_k <= self.num_aus:
            raise ValueError(f"top_k must be 1 to {self.num_aus} (the number of action units), found {self.top_k}")

    @classmethod
    def resolved(
        cls, *, fan_width: int, num_aus: int, dim: int | None = None, top_k: int | None = None, **others: Any
    ) -> HeadShape:
        """Return a shape with the paper's sizes where they are None: D is 3 C / 4, k is half the action units (4.1).

        D is the same whichever maps are read. `others` are the remaining fields. Raises `ValueError` as the class does.
        """
        return cls(
            fan_width=fan_width,
            num_aus=num_aus,
            dim=3 * fan_width // 4 if dim is None else dim,
            top_k=max(1, num_aus // 2) if top_k is None else top_k,
            **others,
        )

    @classmethod
    def from_inputs(cls, inputs: HeadInputs, **settings: Any) -> HeadShape:
        """Return the shape for a cache and a protocol, see `resolved`."""
        return cls.resolved(fan_width=inputs.num_channels, map_size=inputs.map_size, num_aus=inputs.num_aus, **settings)

    @property
    def inputs(self) -> HeadInputs:
        """Sizes of the maps and the number of action units."""
        names = tuple(name for name in ("lf", "h1", "h2") if name in self.feature_names)
        return HeadInputs(self.fan_width, self.map_size, self.num_aus, names)

    @property
    def input_channels(self) -> int:
        """Channels of F_a, the concatenated input maps."""
        return self.fan_width * sum(len(maps) for maps in INPUT_MAPS[self.input_features])

    @property
    def num_cells(self) -> int:
        """N, the cells of F_c."""
        side: int = self.map_size // 2**NUM_POOLINGS
        return side**2

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Branches of the variant; the last one is deployed."""
        return VARIANTS[self.variant]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Maps that the head reads, among lf, h1, h2 and hm."""
        plain, gated = INPUT_MAPS[self.input_features]
        return (*plain, *gated, *(("hm",) if gated else ()))


class ConvModule(nn.Module):
    """F_a -> F_c: a 1x1 convolution to D channels, then four ConvBlocks, each with 2x2 max pooling (paper 3.2)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.plain, self.gated = INPUT_MAPS[shape.input_features]
        self.reduce = nn.Conv2d(shape.input_channels, shape.dim, 1)
        self.blocks = nn.ModuleList(ConvBlock(shape.dim, shape.dim) for _ in range(NUM_POOLINGS))

    def forward(self, features: Maps) -> Tensor:
        """Maps lf, h1, h2 (B, C, H, W) and hm (B, 1, H, W) of any float type -> F_c (B, D, H/16, W/16).

        `hm_h1` and `hm_h2`, if present, are the products HM * H1 and HM * H2, and hm is not read. A map may also come
        as K components `lf` (B, K, H, W) with a basis `lf_basis` (C, K), whose product is the map: the basis is folded
        into the 1x1 convolution, which then reads K channels.
        """
        x_BDHW = self.reduced(features)
        for block in self.blocks:
            x_BDHW = F.max_pool2d(block(x_BDHW), 2)
        return x_BDHW

    def reduced(self, features: Maps) -> Tensor:
        """Return the 1x1 convolution of F_a = concat(LF, HM * H1, HM * H2), (B, D, H, W), channels last in memory.

        Computed as one matrix product per frame, which reads the maps in the cache's order and writes the order that
        the following convolutions need on a CPU; `nn.Conv2d` and a copy into that order take 1.5 times as long.
        """
        dtype = self.reduce.weight.dtype
        names, stacked_BCHW = concatenate_maps(
            features, plain=self.plain, gated=self.gated, dtype=dtype, is_autocast=True
        )
        weights = self.reduce.weight.flatten(1).chunk(len(names), 1)  # D, C of each map
        weight_DC = torch.cat(
            [
                w_DC @ features[f"{name}_basis"] if f"{name}_basis" in features else w_DC
                for name, w_DC in zip(names, weights, strict=True)
            ],
            1,
        )
        num_frames, _, *size = stacked_BCHW.shape
        weight_BCD = weight_DC.t().expand(num_frames, -1, -1)
        assert self.reduce.bias is not None
        reduced_BND = torch.baddbmm(self.reduce.bias, stacked_BCHW.flatten(2).transpose(1, 2), weight_BCD)
        reduced_BDHW: Tensor = reduced_BND.transpose(1, 2).unflatten(2, size)
        return reduced_BDHW


class AuEmbedding(nn.Module):
    """F_c -> F_au: the token of each action unit is a learned weighted sum of cells with position embedding (Eq. 1)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape.dim, shape.num_cells), std=0.02))
        self.from_cells = nn.Linear(shape.num_cells, shape.num_aus, bias=False)

    def forward(self, f_c_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) -> tokens (B, A, D)."""
        tokens_BAD: Tensor = self.from_cells(f_c_BDHW.flatten(2) + self.position).transpose(1, 2)
        return tokens_BAD


class OneToOne(nn.Module):
    """C_o2o: the logit of action unit i is its token times one vector that all action units share (Eq. 4)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.linear = nn.Linear(shape.dim, 1, bias=False)

    def forward(self, tokens_BAD: Tensor) -> Tensor:
        """(B, A, D) -> logits (B, A)."""
        logits_BA: Tensor = self.linear(tokens_BAD).squeeze(2)
        return logits_BA


class OneToMany(nn.Module):
    """C_o2m: each token gives evidence for every action unit; a logit adds up the k largest (Eq. 5, 6)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.top_k = shape.top_k
        self.linear = nn.Linear(shape.dim, shape.num_aus, bias=False)

    def forward(self, tokens_BAD: Tensor) -> Tensor:
        """(B, A, D) -> logits (B, A)."""
        evidence_BAA: Tensor = self.linear(tokens_BAD)  # [b, i, j]: from the token of AU i, for AU j
        return evidence_BAA.topk(self.top_k, dim=1).values.sum(1)


class Pooled(nn.Module):
    """The baseline's classifier: F_c averaged over its cells, then a linear layer (paper 4.2)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.linear = nn.Linear(shape.dim, shape.num_aus)

    def forward(self, f_c_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) -> logits (B, A)."""
        logits_BA: Tensor = self.linear(f_c_BDHW.mean((2, 3)))
        return logits_BA


CLASSIFIERS: dict[str, type[nn.Module]] = {"o2o": OneToOne, "o2m": OneToMany, "pooled": Pooled}


class Gate(nn.Module):
    """Ensemble weights W_e from F_c: parallel 1x1 and 3x3 convolutions, average pooling, a linear layer (Fig. 2)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.splits = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(shape.dim, shape.dim, size, padding=size // 2, bias=False),
                nn.BatchNorm2d(shape.dim),
                nn.ReLU(),
            )
            for size in (1, 3)
        )
        self.size = (len(shape.branches), shape.num_aus)
        self.linear = nn.Linear(2 * shape.dim, len(shape.branches) * shape.num_aus)

    def forward(self, f_c_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) -> weights (B, R, A) that sum to 1 over the branches."""
        pooled = torch.cat([split(f_c_BDHW).mean((2, 3)) for split in self.splits], 1)
        weights_BRA: Tensor = self.linear(pooled).unflatten(1, self.size).softmax(1)
        return weights_BRA


def _embedding(shape: HeadShape) -> nn.Module:
    return nn.Identity() if shape.variant == "baseline" else AuEmbedding(shape)


def _trunk(shape: HeadShape) -> nn.Sequential:
    num_blocks = 0 if shape.variant == "baseline" else shape.num_blocks
    return nn.Sequential(
        *(
            TransBlock(shape.dim, shape.num_aus, shape.attention_drop, mask_start=shape.mask_start)
            for _ in range(num_blocks)
        )
    )


class DeployedHead(nn.Module):
    """The part of the head that inference needs: FAN maps to logits through the last branch."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        self.conv = ConvModule(shape)
        self.embedding = _embedding(shape)
        self.trunk = _trunk(shape)
        self.classifier = CLASSIFIERS[shape.branches[-1].classifier](shape)
        self.plain, self.gated = INPUT_MAPS[shape.input_features]

    def forward(self, features: Maps) -> Tensor:
        """Maps by name (see `ConvModule`) -> logits (B, A); present where the sigmoid is at least 0.5."""
        logits_BA: Tensor = self.classifier(self.tokens(features))
        return logits_BA

    def tokens(self, features: Maps) -> Tensor:
        """Return the input of the classifier: tokens (B, A, D), or F_c (B, D, H/16, W/16) for the baseline."""
        tokens: Tensor = self.trunk(self.embedding(self.conv(features)))
        return tokens


class FanTransHead(nn.Module):
    """The head as trained: shared conv module and embedding, trunks, one classifier per branch, gate (Fig. 2)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        self.plain, self.gated = INPUT_MAPS[shape.input_features]
        self.conv = ConvModule(shape)
        self.embedding = _embedding(shape)
        self.trunks = nn.ModuleList(_trunk(shape) for _ in {branch.trunk for branch in shape.branches})
        self.classifiers = nn.ModuleList(CLASSIFIERS[branch.classifier](shape) for branch in shape.branches)
        self.gate = Gate(shape) if len(shape.branches) > 1 else None

    @classmethod
    def from_inputs(cls, inputs: HeadInputs, **settings: Any) -> FanTransHead:
        """Return the head for a cache and a protocol; `settings` are fields of `HeadShape`, of which dim and top_k may
        be None. Raises `ValueError` for settings from which no head can be built.
        """
        return cls(HeadShape.from_inputs(inputs, **settings))

    def forward(self, features: Maps) -> HeadOutput:
        """Maps by name (see `ConvModule`) -> logits of every branch and of the ensemble P_t (Eq. 7).

        Under autocast the conv module, most of the work, runs in the lower precision; the rest is always fp32.
        """
        f_c_BDHW = self.forward_features(features)
        with torch.autocast(f_c_BDHW.device.type, enabled=False):
            return self.forward_head(f_c_BDHW.to(self.conv.reduce.weight.dtype))

    def forward_features(self, features: Maps) -> Tensor:
        """Maps by name (see `ConvModule`) -> F_c (B, D, H/16, W/16)."""
        f_c_BDHW: Tensor = self.conv(features)
        return f_c_BDHW

    def forward_head(self, f_c_BDHW: Tensor) -> HeadOutput:
        """F_c (B, D, H, W) -> logits of every branch and of the ensemble P_t (Eq. 7)."""
        tokens = self.embedding(f_c_BDHW)
        outputs = [trunk(tokens) for trunk in self.trunks]
        logits = tuple(
            classifier(outputs[branch.trunk])
            for branch, classifier in zip(self.shape.branches, self.classifiers, strict=True)
        )
        if self.gate is None:
            return HeadOutput(logits, None)
        return HeadOutput(logits, (self.gate(f_c_BDHW) * torch.stack(logits, 1)).sum(1))

    @torch.inference_mode(False)  # parameters created in inference mode take kernels that round differently
    def deployed(self) -> DeployedHead:
        """Return a copy of the last branch in eval mode; its logits equal `HeadOutput.deployed` bit for bit."""
        head = DeployedHead(self.shape)
        head.load_state_dict(self.deployed_state())
        return head.to(next(self.parameters()).device).eval()

    @property
    def branch_names(self) -> tuple[str, ...]:
        """Names of the branches by trunk and classifier, such as "T1 o2o"."""
        return tuple(
            branch.classifier if branch.classifier == "pooled" else f"T{branch.trunk + 1} {branch.classifier}"
            for branch in self.shape.branches
        )

    def deployed_state(self) -> dict[str, Tensor]:
        """Return the state dict of `DeployedHead`: without the other trunks, the other classifiers and the gate."""
        renamed = {
            "conv.": "conv.",
            "embedding.": "embedding.",
            f"trunks.{self.shape.branches[-1].trunk}.": "trunk.",
            f"classifiers.{len(self.classifiers) - 1}.": "classifier.",
        }
        return {
            new + name.removeprefix(old): tensor
            for name, tensor in self.state_dict().items()
            for old, new in renamed.items()
            if name.startswith(old)
        }


def carry_over(
    head: FanTransHead, source: Mapping[str, Tensor], *, source_aus: Sequence[int], aus: Sequence[int]
) -> None:
    """Initialise `head` (of `aus`) from the state dict of a head of the same shape for `source_aus` (paper 4.1).

    Tensors without an action-unit axis are copied completely. Of the others (W_au, W_m, mask logits, gate, the
    baseline's linear layer) the rows of shared action units are copied; the other rows keep their initialisation.
    Raises `ValueError` if a tensor is missing in the source or has another size there.
    """
    shared = [(aus.index(au), source_aus.index(au)) for au in aus if au in source_aus]
    to_rows, from_rows = (list(rows) for rows in zip(*shared, strict=True)) if shared else ([], [])
    updated = head.state_dict()
    for name, tensor in updated.items():
        if name not in source:
            raise ValueError(
                f"the source head has no tensor {name}; it must have the same variant and number of blocks"
            )
        theirs = source[name]
        if not _has_au_rows(name, head.shape):
            if theirs.shape != tensor.shape:
                raise ValueError(f"{name} is {tuple(theirs.shape)} in the source head, expected {tuple(tensor.shape)}")
            tensor.copy_(theirs)
            continue
        groups = len(head.shape.branches) if name.startswith("gate.") else 1
        tensor.unflatten(0, (groups, -1))[:, to_rows] = theirs.unflatten(0, (groups, -1))[:, from_rows].to(tensor)


def _has_au_rows(name: str, shape: HeadShape) -> bool:
    """Whether the first axis of this tensor of a `FanTransHead` runs over action units."""
    if name.startswith("classifiers."):
        return shape.branches[int(name.split(".")[1])].classifier != "o2o"
    return name.startswith("gate.linear.") or name.endswith(("from_cells.weight", "attn.drop.logit"))

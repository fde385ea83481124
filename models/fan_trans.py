"""The head of FAN-Trans: frozen FAN maps in, one logit per action unit out, in every variant of Table 1."""

# B frames, A action units, C channels of a FAN map, D channels of the head, H rows and W columns of a map,
# N cells of F_c, R branches
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import TransBlock
from models.fan import ConvBlock
from models.head import HeadInputs, HeadOutput, Maps, concatenate_maps
from models.head_shape import HeadShape
from models.variants import INPUT_MAPS


class ConvModule(nn.Module):
    """F_a -> F_c: a 1x1 convolution to D channels, then four ConvBlocks, each with 2x2 max pooling (paper 3.2).

    With `pools_early` a 2x2 max pooling alone is in the place of the first block, the most expensive one.
    """

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.plain, self.gated = INPUT_MAPS[shape.input_features]
        self.reduce = nn.Conv2d(shape.input_channels, shape.dim, 1)
        self.blocks = nn.ModuleList(ConvBlock(shape.dim, shape.dim) for _ in range(shape.num_conv_blocks))
        self.pools_early = shape.pools_early

    def forward(self, features: Maps) -> Tensor:
        """Maps lf, h1, h2 (B, C, H, W) and hm (B, 1, H, W) of any float type -> F_c (B, D, H/16, W/16).

        `hm_h1` and `hm_h2`, if present, are the products HM * H1 and HM * H2, and hm is not read. A map may also come
        as K components `lf` (B, K, H, W) with a basis `lf_basis` (C, K), whose product is the map: the basis is folded
        into the 1x1 convolution, which then reads K channels.
        """
        x_BDHW = self.reduced(features)
        if self.pools_early:
            x_BDHW = F.max_pool2d(x_BDHW, 2)
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
    """F_c -> F_au: the token of each action unit is a learned weighted sum of cells with position embedding (Eq. 1).

    In the paper all channels of an action unit share their weights over the cells: a weight over channels and cells of
    rank 1. A token of rank r adds r - 1 such sums, each with weights of its own over the channels.
    """

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape.dim, shape.num_cells), std=0.02))
        self.from_cells = nn.Linear(shape.num_cells, shape.num_aus, bias=False)
        self.further = FurtherTerms(shape) if shape.token_rank > 1 else None

    def forward(self, f_c_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) -> tokens (B, A, D)."""
        cells_BDN = f_c_BDHW.flatten(2) + self.position
        tokens_BAD: Tensor = self.from_cells(cells_BDN).transpose(1, 2)
        return tokens_BAD if self.further is None else tokens_BAD + self.further(cells_BDN)


class FurtherTerms(nn.Module):
    """Terms 2 to r of a token of rank r: a weighted sum of the cells, times a weight per channel."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.size = (shape.num_aus, shape.token_rank - 1)
        bound = shape.num_cells**-0.5  # as of the first term
        self.of_cells = nn.Parameter(torch.empty(*self.size, shape.num_cells).uniform_(-bound, bound))
        self.of_channels = nn.Parameter(torch.randn(*self.size, shape.dim))

    def forward(self, cells_BDN: Tensor) -> Tensor:
        """(B, D, N) -> what the terms add to the tokens (B, A, D)."""
        sums_BDAK = F.linear(cells_BDN, self.of_cells.flatten(0, 1)).unflatten(2, self.size)
        return torch.einsum("bdak,akd->bad", sums_BDAK, self.of_channels)


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


class Flat(nn.Module):
    """A linear layer over all cells of F_c: an action unit has a weight per channel and cell (docs/better_heads.md)."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.linear = nn.Linear(shape.dim * shape.num_cells, shape.num_aus)

    def forward(self, f_c_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) -> logits (B, A)."""
        logits_BA: Tensor = self.linear(f_c_BDHW.flatten(1))
        return logits_BA


CLASSIFIERS: dict[str, type[nn.Module]] = {"o2o": OneToOne, "o2m": OneToMany, "pooled": Pooled, "flat": Flat}


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
    return AuEmbedding(shape) if shape.reads_tokens else nn.Identity()


def _trunk(shape: HeadShape) -> nn.Sequential:
    num_blocks = shape.num_blocks if shape.reads_tokens else 0
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
        """Return the input of the classifier: tokens (B, A, D), or F_c (B, D, H/16, W/16) if it reads no tokens."""
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
            f"T{branch.trunk + 1} {branch.classifier}" if self.shape.reads_tokens else branch.classifier
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
    linear layer of a head without tokens) the rows of shared action units are copied; the other rows keep their
    initialisation. Raises `ValueError` if a tensor is missing in the source or has another size there.
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
    return name.startswith(("gate.linear.", "embedding.further.")) or name.endswith(
        ("from_cells.weight", "attn.drop.logit")
    )

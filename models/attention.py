"""The transblock: a pre-norm transformer block over action-unit tokens whose attention maps can be sparsified.

State-dict keys are those of timm's `Block`; with the drop "full" its outputs are, too.
"""

# B frames, A action units (one token each), D channels, H attention heads, Q queries and K keys (both action units)
from __future__ import annotations

import torch
from torch import Tensor, nn

from models.variants import ATTENTION_DROPS

MLP_RATIO = 4
HEAD_CHANNELS = 64


def num_heads(dim: int) -> int:
    """Number of attention heads for `dim` channels: one per 64 channels, at least one (paper 4.1)."""
    return max(1, dim // HEAD_CHANNELS)


def straight_through(logits: Tensor) -> Tensor:
    """Return exactly 1 where a logit is 0 or more, else exactly 0; the gradient is that of the sigmoid."""
    soft = logits.sigmoid()
    return soft + ((logits >= 0).to(soft) - soft).detach()


def keep_upper_half(attention: Tensor, dim: int) -> Tensor:
    """Set the lower half (rounded down) of the entries along `dim` to zero and keep the others unchanged."""
    size = attention.shape[dim]
    kept = attention.topk(size - size // 2, dim).indices
    return attention * torch.zeros_like(attention).scatter_(dim, kept, 1.0)


class AttentionDrop(nn.Module):
    """A_bar from A, applied after the softmax without renormalising (paper 3.2, Eq. 3; Fig. 3).

    "learned": A_bar[i, j] = M[j] A[i, j], where M in {0, 1}^A is shared by the heads and has one logit per action unit;
    "learned_from_tokens": the same, with a linear map of token j, initially zero, added to the logit; "full": A itself;
    "row", "column": A without the lower half of each row or column of each head's map.

    drop: one of `ATTENTION_DROPS`, else `ValueError`. mask_start: initial logit; 0 or more keeps all connections.
    """

    def __init__(self, dim: int, num_aus: int, drop: str, *, mask_start: float = 0.0) -> None:
        super().__init__()
        if drop not in ATTENTION_DROPS:
            raise ValueError(f"drop must be one of {', '.join(ATTENTION_DROPS)}, found {drop!r}")
        self.drop = drop
        if drop in ("learned", "learned_from_tokens"):
            self.logit = nn.Parameter(torch.full((num_aus,), mask_start))
        if drop == "learned_from_tokens":
            self.from_token = nn.Linear(dim, 1, bias=False)
            nn.init.zeros_(self.from_token.weight)

    @property
    def mask(self) -> Tensor:
        """M (A,) of the drop "learned", each exactly 0 or 1; `ValueError` for the other drops, which have none."""
        if self.drop != "learned":
            raise ValueError(f"the drop {self.drop!r} has no mask of its own; only 'learned' has")
        return straight_through(self.logit)

    def mask_from_tokens(self, tokens_BAD: Tensor) -> Tensor:
        """M (B, 1, 1, A) of the drop "learned_from_tokens", each exactly 0 or 1."""
        return straight_through(self.logit + self.from_token(tokens_BAD).squeeze(-1))[:, None, None]

    def forward(self, attention_BHQK: Tensor, tokens_BAD: Tensor) -> Tensor:
        """A (B, H, Q, K) and the tokens that it was computed from -> A_bar (B, H, Q, K)."""
        match self.drop:
            case "learned":
                return attention_BHQK * self.mask
            case "learned_from_tokens":
                return attention_BHQK * self.mask_from_tokens(tokens_BAD)
            case "row":
                return keep_upper_half(attention_BHQK, dim=3)
            case "column":
                return keep_upper_half(attention_BHQK, dim=2)
        return attention_BHQK


class DropAttention(nn.Module):
    """Multi-head self-attention whose maps pass through `AttentionDrop` before they weigh the values (Eq. 2, 3)."""

    def __init__(self, dim: int, num_aus: int, drop: str, *, mask_start: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads(dim)
        self.scale = (dim // self.num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.drop = AttentionDrop(dim, num_aus, drop, mask_start=mask_start)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens_BAD: Tensor) -> Tensor:
        """(B, A, D) -> (B, A, D)."""
        qkv = self.qkv(tokens_BAD).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention_BHQK = (query * self.scale @ key.transpose(2, 3)).softmax(3)
        mixed = self.drop(attention_BHQK, tokens_BAD) @ value
        projected_BAD: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected_BAD


class Mlp(nn.Module):
    """Two linear layers with a GELU between them; the hidden width is `MLP_RATIO` D."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, tokens_BAD: Tensor) -> Tensor:
        """(B, A, D) -> (B, A, D)."""
        out_BAD: Tensor = self.fc2(self.act(self.fc1(tokens_BAD)))
        return out_BAD


class TransBlock(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to its input (paper 3.2, Fig. 3)."""

    def __init__(self, dim: int, num_aus: int, drop: str, *, mask_start: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DropAttention(dim, num_aus, drop, mask_start=mask_start)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, tokens_BAD: Tensor) -> Tensor:
        """(B, A, D) -> (B, A, D)."""
        tokens_BAD = tokens_BAD + self.attn(self.norm1(tokens_BAD))
        out_BAD: Tensor = tokens_BAD + self.mlp(self.norm2(tokens_BAD))
        return out_BAD

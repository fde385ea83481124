"""The transblock: a pre-norm transformer block over action-unit tokens whose attention map can lose connections.

State-dict keys are those of timm's `Block`, and with drop "full" so is the result.
"""

# B frames, A action units (one token each), D channels, H attention heads, Q querying and K answering action units
from __future__ import annotations

import torch
from torch import Tensor, nn

MLP_RATIO = 4
HEAD_CHANNELS = 64


def num_heads(dim: int) -> int:
    """Attention heads of a trunk of `dim` channels: one a 64 channels, at least one (paper 4.1)."""
    return max(1, dim // HEAD_CHANNELS)


def straight_through(logits: Tensor) -> Tensor:
    """Exactly 1 where a logit is 0 or more, else exactly 0; backwards it is the sigmoid."""
    soft = logits.sigmoid()
    return soft + ((logits >= 0).to(soft) - soft).detach()


def keep_upper_half(attention: Tensor, dim: int) -> Tensor:
    """Zero the lower half (rounded down) of the entries along `dim`, and leave the others as they are."""
    size = attention.shape[dim]
    kept = attention.topk(size - size // 2, dim).indices
    return attention * torch.zeros_like(attention).scatter_(dim, kept, 1.0)


class AttentionDrop(nn.Module):
    """A_bar from A after the softmax, not renormalised (paper 3.2, Eq. 3; Fig. 3).

    "learned": A_bar[i, j] = M[j] A[i, j], M in {0, 1}^A shared by the heads, from one logit an action unit;
    "learned_from_tokens": the same, with a linear reading of token j added to the logit, which starts at zero;
    "full": A; "row", "column": without the lower half of each row or column of each head's map.
    """

    def __init__(self, dim: int, num_aus: int, drop: str, *, mask_start: float = 0.0) -> None:
        super().__init__()
        self.drop = drop
        if drop in ("learned", "learned_from_tokens"):
            self.logit = nn.Parameter(torch.full((num_aus,), mask_start))
        if drop == "learned_from_tokens":
            self.from_token = nn.Linear(dim, 1, bias=False)
            nn.init.zeros_(self.from_token.weight)

    def mask(self, tokens_BAD: Tensor) -> Tensor:
        """M of a learned drop: (A,), or (B, 1, 1, A) where it depends on the tokens; 0 or 1."""
        if self.drop == "learned":
            return straight_through(self.logit)
        return straight_through(self.logit + self.from_token(tokens_BAD).squeeze(-1))[:, None, None]

    def forward(self, attention_BHQK: Tensor, tokens_BAD: Tensor) -> Tensor:
        """A and the tokens that it came from -> A_bar (B, H, Q, K)."""
        match self.drop:
            case "full":
                return attention_BHQK
            case "row":
                return keep_upper_half(attention_BHQK, dim=3)
            case "column":
                return keep_upper_half(attention_BHQK, dim=2)
        return attention_BHQK * self.mask(tokens_BAD)


class DropAttention(nn.Module):
    """Multi-head self-attention whose map passes through `AttentionDrop` before it weighs the values (Eq. 2, 3)."""

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
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, tokens_BAD: Tensor) -> Tensor:
        """(B, A, D) -> (B, A, D)."""
        return self.fc2(self.act(self.fc1(tokens_BAD)))


class TransBlock(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to what came in (paper 3.2, Fig. 3)."""

    def __init__(self, dim: int, num_aus: int, drop: str, *, mask_start: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DropAttention(dim, num_aus, drop, mask_start=mask_start)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, tokens_BAD: Tensor) -> Tensor:
        """(B, A, D) -> (B, A, D)."""
        tokens_BAD = tokens_BAD + self.attn(self.norm1(tokens_BAD))
        return tokens_BAD + self.mlp(self.norm2(tokens_BAD))

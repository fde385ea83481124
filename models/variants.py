"""The named choices of a head: rows of the paper's tables, attention drops, forms of distillation.

Plain Python, so that settings can be validated without loading torch.
"""

from __future__ import annotations

from typing import NamedTuple


class Branch(NamedTuple):
    """One classifier of a head ("o2o", "o2m", "pooled" or "flat") and the number of the trunk whose output it reads."""

    trunk: int
    classifier: str


VARIANTS = {
    "baseline": (Branch(0, "pooled"),),
    "c_t_o2o": (Branch(0, "o2o"),),
    "c_t_o2m": (Branch(0, "o2m"),),
    "t1_o2o_t1_o2m": (Branch(0, "o2o"), Branch(0, "o2m")),
    "t1_o2o_t2_o2o": (Branch(0, "o2o"), Branch(1, "o2o")),
    "t1_o2m_t2_o2m": (Branch(0, "o2m"), Branch(1, "o2m")),
    "t1_o2o_t2_o2m": (Branch(0, "o2o"), Branch(1, "o2m")),
    "t1_o2o_t2_o2m_t3_o2m": (Branch(0, "o2o"), Branch(1, "o2m"), Branch(2, "o2m")),
    "flat": (Branch(0, "flat"),),
}
"""Branches of each row of Table 1, of the head with three branches that the paper mentions, and of "flat", which is not
in the paper: all cells of F_c and a linear layer (docs/better_heads.md).

The last branch is deployed.
"""

INPUT_MAPS = {
    "bl": (("lf",), ("h1", "h2")),
    "bl_no_lf": ((), ("h1", "h2")),
    "bl_no_hm": (("lf", "h1", "h2"), ()),
    "lf_only": (("lf",), ()),
}
"""Maps of each row of Table 2: those read as they are, then those multiplied by the heatmaps' sum.

A ResNet-18 has `lf` only.
"""

ATTENTION_DROPS = ("learned", "learned_from_tokens", "full", "row", "column")
"""How a transblock drops attention (paper 3.2, Fig. 3); see `models.attention.AttentionDrop`."""

KD_FORMS = ("bernoulli", "softmax")
"""Divergence of the online knowledge distillation (Eq. 8); see `models.losses.total_loss`."""

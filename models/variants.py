"""Names of what a head can be made of: the one list of each, which settings are checked against.

Pure Python: a setting is checked without loading torch.
"""

from __future__ import annotations

from typing import NamedTuple


class Branch(NamedTuple):
    """What a classifier ("o2o", "o2m", "pooled") reads: the output of the trunk with this number."""

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
}
"""Rows of Table 1, and three branches, which the paper tried, by their branches; the last one is deployed."""

INPUT_MAPS = {
    "bl": (("lf",), ("h1", "h2")),
    "bl_no_lf": ((), ("h1", "h2")),
    "bl_no_hm": (("lf", "h1", "h2"), ()),
    "lf_only": (("lf",), ()),
}
"""Rows of Table 2: maps taken as they are, then maps multiplied by the heatmaps' sum. A ResNet has `lf` only."""

ATTENTION_DROPS = ("learned", "learned_from_tokens", "full", "row", "column")
"""What an attention map loses, see `models.attention.AttentionDrop`."""

KD_FORMS = ("bernoulli", "softmax")
"""The distillation loss: per action unit, or over all of them."""

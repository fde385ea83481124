"""The sizes and choices of a head of the registry, from which all its tensors follow."""

# A action units, C channels of a FAN map, D channels of the head, N cells of F_c
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.attention import num_heads
from models.head import HeadInputs
from models.variants import ATTENTION_DROPS, INPUT_MAPS, VARIANTS, Branch

NUM_POOLINGS = 4


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """Everything that decides the sizes and names of the head's tensors; `resolved` fills in the paper's D and k.

    fan_width: channels C of each of lf, h1 and h2. num_aus: A. map_size: rows and columns of a map, a multiple of 16.
    variant: a key of `VARIANTS`. attention_drop: one of `ATTENTION_DROPS`. input_features: a key of `INPUT_MAPS`.
    dim: D, a positive multiple of 4 and of the number of attention heads. num_blocks: transblocks per trunk. top_k: k,
    the number of contributions that C_o2m adds up, 1 to A (Eq. 6). mask_start: initial logit of a learned drop; 0 or
    more keeps all connections. token_rank: r, the terms of an action unit's weight over channels and cells, 1 to N;
    1 is the paper's W_au (Eq. 1). pools_early: whether the conv module has a 2x2 max pooling in the place of its first
    block. Raises `ValueError` for a shape that cannot be built.
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
    token_rank: int = 1

    pools_early: bool = False

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
        if not 1 <= self.token_rank <= self.num_cells:
            raise ValueError(
                f"token_rank must be 1 to {self.num_cells} (the number of cells of F_c), found {self.token_rank}"
            )

    @classmethod
    def resolved(
        cls, *, fan_width: int, num_aus: int, dim: int | None = None, top_k: int | None = None, **others: Any
    ) -> HeadShape:
        """Return a shape with the paper's sizes where they are None: D is 3 C / 4, k is half the action units (4.1).

        D is the same whichever maps are read. With `pools_early` it is C, which still costs less.
        `others` are the remaining fields. Raises `ValueError` as the class does.
        """
        usual = fan_width if others.get("pools_early") else 3 * fan_width // 4
        return cls(
            fan_width=fan_width,
            num_aus=num_aus,
            dim=usual if dim is None else dim,
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
    def num_conv_blocks(self) -> int:
        """Blocks of the conv module, each with a 2x2 pooling behind it."""
        return NUM_POOLINGS - self.pools_early

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
    def reads_tokens(self) -> bool:
        """Whether the classifiers read tokens; those of the baseline and of "flat" read F_c itself."""
        return self.branches[-1].classifier in ("o2o", "o2m")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Maps that the head reads, among lf, h1, h2 and hm."""
        plain, gated = INPUT_MAPS[self.input_features]
        return (*plain, *gated, *(("hm",) if gated else ()))

"""A head of one's own: two convolutions and an MLP on the cached maps.

    fantrans train demo_quick --experiment examples/own_head.yaml
    fantrans compare demo_quick examples/own_head.yaml demo_quick

Run both in the folder of this checkout, so that `examples.own_head` is found; docs/heads.md has the recipe.
"""

# B frames, A action units, C channels of the stacked maps, H rows and columns of a map
from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fantrans import HeadInputs, stack_maps


class ConvMlp(nn.Module):
    """Maps in, one logit per action unit out.

    inputs: sizes of the maps and the number of action units, from the cache and the protocol. hidden, dropout:
    arguments of the experiment's `head:`.
    """

    def __init__(self, inputs: HeadInputs, *, hidden: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs.num_stacked_channels, hidden, 3, stride=2, padding=1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, stride=2, padding=1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.mlp = nn.Sequential(
            nn.Linear(16 * hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, inputs.num_aus)
        )

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Cached maps by name -> logits (B, A)."""
        f_a_BCHH = stack_maps(maps)
        logits_BA: Tensor = self.mlp(self.convolutions(f_a_BCHH))
        return logits_BA

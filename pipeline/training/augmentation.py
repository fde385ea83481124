"""Augmentation of cached maps while heads train: what another crop would show, without the FAN."""

# B frames, K components or channels of a map, H rows and W columns of a map
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def shifted(maps: Mapping[str, Tensor], rng: np.random.Generator, *, max_cells: int) -> dict[str, Tensor]:
    """Return the maps (B, K, H, W) of a batch, each frame's moved by -`max_cells` to `max_cells` rows and columns.

    All maps of a frame move alike; cells at the border repeat. Tensors without rows and columns, such as a basis, stay.
    A cell of a FAN's map is four pixels of the crop.
    """
    num_frames = max(len(values) for values in maps.values() if values.ndim == 4)
    moves_B2 = rng.integers(-max_cells, max_cells, (num_frames, 2), endpoint=True).tolist()

    def move(values: Tensor) -> Tensor:
        frames = zip(values, moves_B2, strict=True)
        return torch.stack([_moved(_moved(frame, rows, dim=1), columns, dim=2) for frame, (rows, columns) in frames])

    return {name: move(values) if values.ndim == 4 else values for name, values in maps.items()}


def _moved(values: Tensor, cells: int, *, dim: int) -> Tensor:
    """Return values moved by a number of cells, which is smaller than their size along `dim`."""
    num_kept = values.shape[dim] - abs(cells)
    kept = values.narrow(dim, max(0, -cells), num_kept)
    if cells == 0:
        return kept
    edge = values.narrow(dim, 0 if cells > 0 else values.shape[dim] - 1, 1)
    repeated = edge.expand(*(abs(cells) if i == dim else size for i, size in enumerate(edge.shape)))
    return torch.cat([repeated, kept] if cells > 0 else [kept, repeated], dim)

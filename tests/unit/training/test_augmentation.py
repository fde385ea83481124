"""Maps of a batch that are moved by whole cells."""

import numpy as np
import torch

from pipeline.training.augmentation import shifted

MAX = 2


def numbered_maps():
    """Maps of six frames whose values say frame, row and column, and a basis."""
    frame, row, column = torch.meshgrid(torch.arange(6), torch.arange(5), torch.arange(7), indexing="ij")
    values = (frame * 100 + row * 10 + column)[:, None]
    return {"lf": values.to(torch.int16).expand(-1, 3, -1, -1), "hm": values.half(), "lf_basis": torch.ones(4, 3)}


def test_each_frame_moves_by_its_own_cells_and_the_border_repeats():
    maps = numbered_maps()
    found = shifted(maps, np.random.default_rng(0), max_cells=MAX)
    assert found["lf_basis"] is maps["lf_basis"]
    seen = set()
    for frame in range(6):
        inner = found["hm"][frame, 0, MAX, MAX].item()
        rows, columns = MAX - int(inner % 100 // 10), MAX - int(inner % 10)
        seen.add((rows, columns))
        assert max(abs(rows), abs(columns)) <= MAX
        row = (torch.arange(5) - rows).clamp(0, 4)
        column = (torch.arange(7) - columns).clamp(0, 6)
        for name in ("lf", "hm"):
            assert found[name].dtype == maps[name].dtype
            assert torch.equal(found[name][frame], maps[name][frame][:, row][:, :, column]), name
    assert len(seen) > 3


def test_moves_depend_on_the_random_numbers_and_reach_both_ends():
    def columns(seed):
        found = shifted(numbered_maps(), np.random.default_rng(seed), max_cells=1)["hm"]
        return (found[:, 0, 2, 3] % 10).tolist()

    assert columns(3) == columns(3) != columns(4)
    assert {column for seed in range(9) for column in columns(seed)} == {2, 3, 4}

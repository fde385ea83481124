import numpy as np
import pytest
import torch
from torch import nn

from pipeline.training.predict import count, predict
from tests.unit import small_runs
from tests.unit.small_runs import RULES


class CornerHead(nn.Module):
    """Logits (B, 2): two channels of the upper left corner, which a flip changes, about zero."""

    def forward(self, features):
        return 8 * features["lf"][:, :2, 0, 0].float() - 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_runs.make_cache(tmp_path_factory.mktemp("world"))


def predicted(world, **more):
    frames, cache = world
    return predict(CornerHead(), cache, frames, aus=RULES.aus, test_part="P2", device="cpu", **more)


def corner_logits(world, names, *, view):
    _, cache = world
    rows = cache.index.set_index("frame_id").loc[names, "row"].to_numpy()
    return 8 * cache.read(rows, view=view)["lf"][:, :2, 0, 0].astype(np.float32) - 4


def test_predictions_are_the_sigmoid_of_the_clean_views_logits(world):
    table = predicted(world)
    expected = torch.from_numpy(corner_logits(world, table["frame_id"], view=0)).sigmoid()
    np.testing.assert_allclose(table[["p_01", "p_02"]], expected, rtol=1e-6)
    frames, _ = world
    tested = frames[frames["part"] == "P2"].set_index("frame_id").loc[table["frame_id"]]
    assert len(table) == (frames["part"] == "P2").sum()
    assert table["subject"].tolist() == tested["subject"].tolist()
    assert table[["au_01", "au_02"]].to_numpy().tolist() == tested[["au_01", "au_02"]].to_numpy().tolist()


def test_averaging_with_the_flipped_view_takes_the_mean_of_the_logits(world):
    table = predicted(world, averages_flip=True)
    clean, flipped = (corner_logits(world, table["frame_id"], view=view) for view in (0, 1))
    assert np.abs(clean - flipped).max() > 1
    expected = torch.from_numpy((clean + flipped) / 2).sigmoid()
    np.testing.assert_allclose(table[["p_01", "p_02"]], expected, rtol=1e-6)


def test_counts_are_those_of_the_threshold_one_half(world):
    table = predicted(world).assign(p_01=0.5, p_02=np.nextafter(0.5, 0))
    counts = count(table, aus=RULES.aus, test_part="P2").set_index("au")
    assert counts.loc[1, ["fn", "tn"]].to_numpy().sum() == 0
    assert counts.loc[2, ["tp", "fp"]].to_numpy().sum() == 0


def test_intensities_of_the_index_are_beside_the_predictions(world):
    frames, cache = world
    coded = frames.assign(int_02=np.arange(len(frames)) % 7 - 1)
    table = predicted((coded, cache))
    expected = coded.set_index("frame_id").loc[table["frame_id"], "int_02"]
    assert table["int_02"].tolist() == expected.tolist()
    assert "int_01" not in table

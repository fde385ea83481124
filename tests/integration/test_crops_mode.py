"""`fantrans train --source crops`: the heads and scores of the cache, with the FAN in the loop and no cache."""

import pandas as pd
import pytest

from tests import kills
from tests.command_line import fantrans

EXPERIMENT = """base: {base}
train: {{num_epochs: 2, batch_size: 4}}
parts: [P1]
"""


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    world = kills.World(tmp_path)
    for name, value in world.environment(tmp_path / "state", "early").items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "short.yaml"
    path.write_text(EXPERIMENT.format(base=world.config))
    return path


def test_it_gives_the_run_of_the_cache(experiment, tmp_path):
    caches, runs = tmp_path / "state/cache", tmp_path / "state/runs"
    words = ("faces", "--experiment", experiment, "--device", "cpu")
    ended = fantrans("refresh", *words, "--until", "detect")
    assert ended.status == 0, ended.err
    ended = fantrans("train", *words, "--source", "crops")
    assert ended.status == 1
    assert f"no crops with the settings of short; run `fantrans refresh faces --experiment {experiment}" in ended.err

    assert fantrans("refresh", *words, "--until", "crop").status == 0
    assert "Cache" not in (tmp_path / "state/work/faces/refresh.html").read_text()
    ended = fantrans("train", *words, "--source", "crops")
    assert ended.status == 0, ended.err
    assert not caches.exists()
    assert "faces has no cache with the settings of short" in fantrans("train", *words).err
    (from_crops,) = (path.parent for path in runs.glob("*/run.json"))
    aside = from_crops.rename(tmp_path / from_crops.name)

    assert fantrans("refresh", *words).status == 0
    assert fantrans("train", *words).status == 0
    assert [path.parent.name for path in runs.glob("*/run.json")] == [aside.name]
    ours, theirs = (folder / "fold-P1" for folder in (aside, runs / aside.name))
    for file in ("head.safetensors", "predictions.parquet"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes()
    losses = [pd.read_csv(fold / "history.csv").drop(columns="seconds") for fold in (ours, theirs)]
    pd.testing.assert_frame_equal(*losses)

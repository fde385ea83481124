"""Forecasts of rates that are given: every number can be computed by hand."""

from dataclasses import replace

import pandas as pd
import pytest

from pipeline.config import CacheConfig, ExperimentConfig, TrainConfig, ViewConfig
from pipeline.forecast import forecast as module
from pipeline.forecast.forecast import forecast
from pipeline.forecast.sample import ProfileRate, SampleRates

FRAMES = pd.DataFrame({"part": ["P1"] * 100 + ["P2"] * 100 + ["P3"] * 100})
EXPERIMENT = ExperimentConfig(
    name="e",
    refresh_args="e",
    cache=CacheConfig(views=ViewConfig(num_views=4)),
    train=TrainConfig(num_epochs=10, batch_size=64, averages_flip=False),
)
EXACT = ProfileRate(view_bytes=1000.0, encode_s=0.0, epoch_s=0.01, waiting=0.5, evaluation_s=0.001)
STANDARD = ProfileRate(view_bytes=100.0, encode_s=0.1, epoch_s=0.006, waiting=0.0, evaluation_s=0.001)
RATES = SampleRates(
    num_frames=96,
    detect_s=0.1,
    crop_s=0.1,
    fan_s=0.2,
    live_s=0.19,
    disk_bytes_per_s=1e6,
    profiles={"exact": EXACT, "standard": STANDARD},
    unavailable={},
)
LEARNED = 3 * 3 * 64
"""Frames per epoch: three folds of 200 frames, in whole batches of 64."""


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    monkeypatch.setattr(module, "_memory_bytes", lambda: 10**9)


def test_every_number_follows_from_the_rates():
    exact, standard, crops = forecast(RATES, [EXPERIMENT], FRAMES)
    assert (exact.num_bytes, standard.num_bytes) == (300 * 4 * 1000, 300 * 4 * 100)
    assert exact.build_s == pytest.approx(300 * 4 * 0.2)
    assert standard.build_s == pytest.approx(300 * 4 * 0.3)
    assert exact.epoch_s == pytest.approx(LEARNED * 0.01)
    assert standard.experiment_s == pytest.approx(10 * LEARNED * 0.006 + 300 * 0.001)
    assert (exact.bound, standard.bound, crops.bound) == ("reading", "head", "FAN")
    assert crops.epoch_s == pytest.approx(LEARNED * 0.006 + 300 * 0.19)
    assert crops.experiment_s == pytest.approx(10 * crops.epoch_s + 300 * (0.19 + 0.001))
    gain_s = crops.experiment_s - standard.experiment_s
    assert (standard.pays_after - 1) * gain_s < standard.build_s <= standard.pays_after * gain_s


def test_two_views_are_scored_if_the_experiment_averages_them():
    averaged = EXPERIMENT.model_copy(update={"train": EXPERIMENT.train.model_copy(update={"averages_flip": True})})
    more_s = (
        forecast(RATES, [averaged], FRAMES)[-1].experiment_s - forecast(RATES, [EXPERIMENT], FRAMES)[-1].experiment_s
    )
    assert more_s == pytest.approx(300 * 0.19)


def test_a_cache_that_memory_does_not_hold_is_read_at_the_rate_of_the_disk(monkeypatch):
    monkeypatch.setattr(module, "_memory_bytes", lambda: 300 * 4 * 500)
    slow = replace(RATES, disk_bytes_per_s=1e4)
    exact, standard, _ = forecast(slow, [EXPERIMENT], FRAMES)
    assert (exact.bound, exact.epoch_s) == ("disk", pytest.approx(300 * 1000 / 1e4))
    assert standard.bound == "head"


def test_a_fan_that_is_faster_than_reading_never_pays_for_a_cache():
    fast = replace(RATES, live_s=1e-5, profiles={"exact": EXACT})
    exact, crops = forecast(fast, [EXPERIMENT], FRAMES)
    assert exact.pays_after is None
    assert crops.bound == "head"


def test_heads_of_several_experiments_share_the_reading():
    one, both = (forecast(RATES, [EXPERIMENT] * num, FRAMES) for num in (1, 2))
    assert both[1].epoch_s == pytest.approx(2 * one[1].epoch_s)
    assert both[-1].epoch_s == pytest.approx(one[-1].epoch_s + LEARNED * 0.006), "one FAN pass serves all heads"

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.fan import FAN
from pipeline.catalog import Catalog, Roots, WeightsEntry
from pipeline.config import CacheConfig
from pipeline.refresh.estimate import warn_if_full
from pipeline.refresh.job import RefreshJob
from pipeline.refresh.rates import expected_duration, remember_rate, view_flops


def fan(width, num_stacks):
    return WeightsEntry(
        path="fan.safetensors", sha256="0" * 64, family="fan", width=width, num_stacks=num_stacks, pooling="avg"
    )


def make_job(folder, weights, device="cpu"):
    roots = Roots(work=folder / "work", cache=folder / "cache", runs=folder / "runs")
    config = CacheConfig()
    catalog = Catalog(roots=roots, datasets={}, weights={config.features.weights: weights})
    return RefreshJob(dataset="small", catalog=catalog, config=config, limit=None, device=device)


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path, fan(64, 2))


def test_a_plan_states_the_time_at_the_last_rate_of_its_stage(job):
    assert expected_duration(job, "crop", 10).is_typical
    remember_rate(job, "crop", 400, seconds=20)
    remember_rate(job, "extract", 50, seconds=100)
    assert expected_duration(job, "crop", 100) == (5, False)
    assert expected_duration(job, "extract", 100) == (200, False)
    assert expected_duration(job, "detect", 100).is_typical
    assert expected_duration(job, "crop", 0) == (0, False)
    assert expected_duration(job, "render", 0) == (0, False)


def test_a_short_or_empty_stage_leaves_the_rate_as_it_was(job):
    remember_rate(job, "crop", 400, seconds=20)
    remember_rate(job, "crop", 1, seconds=9)
    remember_rate(job, "crop", 0, seconds=30)
    assert expected_duration(job, "crop", 100) == (5, False)


def test_damaged_rates_count_as_none(job):
    remember_rate(job, "crop", 400, seconds=20)
    (job.work / "rates.json").write_text("{")
    assert expected_duration(job, "crop", 100).is_typical


@pytest.mark.parametrize("stage", ["render", "detect", "crop", "extract", "encode"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_stage_that_never_ran_takes_a_typical_time_that_grows_with_its_work(tmp_path, stage, device):
    job = make_job(tmp_path, fan(64, 2), device)
    few, many = (expected_duration(job, stage, num) for num in (100, 200))
    assert few.is_typical
    assert 0 < few.seconds < many.seconds == 2 * few.seconds


def test_a_wider_network_takes_longer_and_a_gpu_less_long(tmp_path):
    narrow, wide = (expected_duration(make_job(tmp_path, fan(w, 2)), "extract", 100).seconds for w in (64, 256))
    on_gpu = expected_duration(make_job(tmp_path, fan(256, 2), "cuda:0"), "extract", 100).seconds
    assert on_gpu < wide
    assert wide == pytest.approx(16 * narrow)


@pytest.mark.parametrize(("width", "num_stacks"), [(64, 2), (128, 4), (256, 4)])
def test_operations_of_a_network_are_those_that_torch_counts(width, num_stacks):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        FAN(width, num_stacks)(torch.empty(1, 3, 256, 256))
    assert view_flops(fan(width, num_stacks)) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_a_stage_that_does_not_fit_on_the_disk_is_warned_of_and_one_that_does_is_not(job, caplog):
    warn_if_full(job, 10, what="features")
    assert not caplog.messages
    warn_if_full(job, 1 << 60, what="features")
    assert caplog.messages[0].startswith("features take about 1,152,921,504.6 GB, and ")

import pytest

from pipeline.catalog import Catalog, Roots
from pipeline.config import CacheConfig
from pipeline.refresh.job import RefreshJob, expected_seconds, remember_rate


@pytest.fixture
def job(tmp_path):
    roots = Roots(work=tmp_path / "work", cache=tmp_path / "cache", runs=tmp_path / "runs")
    catalog = Catalog(roots=roots, datasets={}, weights={})
    return RefreshJob(dataset="small", catalog=catalog, config=CacheConfig(), limit=None, device="cpu")


def test_a_plan_states_the_time_at_the_last_rate_of_its_stage(job):
    assert expected_seconds(job, "crop", 10) is None
    remember_rate(job, "crop", 400, seconds=20)
    remember_rate(job, "extract", 50, seconds=100)
    assert expected_seconds(job, "crop", 100) == 5
    assert expected_seconds(job, "extract", 100) == 200
    assert expected_seconds(job, "detect", 100) is None
    assert expected_seconds(job, "crop", 0) == 0


def test_a_short_or_empty_stage_leaves_the_rate_as_it_was(job):
    remember_rate(job, "crop", 400, seconds=20)
    remember_rate(job, "crop", 1, seconds=9)
    remember_rate(job, "crop", 0, seconds=30)
    assert expected_seconds(job, "crop", 100) == 5


def test_damaged_rates_count_as_none(job):
    remember_rate(job, "crop", 400, seconds=20)
    (job.work / "rates.json").write_text("{")
    assert expected_seconds(job, "crop", 100) is None

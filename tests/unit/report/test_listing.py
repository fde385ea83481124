import json
import os
import shutil
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.report.listing import COLUMNS, as_records, list_runs, parse_age, select_runs
from pipeline.report.run import read_report, write_report
from pipeline.runtime.text import age_in_words
from pipeline.training.run_lock import training_locks
from pipeline.training.runs import write_record
from tests.unit import small_runs
from tests.unit.small_runs import make_run, train_fold


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    small_runs.make_cache(folder)
    whole = make_run(folder, name="small-x-seed0-aaaa1111")
    for part in ("P1", "P2", "P3"):
        train_fold(whole, part)
    write_report(whole.folder)
    half = make_run(folder, name="small-x-seed1-aaaa2222")
    train_fold(half, "P2")
    write_record(make_run(folder, name="small-x-seed2-bbbb3333"))
    (folder / "runs/tables").mkdir()
    return folder


@pytest.fixture
def root(trained, tmp_path):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def test_a_row_per_run_with_its_state_and_the_f1_of_its_report(root):
    table = list_runs(root).set_index("run")
    assert [*table.reset_index().columns] == list(COLUMNS)
    assert table["state"].tolist() == ["finished", "partial", "started"]
    assert table["num_finished"].tolist() == [3, 1, 0]
    assert table["num_folds"].tolist() == [3, 3, 3]
    assert table["device"].tolist()[:2] == ["cpu", "cpu"]
    for name in table.index[:2]:
        assert table.loc[name, "f1_percent"] == pytest.approx(read_report(root / name).scores.f1_percent, nan_ok=True)
    scores = read_report(root / table.index[0]).scores
    assert table["low_percent"].iloc[0] == pytest.approx(scores.low_percent, nan_ok=True)
    assert pd.isna(table["f1_percent"].iloc[2])
    sizes = [path.stat().st_size for path in (root / table.index[0]).rglob("*") if path.is_file()]
    assert table["size_bytes"].iloc[0] == sum(sizes)


def test_a_quick_list_has_the_f1_of_reports_only(root):
    whole, quick = (list_runs(root, is_quick=is_quick).set_index("run") for is_quick in (False, True))
    name, other = whole.index[:2]
    assert quick.loc[name, "f1_percent"] == pytest.approx(whole.loc[name, "f1_percent"], nan_ok=True)
    assert pd.notna(whole.loc[other, "f1_percent"])
    assert pd.isna(quick.loc[other, "f1_percent"])
    pd.testing.assert_frame_equal(*(each.drop(columns=["f1_percent", "age_s"]) for each in (whole, quick)))
    (root / name / "fold-P1/counts.parquet").write_bytes(b"damaged")
    states = [list_runs(root, is_quick=is_quick)["state"].iloc[0] for is_quick in (False, True)]
    assert states == ["damaged", "finished"]


def test_the_interval_of_a_report_with_other_folds_is_not_shown(root):
    name = "small-x-seed0-aaaa1111"
    (root / name / "fold-P3/result.json").unlink()
    row = list_runs(root).set_index("run").loc[name]
    assert (row["state"], row["num_finished"]) == ("partial", 2)
    assert pd.isna(row["low_percent"])


def test_times_are_those_of_the_last_finished_fold(root):
    name = "small-x-seed0-aaaa1111"
    stamps = [json.loads((root / name / f"fold-P{i}/result.json").read_bytes())["finished_at"] for i in (1, 2, 3)]
    last = datetime.fromisoformat(max(stamps))
    row = list_runs(root, now=last + timedelta(hours=5)).set_index("run").loc[name]
    assert row["finished_at"] == last
    assert row["age_s"] == 5 * 3600
    started = root / "small-x-seed2-bbbb3333/run.json"
    os.utime(started, (1e9, 1e9))
    row = list_runs(root, now=datetime.fromtimestamp(1e9 + 60, UTC)).set_index("run").loc[started.parent.name]
    assert pd.isna(row["finished_at"])
    assert row["age_s"] == 60


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"experiment": 1}', b"\xff"])
def test_a_damaged_record_is_a_row(root, content):
    (root / "small-x-seed1-aaaa2222/run.json").write_bytes(content)
    table = list_runs(root)
    assert table["state"].tolist() == ["finished", "damaged", "started"]
    assert as_records(table)[1]["f1_percent"] is None


@pytest.mark.parametrize("file", ["counts.parquet", "result.json"])
def test_a_damaged_fold_is_a_row(root, file):
    (root / "small-x-seed1-aaaa2222/fold-P2" / file).write_bytes(b"x")
    assert list_runs(root)["state"].tolist() == ["finished", "damaged", "started"]


@pytest.mark.parametrize("content", [b"x", b"[]", b"{}"])
def test_a_fold_with_a_damaged_result_is_not_reported(root, content):
    run = root / "small-x-seed0-aaaa1111"
    (run / "fold-P1/result.json").write_bytes(content)
    with pytest.raises(DataError, match=r"result.json is damaged"):
        read_report(run)


def test_counts_of_another_fold_are_not_those_of_this_one(root):
    run = root / "small-x-seed0-aaaa1111"
    (run / "fold-P1/counts.parquet").write_bytes((run / "fold-P2/counts.parquet").read_bytes())
    with pytest.raises(
        DataError, match=r"fold-P1/counts.parquet is that of fold P2, not of fold-P1; remove the folder"
    ):
        read_report(run)


def test_no_runs_are_an_empty_table_with_all_columns(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        table = list_runs(folder)
        assert list(table.columns) == list(COLUMNS)
        assert as_records(select_runs(table, dataset="small", min_f1=1, newer="1d")) == []


def test_a_run_that_is_being_trained_is_marked(root):
    with training_locks([root / "small-x-seed1-aaaa2222"]):
        assert list_runs(root)["in_training"].tolist() == [False, True, False]
    assert not list_runs(root)["in_training"].any()


def test_records_have_null_for_undefined_and_iso_times(root):
    (first, _, last) = as_records(list_runs(root))
    assert last["f1_percent"] is None
    assert last["finished_at"] is None
    assert datetime.fromisoformat(first["finished_at"]).tzinfo is not None
    assert json.loads(json.dumps(first, allow_nan=False)) == first


TABLE = pd.DataFrame(
    {
        "run": ["a", "b", "c", "d"],
        "dataset": ["x", "x", "y", None],
        "experiment": ["table1:m1", "table1:m2", "demo", None],
        "state": ["finished", "partial", "finished", "damaged"],
        "f1_percent": [50.0, 60.0, 70.0, None],
        "age_s": [30.0, 7200.0, 200000.0, None],
    }
)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "abcd"),
        ({"dataset": "x"}, "ab"),
        ({"experiment": "demo"}, "c"),
        ({"experiment": "table1:*"}, "ab"),
        ({"newer": "3h"}, "ab"),
        ({"older": "90m"}, "bc"),
        ({"newer": "1d", "older": "1m"}, "b"),
        ({"min_f1": 60}, "bc"),
        ({"max_f1": 60}, "ab"),
        ({"states": ["partial", "damaged"]}, "bd"),
        ({"sort": "f1_percent"}, "cbad"),
        ({"sort": "run"}, "abcd"),
        ({"sort": "experiment"}, "cabd"),
    ],
)
def test_filters_and_order(filters, expected):
    assert "".join(select_runs(TABLE, **filters)["run"]) == expected


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("2m", 120), ("1.5h", 5400), ("7d", 604800), ("1w", 604800)]
)
def test_ages(text, seconds):
    assert parse_age(text) == seconds


def test_faulty_filters_are_one_sentence():
    for text in ("7", "d", "-1d", "7 days"):
        with pytest.raises(ConfigError, match="is not a number with a unit; expected one such as"):
            parse_age(text)
    with pytest.raises(ConfigError, match="column 'f1' does not exist; known ones: run, dataset"):
        select_runs(TABLE, sort="f1")
    with pytest.raises(ConfigError, match="state 'done' does not exist; known ones: finished"):
        select_runs(TABLE, states=["done"])


@pytest.mark.parametrize(("seconds", "words"), [(119, "119 s"), (120, "2 min"), (7200, "2 h"), (1e6, "12 d")])
def test_ages_in_words(seconds, words):
    assert age_in_words(seconds) == words

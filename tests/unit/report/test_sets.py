import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from pipeline.errors import DataError, UsageError
from pipeline.report.compare import compare_runs
from pipeline.report.rows import difference, read_row
from pipeline.report.sets import SetTable
from pipeline.training.metrics import compute_scores, resampled_percent
from pipeline.training.run_files import finished_folds, fold_folder

AUS = (1, 4)


def make_counts(*, skill, seed=0, num_subjects=30):
    """Counts of two parts' subjects: of 20 positives and 20 negatives each AU, `skill` are right on average."""
    rng = np.random.default_rng(seed)
    rows = []
    for part in ("P1", "P2"):
        for subject in range(num_subjects // 2):
            for au in AUS:
                tp, tn = rng.binomial(20, skill, 2)
                rows.append((part, f"{part}-{subject:02d}", au, tp, 20 - tn, 20 - tp, tn, 0))
    return pd.DataFrame(rows, columns=["part", "subject", "au", "tp", "fp", "fn", "tn", "unknown"])


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A root with three runs: two alike but for their seed, and a better one."""
    for name, skill, seed in (("plain-seed0", 0.6, 0), ("plain-seed1", 0.6, 1), ("good-seed0", 0.8, 2)):
        counts = make_counts(skill=skill, seed=seed)
        for part, table in counts.groupby("part"):
            folder = fold_folder(tmp_path / name, part)
            folder.mkdir(parents=True)
            table.to_parquet(folder / "counts.parquet", index=False)
            (folder / "predictions.parquet").touch()
            history = [{"f1_train_percent": 10.0}, {"f1_train_percent": 90.0 + int(part[1])}]
            (folder / "result.json").write_text(json.dumps({"history": history}))
        (tmp_path / name / "run.json").write_text("{}")
    monkeypatch.setenv("FANTRANS_RUNS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["result.json", "counts.parquet", "predictions.parquet"])
def test_a_fold_that_lacks_a_file_is_not_done(runs, name):
    assert list(finished_folds(runs / "good-seed0")) == ["P1", "P2"]
    (runs / "good-seed0/fold-P1" / name).unlink()
    assert list(finished_folds(runs / "good-seed0")) == ["P2"]


def test_a_row_is_the_mean_over_seeds():
    tables = [make_counts(skill=0.7, seed=seed) for seed in (0, 1)]
    values = np.mean([resampled_percent(table, num_resamples=50) for table in tables], 0)
    expected = np.mean([compute_scores(table).f1_percent for table in tables])
    assert values.shape == (51, 3)
    assert values[0, -1] == pytest.approx(expected)
    assert values[0, :-1].mean() == pytest.approx(expected)


def rows_in(runs, *names):
    return [read_row(name, sorted(runs.glob(f"{name}-seed*")), published=None) for name in names]


def test_a_better_row_is_better_and_seeds_of_one_are_not_distinguishable(runs):
    good, plain = rows_in(runs, "good", "plain")
    better = difference(good, plain)
    assert better.num_subjects == 30
    assert better.low[-1] > 0
    assert better.sentence().startswith("good scored higher than plain: +")
    assert "30 subjects, 1 and 2 runs); so few runs show" in better.sentence()
    worse = difference(plain, good)
    assert "scored lower than" in worse.sentence()
    assert worse.points == pytest.approx(-better.points)
    alike = compare_runs("plain-seed0", "plain-seed1")
    assert "not distinguishable at 95 %" in alike.sentence()
    assert "30 subjects, one run each); one run each shows which heads score higher" in alike.sentence()


def test_pairing_by_subject_makes_the_interval_of_a_run_with_itself_a_point(runs):
    same = compare_runs("plain-seed0", str(runs / "plain-seed0"))
    assert same.points.tolist() == same.low.tolist() == same.high.tolist() == [0, 0, 0]


def test_pairs_of_fold_and_au_without_f1_are_counted_in_the_legend(runs):
    (before,) = rows_in(runs, "good")
    path = runs / "good-seed0/fold-P1/counts.parquet"
    counts = pd.read_parquet(path)
    counts.loc[counts["au"] == 4, ["tp", "fp", "fn"]] = 0
    counts.to_parquet(path, index=False)
    (row,) = rows_in(runs, "good")
    assert (before.num_undefined, row.num_undefined) == (0, 1)
    nothing_published = pd.DataFrame(columns=["method", "au", "f1_percent"])
    legend = SetTable("set", "faces", "rendered faces", (row,), 1, nothing_published).legend()
    assert "Pairs of fold and AU that are undefined (0/0) and left out: good 1." in legend
    assert "how far trainings vary (1.15 points of mean F1 per run) is assumed, since each row has one seed" in legend


def test_runs_on_other_subjects_are_not_compared(runs):
    other = runs / "other-seed0/fold-P1"
    other.mkdir(parents=True)
    (runs / "other-seed0/run.json").write_text("{}")
    make_counts(skill=0.6, num_subjects=10).query("part == 'P1'").to_parquet(other / "counts.parquet", index=False)
    with pytest.raises(DataError, match=r"no run of other-seed0 is finished; train it first"):
        compare_runs("other-seed0", "good-seed0")
    (other / "predictions.parquet").touch()
    (other / "result.json").write_text("{}")
    with pytest.raises(DataError, match=r"not tested on the same frames and labels \(5 and 30 subjects\)"):
        compare_runs("other-seed0", "good-seed0")
    with pytest.raises(DataError, match="tested on different frames or labels"):
        read_row("mixed", [runs / "other-seed0", runs / "good-seed0"], published=None)
    with pytest.raises(UsageError, match=r"run 'none' does not exist .*; known ones: good-seed0, other-seed0"):
        compare_runs("none", "good-seed0")
    with pytest.raises(UsageError, match="table1 has 10 members; pass one, such as table1:baseline"):
        compare_runs("table1", "good-seed0", dataset="bp4d-synthetic")


def test_a_set_is_printed_beside_the_published_table(runs):
    published = pd.DataFrame(
        {"method": ["Base", "Base", "Ours"], "au": ["AU1", "AVG", "AVG"], "f1_percent": [50.0, 61.5, 64.8]}
    )
    rows = (
        read_row("plain", sorted(runs.glob("plain-*")), published="Base"),
        read_row("good", [runs / "good-seed0"], published="Ours"),
        read_row("later", [], published=None),
    )
    table = SetTable("table9", "small", "rendered faces", rows, 3, published)
    records = table.table().set_index("member")
    percents = [read_row("one", [run], published=None).values[0, -1] for run in sorted(runs.glob("plain-*"))]
    assert records.loc["plain", "std"] == pytest.approx(abs(percents[0] - percents[1]) / 2**0.5)
    assert np.isnan(records.loc["good", "std"])
    gap = difference(rows[1], rows[0])
    assert records.loc["good", "over_first"] == pytest.approx(gap.points[-1])
    assert records.loc["good", "published_over_first"] == pytest.approx(3.3)
    assert records.loc["plain", "minus_published"] == pytest.approx(rows[0].values[0, -1] - 61.5)
    assert records["seeds"].tolist() == [2, 1, 0]
    assert records.loc["plain", "train_f1_percent"] == pytest.approx(91.5), "last epochs of P1 and P2"
    assert table.orderings() == ((("good", "plain"),), (), ())
    reverse = SetTable("table9", "small", "rendered faces", rows, 3, published.assign(f1_percent=[50.0, 61.5, 60.0]))
    assert reverse.orderings() == ((), (), (("plain", "good"),))
    tied = SetTable("table9", "small", "rendered faces", rows, 3, published.assign(f1_percent=[60.0, 60.0, 60.0]))
    assert tied.orderings() == ((), (), ())
    assert reverse.legend().endswith("0 are not distinguishable. Reversed: good above plain.")
    again = (rows[0], read_row("twin", [runs / "plain-seed1"], published="Ours"))
    unclear = SetTable("table9", "small", "rendered faces", again, 3, published)
    assert unclear.orderings().unclear == (("twin", "plain"),)
    console = Console(width=80)
    with console.capture() as shown:
        console.print(table.rich_table())
    lines = shown.get().splitlines()
    assert any("good (2 missing)" in line and f"{gap.low[-1]:+.1f}..{gap.high[-1]:+.1f}" in line for line in lines)
    text = table.markdown()
    assert "Ours: on rendered faces" in text
    assert "| *published* | 50.0 |  | 61.5 |" in text
    assert "| later | 0 |" in text
    assert json.loads(table.table().to_json(orient="records"))[2]["f1_percent"] is None

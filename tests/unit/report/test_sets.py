import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from pipeline.errors import DataError, UsageError
from pipeline.report.rows import average_over_runs, difference, read_row
from pipeline.report.sets import SetTable, compare_runs
from pipeline.training.metrics import compute_scores, interval_percent, resampled_percent
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
            (folder / "result.json").write_text("{}")
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
    assert better.sentence().startswith("good is better than plain: +")
    assert better.sentence().endswith("30 subjects, 1 and 2 runs)")
    worse = difference(plain, good)
    assert "is worse than" in worse.sentence()
    assert worse.points == pytest.approx(-better.points)
    alike = compare_runs("plain-seed0", "plain-seed1")
    assert "not distinguishable at 95 %" in alike.sentence()
    assert alike.sentence().endswith("30 subjects, one run each; seed-to-seed variation is not included)")


def test_pairing_by_subject_makes_the_interval_of_a_run_with_itself_a_point(runs):
    same = compare_runs("plain-seed0", str(runs / "plain-seed0"))
    assert same.points.tolist() == same.low.tolist() == same.high.tolist() == [0, 0, 0]


def test_the_paired_interval_covers_the_true_difference_about_as_often_as_it_says():
    """100 pairs of equally good runs: 95 of 100 intervals should hold zero; fewer than 87 has a chance below 0.1 %."""
    num_covered = 0
    for seed in range(100):
        ours, theirs = (make_counts(skill=0.7, seed=2 * seed + i) for i in (0, 1))
        gaps = resampled_percent(ours, num_resamples=400) - resampled_percent(theirs, num_resamples=400)
        low, high = interval_percent(gaps[1:])
        num_covered += bool(low[-1] <= 0 <= high[-1])
    assert num_covered >= 87


def test_runs_that_differ_by_chance_alone_are_seldom_told_apart_once_there_are_a_few(tmp_path):
    """Rows of equally good settings, whose runs' skills scatter by 0.03 in all subjects at once: subjects alone do not
    show that, and call more than half of the pairs different. Five runs are few: expect a little under 95 %."""
    num_covered = {"with runs": 0, "subjects alone": 0}
    for pair in range(40):
        skills = np.random.default_rng(pair).normal(0.7, 0.03, (2, 5))
        each = [
            np.stack(
                [
                    resampled_percent(make_counts(skill=skill, seed=10 * pair + 5 * i + j), num_resamples=200)
                    for j, skill in enumerate(row)
                ]
            )
            for i, row in enumerate(skills)
        ]
        for name, mean in (("with runs", average_over_runs), ("subjects alone", lambda values: values.mean(0))):
            low, high = interval_percent((mean(each[0]) - mean(each[1]))[1:])
            num_covered[name] += bool(low[-1] <= 0 <= high[-1])
    assert num_covered["subjects alone"] < 20
    assert 30 <= num_covered["with runs"] < 40


def test_a_resample_draws_one_run_fewer_than_there_are_so_that_its_spread_is_that_of_the_mean():
    percents = np.array([60.0, 63.0, 61.5])
    values = np.broadcast_to(percents[:, None, None], (3, 1 + 20000, 1))
    drawn = average_over_runs(values)
    assert drawn[0, 0] == pytest.approx(percents.mean())
    assert drawn[1:, 0].std() == pytest.approx(percents.std(ddof=1) / 3**0.5, rel=0.03)


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
    assert "with one seed, seed-to-seed variation is not included" in legend


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

import itertools
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline.report import compare, rows
from pipeline.report.compare import compare_runs
from pipeline.report.rows import corrected, difference, row_from_counts
from pipeline.report.sets import SetTable
from pipeline.report.training_chance import ASSUMED_SD_POINTS, TrainingChance, chance_for, measured_chance

AUS = (1, 4)


def make_counts(rng, *, skill, num_subjects=30):
    """Counts of two parts' subjects; `skill`: the share of their 20 present and 20 absent frames that is right."""
    tp, tn = rng.binomial(20, skill, (2, num_subjects * len(AUS)))
    parts = np.repeat(["P1", "P2"], num_subjects // 2 * len(AUS))
    subjects, aus = np.repeat(np.arange(num_subjects), len(AUS)).astype(str), np.tile(AUS, num_subjects)
    counts = {"part": parts, "subject": subjects, "au": aus, "tp": tp, "fp": 20 - tn, "fn": 20 - tp, "tn": tn}
    return pd.DataFrame({**counts, "unknown": 0})


def make_rows(seed, *, num_rows, num_runs, skill_sd=0.03, skill=0.7):
    """Rows of equally good settings, whose runs' skills scatter in all subjects at once."""
    rng = np.random.default_rng(seed)
    return [
        row_from_counts(
            f"row{i}", [make_counts(rng, skill=rng.normal(skill, skill_sd)) for _ in range(num_runs)], published=f"m{i}"
        )
        for i in range(num_rows)
    ]


@pytest.fixture
def _few_resamples(monkeypatch):
    monkeypatch.setattr(rows, "NUM_RESAMPLES", 200)


def make_chance(variance, num_free, *, subjects=0.0):
    full = np.full(len(AUS) + 1, 1.0)
    return TrainingChance(variance * full, subjects * full, num_free * full, 0 * full)


def test_own_runs_count_in_full_and_others_only_fill_what_is_missing():
    own, few, many = make_chance(1.0, 4), make_chance(9.0, 2), make_chance(4.0, 16)
    assert chance_for([own], []).runs_V == pytest.approx([1, 1, 1])
    lent = chance_for([own], [many])
    assert lent.runs_V == pytest.approx((4 * 1 + 6 * 4) / 10)
    assert lent.num_free_V == pytest.approx(10)
    assert lent.assumed_V.tolist() == [0, 0, 0]
    assert chance_for([own], [few]).runs_V == pytest.approx((4 * 1 + 2 * 9) / 6)
    assert chance_for([own, many], [few]).runs_V == pytest.approx((4 * 1 + 16 * 4) / 20)


def test_what_runs_do_not_show_is_assumed_up_to_four_degrees_of_freedom():
    nothing, little = make_chance(0.0, 0), make_chance(9.0, 1)
    assumed = chance_for([nothing, nothing], [])
    variance = ASSUMED_SD_POINTS**2
    assert assumed.runs_V == pytest.approx([2 * variance, 2 * variance, variance])
    assert assumed.num_free_V.tolist() == [4, 4, 4]
    assert assumed.assumed_V.tolist() == [1, 1, 1]
    partly = chance_for([little], [])
    assert partly.runs_V[-1] == pytest.approx((9 + 3 * variance) / 4)
    assert partly.assumed_V[-1] == pytest.approx(0.75)


def test_resampled_subjects_are_not_counted_twice():
    """Runs that differ by the subjects that they suit, and by nothing else, have no variance beyond the subjects'."""
    rng = np.random.default_rng(0)
    num_runs, num_subjects = 200, 40
    suits_RS = rng.normal(size=(num_runs, num_subjects))
    drawn_BS = rng.multinomial(num_subjects, np.full(num_subjects, 1 / num_subjects), size=500)
    times_BS = np.concatenate((np.ones((1, num_subjects)), drawn_BS))
    shift_R = rng.normal(0, 0.5, num_runs)
    for scale, expected in ((0.0, 0.0), (1.0, 0.25)):
        values_RBV = ((suits_RS + scale * shift_R[:, None]) @ times_BS.T / num_subjects)[..., None]
        chance = measured_chance(values_RBV, num_subjects=num_subjects, num_parts=1)
        assert chance.subjects_V[0] == pytest.approx(1 / num_subjects, rel=0.1)
        assert chance.beyond_subjects[0] == pytest.approx(expected, abs=0.01 + expected / 5)


@pytest.mark.usefixtures("_few_resamples")
def test_two_runs_of_equal_settings_are_seldom_told_apart():
    """Runs vary by what is assumed. An interval over subjects alone calls many more of these pairs different."""
    num_pairs, num_different = 40, {"with training": 0, "subjects alone": 0}
    for seed in range(num_pairs):
        one, other = make_rows(seed, num_rows=2, num_runs=1, skill_sd=ASSUMED_SD_POINTS / 100)
        num_different["with training"] += difference(one, other).is_distinguishable
        low, high = np.percentile((one.values - other.values)[1:, -1], (2.5, 97.5))
        num_different["subjects alone"] += bool(low > 0 or high < 0)
    assert num_different["with training"] <= 3
    assert num_different["subjects alone"] > 3


@pytest.mark.usefixtures("_few_resamples")
def test_pairs_of_a_set_with_three_seeds_are_told_apart_in_five_percent_of_cases():
    """182 pairs of equal rows, that share runs, from two sets: 5 % with a spread of a few; 10 % and more if the runs of
    a row are resampled as its subjects are."""
    found = {"own runs": [], "with the set": []}
    for seed in range(2):
        made = make_rows(seed, num_rows=14, num_runs=3)
        pairs = list(itertools.combinations(made, 2))
        found["own runs"] += [difference(*pair).is_distinguishable for pair in pairs]
        found["with the set"] += [difference(*pair, beside=made).is_distinguishable for pair in pairs]
    shares = {name: np.mean(each) for name, each in found.items()}
    assert 0.005 < shares["own runs"] < 0.08
    assert 0.005 < shares["with the set"] < 0.08


@pytest.mark.usefixtures("_few_resamples")
def test_the_tables_pairs_are_corrected_for_their_number():
    made = make_rows(1, num_rows=14, num_runs=3)
    singly = sum(difference(*pair, beside=made).is_distinguishable for pair in itertools.combinations(made, 2))
    published = pd.DataFrame({"method": [f"m{i}" for i in range(14)], "au": "AVG", "f1_percent": np.arange(14.0)})
    table = SetTable("set", "small", "rendered faces", tuple(made), 3, published)
    orderings = table.orderings()
    assert singly > 0
    assert len(orderings.alike) + len(orderings.reverse) == 0
    assert len(orderings.unclear) == 14 * 13 / 2
    assert "at 95 %, after Holm's correction for the number of pairs; 91 are not distinguishable" in table.legend()
    assert "differs from it at 95 % after Holm's correction for 13 comparisons" in table.legend()
    gaps = corrected([difference(row, made[0], beside=made) for row in made[1:]])
    found = table.table()["over_first_p"].to_numpy()[1:]
    assert found == pytest.approx([gap.p_values[-1] for gap in gaps])
    marked = r"\| [+-]\d+\.\d\* \|"
    assert not re.findall(marked, table.markdown())
    better = replace(make_rows(2, num_rows=1, num_runs=3, skill=0.9)[0], name="better")
    with_better = SetTable("set", "small", "rendered faces", (*made, better), 3, published)
    assert len(re.findall(marked, with_better.markdown())) == 1


def test_one_run_each_says_what_it_shows_and_what_is_assumed():
    one, other = make_rows(0, num_rows=2, num_runs=1, skill_sd=0.0)
    alike = difference(one, other)
    assert alike.sentence().startswith("row0 and row1 are not distinguishable at 95 %: ")
    assert "one run each shows which heads score higher, but not how far two trainings" in alike.sentence()
    assert f"that a run varies by {ASSUMED_SD_POINTS:.2f} points is assumed" in alike.sentence()
    (good,) = make_rows(1, num_rows=1, num_runs=1, skill=0.9)
    assert difference(good, one).sentence().startswith("row0 scored higher than row0: +")
    assert " is better " not in difference(good, one).sentence()
    assert difference(one, good).sentence().startswith("row0 scored lower than row0: -")
    document = difference(good, one).as_json()
    assert (document["training_sd_points"], document["training_sd_assumed_frac"]) == (ASSUMED_SD_POINTS, 1.0)


def test_several_runs_conclude_without_an_assumption():
    one, good = make_rows(0, num_rows=1, num_runs=3)[0], make_rows(1, num_rows=1, num_runs=3, skill=0.9)[0]
    gap = difference(good, one)
    assert gap.sentence().startswith("row0 is better than row0: +")
    assert gap.sentence().endswith("30 subjects, 3 and 3 runs)")
    assert gap.as_json()["training_sd_assumed_frac"] == 0
    two = make_rows(1, num_rows=1, num_runs=2, skill=0.9)[0]
    assert "so few runs show" in difference(two, make_rows(0, num_rows=1, num_runs=2)[0]).sentence()
    assert "is in part assumed" in difference(two, make_rows(0, num_rows=1, num_runs=2)[0]).sentence()


def test_a_row_of_one_run_holds_the_chance_of_a_training_but_the_interval_of_its_heads_does_not():
    (row,) = make_rows(0, num_rows=1, num_runs=1)
    low, high = row.interval()
    of_heads = row.subjects_interval
    assert low < of_heads[0] < row.percents[0] < of_heads[1] < high
    beside = make_rows(1, num_rows=6, num_runs=3, skill_sd=0.0)
    lent = row.interval(beside)
    assert low < lent[0] < of_heads[0]


def test_members_of_a_set_are_compared_with_the_runs_of_its_other_rows(monkeypatch):
    made = dict(zip(("baseline", "c_t_o2o", "c_t_o2m"), make_rows(0, num_rows=3, num_runs=3), strict=True))
    named = {
        name: replace(row, name=name, folders=tuple(map(str, range(3 * i, 3 * i + 3))))
        for i, (name, row) in enumerate(made.items())
    }

    def read_finished(member, _):
        name = member.name.removeprefix("table1:")
        return named.get(name, rows.Row(name, None, (), None))

    monkeypatch.setattr(compare, "_read_finished", read_finished)
    found = compare_runs("table1:c_t_o2o", "table1:baseline", dataset="bp4d-synthetic")
    expected = difference(named["c_t_o2o"], named["baseline"], beside=[named["c_t_o2m"]])
    alone = difference(named["c_t_o2o"], named["baseline"])
    assert found.training_sd == pytest.approx(expected.training_sd)
    assert found.training_sd != pytest.approx(alone.training_sd)


def test_the_training_chance_of_heads_that_both_rows_have_cancels():
    one, other = make_rows(0, num_rows=2, num_runs=3)
    apart = difference(one, other)
    same_heads = difference(*(replace(row, folders=("a", "b", "c")) for row in (one, other)))
    assert same_heads.points == pytest.approx(apart.points)
    width, width_apart = (gap.high[-1] - gap.low[-1] for gap in (same_heads, apart))
    assert 0 < width < 0.7 * width_apart

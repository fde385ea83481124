import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score

from pipeline.errors import DataError
from pipeline.training.metrics import COUNT_COLUMNS, compute_scores, confusion_counts, f1_percent
from tests.label_counts import POSITIVES


def random_fold(part, *, num_subjects=6, num_frames=60, aus=(1, 2, 25), seed=0):
    rng = np.random.default_rng(seed)
    subjects = np.repeat([f"{part}-{i}" for i in range(num_subjects)], num_frames)
    labels_NA = rng.integers(-1, 2, (len(subjects), len(aus)))
    probabilities_NA = np.clip(0.5 + 0.2 * (labels_NA > 0) - 0.1 + rng.normal(0, 0.2, labels_NA.shape), 0, 1)
    return labels_NA, probabilities_NA, {"subjects": subjects, "aus": aus, "part": part}


def counts_of_answers(part, **au_counts):
    """One subject's table from (tp, fp, fn, tn) of each AU."""
    rows = [(part, f"{part}-0", int(au[2:]), *counts, 0) for au, counts in au_counts.items()]
    return pd.DataFrame(rows, columns=COUNT_COLUMNS)


def test_counts_by_hand():
    labels_NA = np.array([[1, 0], [1, -1], [0, 1], [0, 0]])
    probabilities_NA = np.array([[0.5, 0.2], [0.49, 0.9], [0.8, 0.7], [0.1, 0.9]])
    table = confusion_counts(labels_NA, probabilities_NA, subjects=["b", "a", "b", "b"], aus=(4, 6), part="P2")
    assert list(table.columns) == COUNT_COLUMNS
    assert table.to_numpy().tolist() == [
        ["P2", "a", 4, 0, 0, 1, 0, 0],
        ["P2", "a", 6, 0, 0, 0, 0, 1],
        ["P2", "b", 4, 1, 1, 0, 1, 0],
        ["P2", "b", 6, 1, 1, 0, 1, 0],
    ]


def test_counts_and_f1_agree_with_scikit_learn():
    labels_NA, probabilities_NA, names = random_fold("P1")
    folds = compute_scores(confusion_counts(labels_NA, probabilities_NA, **names), num_resamples=10).folds
    for i, row in folds.iterrows():
        is_known = labels_NA[:, i] >= 0
        truth, answers = labels_NA[is_known, i], probabilities_NA[is_known, i] >= 0.5
        assert [row.tn, row.fp, row.fn, row.tp] == confusion_matrix(truth, answers).ravel().tolist()
        assert row.unknown == (~is_known).sum()
        assert row.f1_percent == pytest.approx(100 * f1_score(truth, answers))
        assert row.always_positive_percent == pytest.approx(100 * f1_score(truth, np.ones_like(truth)))


def test_f1_is_undefined_only_without_positives_and_answers():
    cases = {(0, 0, 0): np.nan, (0, 3, 0): 0, (0, 0, 3): 0, (2, 1, 1): 100 * 4 / 6}
    for counts, expected in cases.items():
        np.testing.assert_allclose(f1_percent(*counts), expected, equal_nan=True)
    oracle = f1_score([0, 0], [0, 0], zero_division=np.nan)
    np.testing.assert_allclose(f1_percent(0, 0, 0), oracle, equal_nan=True)


def test_mean_of_folds_and_pooled_counts_by_hand():
    counts = pd.concat(
        [
            counts_of_answers("P1", au1=(8, 2, 2, 0), au2=(1, 0, 2, 5)),  # F1 80 and 50
            counts_of_answers("P2", au1=(1, 6, 2, 0), au2=(9, 2, 0, 5)),  # F1 20 and 90
        ]
    )
    scores = compute_scores(counts, num_resamples=10)
    assert scores.aus["f1_percent"].tolist() == pytest.approx([50, 70])
    assert scores.f1_percent == pytest.approx(60)
    pooled = [100 * 18 / (18 + 8 + 4), 100 * 20 / (20 + 2 + 2)]
    assert scores.aus["pooled_percent"].tolist() == pytest.approx(pooled)
    assert scores.pooled_percent == pytest.approx(np.mean(pooled))
    floor = [np.mean([200 * 10 / 22, 200 * 3 / 12]), np.mean([200 * 3 / 11, 200 * 9 / 25])]
    assert scores.aus["always_positive_percent"].tolist() == pytest.approx(floor)
    assert scores.always_positive_percent == pytest.approx(np.mean(floor))
    assert scores.aus[["num_positive", "num_known"]].to_numpy().tolist() == [[13, 21], [12, 24]]


def test_undefined_folds_are_counted_and_left_out():
    counts = pd.concat(
        [
            counts_of_answers("P1", au1=(8, 2, 2, 0), au2=(0, 0, 0, 9), au4=(0, 0, 0, 9)),
            counts_of_answers("P2", au1=(4, 1, 1, 0), au2=(1, 0, 2, 5), au4=(0, 0, 0, 9)),
        ]
    )
    scores = compute_scores(counts, num_resamples=10)
    np.testing.assert_allclose(scores.aus["f1_percent"], [80, 50, np.nan])
    assert scores.aus["num_undefined"].tolist() == [0, 1, 2]
    assert scores.num_undefined == 3
    assert scores.f1_percent == pytest.approx(65)
    np.testing.assert_allclose(
        scores.aus["always_positive_percent"], [100 * np.mean([20 / 22, 10 / 11]), 100 * 6 / 11, np.nan]
    )
    np.testing.assert_allclose(scores.aus["low_percent"], [80, 50, np.nan])
    np.testing.assert_allclose(scores.aus["high_percent"], [80, 50, np.nan])


@pytest.mark.parametrize(
    ("dataset", "by_part", "mean"), [("bp4d", [45.9, 48.0, 50.2], 48.0), ("disfa", [16.1, 18.3, 21.4], 18.6)]
)
def test_floor_of_the_published_counts(dataset, by_part, mean):
    counts = pd.concat(
        counts_of_answers(part, **{f"au{i}": (0, 0, p, num_frames - p) for i, p in enumerate(positives, start=1)})
        for part, (num_frames, positives) in POSITIVES[dataset].items()
    )
    scores = compute_scores(counts, num_resamples=10)
    assert scores.folds.groupby("part")["always_positive_percent"].mean().round(1).tolist() == by_part
    assert round(scores.always_positive_percent, 1) == mean
    assert scores.f1_percent == 0  # no positive prediction


def test_interval_resamples_subjects_inside_their_part():
    counts = pd.concat(
        [
            confusion_counts(labels, probabilities, **names)
            for labels, probabilities, names in (random_fold(part, seed=i) for i, part in enumerate("AB"))
        ]
    )
    scores = compute_scores(counts, num_resamples=4000, seed=3)
    rng = np.random.default_rng(17)
    people = {
        part: [person[["tp", "fp", "fn"]].to_numpy() for _, person in fold.groupby("subject")]
        for part, fold in counts.groupby("part")
    }
    means = []
    for _ in range(4000):
        folds = [sum(fold[i] for i in rng.integers(len(fold), size=len(fold))) for fold in people.values()]
        means.append(np.mean([f1_percent(*sums.T) for sums in folds]))
    half = stats.t.ppf(0.975, (12 - 2) / 2) * np.std(means) * (12 / 10) ** 0.5
    unbiased = 2 * scores.f1_percent - np.mean(means)
    expected = [unbiased - half, unbiased + half]
    np.testing.assert_allclose([scores.low_percent, scores.high_percent], expected, atol=0.5)
    assert scores.low_percent < scores.f1_percent < scores.high_percent
    assert (scores.aus["low_percent"] < scores.aus["f1_percent"]).all()


def test_interval_of_alike_subjects_has_no_width_and_frames_do_not_narrow_it():
    labels_NA = np.tile([[1], [1], [0], [0]], (5, 1))
    alike = np.tile([[0.9], [0.1], [0.9], [0.1]], (5, 1))
    subjects = np.repeat(list("abcde"), 4)
    scores = compute_scores(confusion_counts(labels_NA, alike, subjects=subjects, aus=(1,), part="P1"))
    assert scores.low_percent == scores.high_percent == scores.f1_percent == 50
    unlike = np.where(np.isin(subjects, ["a", "b"])[:, None], 0.9, labels_NA)
    once = compute_scores(confusion_counts(labels_NA, unlike, subjects=subjects, aus=(1,), part="P1"))
    many = [np.repeat(array, 100, axis=0) for array in (labels_NA, unlike, subjects)]
    often = compute_scores(confusion_counts(many[0], many[1], subjects=many[2], aus=(1,), part="P1"))
    assert once.high_percent - once.low_percent > 10
    assert (often.low_percent, often.high_percent) == pytest.approx((once.low_percent, once.high_percent), rel=1e-12)


def test_the_ends_of_an_interval_are_percentages():
    labels_NA = np.tile([[1], [0]], (8, 1))
    one_misses = np.where(np.arange(16)[:, None] == 0, 0.1, labels_NA)
    subjects = np.repeat(list("abcdefgh"), 2)
    scores = compute_scores(confusion_counts(labels_NA, one_misses, subjects=subjects, aus=(1,), part="P1"))
    assert 0 < scores.low_percent < scores.f1_percent < scores.high_percent == 100


def test_scores_do_not_depend_on_the_order_of_rows():
    counts = pd.concat(
        [
            confusion_counts(labels, probabilities, **names)
            for labels, probabilities, names in (random_fold(part) for part in ("P2", "P1"))
        ]
    )
    scores, shuffled = compute_scores(counts), compute_scores(counts.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(scores.aus, shuffled.aus)
    assert (scores.low_percent, scores.high_percent) == (shuffled.low_percent, shuffled.high_percent)


def test_threshold_is_inclusive_and_settable():
    labels_NA, probabilities_NA = np.ones((3, 1), int), np.array([[0.29], [0.3], [0.31]])
    table = confusion_counts(labels_NA, probabilities_NA, subjects=["a"] * 3, aus=(1,), part="P1", threshold=0.3)
    assert table[["tp", "fn"]].to_numpy().tolist() == [[2, 1]]


def test_wrong_arrays_are_refused():
    labels_NA, probabilities_NA, names = random_fold("P1", num_subjects=2, num_frames=3)
    with pytest.raises(DataError, match=r"probabilities of part P1 are \(5, 3\), expected \(6, 3\)"):
        confusion_counts(labels_NA, probabilities_NA[:5], **names)
    probabilities_NA[2, 1] = np.nan
    with pytest.raises(DataError, match="1 frames of part P1 have NaN as probability"):
        confusion_counts(labels_NA, probabilities_NA, **names)

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve

from pipeline.report.relations import co_occurrences
from pipeline.report.thresholds import (
    Curve,
    calibrated_counts,
    chosen_thresholds,
    make_curve,
    resampled_ap_percent,
)
from pipeline.training.metrics import confusion_counts, f1_percent, resampled_percent, subject_draws

AUS = (1, 4)


def make_labels(seed, *, num_frames=400, num_values=None):
    """Labels with unknown ones, and probabilities that know something of them; of `num_values` different ones."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1, 0, 1], num_frames, p=[0.1, 0.6, 0.3])
    probabilities = np.clip(0.3 * (labels == 1) + rng.uniform(0, 0.7, num_frames), 0, 1)
    if num_values is not None:
        probabilities = np.round(probabilities * num_values) / num_values
    return labels, probabilities


def make_predictions(seed, *, part, num_subjects=6, num_frames=400, bias=0.0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {"frame_id": [f"{part}/T/{i}" for i in range(num_frames)], "part": part}
        | {"subject": [f"{part}-{i}" for i in rng.integers(num_subjects, size=num_frames)]}
    )
    for i, au in enumerate(AUS):
        labels, probabilities = make_labels(10 * seed + i, num_frames=num_frames)
        table[f"au_{au:02d}"] = labels
        table[f"p_{au:02d}"] = np.clip(probabilities + bias, 0, 1).astype(np.float32)
    return table


@pytest.mark.parametrize("num_values", [None, 7, 1])
@pytest.mark.parametrize("seed", range(5))
def test_precision_recall_and_their_average_are_those_of_scikit_learn(seed, num_values):
    labels, probabilities = make_labels(seed, num_values=num_values)
    is_known = labels >= 0
    truth, given = labels[is_known], probabilities[is_known]
    curve = make_curve(labels, probabilities)
    precision, recall, thresholds = precision_recall_curve(truth, given)
    assert curve.thresholds_T == pytest.approx(thresholds[::-1])
    assert curve.precision == pytest.approx(precision[:-1][::-1])
    assert curve.recall == pytest.approx(recall[:-1][::-1])
    assert curve.average_precision == pytest.approx(average_precision_score(truth, given))


def test_without_a_positive_frame_there_is_no_average_precision_and_the_threshold_stays():
    for labels in ([0, 0, -1], [-1, -1, -1]):
        curve = make_curve(np.array(labels), np.array([0.1, 0.9, 0.3]))
        assert np.isnan(curve.average_precision)
        assert curve.best_threshold() == 0.5
        assert [len(each) for each in curve.thinned(10)] == [0, 0]


@pytest.mark.parametrize("num_values", [None, 9])
def test_counts_at_a_threshold_are_those_of_the_predictions_that_reach_it(num_values):
    labels, probabilities = make_labels(3, num_values=num_values)
    thresholds = np.array([0.5, 0, 1, 1 / 3, probabilities[7], 1.5])
    tp, fp, fn = make_curve(labels, probabilities).counts_at(thresholds)
    for i, threshold in enumerate(thresholds):
        counts = confusion_counts(
            labels[:, None], probabilities[:, None], subjects=["s"] * len(labels), aus=[1], part="P1",
            threshold=float(threshold),
        ).iloc[0]  # fmt: skip
        assert (tp[i], fp[i], fn[i]) == (counts["tp"], counts["fp"], counts["fn"])


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_has_the_highest_f1_of_all(seed):
    labels, probabilities = make_labels(seed, num_frames=80)
    best = make_curve(labels, probabilities).best_threshold()
    is_known = labels >= 0

    def f1(threshold):
        return f1_score(labels[is_known], probabilities[is_known] >= threshold)

    assert f1(best) == pytest.approx(max(map(f1, probabilities)))


@pytest.mark.parametrize(("probabilities", "expected"), [((0.9, 0.8, 0.7, 0.1), 0.85), ((0.99, 0.98, 0.97, 0.6), 0.3)])
def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_taken(probabilities, expected):
    curve = make_curve(np.array([1, 0, 0, 1]), np.array(probabilities))
    percents = f1_percent(curve.tp_T, curve.fp_T, 2 - curve.tp_T)
    assert percents == pytest.approx(np.array([200 / 3, 50, 40, 200 / 3]))
    assert curve.best_threshold() == pytest.approx(expected)


def test_a_thin_curve_keeps_its_ends():
    curve = make_curve(*make_labels(1, num_frames=5000))
    recall, precision = curve.thinned(50)
    assert 40 <= len(recall) <= 50
    assert (recall[0], recall[-1]) == (curve.recall[0], 1)
    assert set(zip(recall, precision, strict=True)) <= set(zip(curve.recall, curve.precision, strict=True))


def test_the_threshold_of_a_fold_is_chosen_on_the_other_folds_only():
    predictions = {part: make_predictions(i, part=part) for i, part in enumerate(("P1", "P2", "P3"))}
    before = chosen_thresholds(predictions, AUS)
    others = pd.concat([predictions["P2"], predictions["P3"]])
    expected = [make_curve(others[f"au_{au:02d}"].to_numpy(), others[f"p_{au:02d}"].to_numpy()) for au in AUS]
    assert before["P1"] == pytest.approx([curve.best_threshold() for curve in expected])
    after = chosen_thresholds(predictions | {"P1": make_predictions(7, part="P1", bias=0.2)}, AUS)
    assert (after["P1"] == before["P1"]).all()
    assert (after["P2"] != before["P2"]).all()
    assert chosen_thresholds({"P1": predictions["P1"]}, AUS) == {}


def test_calibrated_counts_use_the_threshold_of_each_part_and_action_unit():
    predictions = {part: make_predictions(i, part=part) for i, part in enumerate(("P1", "P2"))}
    thresholds = {"P1": np.array([0.3, 0.6]), "P2": np.array([0.7, 0.2])}
    counts = calibrated_counts(predictions, thresholds, AUS).groupby(["part", "au"])[["tp", "fp"]].sum()
    for part, table in predictions.items():
        for i, au in enumerate(AUS):
            passed = table[table[f"p_{au:02d}"] >= thresholds[part][i]]
            assert counts.loc[(part, au), "tp"] == (passed[f"au_{au:02d}"] == 1).sum()
            assert counts.loc[(part, au), "fp"] == (passed[f"au_{au:02d}"] == 0).sum()


def test_resampled_average_precision_is_exact_in_row_0_and_near_the_exact_one_in_the_others():
    predictions = {part: make_predictions(i, part=part, num_frames=2000) for i, part in enumerate(("P1", "P2"))}
    values = resampled_ap_percent(predictions, AUS, num_resamples=20)
    assert values.shape == (21, 3)
    exact = np.zeros((21, 2))
    draws = subject_draws(tuple(table["subject"].nunique() for table in predictions.values()), 20, 0)
    for table, times in zip(predictions.values(), draws, strict=True):
        _, subject = np.unique(table["subject"], return_inverse=True)
        for i, au in enumerate(AUS):
            labels, given = table[f"au_{au:02d}"].to_numpy(), table[f"p_{au:02d}"].to_numpy()
            known = labels >= 0
            for r in range(21):
                weights = times[r][subject][known]
                exact[r, i] += 50 * average_precision_score(labels[known], given[known], sample_weight=weights)
    assert values[0, :2] == pytest.approx(exact[0])
    assert values[:, :2] == pytest.approx(exact, abs=0.3)
    assert values[:, 2] == pytest.approx(values[:, :2].mean(1))
    assert values[1:, 0].std() > 0.3


def test_average_precision_and_f1_are_resampled_with_the_same_subjects():
    """Of a prediction that is right for one subject and wrong for another, both measures follow the same draws."""
    subjects = np.repeat(["good", "poor"], 40)
    labels = np.tile([1, 0], 40)
    given = np.where(subjects == "good", np.where(labels == 1, 0.9, 0.1), np.where(labels == 1, 0.2, 0.8))
    table = pd.DataFrame({"frame_id": [str(i) for i in range(80)], "subject": subjects, "au_01": labels, "p_01": given})
    counts = confusion_counts(labels[:, None], given[:, None], subjects=subjects, aus=[1], part="P1")
    f1 = resampled_percent(counts, num_resamples=50)[1:, 0]
    ap = resampled_ap_percent({"P1": table}, [1], num_resamples=50)[1:, 0]
    pairs = sorted(set(zip(f1.round(6), ap.round(6), strict=True)))
    assert len(pairs) == 3
    assert [ap for _, ap in pairs] == sorted(ap for _, ap in pairs)


def test_co_occurrence_is_the_share_of_the_rows_frames_that_have_the_columns_unit():
    present = np.array([[1, 1], [1, 0], [0, 1], [1, np.nan], [1, 1]])
    assert co_occurrences(present) == pytest.approx(np.array([[1, 2 / 3], [2 / 3, 1]]))
    assert np.isnan(co_occurrences(np.zeros((3, 2)))).all()


def test_a_curve_without_frames_counts_nothing():
    curve = make_curve(np.empty(0, int), np.empty(0))
    assert isinstance(curve, Curve)
    assert [int(each) for each in curve.counts_at(np.array(0.5))] == [0, 0, 0]

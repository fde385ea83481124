import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.report.agreement import ECE, ICC, PEARSON, ROC_AUC, agreement, calibration_error, icc_3_1, pearson
from pipeline.report.thresholds import make_curve


def test_roc_auc_is_that_of_scikit_learn_also_with_ties():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 2, 200)
    probabilities = np.round(0.3 * (labels == 1) + 0.7 * rng.random(200), 1)
    is_known = labels >= 0
    expected = roc_auc_score(labels[is_known], probabilities[is_known])
    assert make_curve(labels, probabilities).roc_auc == pytest.approx(expected)
    assert 0.6 < expected < 0.9


@pytest.mark.parametrize("labels", [[1, 1, -1], [0, 0, -1], [-1, -1, -1]])
def test_roc_auc_needs_both_labels(labels):
    assert np.isnan(make_curve(np.array(labels), np.array([0.1, 0.2, 0.3])).roc_auc)


def test_calibration_error_by_hand():
    """Two frames of 0.9, one positive: 0.4 apart. Two of 0.2, none positive: 0.2 apart. The unknown one is left out."""
    labels, probabilities = np.array([1, 0, 0, 0, -1]), np.array([0.9, 0.9, 0.2, 0.2, 0.5])
    assert calibration_error(labels, probabilities) == pytest.approx((2 * 0.4 + 2 * 0.2) / 4)
    assert calibration_error(np.array([1]), np.array([1.0])) == 0
    assert np.isnan(calibration_error(np.array([-1]), np.array([0.5])))


def test_icc_is_that_of_shrout_and_fleiss():
    """ICC(3,1) of their Table 2 (four judges, six targets) is 0.71."""
    ratings = np.array([[9, 6, 8, 7, 10, 6], [2, 1, 4, 1, 5, 2], [5, 3, 6, 2, 6, 4], [8, 2, 8, 6, 9, 7.0]])
    assert icc_3_1(ratings) == pytest.approx(0.7148, abs=1e-4)


def test_icc_ignores_the_level_and_pearson_the_scale_too():
    truth = np.array([0.0, 1, 2, 3, 5])
    assert icc_3_1(np.stack((truth, truth + 2))) == pytest.approx(1)
    assert icc_3_1(np.stack((truth, 0.5 * truth))) < 0.9
    assert pearson(np.stack((truth, 0.5 * truth + 1))) == pytest.approx(1)
    assert pearson(np.stack((truth, -truth))) == pytest.approx(-1)
    for constant in (np.empty((2, 0)), np.ones((2, 1)), np.ones((2, 4))):
        assert np.isnan(icc_3_1(constant))
        assert np.isnan(pearson(constant))


def test_agreement_is_averaged_over_folds_and_only_coded_intensities_count():
    rng = np.random.default_rng(1)
    folds = {}
    for part in ("P1", "P2"):
        intensities = rng.integers(-1, 6, 60)
        probabilities = np.clip(intensities / 5 + rng.normal(0, 0.2, 60), 0, 1)
        folds[part] = pd.DataFrame(
            {
                "au_01": np.where(intensities >= 0, intensities >= 2, -1),
                "au_06": 0,
                "p_01": probabilities,
                "p_06": 0.25,
                "int_01": intensities,
            }
        )
    found = agreement(folds, (1, 6))
    kept = [fold[fold["int_01"] >= 0] for fold in folds.values()]
    expected = [np.corrcoef(fold["int_01"], fold["p_01"])[0, 1] for fold in kept]
    assert found[PEARSON] == pytest.approx([np.mean(expected), np.nan], nan_ok=True)
    assert 0.5 < found[ICC][0] < 1
    assert np.isnan(found[ICC][1])
    assert found[ECE][1] == pytest.approx(25)
    assert found[ROC_AUC] == pytest.approx(
        [100 * np.mean([roc_auc_score(fold["au_01"], fold["p_01"]) for fold in kept]), np.nan], nan_ok=True
    )

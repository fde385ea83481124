import numpy as np
import pytest
from scipy import stats

from pipeline.training.intervals import holm, subjects_variance, t_interval


def test_the_interval_of_a_difference_of_two_small_samples_is_that_of_welch():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(3, 1, 4), rng.normal(0, 4, 9)
    variances_KV = np.array([[ours.var(ddof=1) / 4], [theirs.var(ddof=1) / 9]])
    points_V = np.array([ours.mean() - theirs.mean()])
    found = t_interval(points_V, variances_KV, np.array([[3.0], [8.0]]), variances_KV.sum(0))
    welch = stats.ttest_ind(ours, theirs, equal_var=False)
    ends = welch.confidence_interval(0.95)
    assert [found.low[0], found.high[0], found.p_values[0]] == pytest.approx([ends.low, ends.high, welch.pvalue])


def test_a_value_without_variance_is_certain_and_an_undefined_one_has_no_interval():
    zero_KV = np.zeros((2, 3))
    found = t_interval(np.array([0.0, 1.0, np.nan]), zero_KV, zero_KV, np.zeros(3))
    np.testing.assert_array_equal(found.low, [0, 1, np.nan])
    np.testing.assert_array_equal(found.high, [0, 1, np.nan])
    np.testing.assert_array_equal(found.p_values, [1, 0, np.nan])


def test_the_variance_over_subjects_is_that_of_a_mean():
    rng = np.random.default_rng(1)
    values_PS = rng.normal(size=(2, 5))
    drawn_RPS = rng.integers(5, size=(20000, 2, 5))
    means_R = np.take_along_axis(values_PS[None], drawn_RPS, 2).mean((1, 2))
    values_RV = np.column_stack((means_R, np.where(np.arange(20000) % 2, means_R, np.nan), np.full(20000, np.nan)))
    expected = (values_PS.var(1, ddof=1) / 5).sum() / 4
    found_V = subjects_variance(values_RV, num_subjects=10, num_parts=2)
    np.testing.assert_allclose(found_V, [expected, expected, np.nan], rtol=0.05)


def test_holm_multiplies_the_smallest_p_by_the_number_of_tests_and_keeps_the_order():
    p_values = np.array([0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(holm(p_values), [0.03, 0.06, np.nan, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert holm(np.array([])).tolist() == []


def test_any_of_many_equal_pairs_is_called_different_in_five_percent_of_tables_after_the_correction():
    p_values = np.random.default_rng(2).uniform(size=(2000, 9))
    uncorrected = (p_values <= 0.05).any(1).mean()
    corrected = np.mean([(holm(row) <= 0.05).any() for row in p_values])
    assert uncorrected > 0.3
    assert corrected == pytest.approx(0.05, abs=0.015)

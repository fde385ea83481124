import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.training.fold_weights import fold_weights, large_weight


def test_half_of_all_weight_is_not_too_large_and_two_action_units_are_not_compared():
    labels_NA = np.array([[1, 1, 1], [0, 1, 1]], np.int8)  # rates 1/2, 1, 1
    weights_A = fold_weights(labels_NA, aus=(1, 2, 4), dataset="d")
    np.testing.assert_allclose(weights_A, [1.5, 0.75, 0.75])
    assert large_weight(weights_A, labels_NA, aus=(1, 2, 4), dataset="d") is None
    labels_NA[0, 0] = -1
    labels_NA = np.concatenate((labels_NA, [[1, 1, 1], [0, 1, 1]]))  # rates 1/3, 1, 1
    weights_A = fold_weights(labels_NA, aus=(1, 2, 4), dataset="d")
    warning = large_weight(weights_A, labels_NA, aus=(1, 2, 4), dataset="d")
    assert warning is not None
    assert warning.startswith("AU1 has 60 % of the weight of all 3 action units in the loss: 1 of 3 training frames")
    assert large_weight(weights_A[:2], labels_NA[:, :2], aus=(1, 2), dataset="d") is None


def test_the_action_units_to_leave_out_are_listed():
    with pytest.raises(DataError, match=r"set `leave_out: \[2, 4\]` in the catalog's entry of d$"):
        fold_weights(np.array([[1, 0, -1]], np.int8), aus=(1, 2, 4), dataset="d")

import itertools
import subprocess
import sys

import cv2
import numpy as np
import pytest

from pipeline.config import CropConfig, ViewConfig
from pipeline.errors import ConfigError
from pipeline.faces.views import (
    CLEAN_VIEW,
    FLIPPED_VIEW,
    ViewParams,
    check_context,
    crop_side_px,
    render_view,
    view_matrix,
    view_params,
)

SETTINGS = ViewConfig()
EXTREMES = [
    ViewParams(rotation_deg, scale, shift_x_px, shift_y_px, is_flipped)
    for rotation_deg, scale, shift_x_px, shift_y_px, is_flipped in itertools.product(
        (-15.0, 15.0), (0.75, 1.25), (-10.0, 10.0), (-10.0, 10.0), (False, True)
    )
]


def noise(side=448):
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


def test_views_0_and_1_are_the_middle_of_the_crop_and_its_mirror_image_exactly():
    crop = noise()
    clean = render_view(crop, view_params("F001/T1/2440", CLEAN_VIEW, SETTINGS), view_px=256)
    flipped = render_view(crop, view_params("F001/T1/2440", FLIPPED_VIEW, SETTINGS), view_px=256)
    np.testing.assert_array_equal(clean, crop[96:352, 96:352])
    np.testing.assert_array_equal(flipped, clean[:, ::-1])


@pytest.mark.parametrize(
    ("params", "matrix"),
    [  # crop of 5 px (centre 2), view of 3 px (centre 1), by hand
        (ViewParams(), [[1, 0, -1], [0, 1, -1]]),
        (ViewParams(is_flipped=True), [[-1, 0, 3], [0, 1, -1]]),
        (ViewParams(rotation_deg=90), [[0, -1, 3], [1, 0, -1]]),
        (ViewParams(scale=2), [[2, 0, -3], [0, 2, -3]]),
        (ViewParams(shift_x_px=1, shift_y_px=-2), [[1, 0, 0], [0, 1, -3]]),
        (ViewParams(shift_x_px=1, is_flipped=True), [[-1, 0, 4], [0, 1, -1]]),
        (ViewParams(90, 2, 1, 0, True), [[0, -2, 5], [-2, 0, 7]]),
    ],
)
def test_matrices_are_those_worked_out_by_hand(params, matrix):
    np.testing.assert_allclose(view_matrix(params, crop_px=5, view_px=3), matrix, atol=1e-12)


def test_a_dot_lands_where_the_matrix_says():
    params = ViewParams(12.0, 1.2, 7.0, -4.0, True)
    crop = np.zeros((448, 448, 3), np.uint8)
    cv2.circle(crop, (260, 190), 3, (255, 255, 255), -1)
    view = render_view(crop, params, view_px=256)[..., 0].astype(float)
    y, x = np.indices(view.shape)
    found = [(view * x).sum() / view.sum(), (view * y).sum() / view.sum()]
    np.testing.assert_allclose(found, view_matrix(params, crop_px=448, view_px=256) @ [260, 190, 1], atol=0.05)


@pytest.mark.parametrize("params", EXTREMES)
def test_the_strongest_views_see_nothing_outside_the_stored_crop(params):
    white = np.full((448, 448, 3), 255, np.uint8)  # whatever lies outside is 0 and would show
    assert render_view(white, params, view_px=256).min() == 255
    to_view = np.vstack([view_matrix(params, crop_px=448, view_px=256), [0, 0, 1]])
    corners = np.array([[0, 0, 1], [255, 0, 1], [0, 255, 1], [255, 255, 1]]).T
    reached = (np.linalg.inv(to_view) @ corners)[:2]
    assert reached.min() >= 0
    assert reached.max() <= 447


def test_a_crop_with_less_context_shows_and_is_refused():
    small = CropConfig(context_frac=1.6)
    check_context(CropConfig(), SETTINGS)
    white = np.full((crop_side_px(small),) * 2 + (3,), 255, np.uint8)
    assert min(render_view(white, params, view_px=256).min() for params in EXTREMES) == 0
    with pytest.raises(ConfigError, match=r"context_frac is 1.6, .* reach 218.2 px .* at least 1.71"):
        check_context(small, SETTINGS)


def test_draws_are_of_the_declared_ranges_and_fill_them():
    draws = np.array([view_params(f"F{i:03d}/T1/7", 2 + i % 12, SETTINGS).as_row() for i in range(4000)])
    low, high = np.array([-15, 0.75, -10, -10, 0]), np.array([15, 1.25, 10, 10, 1])
    assert (draws >= low).all()
    assert (draws <= high).all()
    unit = (draws - low) / (high - low)
    np.testing.assert_allclose(unit.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(unit[:, :4].std(0), 12**-0.5, atol=0.01)
    correlation = np.corrcoef(unit.T) - np.eye(5)
    assert np.abs(correlation).max() < 0.06


def test_seed_frame_and_number_each_make_another_view():
    views = {view_params(name, view, ViewConfig(seed=seed)) for name in "ab" for view in (2, 3) for seed in (0, 1)}
    assert len(views) == 8


def test_the_settings_bound_the_draws():
    still = ViewConfig(max_rotation_deg=0, min_scale=1, max_scale=1, max_shift_px=0, flip_probability=0)
    assert view_params("F001/T1/1", 5, still) == ViewParams()


def test_draws_never_change_between_versions_and_processes():
    expected = (
        "ViewParams(rotation_deg=-1.7219269292282036, scale=1.0864244509307253, shift_x_px=-9.661750226550403, "
        "shift_y_px=-7.733144472587512, is_flipped=False)"
    )
    assert repr(view_params("F001/T1/2440", 2, SETTINGS)) == expected
    code = (
        "from pipeline.faces.views import view_params; from pipeline.config import ViewConfig; "
        "print(view_params('F001/T1/2440', 2, ViewConfig()))"
    )
    environment = {"PYTHONHASHSEED": "77"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == expected

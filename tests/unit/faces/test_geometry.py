import numpy as np
import pytest

from pipeline.config import CropConfig
from pipeline.faces.geometry import crop_from_frame, frame_from_crop, transform_points


def test_crop_from_frame_centres_the_box_at_the_papers_side():
    affine = crop_from_frame(np.array([10.0, 20.0, 70.0, 90.0]), 256, side_frac=200 / 260)
    side = (60 + 70) * 200 / 260  # 100 px
    np.testing.assert_allclose(transform_points(np.array([40.0, 55.0]), affine), [127.5, 127.5])
    np.testing.assert_allclose(transform_points(np.array([40.0 + side / 2, 55.0]), affine), [255.5, 127.5])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rotation_deg": 90}, [127.5, 127.5 - 25.6]),  # counter-clockwise on the screen
        ({"scale": 2}, [127.5 + 51.2, 127.5]),
        ({"is_flipped": True}, [127.5 - 25.6, 127.5]),
        ({"shift_frac": (0.1, 0)}, [127.5, 127.5]),
    ],
)
def test_crop_from_frame_rotates_scales_shifts_and_flips(changes, expected):
    """The side is 100 px of the frame, so there are 2.56 crop px per px; the point lies 10 px right of the centre."""
    box, point = np.array([0.0, 0.0, 65.0, 65.0]), np.array([32.5 + 10, 32.5])
    affine = crop_from_frame(box, 256, side_frac=200 / 260, **changes)
    np.testing.assert_allclose(transform_points(point, affine), expected)


def test_the_two_directions_are_inverse():
    settings = CropConfig(context_frac=1.0)
    box, points = np.array([10.0, 20.0, 70.0, 95.0]), np.array([[0.0, 0.0], [255.0, 3.0], [100.5, 200.25]])
    there = transform_points(points, frame_from_crop(box, settings))
    back = crop_from_frame(box, settings.size_px, side_frac=settings.side_per_box_frac)
    np.testing.assert_allclose(transform_points(there, back), points, atol=1e-9)

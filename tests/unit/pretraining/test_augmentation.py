import numpy as np
import pytest

from pipeline.pretraining.augmentation import augmented, degrade, mirrored_order, occlude, occluder, random_crop
from tests.unit.pretraining.dotted_faces import make_pool


def test_mirrored_order_is_that_of_the_68_points():
    order = mirrored_order()
    assert sorted(order) == list(range(68))
    assert (order[order] == np.arange(68)).all()
    assert [order[i] for i in (0, 8, 17, 27, 33, 36, 41, 48, 51, 57, 60, 62, 66)] == [
        *(16, 8, 26, 27, 33, 45, 46, 54, 51, 57, 64, 62, 66)
    ]


@pytest.mark.parametrize("size_px", [128, 256])
def test_landmarks_of_a_random_crop_stay_on_their_dots(size_px):
    pool, rng, num_seen = make_pool(), np.random.default_rng(0), 0
    is_flipped = set()
    for trial in range(12):
        crop, landmarks = random_crop(pool, trial % 6, rng, size_px=size_px)
        is_mirrored = bool(landmarks[27, 0] > landmarks[30, 0])  # points of the middle, which keep their numbers
        is_flipped.add(is_mirrored)
        levels = 100 + 2 * (mirrored_order() if is_mirrored else np.arange(68))
        for (x, y), level in zip(landmarks.round().astype(int), levels, strict=True):
            if 2 <= x < size_px - 2 and 2 <= y < size_px - 2:
                assert abs(int(crop[y, x, 0]) - level) <= 8
                num_seen += 1
    assert num_seen > 600
    assert len(is_flipped) == 2


def test_augmented_crops_have_the_landmarks_of_the_random_crop():
    pool = make_pool()
    crop, landmarks = augmented(pool, 2, np.random.default_rng(5), size_px=128)
    rng = np.random.default_rng(5)
    plain, expected = random_crop(pool, 2, rng, size_px=128)
    np.testing.assert_array_equal(landmarks, expected)
    np.testing.assert_array_equal(crop, degrade(occlude(plain, pool, rng), rng))


def test_augmented_crops_differ_and_keep_their_shape():
    pool, rng = make_pool(), np.random.default_rng(0)
    crops = [augmented(pool, 0, rng, size_px=128)[0] for _ in range(40)]
    assert all(crop.shape == (128, 128, 3) and crop.dtype == np.uint8 for crop in crops)
    assert len({crop.tobytes() for crop in crops}) == 40


def test_half_of_the_crops_are_occluded_in_part():
    pool, plain = make_pool(), np.full((128, 128, 3), 77, np.uint8)
    covered = [(occlude(plain, pool, np.random.default_rng(i)) != 77).any(2).mean() for i in range(100)]
    assert 30 < np.count_nonzero(covered) < 70
    assert max(covered) < 0.9
    kinds = {
        len(np.unique(occluder(64, pool, np.random.default_rng(i)).reshape(-1, 3), axis=0)) == 1 for i in range(30)
    }
    assert kinds == {True, False}

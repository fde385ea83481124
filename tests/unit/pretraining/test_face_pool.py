import json

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.pretraining.face_pool import TEST_FACES, TRAIN_FACES, render_pool
from tests.unit.pretraining.dotted_faces import SIZE_PX, DottedRenderer


@pytest.fixture
def renderer(monkeypatch):
    return DottedRenderer(monkeypatch)


def rendered(folder, **changes):
    settings = {"num_faces": 5, "seed": 3, "size_px": SIZE_PX, "num_workers": 1, **changes}
    return render_pool(folder, bank_path=folder / "bank.npz", **settings)


def test_a_pool_is_rendered_once(tmp_path, renderer):
    pool = rendered(tmp_path / "pool")
    assert (pool.images.shape, pool.landmarks.shape, pool.boxes.shape) == ((5, SIZE_PX, SIZE_PX, 3), (5, 68, 2), (5, 4))
    assert len(pool) == len(renderer.cameras) == 5
    again = rendered(tmp_path / "pool")
    assert len(renderer.cameras) == 5
    np.testing.assert_array_equal(pool.images, again.images)
    with pytest.raises(DataError, match=r"'seed': 3.*expected .*'seed': 4.*; pass another folder or delete this one"):
        rendered(tmp_path / "pool", seed=4)


def test_a_killed_rendering_resumes_with_the_missing_faces(tmp_path, renderer):
    whole = np.array(rendered(tmp_path / "pool").images)
    is_done = np.arange(5) % 2 == 0
    np.save(tmp_path / "pool/is_done.npy", is_done)
    images = np.load(tmp_path / "pool/images.npy", mmap_mode="r+")
    images[~is_done] = 0
    images.flush()
    np.testing.assert_array_equal(rendered(tmp_path / "pool").images, whole)
    assert len(renderer.cameras) == 5 + 2


def test_a_face_depends_on_purpose_seed_and_number_only(tmp_path, renderer):
    pool, longer, other, unseen = (
        np.array(rendered(tmp_path / name, **changes).landmarks)
        for name, changes in {
            "pool": {},
            "longer": {"num_faces": 7},
            "other": {"seed": 4},
            "unseen": {"purpose": TEST_FACES},
        }.items()
    )
    np.testing.assert_array_equal(longer[:5], pool)
    assert not np.array_equal(other, pool)
    assert not np.array_equal(unseen, pool)
    assert json.loads((tmp_path / "pool/pool.json").read_text())["purpose"] == TRAIN_FACES


def test_faces_are_close_and_within_the_angle(tmp_path, renderer):
    rendered(tmp_path / "pool", num_faces=40, max_angle_deg=20.0)
    angles = np.array([camera.yaw_deg for camera in renderer.cameras])
    assert 10 < np.abs(angles).max() <= 20
    assert all(0.4 <= camera.face_frac <= 0.55 for camera in renderer.cameras)

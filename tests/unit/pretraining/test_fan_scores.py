import json

import numpy as np
import pytest
import torch

from models.fan import FAN
from pipeline.faces.geometry import crop_from_frame, transform_points
from pipeline.pretraining.face_pool import TEST_FACES
from pipeline.pretraining.fan import gaussian_heatmaps
from pipeline.pretraining.fan_scores import evaluate_fan, find_landmarks, interocular_percent, score_fan
from tests.unit.pretraining.dotted_faces import DottedRenderer, make_pool


class _Oracle(FAN):
    """Heatmaps of fixed points in the crop."""

    def __init__(self, crop_points: np.ndarray) -> None:
        super().__init__(16)
        self.points = torch.from_numpy(crop_points).float()[None]

    def forward(self, images):
        return [gaussian_heatmaps(self.points, size_px=256, sigma_cells=1.2)]


def test_points_come_back_to_the_image_and_errors_are_percent_of_the_eye_distance():
    pool = make_pool(1)
    affine = crop_from_frame(pool.boxes[0].astype(np.float64), 256, side_frac=200 / 260)
    truth = pool.landmarks[0].astype(np.float64)
    perfect = _Oracle(transform_points(truth, affine))
    np.testing.assert_allclose(find_landmarks(perfect, pool.images[0], pool.boxes[0]), truth, atol=0.05)
    eyes = np.linalg.norm(truth[36] - truth[45])
    moved = truth + np.array([0.1 * eyes, 0])
    scores = score_fan(_Oracle(transform_points(moved, affine)), pool)
    assert scores["mean"] == pytest.approx(10, abs=0.3)
    assert scores["over_8_percent"] == 100
    assert score_fan(perfect, pool)["mean"] < 0.3


def test_evaluation_renders_faces_of_its_own_purpose_within_30_degrees(tmp_path, monkeypatch):
    renderer = DottedRenderer(monkeypatch)
    scores = evaluate_fan(FAN(16), pool_path=tmp_path, bank_path=tmp_path / "bank.npz", num_faces=3, num_workers=1)
    settings = json.loads((tmp_path / "pool.json").read_text())
    assert (settings["purpose"], settings["max_angle_deg"]) == (TEST_FACES, 30)
    assert all(abs(camera.yaw_deg) <= 30 for camera in renderer.cameras)
    assert scores["mean"] > 0


def test_percent_by_hand():
    truth = np.zeros((1, 68, 2))
    truth[0, 45] = [50, 0]
    found = truth.copy()
    found[0, 3] = [3, 4]
    percent = interocular_percent(found, truth)
    assert percent[0, 3] == pytest.approx(10)
    assert percent.sum() == pytest.approx(10)

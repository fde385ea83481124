"""The shipped networks on a photograph, and on rendered people that they were not trained on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut

import fantrans
from models.fan import FAN
from models.retinaface import RetinaFace
from pipeline.catalog import load_catalog
from pipeline.config import DetectorConfig
from pipeline.datasets import LAYOUTS
from pipeline.datasets.index import index_frames
from pipeline.faces.detect import faces_in, load_detector
from pipeline.faces.features import load_fan
from pipeline.pretraining.fan_scores import evaluate_fan, find_landmarks
from pipeline.pretraining.retinaface import evaluate_detector
from pipeline.protocols import PROTOCOLS
from pipeline.synthetic.bank import default_bank_path
from pipeline.synthetic.dataset import write_dataset
from pipeline.synthetic.render import five_points

CPU = torch.device("cpu")
FACE_BOX = np.array([181, 62, 268, 178])
"""Measured by eye in the 512 px photograph: hairline to chin, without ears."""
FACE_POINTS = np.array([(203, 102), (245, 103), (225, 125), (202, 141), (244, 141)])


@pytest.fixture(scope="module")
def detector() -> RetinaFace:
    return load_detector(load_catalog().get_weights("retinaface-mobilenet"), CPU)


@pytest.fixture(scope="module", params=["fan-64", "fan-128"])
def fan(request) -> FAN:
    return load_fan(load_catalog().get_weights(request.param), CPU)


@pytest.fixture(scope="module")
def unseen_faces(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("unseen-faces")


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    return float(shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared))


@pytest.mark.parametrize("side_px", [384, 512, 640, 1024])
def test_it_finds_the_face_of_a_photograph(detector, side_px):
    photograph = cv2.resize(astronaut(), (side_px, side_px), interpolation=cv2.INTER_AREA)
    boxes, _, points = faces_in([photograph], detector, settings=DetectorConfig(), device=CPU)[0]
    scale = 512 / side_px
    assert overlap(boxes[0] * scale, FACE_BOX) > 0.6
    assert np.linalg.norm(points[0] * scale - FACE_POINTS, axis=1).mean() < 12


def test_it_finds_most_faces_of_unseen_scenes(detector):
    """Loose bounds on few scenes: the model card has the scores of 1,000."""
    scores = evaluate_detector(detector, bank_path=default_bank_path(), device=CPU, num_scenes=40)
    assert scores.num_faces > 30
    assert scores.recall_at_half > 0.95


def test_a_fan_finds_the_parts_of_a_photographed_face(fan):
    landmarks = find_landmarks(fan, astronaut(), FACE_BOX)
    assert np.linalg.norm(five_points(landmarks) - FACE_POINTS, axis=1).max() < 7, "px, of a face 87 px wide"
    brows_y, eyes_y = landmarks[17:27, 1].mean(), landmarks[36:48, 1].mean()
    assert 6 < eyes_y - brows_y < 20
    jaw_x = landmarks[:17, 0]
    assert (np.diff(jaw_x) > 0).all(), "from one ear to the other"
    assert landmarks[8, 1] == pytest.approx(FACE_BOX[3], abs=12)


def test_a_fan_finds_the_landmarks_of_unseen_faces(fan, unseen_faces):
    """A loose bound on few faces: the model cards have the scores of 500."""
    scores = evaluate_fan(
        fan, pool_path=unseen_faces, bank_path=default_bank_path(), num_faces=20, seed=7, num_workers=1
    )
    assert scores["mean"] < 4.5
    assert scores["median"] < 4.2


def test_the_default_model_sees_a_smile_in_a_photograph():
    """Its card says what it does not see there."""
    table = fantrans.predict([astronaut()])
    assert table["status"].tolist() == ["ok"]
    assert overlap(table[["x1", "y1", "x2", "y2"]].to_numpy()[0], FACE_BOX) > 0.6
    assert table["p_12"][0] > 0.5
    assert table["p_04"][0] < 0.1


def test_the_default_model_knows_the_action_units_of_unseen_faces(tmp_path):
    """A loose bound on few faces: its card has the F1 of 1,280 frames."""
    write_dataset(tmp_path, layout="bp4d", num_subjects=4, num_tasks=6, num_frames=1, seed=77, size_px=384)
    frames = index_frames(tmp_path, LAYOUTS["bp4d"], PROTOCOLS["rendered_bp4d"])
    table = fantrans.predict([tmp_path / name for name in frames["source_file"]], faces="largest")
    aus = PROTOCOLS["rendered_bp4d"].aus
    found = table[[f"au_{au:02d}" for au in aus]].to_numpy()
    labels = frames[[f"au_{au:02d}" for au in aus]].to_numpy()
    assert len(table) == len(frames) == 24
    assert (found == labels).mean() > 0.8

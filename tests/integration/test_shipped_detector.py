"""The RetinaFace that comes with the project: on a photograph, and on scenes that it was not trained on."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage.data import astronaut

from models.retinaface import RetinaFace
from pipeline.catalog import CATALOG_FILE
from pipeline.config import DetectorConfig
from pipeline.detect import faces_in
from pipeline.synthetic.bank import default_bank_path
from pipeline.train_retinaface import evaluate_detector

CPU = torch.device("cpu")
FACE_BOX = np.array([181, 62, 268, 178])
"""Measured by eye in the 512 px photograph: hairline to chin, without ears."""
FACE_POINTS = np.array([(203, 102), (245, 103), (225, 125), (202, 141), (244, 141)])


@pytest.fixture(scope="module")
def detector() -> RetinaFace:
    network = RetinaFace("mobilenet0.25")
    network.load_state_dict(load_file(CATALOG_FILE.parent / "models/weights/retinaface-mobilenet.safetensors"))
    return network.eval()


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
    assert scores.recall_at_half > 0.8

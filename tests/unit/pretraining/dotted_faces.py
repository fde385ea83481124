"""Stand-ins for rendered faces: 68 dots, each of its own grey level, on a dark image."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.pretraining.face_pool import FacePool

SIZE_PX = 160


def dotted_face(seed: int, *, size_px: int = SIZE_PX) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, landmarks and box; dot i has the level 100 + 2 i."""
    rng = np.random.default_rng(seed)
    columns, rows = np.meshgrid(np.arange(9), np.arange(8))
    landmarks = np.stack((columns.ravel()[:68] * 9 + 44, rows.ravel()[:68] * 10 + 40), 1) + rng.integers(-3, 4, (1, 2))
    image = np.full((size_px, size_px, 3), 20, np.uint8)
    for level, (x, y) in enumerate(landmarks):
        image[y - 2 : y + 3, x - 2 : x + 3] = 100 + 2 * level
    low, high = landmarks.min(0) - 6, landmarks.max(0) + 6
    return image, landmarks.astype(np.float32), np.concatenate((low, high)).astype(np.float32)


def make_pool(num_faces: int = 6) -> FacePool:
    return FacePool(*(np.stack(values) for values in zip(*map(dotted_face, range(num_faces)), strict=True)))


class DottedRenderer:
    """Stands in for `pipeline.synthetic`; `cameras` are those of the faces that were rendered, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("numba")
        self.cameras = []
        monkeypatch.setattr("pipeline.synthetic.render.render_face", self._render_face)
        monkeypatch.setattr("pipeline.synthetic.identity.sample_identity", lambda bank, rng, texture_px: None)
        monkeypatch.setattr("pipeline.synthetic.expressions.random_expression", lambda bank, rng: None)
        monkeypatch.setattr("pipeline.synthetic.bank.load_bank", lambda path: None)

    def _render_face(self, bank, identity, expression, camera, rng, *, size_px):
        self.cameras.append(camera)
        image, landmarks, box = dotted_face(int(rng.integers(2**31)), size_px=size_px)
        return image, SimpleNamespace(landmarks=landmarks, box_xyxy=box)

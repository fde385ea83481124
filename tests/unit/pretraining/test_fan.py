from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.fan import FAN
from pipeline.errors import DataError, WeightsError
from pipeline.pretraining import fan as train_fan
from pipeline.pretraining.fan import (
    FacePool,
    FanTraining,
    augmented,
    crop_affine,
    evaluate_fan,
    find_landmarks,
    gaussian_heatmaps,
    heatmap_loss,
    interocular_percent,
    mirrored_order,
    render_pool,
    score_fan,
    training_batch,
    transformed,
)
from pipeline.runtime import checkpoint

# B faces, P landmarks

SIZE_PX = 160
TINY = {"width": 16, "num_steps": 3, "batch_size": 2, "num_faces": 6, "face_size_px": SIZE_PX, "precision": "fp32"}


def _dotted_face(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A stand-in: 68 dots, each of its own grey level, on a dark face; image, landmarks and box."""
    rng = np.random.default_rng(seed)
    columns, rows = np.meshgrid(np.arange(9), np.arange(8))
    landmarks = np.stack((columns.ravel()[:68] * 9 + 44, rows.ravel()[:68] * 10 + 40), 1) + rng.integers(-3, 4, (1, 2))
    image = np.full((SIZE_PX, SIZE_PX, 3), 20, np.uint8)
    for level, (x, y) in enumerate(landmarks):
        image[y - 2 : y + 3, x - 2 : x + 3] = 100 + 2 * level
    low, high = landmarks.min(0) - 6, landmarks.max(0) + 6
    return image, landmarks.astype(np.float32), np.concatenate((low, high)).astype(np.float32)


def make_pool(num_faces: int = 6) -> FacePool:
    return FacePool(*(np.stack(values) for values in zip(*map(_dotted_face, range(num_faces)), strict=True)))


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Replaces the renderer; the ranges that were rendered."""
    ranges = []

    def render_range(first, end, *, seed_words, size_px, **_):
        ranges.append((first, end))
        return tuple(np.stack(values) for values in zip(*map(_dotted_face, range(first, end)), strict=True))

    monkeypatch.setattr(train_fan, "_render_range", render_range)
    monkeypatch.setattr(train_fan, "_CHUNK_FACES", 4)
    return ranges


def test_mirrored_order_is_that_of_the_68_points():
    order = mirrored_order()
    assert sorted(order) == list(range(68))
    assert (order[order] == np.arange(68)).all()
    assert [order[i] for i in (0, 8, 17, 27, 33, 36, 41, 48, 51, 57, 60, 62, 66)] == [
        *(16, 8, 26, 27, 33, 45, 46, 54, 51, 57, 64, 62, 66)
    ]


def test_crop_affine_centres_the_box_at_the_paper_s_side():
    affine = crop_affine(np.array([10.0, 20.0, 70.0, 90.0]), 256, side_frac=200 / 260)
    side = (60 + 70) * 200 / 260  # 100 px
    np.testing.assert_allclose(transformed(np.array([40.0, 55.0]), affine), [127.5, 127.5])
    np.testing.assert_allclose(transformed(np.array([40.0 + side / 2, 55.0]), affine), [255.5, 127.5])


def test_crop_affine_turns_scales_shifts_and_mirrors():
    box, right = np.array([0.0, 0.0, 65.0, 65.0]), np.array([32.5 + 10, 32.5])
    at = {"side_frac": 200 / 260}  # side 100, 2.56 crop px a px
    turned = transformed(right, crop_affine(box, 256, rotation_deg=90, **at))
    np.testing.assert_allclose(turned, [127.5, 127.5 - 25.6])  # counter-clockwise on the screen
    np.testing.assert_allclose(transformed(right, crop_affine(box, 256, scale=2, **at)), [127.5 + 51.2, 127.5])
    np.testing.assert_allclose(transformed(right, crop_affine(box, 256, is_flipped=True, **at)), [127.5 - 25.6, 127.5])
    np.testing.assert_allclose(transformed(right, crop_affine(box, 256, shift_frac=(0.1, 0), **at)), [127.5, 127.5])


@pytest.mark.parametrize("size_px", [128, 256])
def test_augmented_landmarks_stay_on_their_dots(monkeypatch, size_px):
    monkeypatch.setattr(train_fan, "_degrade", lambda crop, rng: crop)
    monkeypatch.setattr(train_fan, "_occluded", lambda crop, pool, rng: crop)
    pool, rng, num_seen = make_pool(), np.random.default_rng(0), 0
    is_flipped = set()
    for trial in range(12):
        crop, landmarks = augmented(pool, trial % 6, rng, size_px=size_px)
        is_mirrored = bool(landmarks[27, 0] > landmarks[30, 0])  # points of the middle, which keep their numbers
        is_flipped.add(is_mirrored)
        levels = 100 + 2 * (mirrored_order() if is_mirrored else np.arange(68))
        for (x, y), level in zip(landmarks.round().astype(int), levels, strict=True):
            if 2 <= x < size_px - 2 and 2 <= y < size_px - 2:
                assert abs(int(crop[y, x, 0]) - level) <= 8
                num_seen += 1
    assert num_seen > 600
    assert len(is_flipped) == 2


def test_spoilt_and_occluded_crops_keep_their_form():
    pool, rng = make_pool(), np.random.default_rng(0)
    crops = [augmented(pool, 0, rng, size_px=128)[0] for _ in range(40)]
    assert all(crop.shape == (128, 128, 3) and crop.dtype == np.uint8 for crop in crops)
    assert len({crop.tobytes() for crop in crops}) == 40


def test_heatmaps_peak_at_the_landmark():
    maps = gaussian_heatmaps(torch.tensor([[[4 * 5 + 1.5, 4 * 9 + 1.5]]]), size_px=64, sigma_cells=1.2)
    assert maps.shape == (1, 1, 16, 16)
    assert maps[0, 0, 9, 5] == 1
    assert maps[0, 0, 9, 6].item() == pytest.approx(np.exp(-1 / (2 * 1.44)))
    assert maps[0, 0, 8, 6].item() == pytest.approx(np.exp(-2 / (2 * 1.44)))


def test_loss_weighs_peaks_and_leaves_out_points_outside():
    target = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])  # (1, 2, 1, 2)
    found = torch.tensor([[[[0.5, 0.1]], [[9.0, 9.0]]]])
    is_inside = torch.tensor([[True, False]])
    loss = heatmap_loss([found, target], target, is_inside, peak_weight=20)
    assert loss.item() == pytest.approx((21 * 0.25 + 0.01) / 2)


def test_batches_are_a_function_of_seed_and_step_and_grow():
    pool, settings = make_pool(), FanTraining(**{**TINY, "num_steps": 10, "small_frac": 0.6})
    images, landmarks, size_px = training_batch(pool, settings, 5)
    again, *_ = training_batch(pool, settings, 5)
    assert torch.equal(images, again)
    assert (images.shape, landmarks.shape, size_px) == ((2, 3, 128, 128), (2, 68, 2), 128)
    assert 0 <= images.min() <= images.max() <= 1
    assert training_batch(pool, settings, 6)[0].shape == (2, 3, 256, 256)
    going_on = FanTraining(**{**TINY, "num_steps": 10, "start_sha256": "0" * 64})
    assert training_batch(pool, going_on, 0)[0].shape == (2, 3, 256, 256)
    other, *_ = training_batch(pool, FanTraining(**{**TINY, "num_steps": 10, "seed": 1}), 5)
    assert not torch.equal(images, other)


def test_pool_is_rendered_once_and_resumes(tmp_path, rendered):
    made = {"bank_path": tmp_path / "bank.npz", "num_faces": 10, "seed": 3, "size_px": SIZE_PX, "num_workers": 1}
    pool = render_pool(tmp_path / "pool", **made)
    assert rendered == [(0, 4), (4, 8), (8, 10)]
    np.testing.assert_array_equal(pool.images[9], _dotted_face(9)[0])
    np.save(tmp_path / "pool" / "is_done.npy", np.arange(10) < 8)  # as if it had been stopped
    render_pool(tmp_path / "pool", **made)
    assert rendered[3:] == [(8, 10)]
    with pytest.raises(DataError, match="expected"):
        render_pool(tmp_path / "pool", **{**made, "seed": 4})


def test_rendered_faces_are_close_and_have_seeds_of_their_own(monkeypatch, tmp_path):
    pytest.importorskip("numba")
    seen = []

    def render_face(bank, identity, expression, camera, rng, *, size_px):
        seen.append((camera, rng.random()))
        image, landmarks, box = _dotted_face(len(seen))
        return image, SimpleNamespace(landmarks=landmarks, box_xyxy=box)

    monkeypatch.setattr("pipeline.synthetic.render.render_face", render_face)
    monkeypatch.setattr("pipeline.synthetic.identity.sample_identity", lambda bank, rng, texture_px: None)
    monkeypatch.setattr("pipeline.synthetic.expressions.random_expression", lambda bank, rng: None)
    monkeypatch.setattr("pipeline.synthetic.bank.load_bank", lambda path: None)
    settings = {"bank_path": tmp_path / "bank.npz", "size_px": SIZE_PX, "max_angle_deg": 20.0}
    images, landmarks, boxes = train_fan._render_range(3, 6, seed_words=(train_fan.TRAIN_FACES, 0), **settings)
    assert (images.shape, landmarks.shape, boxes.shape) == ((3, SIZE_PX, SIZE_PX, 3), (3, 68, 2), (3, 4))
    np.testing.assert_array_equal(landmarks[1], _dotted_face(2)[1])
    assert all(0.4 <= camera.face_frac <= 0.55 and abs(camera.yaw_deg) <= 20 for camera, _ in seen)
    train_fan._render_range(4, 5, seed_words=(train_fan.TRAIN_FACES, 0), **settings)
    train_fan._render_range(4, 5, seed_words=(train_fan.TEST_FACES, 0), **settings)
    draws = [draw for _, draw in seen]
    assert draws[3] == draws[1]  # face 4 again
    assert len(set(draws)) == 4


class _StoppedError(Exception):
    pass


def _train(tmp_path, name, start=None, **changed):
    settings = FanTraining(**{**TINY, **changed})
    return train_fan.train_fan(
        tmp_path / name,
        settings,
        pool_path=tmp_path / "pool",
        bank_path=tmp_path / "bank.npz",
        start=start,
        num_workers=1,
    )


def test_stopped_training_resumes_to_the_same_bytes(tmp_path, rendered, monkeypatch):
    whole = _train(tmp_path, "whole.safetensors").read_bytes()
    monkeypatch.setattr(checkpoint, "EVERY_S", -1.0)
    take_step = train_fan._Run.take_step

    def stop_before_third(run, pool):
        if run.step == 2:
            raise _StoppedError
        return take_step(run, pool)

    with monkeypatch.context() as stopped:
        stopped.setattr(train_fan._Run, "take_step", stop_before_third)
        with pytest.raises(_StoppedError):
            _train(tmp_path, "resumed.safetensors")
    assert not (tmp_path / "resumed.safetensors").exists()
    with pytest.raises(WeightsError, match="num_steps"):
        _train(tmp_path, "resumed.safetensors", num_steps=5)
    assert _train(tmp_path, "resumed.safetensors").read_bytes() == whole
    assert not list(tmp_path.glob("*.checkpoint"))


def test_weights_load_as_a_fan_and_depend_on_the_seed(tmp_path, rendered):
    state = load_file(_train(tmp_path, "a.safetensors"))
    FAN(16).load_state_dict(state)
    assert {v.dtype for v in state.values()} == {torch.float16, torch.int64}
    pool = tmp_path / "pool"
    pool.rename(tmp_path / "first")
    other = load_file(_train(tmp_path, "b.safetensors", seed=1))
    assert not torch.equal(state["conv1.weight"], other["conv1.weight"])


def test_training_goes_on_from_weights_of_the_same_or_half_the_width(tmp_path, rendered):
    start = _train(tmp_path, "start.safetensors", num_steps=1)
    settings = FanTraining(**TINY)
    torch.testing.assert_close(
        train_fan._first_fan(settings, start).conv1.weight, load_file(start)["conv1.weight"].float()
    )
    images = torch.rand(1, 3, 64, 64)
    narrow = train_fan._first_fan(settings, start).eval()
    wide = train_fan._first_fan(FanTraining(**{**TINY, "width": 32}), start).eval()
    torch.testing.assert_close(wide(images)[-1], narrow(images)[-1], rtol=1e-3, atol=1e-4)
    state = load_file(_train(tmp_path, "wide.safetensors", start=start, width=32, num_steps=1))
    assert state["conv4.conv1.weight"].shape == (16, 16, 3, 3)
    with pytest.raises(WeightsError, match="width 16"):
        train_fan._first_fan(FanTraining(**{**TINY, "width": 48}), start)


def test_training_learns_the_dots(tmp_path, monkeypatch):
    monkeypatch.setattr(train_fan, "_degrade", lambda crop, rng: crop)
    monkeypatch.setattr(train_fan, "_occluded", lambda crop, pool, rng: crop)
    settings = FanTraining(**{**TINY, "num_steps": 14, "small_frac": 1.0})
    run, pool = train_fan._Run(tmp_path / "fan.safetensors", settings, torch.device("cpu")), make_pool()
    losses = [run.take_step(pool) for _ in range(14)]
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])


class _Oracle(FAN):
    """Heatmaps of fixed points in the crop."""

    def __init__(self, crop_points: np.ndarray) -> None:
        super().__init__(16)
        self.points = torch.from_numpy(crop_points).float()[None]

    def forward(self, images):
        return [gaussian_heatmaps(self.points, size_px=256, sigma_cells=1.2)]


def test_points_come_back_to_the_image_and_errors_are_percent_of_the_eye_distance():
    pool = make_pool(1)
    affine = crop_affine(pool.boxes[0].astype(np.float64), 256, side_frac=200 / 260)
    truth = pool.landmarks[0].astype(np.float64)
    perfect = _Oracle(transformed(truth, affine))
    np.testing.assert_allclose(find_landmarks(perfect, pool.images[0], pool.boxes[0]), truth, atol=0.05)
    eyes = np.linalg.norm(truth[36] - truth[45])
    moved = truth + np.array([0.1 * eyes, 0])
    scores = score_fan(_Oracle(transformed(moved, affine)), pool)
    assert scores["mean"] == pytest.approx(10, abs=0.3)
    assert scores["over_8_percent"] == 100
    assert score_fan(perfect, pool)["mean"] < 0.3


def test_evaluation_renders_faces_of_its_own_purpose_within_30_degrees(tmp_path, monkeypatch):
    asked = {}

    def render_range(first, end, **words):
        asked.update(words)
        return tuple(np.stack(values) for values in zip(*map(_dotted_face, range(first, end)), strict=True))

    monkeypatch.setattr(train_fan, "_render_range", render_range)
    monkeypatch.setattr(train_fan, "FACE_SIZE_PX", SIZE_PX)
    scores = evaluate_fan(FAN(16), pool_path=tmp_path, bank_path=tmp_path / "bank.npz", num_faces=3, num_workers=1)
    assert asked["seed_words"] == (train_fan.TEST_FACES, 0) != (train_fan.TRAIN_FACES, 0)
    assert asked["max_angle_deg"] == 30
    assert scores["mean"] > 0


def test_percent_by_hand():
    truth = np.zeros((1, 68, 2))
    truth[0, 45] = [50, 0]
    found = truth.copy()
    found[0, 3] = [3, 4]
    percent = interocular_percent(found, truth)
    assert percent[0, 3] == pytest.approx(10)
    assert percent.sum() == pytest.approx(10)

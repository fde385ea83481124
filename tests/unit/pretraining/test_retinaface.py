"""Training a detector on rendered scenes: geometry of the augmentation, targets, loss, resuming, scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.retinaface import Faces, RawOutput, anchors, decode_boxes, decode_points
from pipeline.errors import WeightsError
from pipeline.pretraining import retinaface as training
from pipeline.runtime import checkpoint
from pipeline.synthetic import scenes as scenes_module
from pipeline.synthetic.render import SceneTruth
from pipeline.synthetic.scenes import (
    Scene,
    cropped,
    marked,
    mirrored,
    mosaic,
    render_scenes,
    with_scrambled_face,
    zoomed,
)

CPU = torch.device("cpu")


def drawn_scene(_, rng, *, size_px):
    """Stands in for the renderer: 0 to 2 bright squares with five dark dots on a dim ground."""
    image = np.full((size_px, size_px, 3), rng.integers(40, 90), np.uint8)
    boxes, points = [], []
    for left in range(0, size_px, size_px // 2)[: rng.integers(0, 3)]:
        side = int(rng.integers(size_px // 5, size_px // 2 - 4))
        x, y = left + int(rng.integers(0, 4)), int(rng.integers(0, size_px - side))
        image[y : y + side, x : x + side] = 220
        dots = np.array([(0.3, 0.3), (0.7, 0.3), (0.5, 0.5), (0.3, 0.8), (0.7, 0.8)]) * side + (x, y)
        for dot_x, dot_y in dots.round().astype(int):
            image[dot_y - 1 : dot_y + 2, dot_x - 1 : dot_x + 2] = 10
        boxes.append((x, y, x + side - 1, y + side - 1))
        points.append(dots.round())
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return image, SceneTruth(boxes, np.array(points, np.float32).reshape(-1, 5, 2), np.ones(len(boxes), np.float32))


@pytest.fixture(autouse=True)
def _drawn_scenes(monkeypatch):
    monkeypatch.setattr(scenes_module, "load_bank", lambda path: None)
    monkeypatch.setattr(scenes_module, "random_scene", drawn_scene)
    monkeypatch.setattr(training, "INPUT_SIDES_PX", (64,))
    monkeypatch.setattr(training, "BATCH_PX", 4 * 64 * 64)


@pytest.fixture
def marked_scene() -> Scene:
    """One face whose five points are squares of five different greens on black."""
    image = np.zeros((120, 120, 3), np.uint8)
    points = np.array([[(40, 30), (70, 32), (56, 50), (44, 66), (68, 68)]], np.float32)
    for i, (x, y) in enumerate(points[0].astype(int)):
        image[y - 3 : y + 4, x - 3 : x + 4, 1] = 50 * (i + 1)
    return Scene(image, np.array([(30, 15, 80, 80)], np.float32), points, np.ones(1, bool))


def greens_at(scene: Scene, face: int = 0) -> list[int]:
    x, y = scene.points[face].round().astype(int).T
    return scene.image[y, x, 1].tolist()


def test_points_stay_on_their_pixels_when_zoomed(marked_scene):
    for seed in range(40):
        scene = zoomed(marked_scene, 96, np.random.default_rng(seed))
        assert scene.image.shape == (96, 96, 3)
        scale = (scene.boxes[0, 2] - scene.boxes[0, 0]) / 50
        is_inside = ((scene.points[0] > 4 * scale) & (scene.points[0] < 95 - 4 * scale)).all(1)
        scene = scene._replace(points=scene.points.clip(0, 95))
        for found, expected, inside in zip(greens_at(scene), (50, 100, 150, 200, 250), is_inside, strict=True):
            assert not inside or scale < 0.4 or found == pytest.approx(expected, abs=4)
        np.testing.assert_allclose((scene.boxes[0, 3] - scene.boxes[0, 1]) / 65, scale, rtol=0.03)


def test_a_crop_keeps_pixels_as_they_are(marked_scene):
    for seed in range(10):
        scene = cropped(marked_scene, 64, np.random.default_rng(seed))
        assert scene.image.shape == (64, 64, 3)
        x, y = (marked_scene.boxes - scene.boxes)[0, :2].round().astype(int)
        np.testing.assert_array_equal(scene.image, marked_scene.image[y : y + 64, x : x + 64])
        np.testing.assert_allclose(scene.points, marked_scene.points - (x, y), atol=1e-4)


def test_a_mirrored_face_has_its_right_eye_on_the_left_again(marked_scene):
    scene = mirrored(marked_scene)
    assert greens_at(scene) == [100, 50, 150, 250, 200]
    assert scene.points[0, 0, 0] < scene.points[0, 1, 0]
    assert scene.boxes[0].tolist() == [39, 15, 89, 80]
    np.testing.assert_array_equal(mirrored(scene).image, marked_scene.image)
    np.testing.assert_array_equal(mirrored(scene).points, marked_scene.points)


def test_a_mosaic_keeps_each_face_in_its_quarter(marked_scene):
    scene = mosaic([marked_scene] * 4)
    assert scene.image.shape == (240, 240, 3)
    assert [greens_at(scene, face) for face in range(4)] == [[50, 100, 150, 200, 250]] * 4
    assert scene.boxes[:, :2].tolist() == [[30, 15], [150, 15], [30, 135], [150, 135]]


def test_cut_and_tiny_faces_are_not_learned(marked_scene):
    boxes = np.array([(10, 10, 50, 50), (-30, 10, 20, 60), (-10, 10, 40, 60), (-59, 0, 0.5, 60), (5, 5, 12, 12)])
    scene = marked(Scene(marked_scene.image, boxes, np.zeros((5, 5, 2)), np.ones(5, bool)))
    assert scene.boxes[:, 0].tolist() == [10, -30, -10, 5], "one is 98 % outside"
    assert scene.is_learned.tolist() == [True, False, True, False]


def test_a_scrambled_face_lies_beside_the_faces(marked_scene):
    scene = marked_scene._replace(boxes=np.array([(36, 26, 76, 72)], np.float32))
    changed = 0
    for seed in range(20):
        image = with_scrambled_face(scene, np.random.default_rng(seed))
        np.testing.assert_array_equal(image[26:72, 36:76], scene.image[26:72, 36:76])
        is_new = (image != scene.image).any(2)
        changed += is_new.any()
        assert image[is_new].sum() <= scene.image[26:72, 36:76].sum(), "all it shows was cut from the face"
    assert changed > 3


def test_scenes_depend_on_seed_and_number_alone(tmp_path):
    arguments = {"bank_path": tmp_path / "bank.npz", "seed": 5, "size_px": 48, "num_workers": 1}
    whole = render_scenes(tmp_path / "a", num_scenes=60, **arguments)
    assert len(whole) == 60
    render_scenes(tmp_path / "b", num_scenes=50, **arguments)
    grown = render_scenes(tmp_path / "b", num_scenes=60, **arguments)
    for i in (0, 17, 49, 50, 59):
        for mine, other in zip(whole[i], grown[i], strict=True):
            np.testing.assert_array_equal(mine, other)
    image, (boxes, _, _) = drawn_scene(None, np.random.default_rng([5, 59]), size_px=48)
    np.testing.assert_array_equal(whole[59].image, image)
    np.testing.assert_array_equal(whole[59].boxes, boxes)


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    rendered = render_scenes(tmp_path, bank_path=tmp_path, num_scenes=50, seed=0, size_px=48, num_workers=1)
    first, again, other = (training.augmented_batch(rendered, seed=0, step=step) for step in (3, 3, 4))
    assert {scene.image.shape for scene in first} == {(64, 64, 3)}
    assert len(first) == 4
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.boxes, b.boxes)
    assert any((a.image != b.image).any() for a, b in zip(first, other, strict=True))


def anchor_rows(*boxes_px, size_px=100):
    """Anchors from xyxy px."""
    boxes = torch.tensor(boxes_px, dtype=torch.float32) / size_px
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)


def test_anchors_are_assigned_by_overlap():
    faces = torch.tensor([(0, 0, 20, 20), (50, 50, 90, 90), (0, 60, 30, 90), (80, 0, 84, 40)]) / 100
    is_learned = torch.tensor([True, True, False, True])
    anchors_A4 = anchor_rows(
        (0, 0, 20, 15),  # IoU 0.75 with the first: face
        (0, 0, 20, 7),  # 0.35: neither
        (0, 0, 20, 5.8),  # 0.29: none
        (52, 50, 92, 90),  # the second
        (0, 60, 15, 75),  # on the face that is not to be learned: neither
        (80, 0, 100, 40),  # IoU 0.2 with the last, which has no better one: face
        (40, 0, 50, 10),  # none
    )
    labels, face = training.assigned(faces, is_learned, anchors_A4)
    assert labels.tolist() == [1, -1, 0, 1, -1, 1, 0]
    assert face[labels == 1].tolist() == [0, 1, 3]
    assert training.assigned(faces[:0], is_learned[:0], anchors_A4)[0].tolist() == [0] * 7


def test_covered_fracs_by_hand():
    boxes, others = torch.tensor([[0.0, 0, 10, 10], [20, 20, 22, 22]]), torch.tensor([[5.0, 0, 25, 10], [0, 0, 40, 40]])
    assert training.covered_fracs(boxes, others).tolist() == [[0.5, 1.0], [0.0, 1.0]]
    assert training.covered_fracs(boxes, others[:0]).shape == (2, 0)


def test_targets_decode_to_the_faces():
    image, (boxes, points, _) = drawn_scene(None, np.random.default_rng(4), size_px=64)
    assert len(boxes) == 2
    targets = training.make_targets([Scene(image, boxes, points, np.ones(2, bool))], device=CPU)
    is_face = targets.labels[0] == 1
    assert is_face.sum() >= 2
    anchors_N4 = anchors(64, 64, device=CPU)[is_face]
    decoded = decode_boxes(targets.boxes[0, is_face], anchors_N4) * 64
    nearest = torch.cdist(decoded, torch.from_numpy(boxes)).min(1)
    assert nearest.values.max() < 1e-3
    assert set(nearest.indices.tolist()) == {0, 1}
    decoded_points = decode_points(targets.points[0, is_face], anchors_N4) * 64
    torch.testing.assert_close(decoded_points, torch.from_numpy(points)[nearest.indices], atol=1e-3, rtol=0)


def test_loss_by_hand():
    """One face anchor, six of background: the three worst of them count."""
    probabilities = torch.tensor([0.5, 0.5, 0.2, 0.1, 0.1, 0.9, 0.9, 0.9])
    labels = torch.tensor([[1, 0, 0, 0, 0, 0, 0, -1]])
    logits = torch.stack([torch.zeros(8), torch.logit(probabilities)], 1)[None]
    boxes, points = torch.zeros(1, 8, 4), torch.zeros(1, 8, 10)
    boxes[0, 0], boxes[0, 1], points[0, 0] = 1.0, 9.0, 0.15
    targets = training.Targets(labels, torch.zeros(1, 8, 4), torch.zeros(1, 8, 10))
    of_class, of_box, of_points = training.multibox_loss(RawOutput(logits, boxes, points), targets)
    assert of_class.item() == pytest.approx(-np.log(0.5) - 2 * np.log(0.1) - np.log(0.5), rel=1e-5)
    assert of_box.item() == pytest.approx(4 * (1 - 0.15))  # linear beyond 0.3
    assert of_points.item() == pytest.approx(10 * 0.5 * 0.15**2 / 0.3)  # quadratic below


@pytest.mark.parametrize(("offset", "iou"), [(0.0, 1.0), (10 * 0.55 / 1.45, 0.45), (10 * 0.8 / 1.2, 0.2)])
def test_a_badly_placed_box_is_to_claim_less(offset, iou):
    """A box as large as the true one and aside by (1 - IoU) / (1 + IoU) of its side has that IoU."""
    found, logits = torch.tensor([[[offset, 0.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])
    targets = training.Targets(torch.ones(1, 1, dtype=torch.long), torch.zeros(1, 1, 4), torch.zeros(1, 1, 10))
    of_class, _, _ = training.multibox_loss(RawOutput(logits, found, torch.zeros(1, 1, 10)), targets)
    p, claim = 1 / (1 + np.exp(-2.0)), np.clip((iou - 0.3) / 0.3, 0, 1)
    assert of_class.item() == pytest.approx(-claim * np.log(p) - (1 - claim) * np.log(1 - p), rel=1e-4)


def test_no_face_in_the_batch_still_gives_a_loss():
    targets = training.Targets(torch.zeros(1, 9, dtype=torch.long), torch.zeros(1, 9, 4), torch.zeros(1, 9, 10))
    raw = RawOutput(torch.zeros(1, 9, 2), torch.zeros(1, 9, 4), torch.zeros(1, 9, 10))
    losses = training.multibox_loss(raw, targets)
    assert [loss.item() for loss in losses] == pytest.approx([3 * np.log(2), 0, 0])


def test_learning_rate_rises_and_falls():
    rates = [training.learning_rate(step, num_steps=100, max_lr=1.0, warm_up_frac=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 1e-3


def train(folder, *, num_steps=4, seed=0):
    training.train_retinaface(
        folder / "weights.safetensors",
        bank_path=folder / "bank.npz",
        work=folder / "work",
        num_steps=num_steps,
        num_scenes=50,
        scene_px=64,
        seed=seed,
        device=CPU,
        num_workers=1,
    )
    return load_file(folder / "weights.safetensors")


def test_a_killed_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    monkeypatch.setattr(checkpoint, "EVERY_S", -1.0)
    augmented_batch = training.augmented_batch

    def killed(rendered, *, seed, step):
        if step == 2:
            raise KeyboardInterrupt
        return augmented_batch(rendered, seed=seed, step=step)

    monkeypatch.setattr(training, "augmented_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed")
    assert not (tmp_path / "killed" / "weights.safetensors").exists()
    with pytest.raises(
        WeightsError, match=r"has other settings \(seed 0, now 1\); delete it to start from the beginning"
    ):
        train(tmp_path / "killed", seed=1)
    steps = []

    def observed(rendered, *, seed, step):
        steps.append(step)
        return augmented_batch(rendered, seed=seed, step=step)

    monkeypatch.setattr(training, "augmented_batch", observed)
    resumed = train(tmp_path / "killed")
    assert steps == [2, 3]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def faces(*rows):
    """Found faces of (box, score); the points are the box's upper left corner."""
    boxes = torch.tensor([box for box, _ in rows], dtype=torch.float32).view(-1, 4)
    return Faces(boxes, torch.tensor([score for _, score in rows]), boxes[:, None, :2].repeat(1, 5, 1))


def truth(*boxes, seen=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    points = np.repeat(boxes[:, None, :2] + np.float32(4), 5, axis=1)
    return SceneTruth(boxes, points, np.array(seen or [1] * len(boxes), np.float32))


def test_scores_by_hand():
    big, other, tiny = (0, 0, 80, 80), (100, 100, 180, 180), (10, 100, 30, 120)
    found = [
        faces((big, 0.9), ((0, 0, 80, 60), 0.8), (tiny, 0.7), ((100, 100, 180, 142), 0.6)),  # a double and a small one
        faces(((50, 50, 90, 90), 0.65)),  # nothing is there
        faces(),
    ]
    of = [truth(big, tiny, other), truth(), truth(big)]
    strict = training.detection_scores(found, of, min_side_px=32)
    assert strict.num_faces == 3, "the tiny one does not count"
    assert strict.threshold == pytest.approx(0.8)
    assert strict.recall == pytest.approx(1 / 3)
    assert strict.false_positives_at_half == 2
    assert strict.recall_at_half == pytest.approx(2 / 3)
    assert strict.mean_iou == pytest.approx(1.0)
    assert strict.mean_point_error_frac == pytest.approx(np.hypot(4, 4) / 80)
    lenient = training.detection_scores(found, of, min_side_px=32, false_positives_per_image=0.67)
    assert lenient.recall == pytest.approx(2 / 3)
    assert lenient.mean_iou == pytest.approx((1 + 42 / 80) / 2)


def test_hidden_faces_count_neither_way():
    back, front, hand = (40, 10, 140, 130), (60, 0, 180, 150), (45, 40, 75, 70)
    of = [truth(back, front, seen=[0.3, 1])]
    for found in (faces((front, 0.9), (back, 0.8), (hand, 0.7)), faces((front, 0.9))):
        scores = training.detection_scores([found], of, min_side_px=32)
        assert (scores.num_faces, scores.recall, scores.false_positives_at_half) == (1, 1, 0)
    scores = training.detection_scores([faces((front, 0.9), ((0, 0, 60, 60), 0.95))], of, min_side_px=32)
    assert (scores.recall, scores.false_positives_at_half) == (0, 1), "too little of it lies on the hidden face"


def test_hidden_faces_are_not_learned(monkeypatch, tmp_path):
    def drawn(_, rng, *, size_px):
        image, of = drawn_scene(_, np.random.default_rng(4), size_px=size_px)
        return image, of._replace(seen=np.linspace(0.4, 0.9, len(of.boxes), dtype=np.float32))

    monkeypatch.setattr(scenes_module, "random_scene", drawn)
    rendered = render_scenes(tmp_path, bank_path=tmp_path, num_scenes=50, seed=0, size_px=64, num_workers=1)
    assert rendered[7].is_learned.tolist() == [False, True]


def test_training_goes_on_from_weights(tmp_path):
    first = train(tmp_path / "first", num_steps=1)
    training.train_retinaface(
        tmp_path / "second.safetensors",
        bank_path=tmp_path,
        work=tmp_path / "second",
        num_steps=1,
        num_scenes=50,
        scene_px=64,
        max_lr=1e-9,
        device=CPU,
        num_workers=1,
        init_from=tmp_path / "first" / "weights.safetensors",
    )
    second = load_file(tmp_path / "second.safetensors")
    weights = [name for name in first if name.endswith("conv1x1.weight")]
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in weights)


@torch.inference_mode()
def test_evaluation_sees_other_scenes_than_training(monkeypatch, tmp_path):
    seen = []

    class Oracle(torch.nn.Module):
        def forward(self, images_B3HW, *, score_threshold):
            seen.append(images_B3HW)
            image, (boxes, points, _) = drawn_scene(None, np.random.default_rng([1_000_003, len(seen) - 1]), size_px=96)
            np.testing.assert_array_equal(images_B3HW[0].permute(1, 2, 0), image)
            return [Faces(torch.from_numpy(boxes), torch.ones(len(boxes)), torch.from_numpy(points))]

    scores = training.evaluate_detector(
        Oracle(), bank_path=tmp_path, num_scenes=9, size_px=96, min_side_px=4, device=CPU
    )
    assert scores.recall == 1.0
    assert scores.num_faces > 3
    assert scores.mean_point_error_frac == 0

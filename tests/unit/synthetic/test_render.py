"""Rendered faces: same bytes for the same generator, truth on the face, visible actions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.synthetic import raster
from pipeline.synthetic.bank import default_bank_path, load_bank, texture_angles, texture_place
from pipeline.synthetic.camera import Lens, sample_camera
from pipeline.synthetic.expressions import AU_ACTIONS, AU_WRINKLES, expression, random_expression
from pipeline.synthetic.identity import sample_identity
from pipeline.synthetic.render import five_points, random_face, random_scene, render_face, rotation, seen_frac


@pytest.fixture(scope="module")
def bank():
    return load_bank(default_bank_path())


@pytest.fixture(scope="module")
def person(bank):
    return sample_identity(bank, np.random.default_rng(3), texture_px=128, is_face_clear=True)


def view(**changes):
    camera = sample_camera(np.random.default_rng(1))
    front = {"yaw_deg": 0.0, "pitch_deg": 0.0, "roll_deg": 0.0, "centre_frac": (0.5, 0.5), "face_frac": 0.6}
    lens = Lens(gains=np.ones(3, np.float32), noise=0.001)
    return replace(camera, has_occluder=False, lens=lens, **front | changes)


def face_of(bank, person, aus, camera=None, size_px=160):
    return render_face(bank, person, expression(bank, aus), camera or view(), np.random.default_rng(0), size_px=size_px)


def test_the_shipped_bank_is_small_and_complete(bank):
    assert default_bank_path().stat().st_size < 1_000_000
    assert bank.landmarks.shape == (68,)
    assert len(bank.action_names) == 52
    assert bank.faces.max() < len(bank.rest)
    assert set(np.unique(bank.material)) == {
        raster.SKIN,
        raster.EYE_RIGHT,
        raster.EYE_LEFT,
        raster.MOUTH,
        raster.TONGUE,
        raster.TEETH,
    }
    x, y, z = bank.rest[bank.landmarks].T
    assert x[36] < 0 < x[45]  # the person's right eye is at the image's left
    assert y[8] > y[33] > y[27] > y[19]  # chin, nose, bridge, brow: y is down
    assert z[30] < z[0]  # noses are nearer than ears


def test_another_file_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "bank.npz"
    np.savez(path, rest=np.zeros((3, 3)))
    with pytest.raises(DataError, match="remove it"):
        load_bank(path)


def test_texture_places_and_angles_undo_each_other():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 3))
    turn, height = texture_angles(texture_place(points))
    assert turn == pytest.approx(np.rad2deg(np.arctan2(points[:, 0], -points[:, 2])), abs=1e-3)
    assert height == pytest.approx(
        np.rad2deg(np.arctan2(-points[:, 1], np.hypot(points[:, 0], points[:, 2]))), abs=1e-3
    )


def test_same_generator_same_bytes_other_seed_other_person(bank):
    first, truth = random_face(bank, np.random.default_rng([7, 1]), size_px=96)
    again, same_truth = random_face(bank, np.random.default_rng([7, 1]), size_px=96)
    other, _ = random_face(bank, np.random.default_rng([7, 2]), size_px=96)
    assert first.dtype == np.uint8
    assert first.shape == (96, 96, 3)
    assert np.array_equal(first, again)
    assert np.array_equal(truth.landmarks, same_truth.landmarks)
    assert not np.array_equal(first, other)


def test_truth_holds_the_face_and_grows_with_the_image(bank, person):
    image, truth = face_of(bank, person, {})
    big_image, big = face_of(bank, person, {}, size_px=320)
    x1, y1, x2, y2 = truth.box_xyxy
    assert big_image.shape == (320, 320, 3)
    assert image.shape == (160, 160, 3)
    assert 0.5 * 160 < y2 - y1 < 0.75 * 160
    assert 0.6 < (x2 - x1) / (y2 - y1) < 1.05
    assert (truth.landmarks > [x1 - 5, y1]).all()
    assert (truth.landmarks < [x2 + 5, y2 + 3]).all()
    assert big.landmarks == pytest.approx((truth.landmarks + 0.5) * 2 - 0.5, abs=0.6)
    assert truth.points == pytest.approx(five_points(truth.landmarks))
    assert truth.points[0, 0] < truth.points[2, 0] < truth.points[1, 0]


def test_yaw_goes_right_pitch_down_roll_clockwise():
    ahead, up = np.array([0.0, 0, -1]), np.array([0.0, -1, 0])
    assert (rotation(30, 0, 0) @ ahead)[0] == pytest.approx(0.5)
    assert (rotation(0, 30, 0) @ ahead)[1] == pytest.approx(0.5)
    assert (rotation(0, 0, 30) @ up)[0] == pytest.approx(0.5)


@pytest.mark.parametrize(("change", "axis"), [({"yaw_deg": 25.0}, 0), ({"pitch_deg": 20.0}, 1)])
def test_a_turned_head_moves_the_nose_between_the_eyes(bank, person, change, axis):
    def nose(truth):
        return (truth.landmarks[30] - truth.landmarks[36:48].mean(0))[axis]

    _, straight = face_of(bank, person, {})
    _, turned = face_of(bank, person, {}, view(**change))
    assert nose(turned) - nose(straight) > 3


@pytest.mark.parametrize("au", [1, 2, 4, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 24, 25, 26])
def test_each_action_unit_shows_at_the_threshold(bank, person, au):
    rest, _ = face_of(bank, person, {})
    acting, truth = face_of(bank, person, {au: 0.45})
    x1, y1, x2, y2 = truth.box_xyxy.astype(int)
    change = np.abs(acting.astype(int) - rest.astype(int))[y1:y2, x1:x2].max(2)
    assert (change > 12).sum() >= 20
    assert set(AU_WRINKLES) <= set(AU_ACTIONS)


@pytest.mark.parametrize(
    ("au", "point", "direction"),
    [(2, 18, (0, -1)), (1, 21, (0, -1)), (4, 20, (0, 1)), (12, 48, (-1, -1)), (15, 48, (0, 1)), (26, 8, (0, 1))],
)
def test_landmarks_follow_the_muscles(bank, person, au, point, direction):
    _, rest = face_of(bank, person, {})
    _, acting = face_of(bank, person, {au: 1.0})
    moved = acting.landmarks[point] - rest.landmarks[point]
    assert (moved * direction).sum() > 0.7
    assert (moved * direction >= 0).all()


def test_asymmetry_weakens_one_side(bank):
    both, one = expression(bank, {12: 1.0}), expression(bank, {12: 1.0}, asymmetry=-0.5)
    right, left = (int(np.flatnonzero(bank.action_names == f"mouthSmile{side}")[0]) for side in ("Right", "Left"))
    assert both.actions[right] == pytest.approx(both.actions[left])
    assert one.actions[right] == pytest.approx(0.5 * one.actions[left])
    assert one.wrinkles["laugh_right"] == pytest.approx(0.5 * one.wrinkles["laugh_left"])


def test_random_expressions_stay_within_what_the_mesh_bears(bank):
    for seed in range(40):
        face = random_expression(bank, np.random.default_rng(seed))
        assert face.actions.min() >= 0
        assert face.actions.max() <= 2.2
        assert 0 <= face.lips_pale <= 1


def test_scenes_have_faces_of_all_sizes_and_none(bank):
    counts, sizes = [], []
    for seed in range(12):
        image, (boxes, points, seen) = random_scene(bank, np.random.default_rng([11, seed]), size_px=160)
        assert image.shape == (160, 160, 3)
        assert boxes.shape == (len(points), 4)
        assert points.shape[1:] == (5, 2)
        assert seen.shape == (len(boxes),)
        assert ((seen >= 0) & (seen <= 1)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        centres = points.mean(1)
        assert (centres > boxes[:, :2]).all()
        assert (centres < boxes[:, 2:]).all()
        counts.append(len(boxes))
        sizes += (boxes[:, 3] - boxes[:, 1]).tolist()
    assert 0 in counts
    assert max(counts) > 1
    assert min(sizes) < 40
    assert max(sizes) > 70


def test_scenes_repeat_for_their_generator(bank):
    (image, truth), (again, same) = (random_scene(bank, np.random.default_rng(5), size_px=96) for _ in range(2))
    assert np.array_equal(image, again)
    assert all(np.array_equal(a, b) for a, b in zip(truth, same, strict=True))


def test_how_much_of_a_face_is_seen():
    own, hand = np.zeros((100, 100), bool), np.zeros((100, 100), bool)
    own[20:60, 30:50] = True
    hand[20:30] = True
    assert seen_frac(np.array([30.0, 20, 50, 60]), own, []) == 1
    assert seen_frac(np.array([30.0, 20, 50, 60]), own, [hand]) == pytest.approx(0.75)
    assert seen_frac(np.array([30.0, 20, 50, 60]), own, [hand, hand.T]) == pytest.approx(0.75)
    assert seen_frac(np.array([30.0, -20, 50, 60]), own, [hand]) == pytest.approx(0.75 * 0.75), "a quarter is outside"
    assert seen_frac(np.array([130.0, 20, 150, 60]), own, []) == 0


def test_people_differ_in_shape_and_colour(bank):
    people = [sample_identity(bank, np.random.default_rng(seed), texture_px=64) for seed in range(12)]
    noses = [person.points[bank.landmarks[30]] - person.points[bank.landmarks[27]] for person in people]
    skins = [person.texture[34, 26, :3] for person in people]
    assert np.std(noses, 0).max() > 0.002
    assert np.std(skins, 0).min() > 0.05
    women = [sample_identity(bank, np.random.default_rng(seed), texture_px=64, gender=0.0).gender for seed in range(4)]
    assert max(women) < 0.5


def test_a_square_is_drawn_once_and_hides_what_is_behind():
    corners = np.array([[2, 2, 1], [2, 8, 1], [8, 8, 1], [8, 2, 1], [0, 0, 5], [0, 30, 5], [30, 0, 5]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6]], np.int32)
    triangle, weights = np.full((12, 12), -1, np.int32), np.zeros((12, 12, 2), np.float32)
    depth = np.full((12, 12), np.inf, np.float32)
    raster.rasterize(corners, faces, np.zeros(3, bool), triangle, weights, depth)
    assert set(triangle[3:8, 3:8].ravel()) == {0, 1}
    assert triangle[10, 10] == 2
    assert depth[5, 5] == pytest.approx(1)
    assert depth[10, 10] == pytest.approx(5)
    back = np.full((12, 12), -1, np.int32)
    raster.rasterize(
        corners, faces[:, ::-1].copy(), np.zeros(3, bool), back, weights, np.full((12, 12), np.inf, np.float32)
    )
    assert (back == -1).all()


def test_blend_adds_weighted_offsets():
    points = np.zeros((2, 3), np.float32)
    offsets = np.arange(12, dtype=np.int16).reshape(2, 2, 3)
    raster.blend(points, np.array([2.0, 0.5], np.float32), offsets, 0.1)
    assert points == pytest.approx(0.1 * (2 * offsets[0] + 0.5 * offsets[1]))


def test_normals_point_outwards():
    points = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0]], np.float32)
    assert raster.vertex_normals(points, np.array([[0, 1, 2]], np.int32)) == pytest.approx(np.tile([0, 0, -1], (3, 1)))


def test_composite_softens_borders_and_leaves_the_rest():
    canvas, part = np.zeros((6, 6, 3), np.float32), np.ones((4, 4, 3), np.float32)
    cover = np.zeros((4, 4), np.float32)
    cover[1:4, 1:4] = 1
    raster.composite(canvas, part, cover, 1, 2)
    assert canvas[:2].max() == 0
    assert canvas[3, 4] == pytest.approx(np.ones(3))  # inside
    assert canvas[2, 3] == pytest.approx(np.full(3, 4 / 9 * 1.15))  # a corner: 4 of 9 neighbours are covered

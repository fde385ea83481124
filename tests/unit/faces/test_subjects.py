"""The subject's boxes: whose they are among several people, which are implausible, and which gaps are filled."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.catalog import load_catalog
from pipeline.config import DetectorConfig, TrackConfig
from pipeline.faces.detect import detect_frames, load_detector
from pipeline.faces.subjects import fill_gaps, subject_boxes
from pipeline.synthetic.bank import default_bank_path, load_bank
from pipeline.synthetic.render import random_face
from pipeline.tables import BOX_COLUMNS, FACE_COLUMNS, VALUE_COLUMNS

HERE, THERE = bytes(range(256)), bytes(range(255, -1, -1))
"""Thumbnails of two scenes."""


def box(x, y=200.0, side=100.0):
    """A square box about (x, y)."""
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


def frame_rows(numbers, *, task="T1"):
    rows = {"frame_id": [f"F001/{task}/{n}" for n in numbers], "subject": "F001", "task": task, "frame": list(numbers)}
    return pd.DataFrame(rows)


def face_rows(frames, boxes_by_frame, *, scores=None, thumbnails=None, size=(1000, 400), roll_deg=0.0, turned_deg=0):
    """Return `FACE_COLUMNS` of lists of boxes per frame; None is an unreadable frame. Points are those of a face."""
    rows = []
    for i, (frame_id, boxes) in enumerate(zip(frames["frame_id"], boxes_by_frame, strict=True)):
        status = "unreadable" if boxes is None else "ok" if boxes else "no_face"
        seen = b"" if boxes is None else HERE if thumbnails is None else thumbnails[i]
        for number, xyxy in enumerate(boxes or [[np.nan] * 4]):
            x1, y1, x2, y2 = xyxy
            centre, side = np.array([x1 + x2, y1 + y2]) / 2, x2 - x1
            angle = np.radians(roll_deg)
            turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            points = centre + side * np.array([[-0.2, -0.2], [0.2, -0.2], [0, 0], [-0.15, 0.2], [0.15, 0.2]]) @ turn
            score = np.nan if not boxes else 0.9 if scores is None else scores[i][number]
            values = [*xyxy, score, *points.ravel()]
            rows.append((frame_id, number if boxes else -1, status, *size, seen, turned_deg, *values))
    return pd.DataFrame(rows, columns=list(FACE_COLUMNS)).astype(dict.fromkeys(VALUE_COLUMNS, np.float32))


def choose(boxes_by_frame, *, numbers=None, of_faces=None, **settings):
    frames = frame_rows(range(1, len(boxes_by_frame) + 1) if numbers is None else numbers)
    return subject_boxes(frames, face_rows(frames, boxes_by_frame, **(of_faces or {})), DetectorConfig(**settings))


def centres(boxes):
    return [None if np.isnan(x) else round(float(x)) for x in (boxes["x1"] + boxes["x2"]) / 2]


# ------------------------------------------------------------------------------------------------------------- subject


def test_one_face_per_frame_is_the_subjects():
    boxes = choose([[box(300)], [], None, [box(310)]], max_gap_frames=0)
    assert list(boxes.columns) == list(BOX_COLUMNS)
    assert boxes["status"].tolist() == ["ok", "no_face", "unreadable", "ok"]
    assert centres(boxes) == [300, None, None, 310]
    assert boxes["track"].tolist() == [0, -1, -1, 0]
    assert boxes["num_faces"].tolist() == [1, 0, 0, 1]
    assert boxes["flaw"].tolist() == [""] * 4
    assert boxes.loc[0, ["score", "p2x", "p2y"]].tolist() == pytest.approx([0.9, 300, 200])


def test_the_largest_person_is_the_subject_whoever_scores_best_in_a_frame():
    scores = [[0.99, 0.8], [0.99, 0.8], [0.8, 0.99], [0.99, 0.8]]
    pairs = [[box(700, side=80), box(300)] if i != 2 else [box(300), box(700, side=80)] for i in range(4)]
    boxes = choose(pairs, of_faces={"scores": scores})
    assert centres(boxes) == [300] * 4
    assert boxes["num_faces"].tolist() == [2] * 4
    assert len(set(boxes["track"])) == 1


def test_the_rule_decides_who_is_the_subject():
    large_but_short, long_and_central = box(200, side=150), box(500, side=80)
    frames = [[long_and_central, large_but_short]] * 3 + [[long_and_central]]
    assert centres(choose(frames)) == [200, 200, 200, None]
    assert centres(choose(frames, subject="longest")) == [500] * 4
    assert centres(choose(frames[:3], subject="central")) == [500] * 3
    assert centres(choose(frames[:3], subject="largest")) == [200] * 3


def test_the_neighbour_is_never_shown_while_the_subject_is_missed_or_away():
    frames = [[box(300), box(700, side=60)]] * 6 + [[box(700, side=60)]] * 3 + [[]]
    boxes = choose(frames)
    assert boxes["status"].tolist() == ["ok"] * 6 + ["no_face"] * 4
    assert boxes["num_faces"].tolist() == [2] * 6 + [1] * 3 + [0]
    missed = choose([*frames[:3], [box(700, side=60)], *frames[:3]])
    assert missed["status"].tolist() == ["ok"] * 3 + ["interpolated"] + ["ok"] * 3
    assert centres(missed) == [300] * 7


def test_a_person_who_comes_back_elsewhere_is_a_switch_and_goes_on():
    boxes = choose([[box(300)]] * 3 + [[]] + [[box(700)]] * 3)
    assert boxes["status"].tolist() == ["ok"] * 3 + ["no_face"] + ["ok"] * 3
    assert centres(boxes) == [300] * 3 + [None] + [700] * 3
    assert boxes["track"].tolist() == [0, 0, 0, -1, 1, 1, 1]


def test_tracks_that_follow_each_other_weigh_together():
    """The neighbour's one track outweighs each of the subject's two, not both."""
    frames = [[box(300), box(700, side=80)]] * 4 + [[box(700, side=80)]] * 2 + [[box(450), box(700, side=80)]] * 4
    assert centres(choose(frames)) == [300] * 4 + [None] * 2 + [450] * 4


def test_a_cut_starts_a_scene_with_its_own_choice():
    scene = [HERE] * 4 + [THERE] * 4
    boxes = choose([[box(300)]] * 4 + [[box(300, side=90), box(700)]] * 4, of_faces={"thumbnails": scene})
    assert centres(boxes) == [300] * 4 + [700] * 4
    gap = choose([[box(300)], [], [box(300)]], of_faces={"thumbnails": [HERE, HERE, THERE]})
    assert gap["status"].tolist() == ["ok", "no_face", "ok"], "a gap is not filled across a cut"


def test_sequences_are_apart_and_rows_may_come_in_any_order():
    first, second = frame_rows([1, 2, 3]), frame_rows([1, 2, 3], task="T2")
    frames = pd.concat([first, second], ignore_index=True)
    people = [[box(300), box(600, side=70)]] * 3 + [[box(300, side=70), box(600)]] * 3
    faces, settings = face_rows(frames, people), DetectorConfig()
    boxes = subject_boxes(frames, faces, settings)
    assert centres(boxes) == [300] * 3 + [600] * 3
    order = np.random.default_rng(0).permutation(6)
    mixed = subject_boxes(
        frames.iloc[order].reset_index(drop=True), faces.sample(frac=1, random_state=1, ignore_index=True), settings
    )
    pd.testing.assert_frame_equal(mixed, boxes.iloc[order].reset_index(drop=True))


def test_settings_of_tracks_count():
    frames = [[box(300)], [box(420)]]
    assert choose(frames)["track"].tolist() == [0, 1]
    assert choose(frames, tracks=TrackConfig(max_move_sides=1.5))["track"].tolist() == [0, 0]


# --------------------------------------------------------------------------------------------------------------- flaws


@pytest.mark.parametrize(
    ("odd", "flaw", "off"),
    [
        (box(300, side=30), "small", {"min_side_px": 0, "min_side_frac": 0}),
        (box(300, side=39), "small", {"min_side_frac": 0.3}),
        (box(30), "outside", {"min_inside_frac": 0.5}),
        (box(975), "outside", {"min_inside_frac": 0.7}),
        (box(300, y=370), "outside", {"min_inside_frac": 0.7}),
    ],
)
def test_an_implausible_box_has_its_flaw_and_stays_out(odd, flaw, off):
    frames = [[box(300)]] * 3 + [[odd]]
    boxes = choose(frames)
    assert boxes["status"].tolist() == ["ok"] * 3 + ["implausible"]
    assert boxes["flaw"].tolist() == [""] * 3 + [flaw]
    assert centres(boxes)[3] == (odd[0] + odd[2]) / 2, "it is in the table, for those who look"
    kept = choose(frames, keeps_implausible=True)
    assert (kept["status"][3], kept["flaw"][3]) == ("ok", flaw)
    assert choose(frames, **off)["status"].tolist() == ["ok"] * 4


def test_a_box_that_touches_the_border_or_is_rather_small_is_plausible():
    frames = [[box(300)], [box(300, side=45)], [box(300)], [box(40)], [box(960)]]
    assert choose(frames)["flaw"].tolist() == [""] * 5


def test_a_turned_face_has_a_flaw():
    assert choose([[box(300)]], of_faces={"roll_deg": 40.0})["status"].tolist() == ["ok"]
    for roll_deg in (50.0, -50.0, 180.0):
        boxes = choose([[box(300)]], of_faces={"roll_deg": roll_deg})
        assert (boxes["status"][0], boxes["flaw"][0]) == ("implausible", "turned")
    assert choose([[box(300)]], of_faces={"roll_deg": 50.0}, max_roll_deg=60)["status"].tolist() == ["ok"]


def test_a_turned_frame_has_a_flaw_and_is_not_filled():
    frames = frame_rows([1, 2, 3, 4])
    faces = face_rows(frames, [[box(300)], [box(300)], [], [box(300)]])
    faces["turned_deg"] = [0, 90, 90, 0]
    boxes = subject_boxes(frames, faces, DetectorConfig())
    assert boxes["status"].tolist() == ["ok", "implausible", "no_face", "ok"]
    assert boxes["flaw"].tolist() == ["", "turned", "turned", ""]


def test_points_outside_of_the_box_are_a_flaw():
    frames = frame_rows([1, 2])
    faces = face_rows(frames, [[box(300)], [box(300)]])
    faces.loc[0, "p3x"], faces.loc[1, "p3x"] = 245, 235  # 5 and 15 % of the side outside
    assert subject_boxes(frames, faces, DetectorConfig())["flaw"].tolist() == ["", "points"]


# ---------------------------------------------------------------------------------------------------------------- gaps


def box_rows(frames, statuses, tracks=None):
    """Return boxes with the frame's number as every value, and NaN without a face."""
    values = np.repeat(frames["frame"].to_numpy(np.float32)[:, None], len(VALUE_COLUMNS), axis=1)
    values[[status != "ok" for status in statuses]] = np.nan
    table = pd.DataFrame(values, columns=list(VALUE_COLUMNS))
    tracks = [0 if status == "ok" else -1 for status in statuses] if tracks is None else tracks
    return table.assign(frame_id=frames["frame_id"], num_faces=1, status=statuses, track=tracks, flaw="")


def test_short_gaps_between_found_faces_are_filled():
    frames = frame_rows([1, 2, 3, 4, 8, 9, 13, 14, 15])
    boxes = box_rows(frames, ["no_face", "ok", "no_face", "unreadable", "ok", "no_face", "no_face", "ok", "no_face"])
    filled = fill_gaps(frames, boxes, max_gap_frames=5)
    assert filled["status"].tolist() == [
        "no_face",
        "ok",
        "interpolated",
        "unreadable",
        "ok",
        "interpolated",
        "interpolated",
        "ok",
        "no_face",
    ]
    assert filled.loc[[2, 5, 6], "x1"].tolist() == [3, 9, 13]  # every value was the frame's number
    assert filled.loc[[2, 5, 6], "p4y"].tolist() == [3, 9, 13]
    assert filled["track"].tolist() == [-1, 0, 0, -1, 0, 0, 0, 0, -1]
    assert filled.loc[[0, 2, 3, 5, 8], "score"].isna().all()
    assert filled.loc[[0, 3, 8], "x1"].isna().all()
    assert boxes["status"].tolist().count("interpolated") == 0, "the given table must stay as it was"


def test_a_gap_is_filled_up_to_its_limit_and_never_across_tasks():
    frames = pd.concat([frame_rows([1, 2, 4]), frame_rows([2, 3], task="T2")], ignore_index=True)
    boxes = box_rows(frames, ["ok", "no_face", "ok", "no_face", "ok"])
    assert fill_gaps(frames, boxes, max_gap_frames=2)["status"].tolist()[1] == "interpolated"
    assert fill_gaps(frames, boxes, max_gap_frames=1)["status"].tolist()[1] == "no_face"
    assert fill_gaps(frames, boxes, max_gap_frames=2)["status"].tolist()[3] == "no_face"


def test_gaps_are_filled_in_any_row_order():
    frames = frame_rows([3, 1, 2])
    filled = fill_gaps(frames, box_rows(frames, ["ok", "ok", "no_face"]), max_gap_frames=5)
    assert filled["x2"].tolist() == [3, 1, 2]


def test_a_gap_is_filled_within_one_track_only():
    frames = frame_rows([1, 2, 3, 4, 5])
    boxes = box_rows(frames, ["ok", "no_face", "ok", "no_face", "ok"], tracks=[0, -1, 1, -1, 1])
    filled = fill_gaps(frames, boxes, max_gap_frames=5)
    assert filled["status"].tolist() == ["ok", "no_face", "ok", "interpolated", "ok"]
    assert filled["track"].tolist() == [0, -1, 1, 1, 1]


def test_no_box_is_put_between_two_people_at_the_two_ends_of_the_image():
    boxes = choose([[box(100)]] * 2 + [[]] * 4 + [[box(900, side=50)]] * 2)
    assert boxes["status"].tolist() == ["ok"] * 2 + ["no_face"] * 4 + ["ok"] * 2


# ------------------------------------------------------------------------------------------------------ rendered faces


@pytest.fixture(scope="module")
def faces_of_two():
    """Two rendered people, RGB (192, 192, 3)."""
    bank = load_bank(default_bank_path())
    return [random_face(bank, np.random.default_rng(seed), size_px=192, max_angle_deg=10)[0] for seed in (3, 4)]


@pytest.fixture(scope="module")
def detector():
    return load_detector(load_catalog().get_weights("retinaface-mobilenet"), torch.device("cpu"))


def find_boxes(folder, images, detector, **settings):
    frames = frame_rows(range(1, len(images) + 1)).assign(source_file="", source_frame=-1)
    for number, image in enumerate(images):
        frames.loc[number, "source_file"] = f"{number}.png"
        assert cv2.imwrite(str(folder / f"{number}.png"), image[..., ::-1])
    config = DetectorConfig(**settings)
    faces = detect_frames(frames, folder, detector, settings=config, device=torch.device("cpu"))
    return subject_boxes(frames, faces, config)


def varied(image, rng):
    """The same face, moved, in other light, blurred."""
    height, width = image.shape[:2]
    zoom = cv2.getRotationMatrix2D((width / 2, height / 2), 0, rng.uniform(0.93, 1.07))
    zoom[:, 2] += rng.uniform(-4, 4, 2)
    image = cv2.warpAffine(image, zoom, (width, height), borderMode=cv2.BORDER_REPLICATE)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.5))
    return (image * rng.uniform(0.8, 1.1)).clip(0, 255).astype(np.uint8)


def test_of_two_people_side_by_side_each_frame_shows_the_same(tmp_path, faces_of_two, detector):
    rng = np.random.default_rng(0)
    images = [np.concatenate([varied(face, rng) for face in faces_of_two], axis=1) for _ in range(8)]
    boxes = find_boxes(tmp_path, images, detector)
    assert boxes["num_faces"].tolist() == [2] * 8
    assert boxes["status"].tolist() == ["ok"] * 8
    assert len({x > 192 for x in boxes["x1"]}) == len(set(boxes["track"])) == 1


def test_half_a_face_is_implausible(tmp_path, faces_of_two, detector):
    whole = faces_of_two[0]
    boxes = find_boxes(tmp_path, [whole] * 3 + [whole[:, :96], whole[96:], whole[:, 96:], whole[:80]], detector)
    assert boxes["status"][:3].tolist() == ["ok"] * 3
    assert "ok" not in set(boxes["status"][3:])


def test_frames_that_lie_on_their_side_are_turned(tmp_path, faces_of_two, detector):
    lying = [np.ascontiguousarray(np.rot90(face, quarters)) for face in faces_of_two for quarters in (1, 3)]
    boxes = find_boxes(tmp_path, lying, detector)
    assert boxes["flaw"].tolist() == ["turned"] * 4
    assert "ok" not in set(boxes["status"])

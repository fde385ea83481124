"""Tracks of faces: who is whom from frame to frame, people who cross, leave and return, and cuts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import TrackConfig
from pipeline.faces.tracks import Tracker, is_cut, scene_thumbnail


def box(x, y=100.0, side=60.0):
    """A square box about (x, y)."""
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


def link(frames, *, numbers=None, thumbnails=None, **changes):
    """Return the tracks per frame of lists of boxes; all scores are 0.9."""
    tracker = Tracker(TrackConfig(**changes))
    numbers = range(len(frames)) if numbers is None else numbers
    thumbnails = [None] * len(frames) if thumbnails is None else thumbnails
    return [
        tracker.update(
            np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), 0.9), frame=n, thumbnail=thumbnail
        ).tolist()
        for boxes, n, thumbnail in zip(frames, numbers, thumbnails, strict=True)
    ]


def test_two_people_side_by_side_keep_their_tracks_in_any_order_of_scores():
    tracker = Tracker(TrackConfig())
    rng = np.random.default_rng(0)
    for frame in range(40):
        boxes = np.array([box(100), box(190)], np.float32) + rng.normal(0, 4, (2, 1))
        scores = rng.uniform(0.5, 1, 2)
        ids = tracker.update(boxes, scores, frame=frame)
        if frame == 0:
            first = ids
        assert ids.tolist() == first.tolist()


def test_people_who_cross_keep_their_tracks_although_the_rear_face_is_hidden():
    def positions(frame):
        return 100 + 12 * frame, 400 - 12 * frame  # they meet at frame 12.5

    def seen(frame):
        a, b = positions(frame)
        return [box(a)] if abs(a - b) < 40 else [box(a), box(b)]

    ids = link([seen(frame) for frame in range(26)])
    assert {tuple(i) for i in ids} == {(0, 1), (0,)}
    assert ids[0] == ids[-1] == [0, 1]


def test_a_face_that_is_missed_for_a_while_continues_its_track_if_it_comes_back_near():
    assert link([[box(100)], [], [], [box(120)]]) == [[0], [], [], [0]]
    assert link([[box(100)], [], [], [box(140)]], min_iou=0.5) == [[0], [], [], [0]], "no overlap, but near"
    assert link([[box(100)], [], [], [box(150)]]) == [[0], [], [], [1]], "more than 0.75 sides away"
    assert link([[box(100)], [box(140, side=38)]]) == [[0], [1]], "near, but another size"
    assert link([[box(100)], [box(100)]], numbers=[1, 52]) == [[0], [0]]
    assert link([[box(100)], [box(100)]], numbers=[1, 53]) == [[0], [1]], "51 frames lie between"


def test_a_newcomer_does_not_take_the_track_of_the_person_beside():
    assert link([[box(100)], [box(145), box(104)], [box(149), box(108)]]) == [[0], [1, 0], [1, 0]]


def test_numbers_of_tracks_are_not_used_again():
    assert link([[box(100)], [box(300)], [box(500)]], max_missed_frames=0) == [[0], [1], [2]]


def test_pairs_are_chosen_together():
    """The greatest overlap alone would pair the second face with the first track, and leave the others alone."""
    assert link([[box(100), box(130)], [box(70), box(104)]], min_iou=0.2) == [[0, 1], [0, 1]]


def test_frames_come_in_their_order():
    tracker = Tracker(TrackConfig())
    tracker.update(np.zeros((0, 4)), np.zeros(0), frame=5)
    with pytest.raises(ValueError, match="frame 5 follows frame 5"):
        tracker.update(np.zeros((0, 4)), np.zeros(0), frame=5)


@given(seed=st.integers(0, 10**6), num_people=st.integers(1, 5), num_frames=st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_tracks_do_not_depend_on_the_order_of_the_faces(seed, num_people, num_frames):
    rng = np.random.default_rng(seed)
    one, other = Tracker(TrackConfig()), Tracker(TrackConfig())
    last = -1
    for frame in range(num_frames):
        boxes = np.array([box(*rng.uniform(50, 400, 2), rng.uniform(20, 90)) for _ in range(num_people)], np.float32)
        boxes = boxes[rng.random(num_people) < 0.8]
        scores = rng.choice([0.6, 0.8], len(boxes))
        order = rng.permutation(len(boxes))
        ids = one.update(boxes, scores, frame=frame)
        assert ids[order].tolist() == other.update(boxes[order], scores[order], frame=frame).tolist()
        assert len(set(ids.tolist())) == len(ids), "two faces of a frame are two people"
        new = sorted(ids[ids > last].tolist())
        assert new == list(range(last + 1, last + 1 + len(new)))
        last += len(new)


@given(seed=st.integers(0, 10**6), num_people=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_people_who_sit_apart_keep_their_tracks_whatever_is_missed(seed, num_people):
    rng = np.random.default_rng(seed)
    tracker, person_of = Tracker(TrackConfig()), {}
    for frame in range(30):
        people = np.flatnonzero(rng.random(num_people) < 0.7)
        boxes = np.array([box(100 + 120 * p) for p in people], np.float32).reshape(-1, 4) + rng.normal(0, 2, (1, 4))
        for person, track in zip(people, tracker.update(boxes, rng.random(len(people)), frame=frame), strict=True):
            assert person_of.setdefault(int(track), person) == person
    assert len(person_of) <= num_people


# ---------------------------------------------------------------------------------------------------------------- cuts


def scene(seed, size_px=192):
    """A smooth random image, RGB."""
    coarse = np.random.default_rng(seed).uniform(20, 200, (7, 7, 3)).astype(np.float32)
    return cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def is_cut_between(a, b):
    return is_cut(scene_thumbnail(np.ascontiguousarray(a)), scene_thumbnail(np.ascontiguousarray(b)), 0.6)


def test_another_scene_is_a_cut():
    cuts = [is_cut_between(scene(seed), scene(seed + 100)) for seed in range(40)]
    assert np.mean(cuts) > 0.95
    assert is_cut_between(np.zeros((64, 64, 3), np.uint8), scene(1)), "from black"


def test_light_noise_and_a_moving_camera_are_not_a_cut():
    for seed in range(20):
        image = scene(seed)
        noise = np.random.default_rng(seed).normal(0, 8, image.shape)
        assert not is_cut_between(image, (image + noise).clip(0, 255).astype(np.uint8))
        assert not is_cut_between(image, (image * 0.3 + 5).astype(np.uint8)), "the light goes off"
        for pan in (12, 24, 36):
            assert not is_cut_between(image[:, :-pan], image[:, pan:])
            assert not is_cut_between(image[pan:], image[:-pan])
    assert not is_cut_between(np.full((64, 64, 3), 9, np.uint8), np.full((64, 64, 3), 200, np.uint8)), "both even"


def test_a_cut_ends_all_tracks():
    here, there = scene_thumbnail(scene(1)), scene_thumbnail(scene(2))
    frames = [[box(100)], [box(100)], [], [box(100)], [box(100)]]
    assert link(frames, thumbnails=[here, here, there, there, None]) == [[0], [0], [], [1], [1]]
    assert link(frames, thumbnails=[here, here, None, there, there]) == [[0], [0], [], [1], [1]], "one is unreadable"
    tracker = Tracker(TrackConfig())
    scenes = []
    for frame, thumbnail in enumerate([here, None, here, there, there, here]):
        tracker.update(np.zeros((0, 4)), np.zeros(0), frame=frame, thumbnail=thumbnail)
        scenes.append(tracker.scene)
    assert scenes == [0, 0, 0, 1, 1, 2]


def test_a_thumbnail_is_small_and_grey():
    thumbnail = scene_thumbnail(np.full((48, 300, 3), (255, 0, 0), np.uint8))
    assert (thumbnail.shape, thumbnail.dtype) == ((16, 16), np.uint8)
    assert set(thumbnail.ravel().tolist()) == {76}

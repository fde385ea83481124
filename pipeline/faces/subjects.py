"""From faces to boxes: the subject's face in each frame, which boxes are implausible, and short gaps filled."""

# F faces, T tracks of a sequence
from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.config import DetectorConfig
from pipeline.faces.tracks import THUMBNAIL_PX, Tracker
from pipeline.tables import BOX_COLUMNS, VALUE_COLUMNS, Flaw, Status

BOX = ["x1", "y1", "x2", "y2"]
_SEQUENCE = ["subject", "task"]
_POINTS_SLACK_FRAC = 0.1
"""How far outside of the box a point may be, in sides of the box."""


def subject_boxes(frames: pd.DataFrame, faces: pd.DataFrame, settings: DetectorConfig) -> pd.DataFrame:
    """Return `BOX_COLUMNS`: the subject's face in each frame, one row per frame in the order of `frames`.

    The faces of each sequence (subject and task) are linked into tracks. The subject's are the tracks with the largest
    weight together (`settings.subject`), no two of which are seen at the same time: who is seen together with the
    subject is another person. Frames without the subject are no_face, whoever else they show. Then implausible boxes
    get their flaw, and short gaps are filled. frames: `FRAME_COLUMNS`. faces: `FACE_COLUMNS` of all these frames.
    """
    places = pd.Series(np.arange(len(frames)), frames["frame_id"].to_numpy())
    place_F = places.loc[faces["frame_id"]].to_numpy()
    order = np.lexsort((faces["face"], place_F))
    faces, place_F = faces.iloc[order].reset_index(drop=True), place_F[order]
    track_F = _subject_tracks(frames, faces, place_F, settings)

    shown = np.searchsorted(place_F, np.arange(len(frames)))  # the face that a frame shows, else its first row
    shown[place_F[track_F >= 0]] = np.flatnonzero(track_F >= 0)
    boxes = faces.loc[shown].reset_index(drop=True)
    boxes["track"] = track_F[shown]
    boxes["num_faces"] = np.bincount(place_F[faces["face"] >= 0], minlength=len(frames)).astype(np.int32)
    is_without = boxes["track"] < 0
    boxes.loc[is_without, list(VALUE_COLUMNS)] = np.nan
    boxes.loc[is_without & (boxes["status"] == Status.OK), "status"] = Status.NO_FACE.value
    boxes["flaw"] = _flaws(frames, boxes, settings)
    if not settings.keeps_implausible:
        boxes.loc[(boxes["status"] == Status.OK) & (boxes["flaw"] != ""), "status"] = Status.IMPLAUSIBLE.value
    return fill_gaps(frames, boxes[list(BOX_COLUMNS)], max_gap_frames=settings.max_gap_frames)


# ------------------------------------------------------------------------------------------------------------- subject


def _subject_tracks(
    frames: pd.DataFrame, faces: pd.DataFrame, place_F: np.ndarray, settings: DetectorConfig
) -> np.ndarray:
    """Return the track of each face if it is the subject's, else -1: int32 (F,). Faces are ordered by frame."""
    numbers = frames["frame"].to_numpy()
    ends = np.searchsorted(place_F, np.arange(len(frames)), side="right")
    starts = ends - np.bincount(place_F[faces["face"] >= 0], minlength=len(frames))
    boxes_F4, scores_F = faces[BOX].to_numpy(), faces["score"].to_numpy()
    weight_F, thumbnails = _weights(faces, settings), faces["thumbnail"].to_numpy()
    track_F = np.full(len(faces), -1, np.int32)
    for members in frames.groupby(_SEQUENCE, sort=False).indices.values():
        tracker = Tracker(settings.tracks)
        sequence = np.asarray(members)[np.argsort(numbers[members])].tolist()
        for place in sequence:
            of_frame = slice(starts[place], ends[place])
            seen = thumbnails[ends[place] - 1]
            track_F[of_frame] = tracker.update(
                boxes_F4[of_frame],
                scores_F[of_frame],
                frame=int(numbers[place]),
                thumbnail=np.frombuffer(seen, np.uint8).reshape(THUMBNAIL_PX, THUMBNAIL_PX) if seen else None,
            )
        rows = np.concatenate([np.arange(starts[place], ends[place]) for place in sequence])
        is_subject = np.isin(track_F[rows], _heaviest_apart(track_F[rows], numbers[place_F[rows]], weight_F[rows]))
        track_F[rows[~is_subject]] = -1
    return track_F


def _weights(faces: pd.DataFrame, settings: DetectorConfig) -> np.ndarray:
    """Return what each face adds to the weight of its track: float64 (F,), above 0."""
    x1, y1, x2, y2 = faces[BOX].to_numpy(np.float64).T
    score = faces["score"].to_numpy(np.float64)
    match settings.subject:
        case "largest":
            weights = score * (x2 - x1) * (y2 - y1)
        case "longest":
            weights = np.ones(len(faces))
        case "central":
            width, height = faces["width_px"].to_numpy(), faces["height_px"].to_numpy()
            from_centre = np.hypot((x1 + x2 - width) / 2, (y1 + y2 - height) / 2)
            weights = score * (1 - from_centre / np.maximum(np.hypot(width, height) / 2, 1))
    return np.asarray(np.maximum(weights, 1e-6))


def _heaviest_apart(track_F: np.ndarray, frame_F: np.ndarray, weight_F: np.ndarray) -> list[int]:
    """Return the tracks of the largest total weight of which no two share a time: weighted interval scheduling.

    track_F, frame_F, weight_F: track, frame number and weight of each face of a sequence.
    """
    spans = pd.DataFrame({"track": track_F, "frame": frame_F, "weight": weight_F}).groupby("track")
    table = spans.agg(first=("frame", "min"), last=("frame", "max"), weight=("weight", "sum")).sort_values("last")
    num_before = np.searchsorted(table["last"].to_numpy(), table["first"].to_numpy())  # tracks that ended earlier
    totals: list[float] = [0.0]  # of the tracks that ended first
    chosen: list[list[int]] = [[]]
    for track, weight, before in zip(table.index.tolist(), table["weight"].tolist(), num_before, strict=True):
        is_better = totals[before] + weight > totals[-1]
        totals.append(totals[before] + weight if is_better else totals[-1])
        chosen.append([*chosen[before], track] if is_better else chosen[-1])
    return chosen[-1]


# --------------------------------------------------------------------------------------------------------------- flaws


def _flaws(frames: pd.DataFrame, boxes: pd.DataFrame, settings: DetectorConfig) -> np.ndarray:
    """Return the flaw of each box, str objects (n,): "" for a plausible box, or none."""
    x1, y1, x2, y2 = (boxes[name].to_numpy(np.float64) for name in BOX)
    width, height = x2 - x1, y2 - y1
    area = np.maximum(width * height, 1e-6)
    side = pd.Series(np.sqrt(area), frames.index)
    typical = side.groupby([frames[name] for name in _SEQUENCE]).transform("median").to_numpy()
    inside_x = np.minimum(x2, boxes["width_px"] - 0.5) - np.maximum(x1, -0.5)  # pixel centres are whole numbers
    inside_y = np.minimum(y2, boxes["height_px"] - 0.5) - np.maximum(y1, -0.5)
    inside_frac = np.maximum(inside_x, 0) * np.maximum(inside_y, 0) / area
    points = boxes[list(VALUE_COLUMNS[5:])].to_numpy(np.float64).reshape(-1, 5, 2)
    from_corner = (points - np.stack([x1, y1], 1)[:, None]) / np.maximum(np.stack([width, height], 1)[:, None], 1e-6)
    is_outside_box = (from_corner < -_POINTS_SLACK_FRAC) | (from_corner > 1 + _POINTS_SLACK_FRAC)
    eyes = points[:, 1] - points[:, 0]
    roll_deg = np.abs(np.degrees(np.arctan2(eyes[:, 1], eyes[:, 0])))
    found = [  # comparisons with NaN are False: no box has no flaw
        ((boxes["turned_deg"] != 0) | (roll_deg > settings.max_roll_deg), Flaw.TURNED),
        (inside_frac < settings.min_inside_frac, Flaw.OUTSIDE),
        ((side < settings.min_side_px) | (side < settings.min_side_frac * typical), Flaw.SMALL),
        (is_outside_box.any((1, 2)), Flaw.POINTS),
    ]
    return np.select([np.asarray(mask) for mask, _ in found], [flaw.value for _, flaw in found], "").astype(object)


# ---------------------------------------------------------------------------------------------------------------- gaps


def fill_gaps(frames: pd.DataFrame, boxes: pd.DataFrame, *, max_gap_frames: int) -> pd.DataFrame:
    """Return `boxes` with short runs without a face interpolated linearly between two detected faces of one track.

    A run is filled, and its status becomes interpolated, if at most `max_gap_frames` frame numbers lie between its two
    neighbours in the sequence, and both are of one track: there is no cut between them, and the face hardly moved.
    Scores stay NaN; unreadable and turned frames and implausible boxes stay unchanged. Both tables must list the same
    frames in the same order.
    """
    assert (frames["frame_id"].to_numpy() == boxes["frame_id"].to_numpy()).all()
    columns = [name for name in VALUE_COLUMNS if name != "score"]
    values, statuses = boxes[columns].to_numpy(copy=True), boxes["status"].to_numpy(copy=True)
    numbers, tracks = frames["frame"].to_numpy(), boxes["track"].to_numpy(copy=True)
    has_flaw = (boxes["flaw"] != "").to_numpy()
    for rows in frames.groupby(_SEQUENCE, sort=False).indices.values():
        is_ok = statuses[rows] == Status.OK
        if is_ok.sum() < 2:
            continue
        ok_rows = rows[is_ok][np.argsort(numbers[rows[is_ok]])]
        ok_numbers = numbers[ok_rows]
        after = np.searchsorted(ok_numbers, numbers[rows])
        is_between = (after > 0) & (after < len(ok_rows))
        before, after = np.maximum(after - 1, 0), np.minimum(after, len(ok_rows) - 1)
        is_short = ok_numbers[after] - ok_numbers[before] - 1 <= max_gap_frames
        is_one_track = tracks[ok_rows[after]] == tracks[ok_rows[before]]
        is_missed = (statuses[rows] == Status.NO_FACE) & ~has_flaw[rows]
        is_filled = is_missed & is_between & is_short & is_one_track
        filled = rows[is_filled]
        for column in range(len(columns)):
            values[filled, column] = np.interp(numbers[filled], ok_numbers, values[ok_rows, column])
        tracks[filled] = tracks[ok_rows[before[is_filled]]]
        statuses[filled] = Status.INTERPOLATED.value
    return boxes.assign(**dict(zip(columns, values.T, strict=True)), status=statuses, track=tracks)

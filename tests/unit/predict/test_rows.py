import io
import json
from importlib.metadata import version

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.config import TrackConfig
from pipeline.faces.tracks import Tracker
from pipeline.predict.rows import (
    FACE_COLUMNS,
    ROWS_VERSION,
    formatter,
    replay_tracks,
    to_rows,
    write_csv,
    write_output,
)
from pipeline.predict.stream import FrameFaces
from pipeline.tables import Status

AUS = (1, 12)
THRESHOLD = np.full(2, 0.5, np.float32)


def frame(number, boxes=(), *, ids=None, name="a.mp4", **more):
    num = len(boxes)
    scores = np.linspace(0.9, 0.8, num, dtype=np.float32)
    fields = {
        "status": Status.OK if num else Status.NO_FACE,
        "boxes_N4": np.array(boxes, np.float32).reshape(-1, 4),
        "scores_N": scores,
        "ids_N": np.arange(num, dtype=np.int32) if ids is None else np.array(ids, np.int32),
        "thumbnail": np.full((16, 16), 7, np.uint8),
    }
    if num:
        fields["probabilities_NA"] = np.tile(np.array([[0.5, np.nextafter(np.float32(0.5), 0)]], np.float32), (num, 1))
        fields["landmarks_NP2"] = np.arange(num * 136, dtype=np.float32).reshape(num, 68, 2)
    return FrameFaces(name, number, number / 25, **(fields | more))


def test_one_row_per_face_in_the_order_of_its_number_and_one_per_frame_without():
    rows = to_rows([frame(0, [(1, 2, 11, 22), (30, 2, 50, 22)], ids=[4, 3]), frame(1)], AUS, THRESHOLD)
    assert list(rows.columns[:14]) == [*FACE_COLUMNS, "p_01", "p_12", "au_01", "au_12"]
    assert rows["face_id"].tolist() == [3, 4, pd.NA]
    assert rows["x1"].tolist()[:2] == [30, 1]
    assert rows["status"].tolist() == ["ok", "ok", "no_face"]
    assert rows[["x1", "score", "p_01", "au_01"]].iloc[2].isna().all()
    assert rows[["au_01", "au_12"]].iloc[0].tolist() == [1, 0], "the threshold itself is present"
    assert rows[["x_1", "y_1"]].iloc[1].tolist() == [2, 3]
    assert rows["timestamp_s"].tolist() == [0, 0, 0.04]


def test_tracks_continue_from_the_rows_as_they_would_have():
    rng = np.random.default_rng(0)
    boxes = [np.array([[20, 20, 60, 60], [100, 20, 140, 60]]) + rng.integers(-4, 4, (2, 1)) for _ in range(12)]
    boxes[4] = boxes[4][:0]
    thumbnails = [np.random.default_rng(i // 9).integers(0, 255, (16, 16), np.uint8) for i in range(12)]  # a cut at 9
    whole = Tracker(TrackConfig())
    frames = []
    for number, (here, thumbnail) in enumerate(zip(boxes, thumbnails, strict=True)):
        scores = np.linspace(0.9, 0.8, len(here), dtype=np.float32)
        ids = whole.update(here.astype(np.float32), scores, frame=number, thumbnail=thumbnail)
        frames.append(frame(number, here, ids=ids, thumbnail=thumbnail))
    assert max(each.ids_N.max(initial=0) for each in frames) >= 3
    for cut in (1, 5, 9, 11):
        lost = frame(cut, status=Status.UNREADABLE, thumbnail=None)
        tracker = replay_tracks((to_rows(each, AUS, THRESHOLD) for each in (frames[:cut], [lost])), TrackConfig())
        for each in frames[cut:]:
            found = tracker.update(each.boxes_N4, each.scores_N, frame=each.number + 1, thumbnail=each.thumbnail)
            assert found.tolist() == each.ids_N.tolist()


@pytest.fixture
def rows():
    return to_rows([frame(0, [(1, 2, 11, 22)]), frame(1)], AUS, THRESHOLD)


def test_columns_of_py_feat(rows):
    table = formatter("py-feat", has_landmarks=True)(rows)
    face = ["FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight", "FaceScore"]
    points = [f"{axis}_{i}" for axis in "xy" for i in range(68)]
    assert list(table) == [*face, *points, "AU01", "AU12", "input", "frame", "approx_time", "Identity"]
    assert table[face[:4]].iloc[0].tolist() == [1, 2, 10, 20]
    assert table["AU01"].iloc[0] == 0.5
    assert table["Identity"].tolist() == ["Person_0", pd.NA]
    assert "x_0" not in formatter("py-feat", has_landmarks=False)(rows)


def test_columns_of_openface_have_no_intensity_and_a_missing_face_is_no_absence(rows):
    table = formatter("openface", has_landmarks=False)(rows)
    assert list(table) == ["frame", "face_id", "timestamp", "confidence", "success", "AU01_c", "AU12_c", "input"]
    assert table["frame"].tolist() == [1, 2]
    assert table["success"].tolist() == [1, 0]
    assert table["confidence"].tolist() == pytest.approx([0.9, 0])
    assert table["AU01_c"].tolist() == [1, pd.NA]


@pytest.mark.parametrize("name", ["fantrans", "py-feat", "openface"])
def test_csv_and_parquet_hold_the_same_rows_of_all_chunks(tmp_path, name):
    chunks = [to_rows([frame(0)], AUS, THRESHOLD), to_rows([frame(1, [(1, 2, 11, 22)])], AUS, THRESHOLD)]
    convert = formatter(name, has_landmarks=True)
    for suffix in (".csv", ".parquet"):
        write_output(tmp_path / f"out{suffix}", suffix, map(convert, chunks))
    csv, parquet = pd.read_csv(tmp_path / "out.csv"), pd.read_parquet(tmp_path / "out.parquet")
    assert len(csv) == len(parquet) == 2
    assert list(csv) == list(parquet) == list(convert(chunks[0]))
    assert parquet.to_csv(index=False, float_format="%.7g") == (tmp_path / "out.csv").read_text()
    versions = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"fantrans"])
    assert versions == {"version": version("fantrans"), "schema": ROWS_VERSION}
    file = io.StringIO()
    write_csv(map(convert, chunks), file)
    assert file.getvalue() == (tmp_path / "out.csv").read_text()

"""Reading frames and turning them into boxes: coordinates, statuses, gaps, resuming."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from models.retinaface import Faces, RetinaFace
from pipeline.catalog import WeightsEntry
from pipeline.config import DetectorConfig
from pipeline.datasets.images import read_frames, read_image
from pipeline.errors import WeightsError
from pipeline.faces.detect import VALUE_COLUMNS, detect_frames, faces_in, fill_gaps, load_detector
from pipeline.runtime.atomic import file_sha256
from pipeline.tables import BOX_COLUMNS

CPU = torch.device("cpu")
SETTINGS = DetectorConfig(max_side_px=64)


class BrightestBlob(torch.nn.Module):
    """Stub network that detects pixels brighter than 200 as a face and measures its box."""

    def __init__(self):
        super().__init__()
        self.batch_shapes = []

    def forward(self, images_B3HW, *, score_threshold, nms_iou):
        self.batch_shapes.append(tuple(images_B3HW.shape))
        return [self._faces(image.float().mean(0)) for image in images_B3HW]

    def _faces(self, grey):
        y, x = (grey > 200).nonzero(as_tuple=True)
        if not len(x):
            return Faces(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 5, 2))
        box = torch.stack([x.min(), y.min(), x.max(), y.max()]).float()
        return Faces(torch.stack([box, box + 100]), torch.tensor([0.9, 0.6]), box.view(2, 2).mean(0).repeat(2, 5, 1))


def draw_image(*, height=48, width=64, blob=(10, 20, 30, 40)) -> np.ndarray:
    """RGB, dark, with a white rectangle (x1, y1, x2, y2: first and last px)."""
    image = np.full((height, width, 3), 20, np.uint8)
    if blob:
        x1, y1, x2, y2 = blob
        image[y1 : y2 + 1, x1 : x2 + 1] = 255
    return image


def write_jpeg(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])


def write_video(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=20)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for image in images:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        video.mux(stream.encode())


def frame_rows(sources, *, numbers=None, task="T1"):
    """A frame index of (source_file, source_frame)."""
    numbers = range(1, len(sources) + 1) if numbers is None else numbers
    return pd.DataFrame(
        [
            {
                "frame_id": f"F001/{task}/{n}",
                "subject": "F001",
                "task": task,
                "frame": n,
                "source_file": file,
                "source_frame": source_frame,
            }
            for n, (file, source_frame) in zip(numbers, sources, strict=True)
        ]
    )


def box_rows(frames, statuses):
    """Return boxes with the frame's number as every value, and NaN without a face."""
    values = np.repeat(frames["frame"].to_numpy(np.float32)[:, None], len(VALUE_COLUMNS), axis=1)
    values[[status != "ok" for status in statuses]] = np.nan
    table = pd.DataFrame(values, columns=VALUE_COLUMNS).assign(num_faces=1, status=statuses)
    table.insert(0, "frame_id", frames["frame_id"])
    return table


def test_images_come_in_rgb_and_in_order(tmp_path):
    for number in range(30):
        image = np.zeros((8, 8, 3), np.uint8)
        image[..., 0] = 8 * number
        write_jpeg(tmp_path / f"{number:02}.jpg", image)
    read = list(read_frames(tmp_path, frame_rows([(f"{number:02}.jpg", -1) for number in range(30)])))
    assert [position for position, _ in read] == list(range(30))
    for number, (_, image) in enumerate(read):
        assert image.shape == (8, 8, 3)
        assert image.dtype == np.uint8
        np.testing.assert_allclose(image.mean((0, 1)), [8 * number, 0, 0], atol=3)


def test_what_cannot_be_read_is_none(tmp_path):
    write_jpeg(tmp_path / "intact.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = (tmp_path / "intact.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "trailer.jpg").write_bytes(data + b"camera")
    assert read_image(tmp_path / "intact.jpg") is not None
    assert read_image(tmp_path / "trailer.jpg") is not None
    for name in ("truncated.jpg", "text.jpg", "empty.jpg", "missing.jpg", ""):
        assert read_image(tmp_path / name) is None


def test_video_frames_are_those_of_the_index(tmp_path):
    write_video(tmp_path / "a.avi", [np.full((32, 48, 3), 10 * number, np.uint8) for number in range(20)])
    (tmp_path / "broken.avi").write_bytes((tmp_path / "a.avi").read_bytes()[:300])
    sources = [("a.avi", 7), ("a.avi", 3), ("broken.avi", 0), ("a.avi", 25), ("a.avi", 3), ("missing.avi", 1), ("", 2)]
    read = dict(read_frames(tmp_path, frame_rows(sources)))
    assert sorted(read) == list(range(7))
    for position, number in ((0, 7), (1, 3), (4, 3)):
        assert read[position].shape == (32, 48, 3)
        assert read[position].mean() == pytest.approx(10 * number, abs=3)
    assert [read[position] for position in (2, 3, 5, 6)] == [None] * 4


def test_best_face_in_full_frame_px(tmp_path):
    write_jpeg(tmp_path / "1.jpg", draw_image())
    write_jpeg(tmp_path / "2.jpg", draw_image(blob=None))
    write_jpeg(tmp_path / "3.jpg", draw_image(height=96, width=128, blob=(20, 40, 61, 81)))  # shrunk to half
    frames = frame_rows([("1.jpg", -1), ("2.jpg", -1), ("3.jpg", -1), ("4.jpg", -1)])
    network = BrightestBlob()
    seen = []
    boxes = detect_frames(frames, tmp_path, network, settings=SETTINGS, device=CPU, on_progress=seen.append)
    assert list(boxes.columns) == list(BOX_COLUMNS)
    assert boxes["frame_id"].tolist() == frames["frame_id"].tolist()
    assert boxes["status"].tolist() == ["ok", "no_face", "ok", "no_source"]
    assert boxes["num_faces"].tolist() == [2, 0, 2, 0]
    assert sum(seen) == 4
    assert sorted(network.batch_shapes) == [(1, 3, 48, 64), (2, 3, 48, 64)]
    first, third = boxes.iloc[0], boxes.iloc[2]
    assert first[["x1", "y1", "x2", "y2", "score"]].tolist() == pytest.approx([10, 20, 30, 40, 0.9])
    assert first[["p0x", "p0y", "p4x", "p4y"]].tolist() == pytest.approx([20, 30, 20, 30])
    assert third[["x1", "y1", "x2", "y2"]].tolist() == pytest.approx([20.5, 40.5, 60.5, 80.5])  # centres of 2 x 2 px
    assert boxes.loc[[1, 3], VALUE_COLUMNS].isna().all(axis=None)


def test_batches_hold_frames_of_one_size_and_are_bounded(tmp_path):
    sizes = [(16 + i, 16) for i in range(12)] + [(16, 32)] * 5
    for number, (height, width) in enumerate(sizes):
        write_jpeg(tmp_path / f"{number}.jpg", draw_image(height=height, width=width, blob=(2, 2, 9, number % 8 + 4)))
    frames = frame_rows([(f"{number}.jpg", -1) for number in range(len(sizes))])
    network = BrightestBlob()
    boxes = detect_frames(frames, tmp_path, network, settings=SETTINGS, device=CPU, batch_size=2)
    assert max(shape[0] for shape in network.batch_shapes) == 2
    assert sum(shape[0] for shape in network.batch_shapes) == len(sizes)
    assert boxes["y2"].tolist() == pytest.approx([number % 8 + 4 for number in range(len(sizes))], abs=1)


def test_done_rows_are_taken_over_and_not_read_again(tmp_path):
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        write_jpeg(tmp_path / name, draw_image())
    frames = frame_rows([("1.jpg", -1), ("2.jpg", -1), ("3.jpg", -1)])
    complete = detect_frames(frames, tmp_path, BrightestBlob(), settings=SETTINGS, device=CPU)
    (tmp_path / "2.jpg").unlink()
    resumed = detect_frames(frames, tmp_path, BrightestBlob(), settings=SETTINGS, device=CPU, done=complete.iloc[[1]])
    pd.testing.assert_frame_equal(resumed, complete)
    again = detect_frames(frames, tmp_path, BrightestBlob(), settings=SETTINGS, device=CPU, done=complete)
    pd.testing.assert_frame_equal(again, complete)


def test_short_gaps_between_found_faces_are_filled():
    frames = frame_rows([("", -1)] * 9, numbers=[1, 2, 3, 4, 8, 9, 13, 14, 15])
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
    assert filled.loc[[0, 2, 3, 5, 8], "score"].isna().all()
    assert filled.loc[[0, 3, 8], "x1"].isna().all()
    assert boxes["status"].tolist().count("interpolated") == 0, "the given table must stay as it was"


def test_a_gap_is_filled_up_to_its_limit_and_never_across_tasks():
    first = frame_rows([("", -1)] * 3, numbers=[1, 2, 4])
    second = frame_rows([("", -1)] * 2, numbers=[2, 3], task="T2")
    frames = pd.concat([first, second], ignore_index=True)
    boxes = box_rows(frames, ["ok", "no_face", "ok", "no_face", "ok"])
    assert fill_gaps(frames, boxes, max_gap_frames=2)["status"].tolist()[1] == "interpolated"
    assert fill_gaps(frames, boxes, max_gap_frames=1)["status"].tolist()[1] == "no_face"
    assert fill_gaps(frames, boxes, max_gap_frames=2)["status"].tolist()[3] == "no_face"


def test_gaps_are_filled_in_any_row_order():
    frames = frame_rows([("", -1)] * 3, numbers=[3, 1, 2])
    filled = fill_gaps(frames, box_rows(frames, ["ok", "ok", "no_face"]), max_gap_frames=5)
    assert filled["x2"].tolist() == [3, 1, 2]


def entry_of(path, **of_a_fan):
    return WeightsEntry(path=path, sha256=file_sha256(path), **({"family": "retinaface-mobilenet"} | of_a_fan))


def test_weights_travel_through_a_file(tmp_path):
    torch.manual_seed(1)
    network = RetinaFace().eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_detector(entry_of(tmp_path / "weights.safetensors"), CPU)
    assert not loaded.training
    images = [np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)]
    settings = DetectorConfig(score_threshold=0.3)
    mine, theirs = (faces_in(images, n, settings=settings, device=CPU)[0] for n in (network, loaded))
    assert len(mine[0])
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-2)


def test_wrong_weights_are_refused_in_a_sentence(tmp_path):
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"not those of retinaface-mobilenet: .*fix `family` or `path`"):
        load_detector(entry_of(tmp_path / "other.safetensors"), CPU)
    (tmp_path / "broken.safetensors").write_bytes(b"12345678")
    with pytest.raises(WeightsError, match="not those of retinaface-mobilenet"):
        load_detector(entry_of(tmp_path / "broken.safetensors"), CPU)
    fan = {"family": "fan", "width": 64, "num_stacks": 2, "pooling": "avg"}
    with pytest.raises(WeightsError, match=r"have the family 'fan'; a detector needs one of retinaface-mobilenet"):
        load_detector(entry_of(tmp_path / "other.safetensors", **fan), CPU)

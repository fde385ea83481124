"""Reading frames and detecting their faces: coordinates, statuses, batches, turned frames."""

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
from pipeline.faces.detect import detect_frames, faces_in, load_detector
from pipeline.faces.tracks import scene_thumbnail
from pipeline.runtime.atomic import file_sha256
from pipeline.tables import FACE_COLUMNS, VALUE_COLUMNS

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


def test_all_faces_in_full_frame_px(tmp_path):
    write_jpeg(tmp_path / "1.jpg", draw_image())
    write_jpeg(tmp_path / "2.jpg", draw_image(blob=None))
    write_jpeg(tmp_path / "3.jpg", draw_image(height=96, width=128, blob=(20, 40, 61, 81)))  # shrunk to half
    frames = frame_rows([("1.jpg", -1), ("2.jpg", -1), ("3.jpg", -1), ("4.jpg", -1)])
    network = BrightestBlob()
    seen = []
    faces = detect_frames(frames, tmp_path, network, settings=SETTINGS, device=CPU, on_progress=seen.append)
    assert list(faces.columns) == list(FACE_COLUMNS)
    assert faces["frame_id"].str[-1].tolist() == ["1", "1", "2", "3", "3", "4"]
    assert faces["status"].tolist() == ["ok", "ok", "no_face", "ok", "ok", "unreadable"]
    assert faces["face"].tolist() == [0, 1, -1, 0, 1, -1]
    assert faces["width_px"].tolist() == [64, 64, 64, 128, 128, 0]
    assert faces["height_px"].tolist() == [48, 48, 48, 96, 96, 0]
    assert sum(seen) == 4
    first, second, third = faces.iloc[0], faces.iloc[1], faces.iloc[3]
    assert first[["x1", "y1", "x2", "y2", "score"]].tolist() == pytest.approx([10, 20, 30, 40, 0.9])
    assert first[["p0x", "p0y", "p4x", "p4y"]].tolist() == pytest.approx([20, 30, 20, 30])
    assert second[["x1", "y2", "score"]].tolist() == pytest.approx([110, 140, 0.6])
    assert third[["x1", "y1", "x2", "y2"]].tolist() == pytest.approx([20.5, 40.5, 60.5, 80.5])  # centres of 2 x 2 px
    assert faces.loc[[2, 5], list(VALUE_COLUMNS)].isna().all(axis=None)
    assert faces.loc[1, "thumbnail"] == scene_thumbnail(read_image(tmp_path / "1.jpg")).tobytes()
    assert [len(thumbnail) for thumbnail in faces["thumbnail"]] == [256] * 5 + [0]
    nothing = detect_frames(frames.iloc[[1, 3]], tmp_path, network, settings=SETTINGS, device=CPU)
    assert nothing["status"].tolist() == ["no_face", "unreadable"]
    assert nothing.dtypes.equals(faces.dtypes)


class UprightBlob(BrightestBlob):
    """Stub network that is sure of blobs in the upper half of an image, and sees others as small faces at best."""

    def _faces(self, grey):
        faces = super()._faces(grey)
        if not len(faces.boxes) or faces.boxes[0, 3] < len(grey) / 2:
            return faces
        return Faces(faces.boxes[1:] - 100 + torch.tensor([0, 0, -10, -10]), faces.scores[1:], faces.points[1:])


@pytest.mark.parametrize(
    ("blob", "turned_deg"),
    [((20, 0, 40, 20), 0), ((20, 42, 40, 62), 180), ((0, 22, 16, 38), 270), ((46, 22, 62, 38), 90)],
)
def test_a_frame_is_turned_if_a_sure_face_appears_from_another_side(tmp_path, blob, turned_deg):
    write_jpeg(tmp_path / "1.jpg", draw_image(height=64, blob=blob))
    faces = detect_frames(frame_rows([("1.jpg", -1)]), tmp_path, UprightBlob(), settings=SETTINGS, device=CPU)
    assert set(faces["turned_deg"]) == {turned_deg}


def test_batches_hold_frames_of_one_size_and_are_bounded(tmp_path):
    sizes = [(16 + i, 16) for i in range(12)] + [(16, 32)] * 5
    for number, (height, width) in enumerate(sizes):
        write_jpeg(tmp_path / f"{number}.jpg", draw_image(height=height, width=width, blob=(2, 2, 9, number % 8 + 4)))
    frames = frame_rows([(f"{number}.jpg", -1) for number in range(len(sizes))])
    network = BrightestBlob()
    faces = detect_frames(frames, tmp_path, network, settings=SETTINGS, device=CPU, batch_size=2)
    assert {shape[0] for shape in network.batch_shapes} == {2}, "batches of one size give the same bytes"
    assert sorted(shape[2:] for shape in network.batch_shapes) == sorted([*sizes[:12], (16, 32), (16, 32), (16, 32)])
    assert faces.loc[faces["face"] == 0, "y2"].tolist() == pytest.approx(
        [number % 8 + 4 for number in range(len(sizes))], abs=1
    )


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

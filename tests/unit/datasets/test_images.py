"""Image files: which are read, with which pixels, and the reason for each that is not."""

from __future__ import annotations

import io
import logging
import struct

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.datasets.images import load_image, read_frames, read_image, unread_statuses
from pipeline.errors import DataError, DataNotFoundError
from tests.unit.small_videos import only, write_video

NOISE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (101, 150, 3), np.uint8), (0, 0), 2)
IMAGE = Image.fromarray(NOISE)


def encoded(kind, image=IMAGE, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


JPEG = encoded("JPEG", quality=92)
GREY_16 = cv2.imencode(".png", NOISE[..., 0].astype(np.uint16) * 257)[1].tobytes()


def by_opencv(data):
    """OpenCV's pixels, which caches of earlier versions were made of."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def with_exif(data, exif):
    body = b"Exif\0\0" + exif
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def orientation_exif(orientation, order):
    head = {"<": b"II*\0", ">": b"MM\0*"}[order]
    other, tag = (
        struct.pack(f"{order}HHIHH", name, 3, 1, value, 0) for name, value in ((0x100, 7), (0x112, orientation))
    )
    return head + struct.pack(f"{order}IH", 8, 2) + other + tag + struct.pack(f"{order}I", 0)


@pytest.mark.parametrize(
    "data",
    [
        JPEG,
        encoded("JPEG", subsampling=0),
        encoded("JPEG", progressive=True),
        encoded("JPEG", IMAGE.convert("L")),
        encoded("JPEG", IMAGE.convert("CMYK")),
        encoded("PNG", IMAGE.convert("P")),
        encoded("PNG", IMAGE.convert("RGBA")),
        GREY_16,
        encoded("WEBP"),
        encoded("BMP"),
        encoded("TIFF"),
        with_exif(JPEG, b"II*\0\xff\xff\xff\xff"),
        with_exif(JPEG, orientation_exif(9, "<")),
    ],
)
def test_every_kind_of_image_has_the_pixels_of_opencv(tmp_path, data):
    (tmp_path / "image.jpg").write_bytes(data)
    image = load_image(tmp_path / "image.jpg")
    assert image.shape == NOISE.shape
    np.testing.assert_array_equal(image, by_opencv(data))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_and_mirrored_as_its_exif_says(tmp_path, orientation, order):
    data = with_exif(JPEG, orientation_exif(orientation, order))
    (tmp_path / "image.jpg").write_bytes(data)
    image = load_image(tmp_path / "image.jpg")
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, by_opencv(data))
    assert (image.shape[0] == NOISE.shape[1]) == (orientation >= 5)


@pytest.mark.parametrize("after", [b"camera", JPEG, np.random.default_rng(1).bytes(200_000)])
def test_data_after_the_end_of_a_jpeg_is_no_damage(tmp_path, after):
    (tmp_path / "image.jpg").write_bytes(JPEG + after)
    np.testing.assert_array_equal(load_image(tmp_path / "image.jpg"), by_opencv(JPEG))


def test_padding_before_the_end_is_no_damage(tmp_path, capfd):
    (tmp_path / "image.jpg").write_bytes(JPEG[:-2] + b"\0\0" + JPEG[-2:])
    np.testing.assert_array_equal(load_image(tmp_path / "image.jpg"), by_opencv(JPEG))
    (tmp_path / "image.jpg").write_bytes(JPEG[:-2] + b"\0" * 60 + JPEG[-2:])
    with pytest.raises(DataError, match="extraneous bytes"):
        load_image(tmp_path / "image.jpg")
    capfd.readouterr()


def overwritten(data, *, at, by):
    return data[:at] + by + data[at + len(by) :]


DAMAGED = {
    "middle": (overwritten(JPEG, at=len(JPEG) // 2, by=b"\x5a" * 600), "Corrupt JPEG data"),
    "ink": (overwritten(encoded("JPEG", IMAGE.convert("CMYK")), at=4000, by=b"\x5a" * 600), "Corrupt JPEG data"),
    "half": (JPEG[: len(JPEG) // 2], "Premature end of JPEG file"),
    "half_with_end": (JPEG[: len(JPEG) // 2] + JPEG[-2:], "Corrupt JPEG data"),
    "giant": (overwritten(JPEG, at=JPEG.index(b"\xff\xc0") + 5, by=b"\xff\xdc\xff\xdc"), "claims 65,500 x 65,500 px"),
    "start_alone": (JPEG[:2], "damaged"),
    "png": (overwritten(GREY_16, at=len(GREY_16) // 2, by=b"\0\0"), "damaged"),
    "text": (b"<html>", "of no known format"),
    "empty": (b"", "it is empty"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_image_is_an_error_with_its_reason_and_nothing_is_printed_without_a_name(tmp_path, name, capfd):
    data, reason = DAMAGED[name]
    path = tmp_path / f"{name}.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{name}.jpg is not an image that can be decoded: .*{reason}.*; copy it again"):
        load_image(path)
    assert read_image(path) is None
    if data.startswith(b"\xff\xd8"):
        assert capfd.readouterr().err == ""


def test_a_header_beyond_opencvs_limit_is_an_error(tmp_path):
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 1000, 0, 0, 54, 40, 65500, 65500, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "giant.bmp").write_bytes(header + bytes(946))
    with pytest.raises(DataError, match=r"giant\.bmp is not an image"):
        load_image(tmp_path / "giant.bmp")


@pytest.mark.parametrize("name", ["missing.jpg", "", "folder", "image.jpg/inside"])
def test_what_is_no_file_is_not_found(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "image.jpg").write_bytes(JPEG)
    with pytest.raises(DataNotFoundError, match="is not a file"):
        load_image(tmp_path / name)


def test_each_unreadable_frame_has_a_reason_and_the_log_names_those_that_have_a_file(tmp_path, caplog):
    (tmp_path / "good.jpg").write_bytes(JPEG)
    (tmp_path / "half.jpg").write_bytes(JPEG[:1000])
    (tmp_path / "text.avi").write_text("no video")
    write_video(tmp_path / "v.avi", num_frames=10, change=only(5, None))
    sources = [
        ("v.avi", 5),
        ("half.jpg", -1),
        ("", -1),
        ("good.jpg", -1),
        ("v.avi", 12),
        ("text.avi", 0),
        ("gone.avi", 3),
    ]
    sources += [("v.avi", 4), ("v.avi", 5), ("", 1)]
    frames = pd.DataFrame(sources, columns=["source_file", "source_frame"])
    reasons = {}
    with caplog.at_level(logging.WARNING, logger="fantrans"):
        images = dict(read_frames(tmp_path, frames, on_unreadable=reasons.__setitem__))
    assert sorted(images) == list(range(10))
    assert [position for position, image in sorted(images.items()) if image is not None] == [3, 7]
    assert sorted(reasons) == [0, 1, 2, 4, 5, 6, 8, 9]
    assert reasons[0] == reasons[8] == f"frame 5 of {tmp_path}/v.avi: the video has no frame at this time"
    assert reasons[4] == f"frame 12 of {tmp_path}/v.avi: the video has 10 frames"
    assert reasons[1].startswith(f"{tmp_path}/half.jpg is not an image that can be decoded: Premature end")
    assert reasons[5].startswith(f"{tmp_path}/text.avi is not a video that can be read")
    (message,) = caplog.messages
    assert message.startswith("5 frames cannot be read: ")
    assert all(reasons[i] in message for i in (0, 1, 4, 5))
    assert "gone.avi" not in message
    assert unread_statuses(tmp_path, frames).tolist() == [
        *["unreadable", "unreadable", "no_source", "unreadable", "unreadable"],
        *["unreadable", "no_source", "unreadable", "unreadable", "no_source"],
    ]


def test_frames_that_are_all_read_log_nothing(tmp_path, caplog):
    (tmp_path / "good.jpg").write_bytes(JPEG)
    frames = pd.DataFrame([("good.jpg", -1)], columns=["source_file", "source_frame"])
    assert dict(read_frames(tmp_path, frames))[0].shape == NOISE.shape
    assert caplog.messages == []

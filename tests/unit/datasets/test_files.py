"""Names of raw files: any case, any usual extension, one file for one frame, and what is said about the others."""

import os

import pytest

from pipeline.datasets import LAYOUTS
from pipeline.datasets.index import index_frames
from pipeline.datasets.settings import DatasetSettings
from pipeline.errors import DataError
from pipeline.protocols import PROTOCOLS
from tests.unit.datasets.raw import (
    ZEROS,
    write_codes,
    write_images,
    write_intensities,
    write_video,
)


def bp4d(root, protocol="bp4d", **settings):
    return index_frames(root, LAYOUTS["bp4d"], PROTOCOLS[protocol], DatasetSettings(**settings))


def disfa(root, protocol="disfa", **settings):
    return index_frames(root, LAYOUTS["disfa"], PROTOCOLS[protocol], DatasetSettings(**settings))


@pytest.mark.parametrize("name", ["5.jpg", "05.JPG", "00005.jpeg", "5.PNG", "5.bmp", "5.tif", "5.WebP"])
def test_an_image_is_found_by_its_number_in_any_format_and_padding(tmp_path, name):
    write_codes(tmp_path)
    write_images(tmp_path, name, ".5.jpg", "._5.jpg", "Thumbs.db", "²5.jpg", "5 (1).jpg", "9" * 200 + ".jpg")
    assert bp4d(tmp_path)["source_file"].tolist() == [f"BP4D-training/F001/T1/{name}"]


def test_names_of_folders_and_code_files_are_found_in_any_case(tmp_path):
    write_codes(tmp_path, "f001_t1.CSV")
    (tmp_path / "AUCoding/AU_OCC").rename(tmp_path / "AUCoding/au_occ")
    write_images(tmp_path, "5.jpg", folder="bp4d-TRAINING/f001/t1")
    frames = bp4d(tmp_path)
    assert frames["frame_id"].tolist() == ["F001/T1/5"]
    assert frames["source_file"].tolist() == ["bp4d-TRAINING/f001/t1/5.jpg"]


def test_two_files_for_one_frame_or_sequence_are_refused_and_named(tmp_path):
    codes = write_codes(tmp_path)
    folder = write_images(tmp_path, "5.jpg", "0005.png", "6.jpg", "06.jpg")
    with pytest.raises(DataError, match=r"T1 has two files for frame 5, 0005.png and 5.jpg; remove one"):
        bp4d(tmp_path)
    (folder / "5.jpg").unlink()
    assert bp4d(tmp_path)["source_file"].tolist() == ["BP4D-training/F001/T1/0005.png"], "frame 6 is not coded"
    codes.with_suffix(".CSV").write_text(codes.read_text())
    with pytest.raises(DataError, match=r"two files for F001_T1, F001_T1.CSV and F001_T1.csv"):
        bp4d(tmp_path)


@pytest.mark.parametrize("copy", ["F001_T1 (1).csv", "F001_T1_old.csv", "F001_T1 - Copy.csv", "Copy of F001_T1.csv"])
@pytest.mark.parametrize("protocol", ["bp4d", "rendered_bp4d"])
def test_a_copy_of_a_code_file_is_refused(tmp_path, copy, protocol):
    write_codes(tmp_path)
    write_images(tmp_path, "5.jpg")
    write_codes(tmp_path, copy)
    with pytest.raises(DataError, match=r"looks like a copy.*; move it out of this folder"):
        bp4d(tmp_path, protocol)


def test_a_task_that_the_protocol_lacks_is_refused(tmp_path):
    write_codes(tmp_path, "F001_T9.csv")
    write_images(tmp_path, "5.jpg")
    with pytest.raises(DataError, match=r"F001_T9.csv: T9 is not a task of protocol bp4d, which has T1, T2"):
        bp4d(tmp_path)
    write_images(tmp_path, "5.jpg", folder="BP4D-training/F001/T9")
    assert len(bp4d(tmp_path, "rendered_bp4d")) == 1, "own recordings have any tasks"


def test_what_systems_leave_behind_is_skipped(tmp_path):
    codes = write_codes(tmp_path)
    write_images(tmp_path, "5.jpg")
    for name in ("._F001_T1.csv", ".DS_Store", ".~lock.F001_T1.csv#"):
        (codes.parent / name).write_bytes(b"Mac OS X\0\x80")
    assert len(bp4d(tmp_path)) == 1
    labels = write_intensities(tmp_path)
    write_video(tmp_path / "Videos_LeftCamera/LeftVideoSN001_comp.avi", 3)
    for name in ("__MACOSX", ".ipynb_checkpoints"):
        (labels.parent / name).mkdir()
    (labels / "._SN001_au1.txt").write_bytes(b"\x80")
    assert len(disfa(tmp_path)) == 3


def test_a_name_that_is_not_utf8_is_one_sentence(tmp_path):
    codes = write_codes(tmp_path)
    write_images(tmp_path, "5.jpg")
    try:
        codes.rename(codes.parent / os.fsdecode(b"F\xe9_T1.csv"))
    except OSError:
        pytest.skip("the file system takes UTF-8 names alone")
    with pytest.raises(DataError, match=r"the name F\\xe9_T1.csv in .*AU_OCC is not UTF-8; rename the file"):
        bp4d(tmp_path)


def test_frames_without_an_image_are_counted_with_where_the_first_is_missing(tmp_path, caplog):
    write_codes(tmp_path, rows=["5" + ZEROS, "6" + ZEROS])
    write_codes(tmp_path, "F001_T2.csv")
    folder = write_images(tmp_path, "5.jpg", "006.heic")
    bp4d(tmp_path)
    assert "2 of 3 coded frames have no image or video; the first is F001/T1/6: " in caplog.text
    assert "T1 has no image 6 (there is 006.heic)" in caplog.text
    caplog.clear()
    (folder / "6.jpg").touch()
    (folder.parent / "T2.zip").touch()
    assert (bp4d(tmp_path)["source_file"] != "").tolist() == [True, True, False]
    assert "the first is F001/T2/5: " in caplog.text
    assert "T2 does not exist (T2.zip is not unpacked)" in caplog.text


def test_an_archive_in_place_of_a_folder_is_named(tmp_path):
    write_codes(tmp_path)
    (tmp_path / "BP4D-training.part1.rar").touch()
    with pytest.raises(DataError, match=r"BP4D-training does not exist \(BP4D-training.part1.rar is not unpacked\)"):
        bp4d(tmp_path)


def test_sequences_is_another_name_of_the_images_folder_and_two_are_refused(tmp_path):
    write_codes(tmp_path)
    write_images(tmp_path, "5.jpg", folder="Sequences/F001/T1")
    assert bp4d(tmp_path)["source_file"].tolist() == ["Sequences/F001/T1/5.jpg"]
    write_images(tmp_path, "5.jpg")
    with pytest.raises(
        DataError, match=r"both BP4D-training and Sequences; choose one .* `folders: \{images: BP4D-tra"
    ):
        bp4d(tmp_path)
    frames = bp4d(tmp_path, folders={"images": "Sequences"})
    assert frames["source_file"].tolist() == ["Sequences/F001/T1/5.jpg"]


@pytest.mark.parametrize("name", ["2F01_T1.avi", "2f01_01.AVI", "F001_T1.avi"])
def test_bp4d_videos_count_their_frames_from_one(tmp_path, caplog, name):
    write_codes(tmp_path, rows=["1" + ZEROS, "5" + ZEROS, "6" + ZEROS])
    write_video(tmp_path / "BP4D-training" / name, 5)
    frames = bp4d(tmp_path)
    assert frames["source_file"].tolist() == [f"BP4D-training/{name}"] * 2 + [""]
    assert frames["source_frame"].tolist() == [0, 4, 5]
    assert f"{name} has 5 frames, its labels 6" in caplog.text
    assert "the video of F001/T1 ends before frame 6" in caplog.text
    write_video(tmp_path / "BP4D-training/F001_t1.mkv", 5)
    with pytest.raises(DataError, match="two files for F001/T1"):
        bp4d(tmp_path)


@pytest.mark.parametrize("name", ["LeftVideoSN001_comp.AVI", "leftvideosn001_comp.mp4", "SN001.mkv"])
def test_a_disfa_video_has_any_extension_and_two_are_refused(tmp_path, name):
    write_intensities(tmp_path)
    write_video(tmp_path / "Videos_LeftCamera" / name, 3)
    assert disfa(tmp_path)["source_file"].unique().tolist() == [f"Videos_LeftCamera/{name}"]
    write_video(tmp_path / "Videos_LeftCamera/LeftVideoSN001_comp.wmv", 3)
    with pytest.raises(DataError, match=f"two files for subject SN001, .*{name}"):
        disfa(tmp_path)


def test_the_right_camera_is_a_key_of_the_catalog(tmp_path):
    write_intensities(tmp_path)
    write_video(tmp_path / "Video_RightCamera/RightVideoSN001_comp.avi", 3)
    with pytest.raises(DataError, match="Videos_LeftCamera does not exist"):
        disfa(tmp_path)
    frames = disfa(tmp_path, camera="right")
    assert frames["frame_id"].tolist() == [f"SN001/right/{n}" for n in (1, 2, 3)]
    assert set(frames["source_file"]) == {"Video_RightCamera/RightVideoSN001_comp.avi"}


@pytest.mark.parametrize("start", [0, 1])
def test_a_folder_of_images_per_subject_needs_the_number_of_its_first(tmp_path, start):
    write_intensities(tmp_path)
    names = [f"LeftVideoSN001_comp_{n:04}.png" for n in range(start, start + 3)]
    write_images(tmp_path, *names, folder="frames/sn001")
    with pytest.raises(DataError, match="set `images_start: 0` or `images_start: 1` in the catalog"):
        disfa(tmp_path, folders={"images": "frames"})
    frames = disfa(tmp_path, folders={"images": "frames"}, images_start=start)
    assert frames["source_file"].tolist() == [f"frames/sn001/{name}" for name in names]
    assert frames["source_frame"].tolist() == [-1] * 3


def test_disfa_labels_are_found_in_any_case_and_two_files_for_an_action_unit_are_refused(tmp_path):
    folder = write_intensities(tmp_path, "sn001", suffix=".TXT", value=2)
    write_video(tmp_path / "Videos_LeftCamera/LeftVideoSN001_comp.avi", 3)
    frames = disfa(tmp_path)
    assert frames["subject"].unique().tolist() == ["SN001"]
    assert (frames["au_01"] == 1).all()
    (folder / "sn001_au01.txt").write_text("1,0\n")
    with pytest.raises(DataError, match=r"two files for AU 1, sn001_au01.txt and sn001_au1.TXT"):
        disfa(tmp_path)


def test_a_video_has_as_many_frames_as_labels_or_one_fewer(tmp_path, caplog):
    video = tmp_path / "Videos_LeftCamera/LeftVideoSN001_comp.avi"
    write_intensities(tmp_path, frames=range(1, 301))
    write_video(video, 299)
    frames = disfa(tmp_path)
    assert (frames["source_file"] == "").tolist() == [False] * 299 + [True]
    assert "the first is SN001/left/300: the video ends before frame 300" in caplog.text
    assert "differ" not in caplog.text
    for num_frames in (298, 303):
        caplog.clear()
        write_video(video, num_frames)
        assert (disfa(tmp_path)["source_file"] == "").sum() == max(0, 300 - num_frames)
        assert f"LeftVideoSN001_comp.avi has {num_frames} frames, its labels 300" in caplog.text
    for num_frames in (296, 304, 450):
        write_video(video, num_frames)
        with pytest.raises(
            DataError, match=f"has {num_frames} frames, its labels 300; expected the same number or one"
        ):
            disfa(tmp_path)


def test_a_video_that_cannot_be_read_keeps_its_frames_for_the_detector_to_name(tmp_path):
    write_intensities(tmp_path)
    write_images(tmp_path, "LeftVideoSN001_comp.avi", folder="Videos_LeftCamera")
    assert (disfa(tmp_path)["source_file"] != "").all()

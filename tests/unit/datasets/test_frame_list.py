"""Lists of frames as public repositories publish them, and the frames that they leave in the index."""

import pandas as pd
import pytest

from pipeline.datasets import LAYOUTS
from pipeline.datasets.frame_list import keep_listed
from pipeline.datasets.index import index_frames
from pipeline.datasets.settings import DatasetSettings
from pipeline.errors import DataError
from pipeline.protocols import PROTOCOLS
from tests.unit.datasets.raw import write_images, write_intensities

BP4D = pd.DataFrame(
    [(s, t, f) for s in ("F001", "M001") for t in ("T1", "T2") for f in (9, 10, 11)],
    columns=["subject", "task", "frame"],
)
DISFA = pd.DataFrame(
    [(s, "left", f) for s in ("SN001", "SN002") for f in (1, 2, 3)], columns=["subject", "task", "frame"]
)


def kept(frames, *paths, start=1):
    listed = keep_listed(frames, paths, start=start)
    return [f"{s}/{t}/{f}" for s, t, f in listed[["subject", "task", "frame"]].itertuples(index=False)]


@pytest.mark.parametrize(
    "text",
    [
        "F001/T1/0010.jpg\nM001/T2/9.jpg\n",
        "F001/T1/10\nM001/T2/9\n",
        "images/F001/T1/10.png 0 1 0\nimages\\M001\\T2\\0009.png 1 1 1\n",
        "f001/t1/frame_10.jpg,1,0\n\nM001/T2/frame_9.jpg,1,0\n",
        "subject,task,frame\nF001,T1,10\nM001,T2,9\n",
        "\ufeffname\n'F001/T1/10.jpg'\nM001/T2/9.jpg\n",
    ],
)
def test_forms_of_a_list_name_the_same_frames(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    assert kept(BP4D, tmp_path / "list.txt") == ["F001/T1/10", "M001/T2/9"]


def test_parquet_and_several_lists_are_one(tmp_path):
    (tmp_path / "a.txt").write_text("F001/T1/10.jpg\n")
    pd.DataFrame({"subject": ["M001"], "task": ["T2"], "frame": [9]}).to_parquet(tmp_path / "b.parquet")
    assert kept(BP4D, tmp_path / "a.txt", tmp_path / "b.parquet") == ["F001/T1/10", "M001/T2/9"]
    (tmp_path / "b.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"b.parquet is not a list of frames"):
        kept(BP4D, tmp_path / "b.parquet")


@pytest.mark.parametrize("prefix", ["", "images/", "DISFA/images/"])
def test_names_without_a_task_count_from_zero_where_the_catalog_says_so(tmp_path, prefix):
    (tmp_path / "list.txt").write_text(f"{prefix}SN001/0.png\n{prefix}SN002/2.png\n")
    assert kept(DISFA, tmp_path / "list.txt", start=0) == ["SN001/left/1", "SN002/left/3"]
    with pytest.raises(DataError, match=r"line 1 names frame 0 of SN001/left, which is not coded, .*`frames_start: 0`"):
        kept(DISFA, tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("SN001/3.png\n")
    with pytest.raises(
        DataError, match=r"line 1 names frame 3 of .*; if the list counts from 1, set `frames_start: 1`"
    ):
        kept(DISFA, tmp_path / "list.txt", start=0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("F001/T1/10.jpg\nF001/T1/x.jpg\n", r"line 2: expected a name such as F001/T1/2440.jpg, found 'F001/T1/x.jpg'"),
        ("10.jpg\n", r"line 1: expected a name such as"),
        ("F001/T1/10.jpg\nF001/T1/0010.jpg\n", r"line 2 names a frame that was named before"),
        ("F001/10.jpg\n", r"line 1 names no task, and subject F001 has several"),
        ("F099/T1/10.jpg\n", r"none of the 1 names is a coded frame"),
        ("", "names no frame; expected one name per line"),
    ],
)
def test_a_name_that_is_not_one_of_a_frame_is_refused(tmp_path, text, sentence):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=sentence):
        kept(BP4D, tmp_path / "list.txt")


def test_names_of_absent_subjects_are_logged(tmp_path, caplog):
    (tmp_path / "list.txt").write_text("F001/T1/10.jpg\nF099/T1/10.jpg\n")
    assert kept(BP4D, tmp_path / "list.txt") == ["F001/T1/10"]
    assert "1 of 2 listed frames belong to subjects or tasks that have no labels here: F099/T1" in caplog.text
    with pytest.raises(DataError, match=r"nowhere\.txt does not exist; put the list of frames there"):
        kept(BP4D, tmp_path / "nowhere.txt")


def test_bad_frames_leave_the_index_although_a_list_names_them(tmp_path):
    write_intensities(tmp_path, "SN002", frames=range(1, 831))
    write_images(tmp_path, "LeftVideoSN002_comp.avi", folder="Videos_LeftCamera")
    (tmp_path / "list.txt").write_text("SN002/798.png\nSN002/799.png\n")
    settings = DatasetSettings(frames=tmp_path / "list.txt", frames_start=0)
    frames = index_frames(tmp_path, LAYOUTS["disfa"], PROTOCOLS["disfa"], settings)
    assert frames["frame"].tolist() == [799], "frame 800 is the first bad one"

from pathlib import Path

import pandas as pd
import pytest

from pipeline.datasets import LAYOUTS
from pipeline.datasets.index import coverage, index_frames, read_index, summarise, write_index
from pipeline.errors import DataError
from pipeline.protocols import PROTOCOLS

BP4D, DISFA = LAYOUTS["bp4d"], LAYOUTS["disfa"]
AUS = "1,2,4,5,6,7,10,12,14,15,17,23,24"


def write_bp4d(root: Path, subject="F001", task="T1", rows=(), header=f"0,{AUS}", images=()):
    codes = root / "AUCoding/AU_OCC"
    codes.mkdir(parents=True, exist_ok=True)
    (codes / f"{subject}_{task}.csv").write_text("\n".join([header, *rows]) + "\n")
    folder = root / "BP4D-training" / subject / task
    folder.mkdir(parents=True, exist_ok=True)
    for name in images:
        (folder / name).touch()
    return root, BP4D, PROTOCOLS["bp4d"]


ZEROS = ",0" * 13


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("6,x" + ",0" * 12, r"line 3, column 1: expected a whole number, found 'x'"),
        ("x" + ZEROS, "line 3, column 0: expected a whole number, found 'x'"),
        (ZEROS, "line 3, column 0: expected a whole number, found nothing"),
        ("6,0", "line 3: expected 14 values, found 2; fix the line"),
        ("6" + ZEROS + ",0", "line 3: expected 14 values, found 15; fix the line"),
        ("6,0.5" + ",0" * 12, "found '0.5'"),
    ],
)
def test_a_damaged_line_of_codes_is_named(tmp_path, line, sentence):
    with pytest.raises(DataError, match=sentence):
        index_frames(*write_bp4d(tmp_path, rows=["5" + ZEROS, line], images=["5.jpg"]))


def test_files_that_are_no_codes_are_named(tmp_path):
    dataset = write_bp4d(tmp_path, rows=["5" + ZEROS], images=["5.jpg"])
    path = tmp_path / "AUCoding/AU_OCC/F001_T1.csv"
    for content in (b"", b"\x80\xff\x00"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"F001_T1.csv is not a table"):
            index_frames(*dataset)
    path.rename(path.with_name("F001.csv"))
    with pytest.raises(DataError, match="names no task"):
        index_frames(*dataset)


def test_labels_without_any_image_are_refused(tmp_path):
    found = r"; the first is F001/T1/5: .*T1 has no image 5 \(there is 5.gif\)"
    with pytest.raises(DataError, match=r"none of the 1 coded frames .* expected .*\{frame\}.jpg" + found):
        index_frames(*write_bp4d(tmp_path, rows=["5" + ZEROS], images=["5.gif"]))


def write_disfa(root: Path, subject="SN001", num_frames=3, has_video=True, intensity=None):
    folder = root / "ActionUnit_Labels" / subject
    folder.mkdir(parents=True)
    for au in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26):
        values = (intensity or {}).get(au, [0] * num_frames)
        lines = [f"{i + 1},{value}" for i, value in enumerate(values)]
        (folder / f"{subject}_au{au}.txt").write_text("\n".join(lines) + "\n")
    (root / "Videos_LeftCamera").mkdir(exist_ok=True)
    if has_video:
        (root / f"Videos_LeftCamera/LeftVideo{subject}_comp.avi").touch()
    return root, DISFA, PROTOCOLS["disfa"]


def test_bp4d_rows_match_images_by_number_whatever_the_padding(tmp_path):
    dataset = write_bp4d(
        tmp_path,
        rows=["2440,1,0,9,1,1,0,0,0,0,0,0,0,0", "2441,0,0,0,9,0,0,0,0,0,0,0,0,1", "2442" + ",0" * 13],
        images=["02440.jpg", "2441.jpg"],
    )
    frames = index_frames(*dataset)
    assert frames["frame_id"].tolist() == ["F001/T1/2440", "F001/T1/2441", "F001/T1/2442"]
    assert frames["source_file"].tolist() == ["BP4D-training/F001/T1/02440.jpg", "BP4D-training/F001/T1/2441.jpg", ""]
    assert frames["part"].unique().tolist() == ["P1"]
    assert frames["source_frame"].tolist() == [-1] * 3
    assert frames.loc[0, ["au_01", "au_02", "au_04", "au_06"]].tolist() == [1, 0, -1, 1]
    assert "au_05" not in frames
    assert frames["au_24"].tolist() == [0, 1, 0]


def test_bp4d_occlusion_flag_makes_a_row_unknown(tmp_path):
    rows = ["7" + ",1" * 13 + ",0", "8" + ",1" * 13 + ",1"]
    frames = index_frames(*write_bp4d(tmp_path, rows=rows, header=f"0,{AUS},occluded", images=["7.jpg"]))
    assert frames["au_01"].tolist() == [1, -1]


def test_disfa_rows_are_one_based_and_two_is_present(tmp_path):
    dataset = write_disfa(tmp_path, intensity={1: [1, 2, 5], 5: [0, 3, 0]})
    frames = index_frames(*dataset)
    assert frames["frame_id"].tolist() == ["SN001/left/1", "SN001/left/2", "SN001/left/3"]
    assert frames["source_frame"].tolist() == [0, 1, 2]
    assert frames["au_01"].tolist() == [0, 1, 1]
    assert frames["int_05"].tolist() == [0, 3, 0]
    assert "au_05" not in frames


def test_disfa_bad_frames_are_left_out(tmp_path):
    frames = index_frames(*write_disfa(tmp_path, subject="SN002", num_frames=830))
    assert len(frames) == 830 - 27
    assert not frames["frame"].between(800, 826).any()


def test_limit_draws_from_the_whole_set_and_tables_round_trip(tmp_path):
    frames = index_frames(*write_disfa(tmp_path, num_frames=100), limit=10)
    assert len(frames) == 10
    assert frames["frame"].is_monotonic_increasing
    assert frames["frame"].min() < 30
    assert frames["frame"].max() > 70
    write_index(tmp_path / "work", frames)
    pd.testing.assert_frame_equal(read_index(tmp_path / "work", dataset="disfa"), frames)
    with pytest.raises(DataError, match="run `fantrans refresh disfa --experiment EXPERIMENT`"):
        read_index(tmp_path / "nowhere", dataset="disfa")


def test_summary_counts_known_labels_only(tmp_path):
    rows = ["1,1" + ",0" * 12, "2,0" + ",0" * 12, "3,9" + ",0" * 12]
    frames = index_frames(*write_bp4d(tmp_path, rows=rows, images=["1.jpg"]))
    summary = summarise(frames, PROTOCOLS["bp4d"]).set_index("part")
    assert summary.loc["P1", ["subjects", "frames", "no_source"]].tolist() == [1, 3, 2]
    assert summary.loc["all", "AU1"] == 50
    assert summary.loc["P2", "frames"] == 0
    assert "<NA>" in summary.to_string(float_format="{:.0f}".format), "an empty part is shown, too"


def test_coverage_tells_subjects_and_tasks_found_of_those_expected(tmp_path):
    frames = index_frames(*write_bp4d(tmp_path, rows=["5" + ZEROS], images=["5.jpg"]))
    found = coverage(frames, PROTOCOLS["bp4d"])
    assert str(found) == "1 of 41 subjects, 1 of 328 tasks"
    assert len(found.missing_subjects) == 40
    assert "F001" not in found.missing_subjects
    assert not found.is_complete
    own = coverage(frames, PROTOCOLS["rendered_bp4d"])
    assert str(own) == "1 subjects, 1 tasks"
    assert own.is_complete


def test_faults_in_raw_data_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        index_frames(tmp_path / "none", BP4D, PROTOCOLS["bp4d"])
    with pytest.raises(DataError, match="no column for AU 24"):
        index_frames(*write_bp4d(tmp_path / "a", header="0,1,2,4,6,7,10,12,14,15,17,23", rows=["5" + ",0" * 11]))
    with pytest.raises(DataError, match="expected the header"):
        index_frames(*write_bp4d(tmp_path / "b", header="frame,AU1,AU2", rows=["5,0,0"]))
    with pytest.raises(DataError, match="codes a frame twice"):
        index_frames(*write_bp4d(tmp_path / "c", rows=["5" + ",0" * 13] * 2))
    with pytest.raises(DataError, match="AU 4 lacks frames"):
        index_frames(*write_disfa(tmp_path / "d", intensity={4: [0]}))
    with pytest.raises(DataError, match=r"au4.txt, line 2, column 4: .* found 'x0'"):
        index_frames(*write_disfa(tmp_path / "f", intensity={4: [0, "x0", 0]}))
    with pytest.raises(DataError, match="in no part"):
        index_frames(*write_bp4d(tmp_path / "e", subject="X1", rows=["5" + ZEROS], images=["5.jpg"]))

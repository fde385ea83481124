"""Label files: a row of another length, another separator or another kind of code never becomes a label in silence."""

import pytest

from pipeline.datasets import LAYOUTS
from pipeline.datasets.codes import read_codes
from pipeline.datasets.index import index_frames
from pipeline.datasets.settings import DatasetSettings
from pipeline.errors import DataError
from pipeline.protocols import PROTOCOLS
from tests.unit.datasets.raw import HEADER, ZEROS, write_codes, write_images, write_intensities


def index(root, name="bp4d", **settings):
    return index_frames(root, LAYOUTS[name], PROTOCOLS[name], DatasetSettings(**settings))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0,1\n5,0,1\n6,0\n", r"line 2: expected 2 values, found 3; fix the line"),
        ("0,1\n\n5\n", r"line 3: expected 2 values, found 1; fix the line"),
        ("0,1\n5,0,1\n6,0,0\n", r"line 2: expected 2 values, found 3; name the last column in the header \(`occluded`"),
        ("0,1,\n5,0,1\n", r"line 1: column 3 has no heading; name it \(`occluded` for a column of occlusion flags\)"),
        ("0,1,1\n5,0,1\n", r"line 1: two columns are named 1; expected each once"),
        ("0;1\n5;0\n", r"separates its values by semicolons; expected commas: save the file again as CSV"),
        ("0\t1\n5\t0\n", r"separates its values by tabs"),
        ("0,1\n5,²\n", r"line 2, column 1: expected a whole number, found '²'"),
        ("0,1\n5,1_0\n", r"line 2, column 1: expected a whole number, found '1_0'"),
        ("0,1\n5,\n", r"line 2, column 1: expected a whole number, found nothing"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, text, sentence):
    path = tmp_path / "codes.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"codes.csv.*{sentence}"):
        read_codes(path)


@pytest.mark.parametrize(
    "data",
    [
        b"0,1\n5,0\n6,1\n",
        b"\xef\xbb\xbf0,1\r\n5,0\r\n6,1\r\n",
        b'"0","1"\n"5","0"\n"6","1"\n',
        b"0, 1\n 5, 0.0\n6, 1.\n",
        b"0,1\n5,0\n6,1",
    ],
)
def test_dialects_of_csv_give_the_same_codes_and_lines(tmp_path, data):
    path = tmp_path / "codes.csv"
    path.write_bytes(data)
    codes = read_codes(path)
    assert codes.to_dict("list") == {"0": [5, 6], "1": [0, 1]}
    assert codes.index.tolist() == [2, 3]


def test_lines_are_those_of_the_file_whatever_lines_are_blank(tmp_path):
    path = tmp_path / "codes.csv"
    path.write_text("\n0,1\n\n5,0\n")
    assert read_codes(path).index.tolist() == [4]
    path.write_text("5,0\n\n6,1\n")
    assert read_codes(path, names=["frame", "1"]).index.tolist() == [1, 3]


def test_frame_numbers_start_at_one_and_appear_once(tmp_path):
    write_images(tmp_path, "5.jpg")
    write_codes(tmp_path, rows=["5" + ZEROS, "0" + ZEROS])
    with pytest.raises(DataError, match=r"F001_T1.csv, line 3: frame 0; frame numbers start at 1"):
        index(tmp_path)
    write_codes(tmp_path, rows=["5" + ZEROS, "6" + ZEROS, "5" + ZEROS])
    with pytest.raises(DataError, match=r"codes a frame twice: lines 2 and 4 have frame 5; remove one"):
        index(tmp_path)
    write_intensities(tmp_path, frames=range(3))
    write_images(tmp_path, "LeftVideoSN001_comp.avi", folder="Videos_LeftCamera")
    with pytest.raises(DataError, match=r"SN001_au1.txt, line 1: frame 0; frame numbers start at 1"):
        index(tmp_path, "disfa")


def test_a_superscript_in_the_header_is_not_an_action_unit(tmp_path):
    write_images(tmp_path, "5.jpg")
    write_codes(tmp_path, header=HEADER.replace("1,2,", "1,²,", 1))
    with pytest.raises(DataError, match="expected the header 0, AU, AU"):
        index(tmp_path)


def test_codes_that_are_not_known_are_counted_with_the_first(tmp_path, caplog):
    write_images(tmp_path, "5.jpg")
    write_codes(tmp_path, rows=["5,0,3" + ",9" * 11, "6,5,1" + ",0" * 11])
    frames = index(tmp_path)
    assert frames[["au_01", "au_02"]].to_numpy().tolist() == [[0, -1], [-1, 1]]
    assert "2 occurrence codes (if these are intensities, they belong in AU_INT) in 1 file(s)" in caplog.text
    assert "are not 0, 1 or 9, and count as unknown; the first: " in caplog.text
    assert "F001_T1.csv, line 2, AU 2: 3" in caplog.text


def test_intensities_that_are_not_known_are_counted(tmp_path, caplog):
    write_images(tmp_path, "LeftVideoSN001_comp.avi", folder="Videos_LeftCamera")
    folder = write_intensities(tmp_path)
    (folder / "SN001_au4.txt").write_text("1,6\n2,9\n3,5\n")
    frames = index(tmp_path, "disfa")
    assert frames["au_04"].tolist() == [-1, -1, 1]
    assert frames["int_04"].tolist() == [-1, -1, 5]
    assert "1 intensities in 1 file(s) are not 0, 1, 2, 3, 4, 5 or 9" in caplog.text
    assert "SN001_au4.txt, line 1, AU 4: 6" in caplog.text


def test_bp4d_intensities_are_read_from_the_folder_that_the_catalog_names(tmp_path):
    write_images(tmp_path, "5.jpg")
    write_codes(tmp_path, rows=["5" + ZEROS, "6" + ZEROS, "7" + ZEROS])
    folder = tmp_path / "AUCoding/AU_INT/AU06"
    folder.mkdir(parents=True)
    (folder / "F001_T1_AU06.csv").write_text("5,3\n6,9\n")
    assert "int_06" not in index(tmp_path)
    assert index(tmp_path, folders={"intensities": "AUCoding/AU_INT"})["int_06"].tolist() == [3, -1, -1]


def test_action_units_that_are_left_out_need_no_column_or_file(tmp_path):
    from dataclasses import replace

    write_images(tmp_path, "5.jpg")
    header = HEADER.removesuffix(",24")
    write_codes(tmp_path, header=header, rows=["5" + ZEROS.removesuffix(",0")])
    with pytest.raises(DataError, match=r"no column for AU 24; .* `leave_out: \[24\]`"):
        index(tmp_path)
    rules = PROTOCOLS["bp4d"]
    frames = index_frames(tmp_path, LAYOUTS["bp4d"], replace(rules, aus=rules.aus[:-1], left_out=(24,)))
    assert "au_24" not in frames
    folder = write_intensities(tmp_path)
    write_images(tmp_path, "LeftVideoSN001_comp.avi", folder="Videos_LeftCamera")
    (folder / "SN001_au5.txt").unlink()
    rules = replace(PROTOCOLS["disfa"], left_out=(5,))
    assert "int_05" not in index_frames(tmp_path, LAYOUTS["disfa"], rules)

"""Any data set as one table: its columns are named in the catalog."""

from io import StringIO

import pandas as pd
import pytest

from pipeline.catalog import load_catalog
from pipeline.datasets.index import index_frames, read_index, write_index
from pipeline.errors import CatalogError, DataError
from pipeline.tables import FRAME_COLUMNS

TABLE = "file: labels.csv, subject: who, frame: n, source_file: image, aus: {1: a1, 12: a12}"
CSV = "who,n,image,a1,a12,fold,clip\nS1,1,i/1.png,0,1,P2,talk\nS2,1,i/2.png,9,,P3,talk\nS3,2,,1,3,P1,rest\n"


def entry(folder, more="", table=TABLE, protocol="by_number"):
    (folder / "catalog.yaml").write_text(
        "roots: {work: w, cache: c, runs: r}\n"
        f"datasets: {{mine: {{root: raw, layout: table, protocol: {protocol}, table: {{{table}}}{more}}}}}\n"
    )
    return load_catalog(folder / "catalog.yaml").get_dataset("mine")


def index(folder, text=CSV, **keys):
    raw = folder / "raw"
    (raw / "i").mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        (raw / f"i/{number}.png").touch()
    if text is not None:
        (raw / "labels.csv").write_text(text)
    mine = entry(folder, **keys)
    return index_frames(mine.root, mine.raw_layout, mine.rules, mine)


def test_a_table_becomes_an_index(tmp_path, caplog):
    frames = index(tmp_path)
    assert tuple(frames.columns) == (*FRAME_COLUMNS, "au_01", "au_12")
    assert frames["frame_id"].tolist() == ["S1/all/1", "S2/all/1", "S3/all/2"]
    assert frames["source_file"].tolist() == ["i/1.png", "i/2.png", ""]
    assert frames["source_frame"].tolist() == [-1] * 3
    assert frames["part"].tolist() == ["P2", "P3", "P1"]
    assert frames[["au_01", "au_12"]].to_numpy().tolist() == [[0, 1], [-1, -1], [1, -1]]
    assert "1 labels in 1 file(s) are not -1, 0 or 1, and count as unknown; the first: " in caplog.text
    assert "labels.csv, line 4, AU 12: 3" in caplog.text


def test_parts_and_tasks_are_columns_and_intensities_have_a_threshold(tmp_path):
    table = TABLE + ", part: fold, task: clip, values: intensity, min_positive: 3"
    frames = index(tmp_path, table=table)
    assert frames["frame_id"].tolist() == ["S1/talk/1", "S2/talk/1", "S3/rest/2"]
    assert frames["part"].tolist() == ["P2", "P3", "P1"]
    assert frames["au_12"].tolist() == [0, -1, 1]
    assert frames["int_12"].tolist() == [1, -1, 3]
    with pytest.raises(DataError, match=r"row 2, column fold: expected one of P1, P2, P3, found 'x'"):
        index(tmp_path, CSV.replace("P2", "x"), table=table)


def test_parts_come_from_a_protocol(tmp_path):
    text = CSV.replace("S1", "f001").replace("S2", "M002").replace("S3", "F004")
    frames = index(tmp_path, text, protocol="bp4d", table=TABLE.replace("who,", "who, task: clip,"))
    assert frames.set_index("subject")["part"].to_dict() == {"F001": "P1", "F004": "P3", "M002": "P2"}
    with pytest.raises(DataError, match="'S1' is in no part of protocol bp4d"):
        index(tmp_path, CSV, protocol="bp4d")


def test_parquet_is_read_as_csv_is(tmp_path):
    expected = index(tmp_path)
    pd.read_csv(tmp_path / "raw/labels.csv").to_parquet(tmp_path / "raw/labels.parquet")
    found = index(tmp_path, table=TABLE.replace(".csv", ".parquet"))
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("S1,1,", "S1,0,", "row 2, column n: expected a frame number from 1 up, found '0'"),
        ("S1,1,", "S1,x,", "row 2, column n: expected a whole number, found 'x'"),
        ("S1,1,", ",1,", "row 2, column who: expected a name, found nothing"),
        ("S1,1,", "S2,1,", "codes a frame twice: rows 2 and 3"),
        ("i/1.png,0,", "i/1.png,0,0,", "row 2: expected 7 values, found 8"),
        ("i/1.png,0,", "i/1.png,0.5,", "row 2, column a1: expected a whole number, found '0.5'"),
        ("a12,", "a1,", "has two columns named 'a1'"),
        ("a12,", "A12,", "column 'a12' does not exist; did you mean 'A12'"),
        (CSV, "who,n\n", "has no rows"),
        (CSV, "", "has no rows"),
    ],
)
def test_a_fault_is_named_with_its_row(tmp_path, old, new, sentence):
    with pytest.raises(DataError, match=f"labels.csv.*{sentence}"):
        index(tmp_path, CSV.replace(old, new, 1))


def test_a_table_that_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"raw has no table labels.csv.*fix `table: \{file\}`"):
        index(tmp_path, None)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"table": TABLE + ", min_positive: 3"}, "`min_positive` has no effect with `values: presence`"),
        ({"table": TABLE.replace("{1: a1, 12: a12}", "{}")}, "must have at least 1 value"),
        ({"table": TABLE + ", vlaues: presence"}, "did you mean `datasets.mine.table.values`"),
        ({"more": ", camera: right"}, "`camera` has no effect with layout table; it belongs to layout disfa"),
        ({"more": ", folders: {images: x}"}, "`folders.images` is unknown to layout table, which has no folders"),
        ({"more": ", leave_out: [2]"}, "`leave_out` names AU 2, which is not one of 1, 12"),
        ({"more": ", leave_out: [1, 12]"}, "`leave_out` leaves no action unit"),
        ({"more": ", frames_start: 0"}, "`frames_start` has no effect without `frames`"),
    ],
)
def test_keys_that_do_not_fit_are_refused(tmp_path, keys, sentence):
    with pytest.raises(CatalogError, match=sentence):
        entry(tmp_path, **keys)


def test_an_action_unit_is_left_out(tmp_path):
    assert "au_12" not in index(tmp_path, more=", leave_out: [12]")


def test_a_file_name_longer_than_a_disk_allows_is_a_frame_without_a_file(tmp_path):
    frames = index(tmp_path, CSV.replace("i/1.png", "i/" + "1" * 5000 + ".png"))
    assert frames.set_index("frame_id")["source_file"].to_dict() == {
        "S1/all/1": "",
        "S2/all/1": "i/2.png",
        "S3/all/2": "",
    }


MIXED = "who,n,image,pos,a1,a12\nS1,1,i/1.png,{},0,1\nS2,1,talk.mp4,{},1,0\n"


def test_images_and_frames_of_videos_share_a_table(tmp_path):
    frames = index(tmp_path, MIXED.format("", "12"), table=TABLE + ", source_frame: pos")
    assert frames["source_frame"].tolist() == [-1, 12]
    frames = index(tmp_path, MIXED.format("-1", "0"), table=TABLE + ", source_frame: pos")
    assert frames["source_frame"].tolist() == [-1, 0]
    (tmp_path / "raw/labels.csv").unlink()
    rows = pd.read_csv(StringIO(MIXED.format("", "12")))
    rows.to_parquet(tmp_path / "raw/labels.parquet")
    assert rows["pos"].dtype == float
    table = TABLE.replace("labels.csv", "labels.parquet") + ", source_frame: pos"
    assert index(tmp_path, None, table=table)["source_frame"].tolist() == [-1, 12]


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        (("0", "0"), "row 2, column pos: expected an empty cell, since the file is an image, found '0'; fix the row"),
        (("", ""), "row 3, column pos: expected a frame from 0 up, since the file is a video, found nothing"),
        (("", "-3"), "row 3, column pos: expected a frame from 0 up, since the file is a video, found '-3'"),
        (("", "-1.0"), "row 3, column pos: expected a frame from 0 up, since the file is a video, found '-1.0'"),
        (("", "x"), "row 3, column pos: expected a whole number, found 'x'"),
    ],
)
def test_a_place_that_its_file_cannot_have_is_named(tmp_path, places, sentence):
    with pytest.raises(DataError, match=sentence):
        index(tmp_path, MIXED.format(*places), table=TABLE + ", source_frame: pos")


def test_a_video_needs_a_column_of_places(tmp_path):
    with pytest.raises(DataError, match=r"row 3, column image: expected an image, found 'talk.mp4'; name the column"):
        index(tmp_path, MIXED.format("", "0"))


def test_an_index_equals_what_is_read_of_it(tmp_path):
    frames = index(tmp_path)
    write_index(tmp_path, frames)
    pd.testing.assert_frame_equal(read_index(tmp_path, dataset="mine"), frames)
    assert read_index(tmp_path, dataset="mine").equals(frames), "else a refresh is never up to date"


def test_a_root_that_is_away_is_named(tmp_path):
    mine = entry(tmp_path)
    assert mine.missing_folders() == [tmp_path / "raw"]
    with pytest.raises(DataError, match="raw does not exist; bring its disk back, or fix `root` in the catalog"):
        index_frames(mine.root, mine.raw_layout, mine.rules, mine)

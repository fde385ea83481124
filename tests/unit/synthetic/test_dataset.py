"""Rendered data sets on disk: the two raw layouts, truth, resumption, refusal of other settings."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline.datasets import bp4d, disfa
from pipeline.errors import DataError
from pipeline.protocols import PROTOCOLS
from pipeline.synthetic.dataset import write_dataset
from pipeline.synthetic.layout import subject_names

SMALL = {"num_subjects": 2, "num_tasks": 2, "num_frames": 2, "seed": 1, "size_px": 96}


@pytest.fixture(scope="module")
def bp4d_set(tmp_path_factory):
    out = tmp_path_factory.mktemp("rendered") / "bp4d"
    write_dataset(out, layout="bp4d", **SMALL)
    return out


def test_bp4d_layout_is_read_by_the_index_with_labels_that_are_the_truth(bp4d_set):
    rows = bp4d.index_rows(bp4d.LAYOUT.open(bp4d_set), PROTOCOLS["rendered_bp4d"]).set_index("frame_id")
    truth = pd.read_parquet(bp4d_set / "truth.parquet").set_index("frame_id")
    assert set(rows.index) == set(truth.index)
    assert "F001/T1/2440" in rows.index
    assert (rows["source_file"] != "").all()
    assert not (rows[["au_01", "au_12"]] == -1).any(axis=None)
    present = (truth.loc[rows.index, "intensity_12"] >= 0.4).astype(int)
    assert rows["au_12"].tolist() == present.tolist()
    image = cv2.imread(str(bp4d_set / rows.loc["F001/T1/2440", "source_file"]))
    assert image.shape == (96, 96, 3)
    codes = pd.read_csv(bp4d_set / "AUCoding/AU_OCC/F001_T1.csv")
    assert codes.columns[0] == "0"
    assert (codes["13"] == 9).all()
    assert len(truth.loc["F001/T1/2440", "landmarks_xy"]) == 136


def test_complete_set_is_left_alone_and_a_broken_sequence_is_rendered_to_the_same_bytes(bp4d_set):
    codes = bp4d_set / "AUCoding/AU_OCC/M001_T2.csv"
    image = next((bp4d_set / "BP4D-training/M001/T2").glob("*.jpg"))
    untouched = bp4d_set / "AUCoding/AU_OCC/F001_T1.csv"
    before, bytes_before, stamp = codes.read_bytes(), image.read_bytes(), untouched.stat().st_mtime_ns
    write_dataset(bp4d_set, layout="bp4d", **SMALL)
    assert codes.read_bytes() == before
    codes.unlink()
    image.unlink()
    write_dataset(bp4d_set, layout="bp4d", **SMALL)
    assert codes.read_bytes() == before
    assert image.read_bytes() == bytes_before
    assert untouched.stat().st_mtime_ns == stamp


def test_other_settings_and_foreign_folders_are_refused(bp4d_set, tmp_path):
    with pytest.raises(DataError, match="seed 1 instead of 2"):
        write_dataset(bp4d_set, layout="bp4d", **SMALL | {"seed": 2})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        write_dataset(tmp_path, layout="bp4d", **SMALL)


def test_disfa_layout_decodes_to_the_labelled_frames(tmp_path):
    out = tmp_path / "disfa"
    write_dataset(out, layout="disfa", **SMALL | {"num_subjects": 1, "num_frames": 4})
    rows = disfa.index_rows(disfa.LAYOUT.open(out), PROTOCOLS["rendered_disfa"])
    assert rows["frame"].tolist() == list(range(1, 9))
    with av.open(str(out / "Videos_LeftCamera/LeftVideoSN001_comp.avi")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 8
    assert frames[0].shape == (96, 96, 3)
    assert np.std(frames[0]) > 10
    truth = pd.read_parquet(out / "truth.parquet")
    assert truth["frame_id"].tolist() == rows["frame_id"].tolist()
    assert ((truth["intensity_25"] >= 0.4).astype(int) == rows["au_25"]).all()


def test_names_are_the_protocols_then_go_on():
    names = subject_names("bp4d", 45)
    assert names[:4] == ["F001", "M001", "F002", "M002"]
    assert set(names[:41]) == set(PROTOCOLS["bp4d"].subject_parts)
    assert names[41:] == ["F024", "M019", "F025", "M020"]
    assert set(subject_names("disfa", 27)) == set(PROTOCOLS["disfa"].subject_parts)
    assert subject_names("disfa", 29)[27:] == ["SN033", "SN034"]

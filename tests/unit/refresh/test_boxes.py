"""Faces and boxes of a refresh: what is detected again, what is chosen again, and what the summary says."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.config import DetectorConfig
from pipeline.refresh import boxes as refresh_boxes
from pipeline.refresh.boxes import describe_boxes, face_notes
from pipeline.refresh.job import prepare_refresh
from pipeline.refresh.stages import DetectStage, IndexStage, run_stage
from pipeline.synthetic.dataset import write_dataset
from pipeline.tables import BOX_COLUMNS, read_table, write_table

CATALOG = {
    "roots": {"work": "work", "cache": "cache", "runs": "runs"},
    "datasets": {
        "faces": {
            "root": "raw",
            "layout": "bp4d",
            "protocol": "rendered_bp4d",
            "experiment": "demo_quick",
            "max_lost_frac": 1,
        }
    },
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    write_dataset(folder / "raw", layout="bp4d", num_subjects=2, num_tasks=1, num_frames=3, seed=5, size_px=128)
    return folder / "raw"


@pytest.fixture
def world(raw, tmp_path, monkeypatch):
    """A catalog with 6 rendered frames, which a test may change."""
    (tmp_path / "data_catalog.yaml").write_text(yaml.safe_dump(CATALOG))
    monkeypatch.setenv("FANTRANS_CATALOG", str(tmp_path / "data_catalog.yaml"))
    shutil.copytree(raw, tmp_path / "raw")
    return tmp_path


def job_with(**settings):
    return prepare_refresh("faces", overrides=[f"cache.detector.{name}={value}" for name, value in settings.items()])


def detect(job):
    run_stage(IndexStage(), job, job.workers)
    return run_stage(DetectStage(), job, job.workers)


def table_bytes(job):
    return job.faces_path.read_bytes(), job.boxes_path.read_bytes()


def test_a_second_refresh_detects_nothing_and_leaves_the_tables(world):
    job = job_with()
    assert detect(job).num_computed == 6
    boxes = read_table(job.boxes_path, columns=BOX_COLUMNS, made_by="")
    assert boxes["status"].tolist() == ["ok"] * 6
    written = [path.stat().st_mtime_ns for path in (job.faces_path, job.boxes_path)]
    assert detect(job).num_computed == 0
    assert [path.stat().st_mtime_ns for path in (job.faces_path, job.boxes_path)] == written


def test_other_settings_of_tracks_choose_again_without_detecting(world):
    detect(job_with())
    strict = job_with(min_side_px=1000)
    plan = DetectStage().plan(strict)
    assert plan.num_computed == 0
    assert plan.expected.boxes["status"].tolist() == ["implausible"] * 6, "a dry run knows the boxes to come"
    assert not strict.boxes_path.exists()
    summary = detect(strict)
    assert (summary.num_computed, summary.num_kept) == (0, 6)
    assert "6 frames with a flaw (6 small)" in summary.note
    assert read_table(strict.boxes_path, columns=BOX_COLUMNS, made_by="")["status"].tolist() == ["implausible"] * 6
    assert DetectStage().plan(job_with(score_threshold=0.6)).num_computed == 6


def test_a_boxes_table_without_tracks_is_written_again(world):
    job = job_with()
    detect(job)
    before = table_bytes(job)
    write_table(job.boxes_path, pd.read_parquet(job.boxes_path).drop(columns=["track", "flaw"]))
    assert detect(job).num_computed == 0
    assert table_bytes(job) == before
    stale = pd.read_parquet(job.boxes_path).assign(x1=np.float32(1), source_sha256="of another image")
    write_table(job.boxes_path, stale)
    assert DetectStage().plan(job).expected.boxes["x1"].gt(1).all()
    assert detect(job).num_computed == 0
    assert table_bytes(job) == before, "a kill between the two tables leaves no stale boxes"


def test_only_changed_images_are_detected_again_and_the_boxes_are_those_from_scratch(world):
    job = job_with()
    detect(job)
    images = sorted((world / "raw").rglob("*.jpg"))
    cv2.imwrite(str(images[1]), cv2.flip(cv2.imread(str(images[1])), 1))
    assert DetectStage().plan(job).num_computed == 1
    assert detect(job).num_computed == 1
    changed = table_bytes(job)
    for path in (job.faces_path, job.boxes_path):
        path.unlink()
    assert detect(job).num_computed == 6
    assert table_bytes(job) == changed


def test_a_lost_image_has_no_source_and_comes_back(world):
    job = job_with()
    detect(job)
    image = sorted((world / "raw").rglob("*.jpg"))[0]
    data = image.read_bytes()
    image.unlink()
    assert detect(job).num_computed == 1
    assert pd.read_parquet(job.boxes_path)["status"].tolist() == ["no_source"] + ["ok"] * 5
    assert detect(job).num_computed == 0
    image.write_bytes(data)
    assert detect(job).num_computed == 1
    assert pd.read_parquet(job.boxes_path)["status"].tolist() == ["ok"] * 6


def test_a_damaged_image_is_tried_at_each_refresh(world):
    job = job_with()
    sorted((world / "raw").rglob("*.jpg"))[0].write_bytes(b"no image")
    assert detect(job).num_computed == 6
    assert pd.read_parquet(job.boxes_path)["status"].tolist() == ["unreadable"] + ["ok"] * 5
    assert detect(job).num_computed == 1


def test_tables_do_not_depend_on_chunks_and_finished_chunks_are_reused(world, monkeypatch):
    job = job_with()
    detect(job)
    undisturbed = table_bytes(job)
    faces = pd.read_parquet(job.faces_path)
    for path in (job.faces_path, job.boxes_path):
        path.unlink()
    parts = job.faces_path.with_suffix(".parts")
    stale = faces[faces["frame_id"] == faces["frame_id"][0]].assign(x1=np.float32(1), source_sha256="other")
    write_table(parts / "000000.parquet", stale)
    write_table(parts / "000001.parquet", faces.iloc[:2])  # newer than the one before
    monkeypatch.setattr(refresh_boxes, "CHUNK_FRAMES", 2)
    assert detect(job).num_computed == 4
    assert not parts.exists()
    assert table_bytes(job) == undisturbed


def box_table(**columns):
    count = len(next(iter(columns.values())))
    table = {
        "frame_id": [f"F001/T{i // 4 + 1}/{i}" for i in range(count)],
        "num_faces": [1] * count,
        "status": ["ok"] * count,
        "track": [0] * count,
        "flaw": [""] * count,
        "width_px": [600] * count,
        "height_px": [640] * count,
    }
    return pd.DataFrame(table | columns)


def test_the_summary_counts_what_is_not_plain():
    plain = box_table(track=[0, 0, 0, 0])
    assert describe_boxes(plain, DetectorConfig()) == "a face in every frame"
    boxes = box_table(
        num_faces=[1, 2, 3, 0, 1, 1],
        status=["ok", "ok", "implausible", "no_face", "ok", "interpolated"],
        flaw=["", "", "outside", "", "", ""],
        track=[0, 2, 2, -1, 5, 5],
        width_px=[641, 640, 640, 640, 2000, 0],
    )
    assert face_notes(boxes, DetectorConfig()) == [
        "2 frames with several faces",
        "1 frames with a flaw (1 outside)",
        "1 switches to another track in 1 sequences",
        "2 frames shrunk to 640 px before detection",
    ]
    assert describe_boxes(boxes, DetectorConfig()).startswith(
        "1 implausible, 1 no_face, 1 interpolated of 6: F001/T1/2 implausible (outside), F001/T1/3 no_face, "
        "F001/T2/5 interpolated; 2 frames with several faces; "
    )

"""What a refresh does when labels change or sources go away, and what training then says."""

import json
import logging

import pytest

from pipeline.catalog import Catalog, DatasetEntry, Roots
from pipeline.config import CacheConfig
from pipeline.datasets.index import read_index
from pipeline.datasets.origin import ORIGIN_NAME
from pipeline.errors import DataError
from pipeline.refresh.job import RefreshJob
from pipeline.refresh.stages import IndexStage, run_stage
from tests.unit.datasets.raw import ZEROS, write_codes, write_images, write_intensities, write_video

NUM_FRAMES = 10


@pytest.fixture
def root(tmp_path):
    """Four sequences of ten frames, each with its image."""
    for name in ("F001", "F002"):
        for task in ("T1", "T2"):
            write_codes(tmp_path, f"{name}_{task}.csv", [f"{n}{ZEROS}" for n in range(1, NUM_FRAMES + 1)])
            images = [f"{n}.jpg" for n in range(1, NUM_FRAMES + 1)]
            write_images(tmp_path, *images, folder=f"BP4D-training/{name}/{task}")
    return tmp_path


def make_job(root, *, allow_lost=False, limit=None, **keys):
    keys = {"layout": "bp4d", "protocol": "rendered_bp4d"} | keys
    catalog = Catalog(
        roots=Roots(work=root / "work", cache=root / "cache", runs=root / "runs"),
        datasets={"small": DatasetEntry(root=root, **keys)},
    )
    config = CacheConfig()
    return RefreshJob(dataset="small", catalog=catalog, config=config, limit=limit, device="cpu", allow_lost=allow_lost)


def refresh(job):
    return run_stage(IndexStage(), job, job.workers)


def indexed(root):
    return read_index(root / "work/small", dataset="small")


def move(path):
    return path.rename(path.with_name(f".{path.name}"))


def test_a_folder_that_is_away_stops_a_refresh_until_it_is_allowed_or_back(root):
    refresh(make_job(root))
    before = indexed(root)
    folder = root / "BP4D-training/F002/T1"
    away = move(folder)
    with pytest.raises(
        DataError,
        match=r"10 of the 40 frames of small that had an image or video have lost it; the first is F002/T1/1: .*"
        r"BP4D-training/F002/T1 does not exist; nothing was dropped: .* run `fantrans refresh small --allow-lost`",
    ):
        refresh(make_job(root))
    assert indexed(root).equals(before)
    away.rename(folder)
    assert refresh(make_job(root)).is_noop
    move(folder)
    refresh(make_job(root, allow_lost=True))
    assert (indexed(root)["source_file"] == "").sum() == NUM_FRAMES
    refresh(make_job(root)), "what was allowed once is known"


def test_labels_that_are_away_count_as_lost_but_a_smaller_selection_does_not(root):
    refresh(make_job(root))
    before = indexed(root)
    away = move(root / "AUCoding/AU_OCC/F002_T1.csv")
    with pytest.raises(
        DataError, match=r"10 of the 40 frames .* are no longer in the label files; the first is F002/T1/1; "
    ):
        refresh(make_job(root))
    assert indexed(root).equals(before)
    away.rename(root / "AUCoding/AU_OCC/F002_T1.csv")
    (root / "list.txt").write_text("F001/T1/1.jpg\n")
    assert refresh(make_job(root, frames=root / "list.txt")).num_dropped == 39


def test_the_share_that_may_be_lost_is_a_key_of_the_catalog(root):
    refresh(make_job(root))
    (root / "BP4D-training/F001/T1/1.jpg").unlink()
    with pytest.raises(DataError, match="1 of the 40 frames of small"):
        refresh(make_job(root, max_lost_frac=0.024))
    refresh(make_job(root, max_lost_frac=0.025))
    assert indexed(root)["source_file"].iloc[0] == ""


def test_changed_labels_are_noticed_until_the_next_refresh(root):
    job = make_job(root)
    job.catalog.check_labels("small"), "no index yet: nothing to compare"
    refresh(job)
    job.catalog.check_labels("small")
    codes = root / "AUCoding/AU_OCC/F001_T2.csv"
    codes.touch()
    job.catalog.check_labels("small"), "the same bytes at another time are the same labels"
    codes.write_text(codes.read_text().replace("1" + ZEROS, "1,1" + ZEROS[2:], 1))
    sentence = (
        "F001_T2.csv has changed since the labels of small were indexed; run `fantrans refresh small --until index`"
    )
    with pytest.raises(DataError, match=sentence):
        job.catalog.check_labels("small")
    refresh(job)
    job.catalog.check_labels("small")
    write_codes(root, "F001_T3.csv", ["1" + ZEROS])
    with pytest.raises(DataError, match=r"F001_T3.csv is new since"):
        job.catalog.check_labels("small")
    move(root / "AUCoding/AU_OCC/F001_T3.csv")
    move(codes)
    with pytest.raises(DataError, match=r"F001_T2.csv is gone since"):
        job.catalog.check_labels("small")
    move(root / "AUCoding")
    job.catalog.check_labels("small"), "the labels are on another machine"


@pytest.mark.parametrize("keys", [{"leave_out": [24]}, {"protocol": "bp4d"}, {"folders": {"images": "BP4D-training"}}])
def test_changed_keys_of_the_catalog_are_noticed(root, keys):
    refresh(make_job(root))
    with pytest.raises(DataError, match=f"`{next(iter(keys))}` of small in the catalog has changed since the index"):
        make_job(root, **keys).catalog.check_labels("small")
    make_job(root, max_lost_frac=0.5).catalog.check_labels("small"), "a key that does not decide the index"


def test_a_changed_list_of_frames_is_noticed(root):
    names = root / "list.txt"
    names.write_text("F001/T1/1.jpg\n")
    job = make_job(root, frames=names)
    refresh(job)
    job.catalog.check_labels("small")
    names.write_text("F001/T1/2.jpg\n")
    with pytest.raises(DataError, match=r"list.txt has changed since"):
        job.catalog.check_labels("small")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": {}, "settings": {}}'])
def test_a_damaged_record_of_the_labels_is_written_again(root, content):
    job = make_job(root)
    refresh(job)
    record = root / "work/small" / ORIGIN_NAME
    whole = record.read_bytes()
    record.write_bytes(content)
    job.catalog.check_labels("small")
    assert refresh(job).is_noop
    assert record.read_bytes() == whole


def test_a_video_is_counted_once(tmp_path, monkeypatch):
    write_intensities(tmp_path)
    video = write_video(tmp_path / "Videos_LeftCamera/LeftVideoSN001_comp.avi", 3)
    job = make_job(tmp_path, layout="disfa", protocol="rendered_disfa")
    refresh(job)
    found = json.loads((tmp_path / "work/small" / ORIGIN_NAME).read_bytes())["videos"]
    status = video.stat()
    assert found == {"Videos_LeftCamera/LeftVideoSN001_comp.avi": [status.st_size, status.st_mtime_ns, 3]}
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.datasets.videos.describe_video", None)
        assert refresh(job).is_noop
    write_video(video, 2)
    refresh(make_job(tmp_path, layout="disfa", protocol="rendered_disfa", allow_lost=True))
    assert indexed(tmp_path)["source_file"].tolist()[1:] == ["Videos_LeftCamera/LeftVideoSN001_comp.avi", ""]


def test_an_index_that_lacks_subjects_of_the_protocol_is_logged(root, caplog):
    caplog.set_level(logging.INFO, logger="fantrans")
    refresh(make_job(root, protocol="bp4d"))
    assert "2 of 41 subjects, 4 of 328 tasks" in caplog.text

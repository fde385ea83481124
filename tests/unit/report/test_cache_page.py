import base64
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline.catalog import RenderedEntry, load_catalog
from pipeline.datasets.index import write_index
from pipeline.errors import StoreError
from pipeline.report import cache_content as content
from pipeline.report.cache_boxes import box_measures, sequence_table, spread_charts, track_notes
from pipeline.report.cache_page import render, write_cache_page
from pipeline.store.verify import verify_store
from pipeline.tables import Status
from tests.unit import small_project
from tests.unit.report.test_page import Reader
from tests.unit.small_project import (
    CROWDED,
    DETECTOR,
    MISSED,
    NAME,
    NUM_FRAMES,
    SUBJECTS,
    SWITCHED,
    TASKS,
    make_project,
)

RENDERED = RenderedEntry(num_subjects=3, num_tasks=3, num_frames=4, size_px=64, seed=0)
NUM_ALL = len(SUBJECTS) * len(TASKS) * NUM_FRAMES


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A catalog and its cache, which no test changes."""
    folder = tmp_path_factory.mktemp("cache_page")
    return make_project(folder)


@pytest.fixture(scope="module")
def facts(project):
    catalog, cache = project
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "refresh_command", lambda *_: "fantrans refresh small")  # see `quickly`
        found = content.read_cache_facts(catalog, NAME, cache.folder)
        assert found.summary.refresh_command == "fantrans refresh small"
    return found


@pytest.fixture(scope="module")
def page(facts):
    return Reader(render(facts, shows_images=True))


@pytest.fixture
def quickly(monkeypatch):
    """Pages without the script of charts, and the command that refreshes the cache, which none has, is known."""
    monkeypatch.setattr(content, "refresh_command", lambda *_: "fantrans refresh small")
    monkeypatch.setattr("pipeline.report.rendering._packed_plotly", lambda: "")


def moved_runs(project, folder):
    """The catalog with another runs root, and the cache."""
    catalog, cache = project
    roots = catalog.roots.model_copy(update={"runs": folder})
    return catalog.model_copy(update={"roots": roots}), cache


def texts(rows):
    return [[cell.text for cell in cells] for cells in rows[1]]


def test_a_page_holds_all_that_it_needs_and_no_frame_unless_asked(facts, page):
    text = render(facts, shows_images=False)
    hidden = Reader(text)
    assert "default-src 'none'" in text
    assert "<code>fantrans cache report small --images</code> shows them" in text
    assert hidden.numbers["images"] == {}
    for each in (page, hidden):
        assert all(address.startswith(("#", "data:", "../small-b%20%26%20c/report.html")) for address in each.addresses)
        assert len(each.ids) == len(set(each.ids))
        assert {address[1:] for address in each.addresses if address.startswith("#")} <= set(each.ids)
    assert set(page.numbers["images"]) == {"F001/T1/1", "F001/T2/1", "F001/T1/2"}


@pytest.mark.parametrize(
    ("is_rendered", "choice", "is_shown"),
    [(False, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
def test_frames_are_shown_of_rendered_faces_or_if_asked_for(project, tmp_path, is_rendered, choice, is_shown, quickly):
    catalog, cache = moved_runs(project, tmp_path)
    entry = catalog.datasets[NAME].model_copy(update={"rendered": RENDERED if is_rendered else None})
    catalog = catalog.model_copy(update={"datasets": {NAME: entry}})
    path = write_cache_page(catalog, NAME, cache.folder, shows_images=choice)
    assert path == tmp_path / f"caches/small-{cache.fingerprint}.html"
    assert bool(Reader(path.read_text()).numbers["images"]) == is_shown


def test_every_stage_is_counted_by_subject_and_task(facts):
    table = pd.DataFrame(texts(content.coverage_table(facts.frames, "subject")))
    assert table.to_numpy().tolist() == [
        ["F001", "P1", "3", "12", "12", "10", "9", "75.0"],
        ["F002", "P1", "3", "12", "11", "11", "11", "91.7"],
        ["M001", "P1", "3", "12", "11", "11", "11", "91.7"],
    ]
    assert [row[0] for row in texts(content.coverage_table(facts.frames, "task"))] == ["T1", "T2", "T10"]
    found = content.coverage_map(facts.frames)
    assert (found["subjects"], found["tasks"]) == (list(SUBJECTS), list(TASKS))
    assert found["stages"]["cached"]["percent"] == [[50.0, 75.0, 100.0], [100.0, 75.0, 100.0], [100.0, 100.0, 75.0]]
    assert found["stages"]["with a box"]["texts"][0] == ["3 of 4", "3 of 4", "4 of 4"]


def test_a_task_that_a_subject_lacks_is_empty_and_of_many_subjects_the_least_cached_are_shown(facts, monkeypatch):
    monkeypatch.setattr(content, "MAX_SUBJECTS", 2)
    frames = facts.frames[facts.frames["sequence"] != "F001/T10"]
    found = content.coverage_map(frames)
    assert found["subjects"] == ["F001", "F002"]
    assert found["stages"]["cached"]["percent"][0] == [50.0, 75.0, None]
    assert found["stages"]["cached"]["texts"][0][2] == ""


def test_frames_without_features_are_listed_by_reason(facts, monkeypatch):
    counts = {row[0]: row[1] for row in texts(content.failure_table(facts.frames))}
    assert counts == {"no_face": "2", "implausible: small": "1", "unreadable": "1", "no_source": "1"}
    assert {name: set(table["frame_id"]) for name, table in content.examples(facts.frames).items()}["no_face"] == {
        "F001/T1/1",
        "F001/T2/1",
    }
    monkeypatch.setattr(content, "NUM_EXAMPLES", 2)
    frames = facts.frames.assign(is_cached=False, status="no_face", flaw="")
    assert content.examples(frames)["no_face"]["sequence"].tolist() == ["F001/T1", "F001/T2"]


def test_a_frame_is_shown_with_the_box_that_is_implausible(page):
    def pixels(name):
        data = base64.b64decode(page.numbers["images"][name].partition(",")[2])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].astype(int)

    def yellow_share(image):
        return np.mean((image[..., 0] > 180) & (image[..., 1] > 120) & (image[..., 2] < 90), axis=1)

    framed, plain = (yellow_share(pixels(name))[10] for name in ("F001/T1/2", "F001/T1/1"))  # the upper side of the box
    assert framed > plain + 0.15


def test_size_place_and_turn_of_boxes_are_measured():
    boxes = small_project.make_boxes(small_project.make_frames())
    measures = box_measures(boxes)
    assert len(measures) == NUM_ALL - len([each for each in MISSED.values() if each != Status.IMPLAUSIBLE])
    first = measures.iloc[0]
    assert first["side_px"] == pytest.approx(24)
    assert (first["x_percent"], first["y_percent"]) == pytest.approx((100 * 32.5 / 80, 100 * 22.5 / 60))
    assert first["roll_deg"] == pytest.approx(45)
    assert first["side_turn"] == pytest.approx((2 * 8 + 2 * 8) / 128)  # nose (2, 2) from the middle, eyes (8, 8) apart
    charts = spread_charts(measures, DETECTOR)
    assert sum(charts["histograms"]["side of the box"]["counts"]) == len(measures)
    assert charts["histograms"]["turn in the image (roll)"]["limits"] == [-45.0, 45.0]
    places = np.array(charts["places"]["counts"])
    assert np.argwhere(places).tolist() == [[7, 8]]  # y 37.5 %, x 40.6 % in bins of 5 %


def test_tracks_are_those_that_a_refresh_counts():
    boxes = small_project.make_boxes(small_project.make_frames())
    assert track_notes(boxes, DETECTOR) == [
        "1 frames with several faces",
        "1 frames with a flaw (1 small)",
        "1 switches to another track in 1 sequences",
    ]
    columns, rows = sequence_table(boxes)
    found = {cells[0].text: dict(zip(columns, (cell.value for cell in cells), strict=True)) for cells in rows}
    assert rows[0][0].text == SWITCHED
    assert (found[SWITCHED]["switches"], found[SWITCHED]["frames"]) == (1, NUM_FRAMES)
    assert found[CROWDED.rpartition("/")[0]]["several faces"] == 1
    assert "F002/T10" not in found
    assert (found["F001/T1"]["flaws"], found["F001/T1"]["no face"]) == (1, 1)


def test_fidelity_is_the_stated_mean_and_the_spread_of_the_stored_errors(project, facts):
    (columns, rows), note = content.fidelity_table(facts.store)
    cache = project[1]
    stored = cache.read_rows("loss", cache.rows(), group="view_00")
    assert [row[0].text for row in rows] == ["lf", "h1", "h2"]
    for i, row in enumerate(rows):
        assert row[1].value == pytest.approx(stored[:, i].mean(), rel=1e-3)
        assert row[columns.index("median")].value == pytest.approx(np.median(stored[:, i]), rel=1e-3)
        assert row[columns.index("greatest")].value == pytest.approx(stored[:, i].max(), rel=1e-3)
    assert f"{len(stored)} frames of this revision" in note


def test_bytes_are_those_on_disk(facts):
    columns, rows = content.bytes_table(facts.store)
    by_name = {row[0].text: row[columns.index("MB")].value for row in rows}
    for name, num_bytes in by_name.items():
        files = facts.folder.glob(f"arrays.zarr/*/{'*' if name == 'all' else name}/c.*")
        assert num_bytes == sum(path.stat().st_size for path in files)
    assert by_name["all"] == facts.summary.size_bytes


def test_revisions_runs_and_reports_are_listed(facts, page):
    (columns, rows), note = content.revision_table(facts.folder)
    assert [row[0].text for row in rows] == ["1"]
    assert [rows[0][columns.index(name)].text for name in ("frames", "with features", "views", "device")] == [
        str(NUM_ALL), str(NUM_ALL - len(MISSED)), "3", "cpu"
    ]  # fmt: skip
    assert note == ""
    assert "../small-b%20%26%20c/report.html" in page.addresses
    assert {"small-a", "small-b & c"} <= set(page.texts)


def test_an_up_to_date_cache_has_no_fault_and_damage_and_age_are_named(project, facts, tmp_path, quickly):
    assert content.state_sentences(facts) == []
    folder = shutil.copytree(project[0].roots.runs.parent, tmp_path / "copy")
    catalog, cache = load_catalog(folder / "data_catalog.yaml"), folder / "cache" / NAME / project[1].fingerprint
    shard = next(cache.glob("arrays.zarr/view_00/lf/c.*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    frames = small_project.make_frames()
    more = frames.iloc[[0]].assign(frame_id="M001/T10/9", subject="M001", task="T10", frame=9)
    write_index(catalog.work_folder(NAME), pd.concat([frames.iloc[1:], more]))
    facts = content.read_cache_facts(catalog, NAME, cache)
    (damage,) = verify_store(cache, is_deep=False)
    num_frames = len(damage.frame_ids)
    assert content.state_sentences(facts) == [
        f"1 files are damaged or missing; {num_frames} frames cannot be read.",
        "The data set's index lists 1 frames that the cache does not have.",
        "The cache lists 1 frames that the data set's index does not have.",
    ]
    assert texts(content.damage_table(facts.damages)) == [[damage.message, str(num_frames)]]
    reasons = {row[0]: row[1] for row in texts(content.failure_table(facts.frames))}
    assert reasons[content.NOT_LISTED] == "1"
    assert content.read_cache_facts(catalog, NAME, cache, checks_files=False).damages is None


def test_a_cache_without_index_boxes_and_crops_has_a_page(project, tmp_path, quickly):
    catalog, cache = moved_runs(project, tmp_path)
    roots = catalog.roots.model_copy(update={"work": tmp_path / "work"})
    catalog = catalog.model_copy(update={"roots": roots})
    page = Reader(write_cache_page(catalog, NAME, cache.folder, shows_images=True).read_text())
    assert "coverage" in page.ids
    assert not {"boxes", "tracks"} & set(page.ids)
    assert page.numbers["coverage"]["stages"]["cached"]["percent"][0] == [50.0, 75.0, 100.0]
    assert page.numbers["images"] == {}


def test_a_cache_without_a_revision_has_no_page(project, tmp_path):
    catalog, cache = project
    folder = tmp_path / cache.fingerprint
    folder.mkdir()
    shutil.copy(cache.folder / "fingerprint.json", folder)
    with pytest.raises(StoreError, match="has no finished revision"):
        content.read_cache_facts(catalog, NAME, folder)

import base64
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.catalog import load_catalog
from pipeline.faces.views import ViewParams, render_view
from pipeline.report import page as pages
from pipeline.report.faces import thumbnails
from pipeline.report.page import Page, num_curve_points, published_scores, render
from pipeline.report.page_content import LEGENDS, member_table, paired_differences, score_table
from pipeline.report.provenance import describe_gaps, describe_run, repeat_commands
from pipeline.report.rendering import as_json
from pipeline.report.rows import difference, read_row
from pipeline.report.run import read_report, write_files, write_report
from pipeline.report.scored import AP, CALIBRATED, F1, read_scored, worst_frames
from pipeline.training.metrics import f1_percent
from pipeline.training.run_files import read_predictions
from pipeline.training.trainer import train_heads
from tests.unit import small_cache, small_runs
from tests.unit.small_runs import make_run

PARTS = ("P1", "P2", "P3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished runs that differ by their seed, and one with a single fold."""
    folder = tmp_path_factory.mktemp("trained")
    small_runs.make_cache(folder)
    runs = [
        make_run(folder, name=name, train=small_runs.TRAIN.model_copy(update={"seed": seed}))
        for name, seed in (("one", 0), ("two", 1), ("third", 2))
    ]
    train_heads([(run, part) for run in runs[:2] for part in PARTS] + [(runs[2], "P1")])
    return [run.folder for run in runs]


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the first run, which a test may change."""
    return shutil.copytree(trained[0], tmp_path / "one")


def scored(*folders, name="a", published=None):
    return read_scored(read_row(name, list(folders), published=None), published=published or {})


class Reader(HTMLParser):
    """Addresses, ids and numbers of a page."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.ids, self.numbers, self.texts, self._stack = [], [], {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.ids += [named["id"]] if "id" in named else []
        self.addresses += [named[key] for key in ("src", "href", "action", "data") if named.get(key)]
        self._stack = [tag, named.get("id")]

    def handle_endtag(self, tag):
        self._stack = []

    def handle_data(self, text):
        if self._stack == ["script", "numbers"]:
            self.numbers = json.loads(text)
        elif self._stack and self._stack[0] not in ("script", "style"):
            self.texts.append(text)


def read(path):
    return Reader(path.read_text())


def test_a_page_holds_all_that_it_needs(run):
    write_report(run)
    text = (run / "report.html").read_text()
    page = Reader(text)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "default-src 'none'" in text
    assert len(text.encode()) < 6e6
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert set(page.numbers["members"][0]["measures"]) == {F1, AP, CALIBRATED}


def test_the_numbers_of_a_page_are_those_of_the_report(run):
    report = write_report(run)
    columns, rows = score_table(scored(run))
    cells = [dict(zip(columns, row, strict=True)) for row in rows]
    for row, expected in zip(cells, report.table().to_dict("records"), strict=True):
        for part in PARTS:
            assert row[f"{F1} {part}"].value == pytest.approx(expected[part], nan_ok=True)
        assert row[F1].value == pytest.approx(expected["f1_percent"], nan_ok=True)
        assert row[f"{F1}, 95 %"].value == pytest.approx(expected["low_percent"], nan_ok=True)
        assert row["always present"].value == pytest.approx(expected["always_positive_percent"], nan_ok=True)
        assert row["positive"].value == expected["num_positive"]
    (member,) = read(run / "report.html").numbers["members"]
    assert member["measures"][F1]["values"][-1] == pytest.approx(report.scores.f1_percent, abs=0.01)


def test_calibrated_f1_is_that_of_each_fold_at_the_threshold_of_the_others(run):
    found = scored(run)
    expected = []
    for part in PARTS:
        table = read_predictions(run / f"fold-{part}")
        passed, label = table["p_01"].to_numpy(float) >= found.thresholds[part][0], table["au_01"].to_numpy()
        expected.append(f1_percent(*(int(np.sum(each)) for each in (
            passed & (label == 1), passed & (label == 0), ~passed & (label == 1)
        ))))  # fmt: skip
        assert found.measures[CALIBRATED].folds[part][0] == pytest.approx(expected[-1], nan_ok=True)
    assert found.measures[CALIBRATED].row.values[0, 0] == pytest.approx(np.nanmean(expected))
    assert "chosen on the predictions of the other folds only" in LEGENDS[CALIBRATED]


def test_the_grid_of_thresholds_has_the_reported_f1_in_its_middle(run):
    found = scored(run)
    assert found.grid["f1"][:, 50] == pytest.approx(found.measures[F1].row.values[0, :-1])
    always = found.grid["f1"][:, 0]
    assert always == pytest.approx(found.measures[F1].floor_A)


def test_a_run_with_one_fold_has_no_calibrated_f1(trained):
    page = read(write_files(read_report(trained[2])).with_suffix(".html"))
    assert set(page.numbers["members"][0]["measures"]) == {F1, AP}


def test_scores_of_seeds_are_averaged(trained):
    each, both = [scored(folder) for folder in trained[:2]], scored(*trained[:2])
    for name in (F1, AP, CALIBRATED):
        expected = np.mean([one.measures[name].row.values[0] for one in each], axis=0)
        assert both.measures[name].row.values[0] == pytest.approx(expected, nan_ok=True)
        assert both.measures[name].row.percents == tuple(one.measures[name].row.percents[0] for one in each)


def test_runs_that_are_reported_together_are_compared(trained):
    one, two = trained[:2]
    path = write_files(read_report(one), others=[read_report(two)]).with_suffix(".html")
    gap = read(path).numbers["differences"]["0-1"]
    expected = difference(*(read_row(each.name, [each], published=None) for each in (one, two)))
    assert gap[F1]["points"] == pytest.approx(expected.points, abs=0.01)
    assert gap[F1]["low"] == pytest.approx(expected.low, abs=0.01)
    assert set(gap) == {F1, AP, CALIBRATED}
    columns, rows = member_table([scored(one), scored(two)])
    over_first = [row[columns.index("F1 over first")].value for row in rows]
    assert over_first == [None, pytest.approx(-expected.points[-1])]
    apart = paired_differences([scored(one, name="one"), scored(trained[2], name="third")])["0-1"]
    assert "were not tested on the same frames" in apart[F1]["fault"]


@pytest.mark.parametrize("change", [{"dataset": "licensed"}, {"scores": None}])
def test_a_page_compares_only_runs_of_its_data_set_and_action_units(trained, change):
    one, two = map(read_report, trained[:2])
    if change == {"scores": None}:
        change = {"scores": replace(two.scores, aus=two.scores.aus.head(1))}
    page = read(write_files(one, others=[replace(two, **change)]).with_suffix(".html"))
    assert [member["name"] for member in page.numbers["members"]] == ["one"]


@pytest.mark.parametrize("content", [b"", b"no table"])
def test_damaged_predictions_cost_only_what_comes_from_them(run, content, caplog):
    (run / "fold-P2/predictions.parquet").write_bytes(content)
    write_report(run)
    page = read(run / "report.html")
    assert set(page.numbers["members"][0]["measures"]) == {F1}
    assert "thresholds" not in page.ids
    assert {"scores", "training", "provenance"} <= set(page.ids)
    assert "predictions.parquet is damaged" in caplog.text


def test_a_run_of_an_earlier_version_has_a_page(run):
    record = json.loads((run / "run.json").read_bytes())
    kept = {key: record[key] for key in ("experiment", "dataset", "cache", "head", "aus")}
    (run / "run.json").write_text(json.dumps(kept))
    for part in PARTS:
        result = json.loads((run / f"fold-{part}/result.json").read_bytes())
        (run / f"fold-{part}/result.json").write_text(json.dumps({"history": result["history"], "device": "cpu"}))
    write_report(run)
    text = " ".join(read(run / "report.html").texts)
    assert "not recorded: the run is of an earlier version" in text
    assert describe_run(run)["seed"].startswith("not recorded")


def test_what_a_run_lacks_and_its_commands_stand_on_the_page(run):
    record = json.loads((run / "run.json").read_bytes()) | {"gaps": "12 of 41 subjects", "experiment": "demo"}
    (run / "run.json").write_text(json.dumps(record | {"init_from": "other"}))
    result = json.loads((run / "fold-P1/result.json").read_bytes())
    (run / "fold-P1/result.json").write_text(json.dumps(result | {"num_test_frames_missing": 1234}))
    assert describe_gaps(run) == [
        "The run had 12 of 41 subjects.",
        "P1: 1,234 coded frames have no features and were not tested.",
    ]
    write_report(run)
    text = " ".join(read(run / "report.html").texts)
    for expected in (
        "The run had 12 of 41 subjects.",
        "fantrans train small --experiment demo --init-from other",
        record["cache"],
    ):
        assert expected in text
    member = record | {"experiment": "baseline-seed0"}
    assert repeat_commands(member, run) == ["fantrans report one"]


def test_names_are_text_and_no_markup(run):
    record = json.loads((run / "run.json").read_bytes())
    name = "</script><img src=x onerror=alert(1)>"
    (run / "run.json").write_text(json.dumps(record | {"experiment": name}))
    write_report(run)
    text = (run / "report.html").read_text()
    assert name not in text
    assert read(run / "report.html").texts.count(f"{name} on small") == 2  # title and heading
    assert json.loads(as_json({"name": name})) == {"name": name}
    assert "<" not in as_json({"name": name})


def test_worst_frames_have_the_largest_loss_and_one_recording_each(run):
    worst = worst_frames(scored(run), num_frames=3)
    tables = pd.concat([read_predictions(run / f"fold-{part}") for part in PARTS])
    for au, frames in worst.groupby("au"):
        known = tables[tables[f"au_{au:02d}"] >= 0]
        given = known[f"p_{au:02d}"].where(known[f"au_{au:02d}"] == 1, 1 - known[f"p_{au:02d}"])
        losses = pd.Series(-np.log(given.to_numpy(float)), index=known["frame_id"])
        recordings = losses.groupby(losses.index.str.rpartition("/").get_level_values(0)).max()
        assert frames["loss"].tolist() == pytest.approx(sorted(recordings, reverse=True)[:3], rel=1e-4)
        assert losses[frames["frame_id"]].tolist() == pytest.approx(frames["loss"].tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("is_rendered", "wanted", "expected"),
    [(False, None, False), (True, None, True), (False, True, True), (True, False, False)],
)
def test_faces_are_shown_of_rendered_data_or_if_asked_for(run, tmp_path, monkeypatch, is_rendered, wanted, expected):
    catalog = load_catalog()
    name = "bp4d-synthetic" if is_rendered else "bp4d"
    face = np.full((300, 300, 3), 128, np.uint8)
    (run / "figures").mkdir()
    cv2.imwrite(str(run / "figures/score_cam.png"), face)
    monkeypatch.setattr("pipeline.report.faces.thumbnails", lambda *_, **__: {"F/T/1": "data:image/jpeg;base64,aaaa"})
    page = Page("t", name, "faces", [scored(run)], "legend", shows_images=wanted)
    pages.write_page(tmp_path / "page.html", page, catalog)
    text = (tmp_path / "page.html").read_text()
    found = Reader(text)
    assert bool(found.numbers["images"]) == expected
    assert ("score-cam" in found.ids) == expected
    assert ("data:image/jpeg" in text.split("<script>")[0]) == expected
    assert ("Images are off" in text) != expected


@pytest.fixture
def with_crops(tmp_path):
    """A cache that knows its crops, the crops, and a catalog that finds both."""
    frames, boxes = small_cache.make_world(tmp_path)
    crops = small_cache.make_crops(tmp_path, frames, boxes)
    cache = small_cache.make_cache(
        tmp_path, frames, crops, format=small_cache.make_format(crop=small_cache.CROP.model_dump())
    )
    catalog = SimpleNamespace(
        caches_folder=lambda _: cache.folder.parent, crops_folder=lambda _: crops.folder.parent, datasets={}
    )
    return catalog, cache, crops


def test_faces_are_the_crops_that_the_cache_was_computed_from(with_crops):
    catalog, cache, crops = with_crops
    names = list(crops.index["frame_id"][:2])
    found = thumbnails(catalog, "small", cache.folder.name, [*names, "removed", names[0]], width_px=16)
    assert list(found) == names
    for name, row in zip(names, crops.index["row"][:2], strict=True):
        head, _, data = found[name].partition(",")
        assert head == "data:image/jpeg;base64"
        shown = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        assert shown.shape == (16, 16, 3)
        view = render_view(crops.read_crops([row])[0], ViewParams(), view_px=small_cache.CROP.size_px)
        assert shown.mean((0, 1)) == pytest.approx(view.mean((0, 1)), abs=6)


def test_a_page_needs_no_faces(run, with_crops, caplog):
    catalog, _, _ = with_crops
    text = render(Page("t", "small", "faces", [scored(run)], "legend"), catalog, shows_images=True)
    assert Reader(text).numbers["images"] == {}
    assert "faces of small are not shown" in caplog.text
    assert "The faces are not shown, because the crops or the cache of the run do not exist any more." in text


def test_published_scores_are_those_of_the_layout():
    catalog = load_catalog()
    assert published_scores(catalog, "bp4d-synthetic")["AVG"] == published_scores(catalog, "bp4d")["AVG"]
    assert published_scores(catalog, "disfa")["AVG"] != published_scores(catalog, "bp4d")["AVG"]
    assert published_scores(catalog, "removed") == {}


def test_curves_of_many_runs_have_fewer_points():
    assert num_curve_points(1) == 200
    assert num_curve_points(30) * 30 * 36 <= 100_000


def test_a_table_has_the_published_numbers_only_where_there_are_some(run):
    without, _ = score_table(scored(run))
    columns, rows = score_table(scored(run, published={"AU1": 51.6, "AVG": 61.5}))
    assert set(columns) - set(without) == {"published F1"}
    shown = [row[columns.index("published F1")].text for row in rows]
    assert shown == ["51.6", "-", "61.5"]


def test_fewer_folds_of_a_row_are_those_that_are_shown(trained):
    row = read_row("a", [trained[0]], published=None, parts=["P1", "P3"])
    found = read_scored(row, published={})
    assert found.parts == ("P1", "P3")
    assert set(found.thresholds) == {"P1", "P3"}
    assert replace(found, parts=()).labels["part"].unique().tolist() == ["P1", "P3"]


def test_report_json_has_all_measures(run):
    report = write_report(run)
    document = json.loads((run / "report.json").read_bytes())
    found = {each["measure"]: each for each in document["measures"]}
    assert set(found) == {F1, AP, CALIBRATED}
    assert found[F1]["mean"] == {
        "percent": pytest.approx(document["mean_f1_percent"]),
        "low_percent": pytest.approx(report.scores.low_percent),
        "high_percent": pytest.approx(report.scores.high_percent),
        "floor_percent": pytest.approx(report.scores.always_positive_percent),
    }
    for each, expected in zip(found[F1]["action_units"], document["action_units"], strict=True):
        assert (each["au"], each["percent"]) == (expected["au"], pytest.approx(expected["f1_percent"]))
    tables = [read_predictions(run / f"fold-{part}").query("au_01 >= 0") for part in PARTS]
    expected = [average_precision_score(table["au_01"], table["p_01"]) for table in tables]
    assert found[AP]["action_units"][0]["percent"] == pytest.approx(100 * np.mean(expected))
    metrics = document["metrics"]
    assert metrics["action_units"][0]["ap_percent"] == pytest.approx(100 * np.mean(expected))
    expected = [roc_auc_score(table["au_01"], table["p_01"]) for table in tables]
    assert metrics["action_units"][0]["roc_auc_percent"] == pytest.approx(100 * np.mean(expected))
    assert metrics["action_units"][0]["icc"] is None  # without intensities
    every = [each["ece_percent"] for each in metrics["action_units"]]
    assert metrics["mean"]["ece_percent"] == pytest.approx(np.mean(every))

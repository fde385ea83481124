"""`fantrans runs` as a user runs it: what it prints, and with which exit status it ends."""

import csv
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipeline.errors import CatalogError, ConfigError, DataError, UsageError
from pipeline.report.run import write_report
from pipeline.training.runs import write_record
from tests.unit import small_runs
from tests.unit.small_runs import make_run, train_fold

WHOLE, HALF = "bp4d-t1_o2o_t2_o2m-seed0-08d82465b91d4856", "bp4d-t1_o2o_t2_o2m-seed1-1ae82465b91d4857"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    small_runs.make_cache(folder)
    whole = make_run(folder, name=WHOLE)
    for part in ("P1", "P2", "P3"):
        train_fold(whole, part)
    write_report(whole.folder)
    train_fold(make_run(folder, name=HALF), "P1")
    record = json.loads((folder / "runs" / HALF / "run.json").read_bytes())
    (folder / "runs" / HALF / "run.json").write_text(json.dumps(record | {"init_from": WHOLE}))
    write_record(make_run(folder, name="bp4d-started"))
    (folder / "runs/bp4d-damaged").mkdir()
    (folder / "runs/bp4d-damaged/run.json").write_text("{")
    return folder


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.setenv("FANTRANS_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path / "runs"


def fantrans(*arguments, **options):
    return CliRunner().invoke(app, ["runs", *arguments], catch_exceptions=False, **options)


def report(*arguments):
    return CliRunner().invoke(app, ["report", *arguments], catch_exceptions=False)


def test_a_report_prints_its_page_and_opens_it(runs, monkeypatch, caplog):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(opened.append(url)))
    pages = [runs / name / "report.html" for name in (WHOLE, HALF)]
    shown = report(WHOLE, HALF, WHOLE)
    assert [line for line in shown.output.splitlines() if line.startswith("report: ")] == [
        f"report: {page}" for page in pages
    ]
    assert opened == []
    assert HALF in pages[0].read_text()
    report(HALF, "--open")
    assert opened == [pages[1].as_uri()]
    assert f"no browser was found; open {pages[1]} in one" in caplog.messages
    assert ['id="ours"' in page.read_text() for page in pages] == [True, False]


def test_faces_are_on_a_page_if_they_are_asked_for(runs):
    page = runs / WHOLE / "report.html"
    for option, is_off in (((), True), (("--images",), False), (("--no-images",), True)):
        assert report(WHOLE, *option).exit_code == 0
        assert ("Images are off" in page.read_text()) == is_off


def test_ls_prints_whole_names_where_the_output_is_not_a_terminal(runs):
    shown = fantrans("ls")
    assert shown.exit_code == 0
    for name in (WHOLE, HALF, "bp4d-started", "bp4d-damaged"):
        assert name in shown.stdout
    assert re.search(rf"{WHOLE} .* 3/3 ", shown.stdout)
    assert re.search(r"bp4d-damaged .* damaged ", shown.stdout)


def test_ls_as_json_and_csv_has_all_columns_of_all_runs(runs):
    document = json.loads(fantrans("ls", "--json", "--sort", "run").stdout)
    assert document["schema"] == "fantrans/runs-ls/1"
    states = {row["run"]: row["state"] for row in document["runs"]}
    assert states == {WHOLE: "finished", HALF: "partial", "bp4d-started": "started", "bp4d-damaged": "damaged"}
    rows = list(csv.DictReader(io.StringIO(fantrans("ls", "--csv", "--sort", "run").stdout)))
    assert [row["run"] for row in rows] == [row["run"] for row in document["runs"]]
    assert list(rows[0]) == list(document["runs"][0])
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|", row["finished_at"]) for row in rows)


def test_ls_filters(runs):
    def names(*filters):
        return [row["run"] for row in json.loads(fantrans("ls", "--json", *filters).stdout)["runs"]]

    assert names("small", "--state", "finished") == [WHOLE]
    assert set(names("--experiment", "sm*", "--newer", "1d")) == {WHOLE, HALF, "bp4d-started"}
    assert names("--older", "1d") == []
    assert names("bp4d") == []
    assert "no run below" in fantrans("ls", "--older", "1d").stdout
    with pytest.raises(CatalogError, match="'bp5d'"):
        fantrans("ls", "bp5d")
    with pytest.raises(ConfigError, match="--json and --csv cannot be combined"):
        fantrans("ls", "--json", "--csv")


def test_show_prints_settings_folds_scores_losses_and_what_is_next(runs):
    shown = fantrans("show", "08d8", env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    for text in ("head.dim", "F1 in percent: small on small", "loss per epoch", f"fantrans export {WHOLE} --part P1"):
        assert text in shown.stdout
    assert "head.top_k" not in shown.stdout
    assert "head.top_k" in fantrans("show", "08d8", "--all").stdout
    assert json.loads(fantrans("show", HALF, "--json").stdout)["init_from"] == WHOLE
    with pytest.raises(UsageError, match="near ones: bp4d-started"):
        fantrans("show", "bp4d-startde")


def test_compare_prints_what_differs_and_the_differences_to_the_first(runs):
    shown = fantrans("compare", WHOLE, HALF)
    assert "init_from" in shown.stdout
    assert "are not distinguishable at 95 %" in shown.stdout
    document = json.loads(fantrans("compare", WHOLE, HALF, "bp4d-started", "--json").stdout)
    assert document["settings"] == [{"name": "init_from", "values": ["(not set)", WHOLE, "(not set)"]}]
    assert document["runs"][2]["not_comparable"] == "no fold is finished in both"
    with pytest.raises(ConfigError, match="needs two runs or more, found 1"):
        fantrans("compare", WHOLE, WHOLE)


def test_rm_asks_and_refuses_without_a_terminal(runs):
    with pytest.raises(ConfigError, match="there is no terminal to ask; pass --yes"):
        fantrans("rm", HALF)
    dry = fantrans("rm", HALF, "--dry-run")
    assert f"would remove: {runs / HALF} (" in dry.stdout
    with pytest.raises(DataError, match=f"{WHOLE} initialises {HALF}"):
        fantrans("rm", WHOLE, "--yes")
    assert (runs / HALF).exists()
    assert (runs / WHOLE).exists()
    assert fantrans("rm", HALF, "bp4d-damaged", "--yes").exit_code == 0
    assert sorted(path.name for path in runs.iterdir()) == ["bp4d-started", WHOLE, "index.html"]
    assert HALF not in (runs / "index.html").read_text()


@pytest.mark.parametrize(("answer", "status", "is_kept"), [(b"n\n", 1, True), (b"y\n", 0, False)])
def test_rm_does_what_the_user_answers(runs, answer, status, is_kept):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "flows.cli", "runs", "rm", HALF]
    os.write(ours, answer)
    ended = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=120, check=False)
    os.close(ours)
    os.close(theirs)
    assert ended.returncode == status
    assert f"to remove: {runs / HALF}" in ended.stdout
    assert (runs / HALF).exists() == is_kept


def test_on_a_terminal_the_list_fits_80_columns(runs):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "flows.cli", "runs", "ls"]
    ended = subprocess.run(command, stdout=theirs, env=os.environ | {"COLUMNS": "80"}, timeout=120, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert ended.returncode == 0
    assert "08d82465 " in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert max(map(len, lines)) <= 80

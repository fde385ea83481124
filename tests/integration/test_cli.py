"""The command line as its own process: what it prints, where, and with which exit status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FANTRANS = Path(sys.executable).with_name("fantrans")


def run(*arguments, cwd, **variables):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FANTRANS_"))}
    return subprocess.run(
        [FANTRANS, *arguments],
        env=inherited | variables,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_catalog_show_lists_every_name(tmp_path):
    shown = run("catalog", "show", cwd=tmp_path, COLUMNS="200")
    assert shown.returncode == 0
    for name in ("bp4d", "disfa", "bp4d-synthetic", "fan-64", "fan-128", "retinaface-mobilenet", "cache"):
        assert name in shown.stdout


def test_catalog_check_says_what_is_missing(tmp_path):
    checked = run("catalog", "check", cwd=tmp_path, BP4D_ROOT=str(tmp_path / "none"))
    assert checked.returncode == 2
    assert f"data set 'bp4d': {tmp_path}/none/BP4D-training does not exist" in checked.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("refresh", "bp5d"), "there is no data set 'bp5d' in the catalog; known ones: bp4d"),
        (("refresh", "bp4d", "--config", "fantrans"), "there is no experiment 'fantrans'"),
        (("refresh", "bp4d", "--device", "cuda:9"), "device 'cuda:9' does not exist"),
        (("train", "fan_trans", "--dataset", "bp4d", "--device", "foo"), "there is no device 'foo'; expected cpu"),
        (("cache", "ls", "bp5d"), "there is no data set 'bp5d'"),
        (("report", "[/b]"), "[/b] is not a run"),
        (("refresh", "bp4d"), "does not exist; run `fantrans catalog check`"),
        (("refresh", "bp4d", "--profile", "tiny"), "`features.profile` is 'tiny'"),
        (("train", "fan_trans", "--dataset", "bp4d"), "run `fantrans refresh bp4d --config fan_trans` to make it"),
        (("report", "nowhere"), "is not a run"),
        (
            ("compare", "a", "b"),
            "a is not a run; for an experiment, or a member of a set such as table1:baseline, pass",
        ),
        (("export", "nowhere", "--out", "model"), "nowhere is not a run; pass a folder that `fantrans train` printed"),
        (("train", "table1", "--dataset", "bp4d", "--base", "table2"), "table2 names a set of experiments"),
        (("train", "table1", "--dataset", "bp4d"), "run `fantrans refresh bp4d --config fan_trans` to make it"),
        (("report", "table9", "--dataset", "bp4d"), "there is no experiment 'table9'"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_exit_status_2(tmp_path, arguments, sentence):
    roots = {name: str(tmp_path / name) for name in ("FANTRANS_WORK", "FANTRANS_CACHE", "FANTRANS_RUNS", "BP4D_ROOT")}
    failed = run(*arguments, cwd=tmp_path, **roots)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert sentence in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_a_training_that_cannot_start_renders_nothing(tmp_path):
    failed = run("weights", "train-retinaface", "--out", "w", "--start", "nowhere", cwd=tmp_path, COLUMNS="200")
    assert failed.returncode == 2
    assert "'nowhere' does not exist" in failed.stderr


def test_a_server_that_does_not_answer_is_one_sentence(tmp_path):
    failed = run("train", "fan_trans", "--dataset", "bp4d", cwd=tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert failed.returncode == 2
    assert failed.stderr == (
        "error: no Prefect server answers at http://127.0.0.1:9/api; start one with `fantrans ops "
        "up`, or set PREFECT_API_URL to yours\n"
    )


def test_a_place_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    failed = run("synth", "--out", "file/x", "--subjects", "1", cwd=tmp_path)
    assert failed.returncode == 2
    assert "file/x" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_head_only_commands_load_no_detector_no_fan_and_no_prefect():
    script = (
        "import sys, pipeline.training.trainer, pipeline.report\n"
        "print([m for m in ('prefect', 'pipeline.faces.detect', 'pipeline.faces.features', 'models.retinaface') "
        "if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"

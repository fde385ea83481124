"""The command line in its own process: what it prints, where, and with which exit status."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from flows.cli import app
from flows.commands.base import options_with_value
from flows.commands.names import RENAMED, check_spelling, resolve_experiment
from pipeline.catalog import CATALOG_FILE, load_catalog
from pipeline.datasets.index import index_frames
from tests.command_line import commands

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


def test_catalog_ls_lists_every_name(tmp_path):
    shown = run("catalog", "ls", cwd=tmp_path, COLUMNS="200")
    assert shown.returncode == 0
    for name in ("bp4d", "disfa", "bp4d-synthetic", "fan-64", "fan-128", "retinaface-mobilenet", "cache"):
        assert name in shown.stdout


def test_catalog_check_lists_what_is_missing(tmp_path):
    checked = run("catalog", "check", cwd=tmp_path, BP4D_ROOT=str(tmp_path / "none"))
    assert checked.returncode == 1
    assert f"data set 'bp4d': {tmp_path}/none/BP4D-training does not exist" in checked.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("refresh", "bp4d"), "does not exist; run `fantrans catalog check`"),
        (("train", "bp4d"), "run `fantrans refresh bp4d --experiment fan_trans` to create it"),
        (("train", "bp4d", "-e", "table1"), "run `fantrans refresh bp4d --experiment fan_trans` to create it"),
        (("report", "bp4d"), "run `fantrans refresh bp4d --experiment fan_trans` to create it"),
        (
            ("compare", "bp4d", "table1:baseline", "fan_trans"),
            "run `fantrans refresh bp4d --experiment fan_trans` to create it",
        ),
        (("cache", "stats", "bp4d"), "bp4d has no cache; run `fantrans refresh bp4d` to create one"),
        (("ops", "deploy"), "PREFECT_API_URL is not set; start a server with `fantrans ops up`"),
    ],
)
def test_what_failed_is_one_sentence_and_exit_status_1(tmp_path, arguments, sentence):
    roots = {name: str(tmp_path / name) for name in ("FANTRANS_WORK", "FANTRANS_CACHE", "FANTRANS_RUNS", "BP4D_ROOT")}
    assert sentence in error_of(run(*arguments, cwd=tmp_path, **roots), status=1)


def error_of(failed, *, status):
    """The last line on stderr with which a command ended; before it stand log lines, with their time."""
    assert failed.returncode == status, failed.stderr
    assert "Traceback" not in failed.stderr
    *logged, line = failed.stderr.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d ", each) for each in logged), failed.stderr
    assert line.startswith("error: ")
    return line


COMMANDS = [words for words, _ in commands(get_command(app))]


@pytest.mark.parametrize("width", ["80", "120"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_a_help_of_full_sentences(words, width):
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": width}, catch_exceptions=False)
    assert shown.exit_code == 0
    description = " ".join(shown.stdout.split("╭")[0].split())
    assert re.match(" ".join(("Usage: root", *words)) + r" .*\[OPTIONS\].* [A-Z].*\w\.$", description)
    assert all(len(line) <= int(width) for line in shown.stdout.splitlines())


def test_old_names_of_commands_are_gone():
    names = {" ".join(words) for words in COMMANDS}
    assert {"render", "cache prune"} <= names
    assert not {*RENAMED} & names
    assert {*RENAMED.values()} <= names


def test_the_help_of_a_command_lists_its_choices():
    shown = CliRunner().invoke(app, ["refresh", "--help"], env={"COLUMNS": "120"}).stdout
    assert "<exact|standard|compact>" in shown
    shown = CliRunner().invoke(app, ["render", "--help"], env={"COLUMNS": "120"}).stdout
    assert "<bp4d|disfa>" in shown


def test_the_printed_entry_of_rendered_faces_indexes_all_their_frames(tmp_path):
    num_subjects = 28  # DISFA has 27
    arguments = ("--subjects", str(num_subjects), "--tasks", "1", "--frames", "1", "--size", "64", "--workers", "1")
    rendered = run("render", "--out", "faces", "--layout", "disfa", *arguments, cwd=tmp_path, COLUMNS="80")
    assert rendered.returncode == 0, rendered.stderr
    entries = yaml.safe_load(rendered.stdout.split("\n", 1)[1])
    path = tmp_path / "catalog.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(CATALOG_FILE.read_text()) | {"datasets": entries}))
    entry = load_catalog(path).get_dataset("faces")
    assert len(index_frames(entry.root, entry.raw_layout, entry.rules)) == num_subjects


def test_a_training_that_cannot_start_renders_nothing(tmp_path):
    failed = run(
        "weights", "train-retinaface", "--out", "w.safetensors", "--start", "nowhere", cwd=tmp_path, COLUMNS="200"
    )
    assert failed.returncode == 2
    assert "'nowhere' does not exist" in failed.stderr


def test_a_server_that_does_not_answer_is_one_sentence(tmp_path):
    failed = run("train", "bp4d", cwd=tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert failed.returncode == 1
    assert failed.stderr == (
        "error: no Prefect server answers at http://127.0.0.1:9/api; start one with `fantrans ops "
        "up`, or set PREFECT_API_URL to yours\n"
    )


def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    assert "file/x" in error_of(run("render", "--out", "file/x", "--subjects", "1", cwd=tmp_path), status=1)


def test_the_help_of_the_command_line_loads_no_stage():
    script = (
        "import sys, flows.cli\n"
        "try: flows.cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'pandas', 'pydantic', 'yaml', 'prefect') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.splitlines()[-1] == "[]"


def test_head_only_commands_load_no_detector_no_fan_and_no_prefect():
    script = (
        "import sys, pipeline.training.trainer, pipeline.report\n"
        "print([m for m in ('prefect', 'pipeline.faces.detect', 'pipeline.faces.features', 'models.retinaface') "
        "if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


LEAVES = [(words, command) for words, command in commands(get_command(app)) if not hasattr(command, "commands")]


@pytest.mark.parametrize(("words", "command"), LEAVES, ids=[" ".join(words) for words, _ in LEAVES])
def test_the_help_of_a_command_ends_with_examples_that_it_accepts(words, command):
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"}).stdout
    heading, *examples = [line.strip() for line in shown.rsplit("╯", 1)[1].splitlines() if line.strip()]
    assert heading == ("Example" if len(examples) == 1 else "Examples")
    assert 1 <= len(examples) <= 3
    catalog, options = load_catalog(), {name for param in command.params for name in param.opts}
    for example in examples:
        typed = shlex.split(example)
        assert tuple(typed[: 1 + len(words)]) == ("fantrans", *words)
        assert {word for word in typed if word.startswith("-")} <= options
        check_spelling(" ".join(words), typed[1 + len(words) :], options_with_value(command), options)
        if any(param.name == "dataset" and param.required for param in command.params):
            catalog.get_dataset(typed[1 + len(words)])
        for option, value in itertools.pairwise(typed):
            if option in ("-e", "--experiment"):
                resolve_experiment("bp4d", value)


def test_paths_with_brackets_and_accents_are_printed_on_every_terminal(tmp_path):
    folder = "/[old] s\u00e9t/:smile:/data"
    (tmp_path / "catalog.yaml").write_text(
        "roots: {work: w, cache: c, runs: r}\n"
        f"datasets:\n  '[d]': {{root: '{folder}', layout: bp4d, protocol: bp4d}}\n"
    )
    catalog = str(tmp_path / "catalog.yaml")
    for encoding, shown in (("utf-8", folder), ("ascii", folder.replace("\u00e9", r"\xe9"))):
        ended = run(
            "catalog", "ls", cwd=tmp_path, FANTRANS_CATALOG=catalog, PYTHONIOENCODING=encoding, LC_ALL="C.UTF-8"
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        assert shown in ended.stdout
        assert "[d]" in ended.stdout
        checked = run("catalog", "check", cwd=tmp_path, FANTRANS_CATALOG=catalog, PYTHONIOENCODING=encoding)
        assert (checked.returncode, checked.stderr) == (1, "")

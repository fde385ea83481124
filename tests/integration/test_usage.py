"""Wrong usage: exit status 2, and one sentence with the right word or the right command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.commands import data
from pipeline.catalog import load_catalog
from tests.command_line import fantrans

FANTRANS = Path(sys.executable).with_name("fantrans")
RUNS = ("bp4d-baseline-seed0-aa", "bp4d-baseline-seed1-bb", "disfa-t1-seed0-cc")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Empty roots, but for three runs and a cache that is known by name."""
    for name in ("FANTRANS_WORK", "FANTRANS_CACHE", "FANTRANS_RUNS", "BP4D_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / name.removeprefix("FANTRANS_").lower()))
    for name in ("FANTRANS_CATALOG", "PREFECT_API_URL", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for run in RUNS:
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "run.json").write_text("{}")
    for fingerprint in ("0123abcd", "0124abcd"):
        (tmp_path / "cache/bp4d" / fingerprint).mkdir(parents=True)
        (tmp_path / "cache/bp4d" / fingerprint / "fingerprint.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        # the earlier order, and the experiment in place of the data set
        ("train fan_trans --dataset bp4d", "run `fantrans train bp4d --experiment fan_trans`"),
        ("train fan_trans --dataset=bp4d --parts P1", "run `fantrans train bp4d --experiment fan_trans --parts P1`"),
        ("train --parts P1 --dataset bp4d table1", "run `fantrans train bp4d --parts P1 --experiment table1`"),
        (
            "train fan_trans",
            "fan_trans is an experiment, not a data set; run `fantrans train bp4d --experiment fan_trans`",
        ),
        ("train fan_trans disfa", "run `fantrans train disfa --experiment fan_trans`"),
        ("train bp4d fan_trans", "named with --experiment; run `fantrans train bp4d --experiment fan_trans`"),
        ("train table1 -e bp4d", "table1 is an experiment, not a data set; run `fantrans train bp4d -e table1`"),
        ("train bp4d --experment demo", "no such option: --experment; did you mean --experiment?"),
        ("train bp4d -e demo -e table1", "`fantrans train` takes one --experiment"),
        ("report disfa-t1 bp4d", "expected one data set, or runs; found disfa-t1 bp4d; leave out bp4d"),
        ("report disfa-t1 -e demo", "--experiment has no effect for disfa-t1, which is a run"),
        ("train bp4d --set lr=3e-4", "--set lr=3e-4: unknown key `lr`; did you mean `train.lr`?"),
        ("train bp4d --set train.lr=inf", "--set train.lr=inf: `train.lr` is 'inf': input should be a finite number"),
        ("train bp4d --set train.seed=99999999999999999999", "`train.seed` is 99999999999999999999"),
        ("train bp4d --set train.lr", "override 'train.lr' must be KEY=VALUE, such as train.lr=3e-4"),
        ("train bp4d --set head.class=nowhere:Head", "there is no module 'nowhere' in"),
        ("train bp4d -e :baseline", "the set is missing before `:baseline`; name it as SET:baseline"),
        ("train bp4d -e demo.yaml", "experiment 'demo.yaml' does not exist; did you mean 'demo'?"),
        ("compare bp4d demo", "needs two experiments; run `fantrans compare bp4d demo OTHER`"),
        ("compare bp4d demo demo", "demo is compared with itself"),
        ("train bp4d --parts P1,P1", "part P1 appears twice in --parts"),
        ("train bp4d --set train.lr=1,1", "a value of train.lr appears twice"),
        ("weights fit-codec bp4d --out basis.pt", "run it with --out basis.safetensors"),
        ("refresh --config demo", "run `fantrans refresh DATASET --experiment demo`"),
        ("report disfa-t1 --set train.lr=1", "--set has no effect for disfa-t1, which is a run"),
        ("refresh demo", "run `fantrans refresh bp4d-synthetic --experiment demo`"),
        ("refresh bp4d --config demo", "--config is now --experiment; run `fantrans refresh bp4d --experiment demo`"),
        (
            "weights fit-codec bp4d --config demo --out b",
            "run `fantrans weights fit-codec bp4d --experiment demo --out b`",
        ),
        ("report table1 --dataset bp4d", "run `fantrans report bp4d --experiment table1`"),
        ("report table1 table3 --dataset bp4d", "run `fantrans report bp4d --experiment table1 --experiment table3`"),
        ("report table1", "run `fantrans report bp4d --experiment table1`"),
        ("report bp4d table1", "as in `fantrans report bp4d --experiment table1`"),
        ("compare table1:a table1:b --dataset bp4d", "run `fantrans compare bp4d table1:a table1:b`"),
        ("compare table1:a table1:b", "run `fantrans compare bp4d table1:a table1:b`"),
        ("render --dataset demo_quick", "run `fantrans render demo_quick`"),
        ("cache ls --dataset bp4d", "run `fantrans cache ls bp4d`"),
        # earlier names of commands
        ("catalog show", "run `fantrans catalog ls`"),
        ("collect bp4d", "run `fantrans cache prune bp4d`"),
        ("cache collect", "run `fantrans cache prune`"),
        ("synth --out faces", "run `fantrans render --out faces`"),
        # mistyped names
        ("refesh bp4d", "did you mean 'refresh'? run `fantrans --help`"),
        ("cache lss", "did you mean 'ls'? run `fantrans cache --help`"),
        ("refresh bp4d --profil exact", "did you mean --profile? run `fantrans refresh --help`"),
        ("refresh bp4", "data set 'bp4' does not exist; did you mean 'bp4d'? known ones: bp4d, disfa"),
        ("cache verify BP4D", "did you mean 'bp4d'?"),
        ("refresh bp4d --experiment fantrans", "experiment 'fantrans' does not exist"),
        ("refresh bp4d --experiment fantrans", "did you mean 'fan_trans'?"),
        ("train bp4d -e table1:baselin", "member 'baselin' does not exist"),
        ("train bp4d -e table1:baselin", "did you mean 'baseline'?"),
        ("refresh bp4d --profile standart", "profile 'standart' does not exist; did you mean 'standard'?"),
        ("render --out x --layout bp5d", "layout 'bp5d' does not exist; did you mean 'bp4d'?"),
        ("train bp4d --parts P1,p2", "part 'p2' does not exist; did you mean 'P2'? known ones: P1, P2, P3"),
        ("export disfa-t1 --out x --part P4", "part 'P4' does not exist"),
        ("weights evaluate fan64", "weights 'fan64' does not exist in the catalog; did you mean 'fan-64'?"),
        ("cache stats bp4d", "bp4d has 2 caches to choose from: 0123abcd, 0124abcd; name one with --fingerprint"),
        ("cache stats bp4d --fingerprint 0123abce", "did you mean '0123abcd'?"),
        ("report bp4d-baseline", "2 runs begin with 'bp4d-baseline', give more letters of one: bp4d-baseline-seed0-aa"),
        ("report bp4d-basline-seed0", "near ones: bp4d-baseline-seed0-aa"),
        ("export nowhere --out x", "run 'nowhere' does not exist below"),
        ("compare bp4d-baseline-seed0 [/b]", "run '[/b]' does not exist below"),
        ("train bp4d --init-from bp5d", "run or data set 'bp5d' does not exist; did you mean 'bp4d'?"),
        # values
        ("train bp4d --device mps", "device 'mps' is not supported, because Apple's GPU has no 64-bit floats; pass"),
        ("refresh bp4d --device gpu", "device 'gpu' is not known; expected auto, cpu, cuda or cuda:N"),
        ("refresh bp4d --device cuda:99", "device 'cuda:99' does not exist"),
        ("refresh bp4d --limit many", "invalid value for '--limit'"),
        ("refresh", "missing argument 'dataset'; run `fantrans refresh --help`"),
        ("compare one", "expected two runs, or a data set and two experiments; found one;"),
        ("train bp4d -e table1 --base table2", "table2 is a set of experiments"),
        ("refresh bp4d -e fan_trans --base demo", "leave --base out"),
        ("render bp4d", "data set 'bp4d' has no `rendered:` in the catalog"),
        ("render", "`fantrans render` needs a folder or a data set; give --out FOLDER, or a name of the catalog"),
        ("weights evaluate resnet18-rendered", "name a FAN or a RetinaFace"),
        ("-q refresh bp4d -v", "--verbose and --quiet exclude each other"),
        # options without effect
        ("train bp4d --parts P1 P2", "run `fantrans train bp4d --parts P1,P2`"),
        ("train bp4d --set parts=[P1, P2]", "run `fantrans train bp4d --set 'parts=[P1,P2]'`"),
        ("train bp4d --set train.lr=1 train.seed=3", "--set train.lr=1 --set train.seed=3`"),
        ("refresh bp4d --dry-run --workers 1", "--workers has no effect with --dry-run"),
        ("cache verify --device cpu", "--device has no effect without --deep"),
        (
            "render demo_quick --out x --layout bp4d --seed 0",
            "--out, --layout, --seed have no effect with data set demo_quick, whose settings are in the catalog",
        ),
        *((f"render demo_quick --{name} 64", f"--{name} has no effect") for name in ("subjects", "frames", "size")),
        ("render demo_quick --tasks 3", "--tasks has no effect"),
        ("report disfa-t1 --base demo", "--base has no effect for disfa-t1, which is a run; leave it out"),
        ("report disfa-t1 --init-from bp4d", "--init-from has no effect for disfa-t1, which is a run"),
        ("compare disfa-t1 bp4d-baseline-seed0 --base demo", "--base has no effect for disfa-t1 and bp4d-baseline"),
        ("compare bp4d disfa-t1 bp4d-baseline-seed0", "the data set bp4d has no effect for disfa-t1 and"),
    ],
)
def test_wrong_usage_is_one_sentence_with_the_right_words_and_status_2(places, typed, words):
    before = sorted(places.rglob("*"))
    ended = fantrans(*typed.split())
    *logged, line = ended.err.splitlines()
    assert (ended.status, ended.out) == (2, ""), ended
    assert all("device: " in each for each in logged)
    assert line.startswith("error: ")
    assert words in line
    assert sorted(places.rglob("*")) == before, "nothing was written"


def test_a_full_disk_behind_the_output_is_one_sentence():
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [FANTRANS, "weights", "ls", "--json"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "error: the output cannot be written: No space left on device"
    assert "Traceback" not in ended.stderr


def test_a_runs_root_that_cannot_be_created_ends_with_its_reason(tmp_path):
    from pipeline.training.run_lock import training_locks

    with pytest.raises(FileNotFoundError, match="/proc/nowhere"), training_locks([Path("/proc/nowhere/run")]):
        pass


@pytest.mark.parametrize("group", [(), ("cache",), ("catalog",), ("weights",), ("ops",)], ids=" ".join)
def test_a_group_alone_prints_its_help(group):
    ended = fantrans(*group)
    assert ended.status == 0
    assert "Usage: fantrans" in ended.out


def test_a_traceback_is_printed_with_verbose_and_log_lines_are_not_with_quiet():
    assert "Traceback" not in fantrans("cache", "ls", "bp5").err
    for arguments in (("-v", "cache", "ls", "bp5"), ("cache", "ls", "bp5", "--verbose")):
        assert "Traceback" in fantrans(*arguments).err
    assert "device: cpu (auto)" in fantrans("refresh", "bp4d").err.replace("cuda", "cpu")
    for arguments in (("-q", "refresh", "bp4d"), ("refresh", "--quiet", "bp4d")):
        (line,) = fantrans(*arguments).err.splitlines()
        assert line.startswith("error: ")


@pytest.mark.parametrize(
    ("command", "line"), [("render", "stopped; the same command continues"), ("export", "stopped")]
)
def test_ctrl_c_ends_with_one_line_and_status_130(monkeypatch, command, line):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.catalog.DatasetEntry.render", stop)
    monkeypatch.setattr("pipeline.training.export.export_deployed", stop)
    arguments = {"render": ("demo_quick",), "export": ("disfa-t1", "--out", "x")}[command]
    ended = fantrans(command, *arguments)
    assert (ended.status, ended.err) == (130, f"{line}\n")


def test_a_stopped_process_continues(places):
    can_be_stopped = ("env", "--default-signal=INT")  # a job in the background of a shell ignores SIGINT
    arguments = [
        *can_be_stopped,
        FANTRANS,
        "render",
        "--out",
        "faces",
        "--subjects",
        "4",
        "--frames",
        "8",
        "--size",
        "64",
    ]
    process = subprocess.Popen([*arguments, "--workers", "1"], cwd=places, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(places.glob("faces/**/*.jpg")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped; the same command continues"
    assert "Traceback" not in err


def test_version_has_the_commit_of_a_checkout_and_works_without_git(monkeypatch):
    shown = fantrans("--version")
    assert shown.status == 0
    assert shown.out.startswith("fantrans 0.")
    monkeypatch.setenv("PATH", "")
    assert fantrans("--version").out.split() == shown.out.split()[:2]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("refresh bp4d-synthetic-", ["bp4d-synthetic-fresh", "bp4d-synthetic-41"]),
        ("cache ls dis", ["disfa", "disfa-synthetic"]),
        ("train bp4d -e fan", ["fan_trans"]),
        ("train bp4d -e table1:base", ["table1:baseline"]),
        ("weights evaluate fan", ["fan-64", "fan-128"]),
        ("report disf", ["disfa", "disfa-synthetic", "disfa-t1-seed0-cc"]),
        ("export bp4d", ["bp4d-baseline-seed0-aa", "bp4d-baseline-seed1-bb"]),
        ("cache ver", ["verify"]),
        ("refresh --exp", ["--experiment"]),
    ],
)
def test_names_are_completed_without_torch(words, expected):
    script = (
        "import sys, flows.cli\n"
        "try: flows.cli.main([])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    typed = ["fantrans", *words.split()]
    variables = {
        "_FANTRANS_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(typed),
        "COMP_CWORD": str(len(typed) - 1),
    }
    shown = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == expected
    assert shown.stderr.split()[-1] == "False"


def test_a_faulty_catalog_completes_nothing(places, monkeypatch):
    (places / "c.yaml").write_text("roots: 3")
    monkeypatch.setenv("FANTRANS_CATALOG", str(places / "c.yaml"))
    from flows.commands.names import complete_dataset

    assert complete_dataset("b") == []


def test_unknown_names_are_found_before_torch_is_loaded():
    script = (
        "import sys, flows.cli\n"
        "for words in sys.argv[1:]:\n"
        "    try: flows.cli.main(words.split())\n"
        "    except SystemExit as end: assert end.code == 2\n"
        "print('torch' in sys.modules)"
    )
    mistakes = [
        "train bp4",
        "train bp4d -e fan",
        "refresh bp4 --device cpu",
        "weights evaluate f",
        "export r --part P9",
    ]
    shown = subprocess.run([sys.executable, "-c", script, *mistakes], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False"]


def test_tables_are_cut_to_columns_and_printed_in_full_without(places, monkeypatch):
    monkeypatch.setenv("BP4D_ROOT", str(places / ("long" * 40)))
    shown = fantrans("catalog", "ls").out
    assert "…" not in shown
    assert str(places / ("long" * 40)) in shown
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, fantrans("catalog", "ls").out.splitlines())) <= 80


def test_the_device_is_chosen_once_and_explicit_ones_never_fall_back(monkeypatch):
    chosen = []
    monkeypatch.setattr(data, "_find_refresh", lambda: lambda dataset, **settings: chosen.append(settings["device"]))
    for num, expected in ((0, "cpu"), (2, "cuda")):
        monkeypatch.setattr("torch.cuda.device_count", lambda num=num: num)
        ended = fantrans("refresh", "bp4d")
        assert ended.status == 0
        assert ended.err.count(f"device: {expected} (auto)") == 1
        assert fantrans("refresh", "bp4d", "--device", "cpu").err == ""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "device 'cuda' does not exist" in fantrans("refresh", "bp4d", "--device", "cuda").err
    assert chosen == ["cpu", "cpu", "cuda", "cpu"]


def test_a_defect_keeps_its_traceback_and_is_a_document(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("never")

    monkeypatch.setattr(type(load_catalog()), "find_faults", fail)
    with pytest.raises(ZeroDivisionError):
        fantrans("catalog", "check")

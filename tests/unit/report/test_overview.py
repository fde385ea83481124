import math

import pytest

from pipeline.config import TrainConfig
from pipeline.report.curves import loss_chart
from pipeline.report.overview import compare_folders, read_overview
from pipeline.report.rows import difference, read_row
from pipeline.training.head_training import HeadTraining
from pipeline.training.run_files import read_history
from pipeline.training.runs import write_record
from pipeline.training.trainer import train_heads
from tests.unit import small_runs
from tests.unit.small_runs import HEAD, TRAIN, make_run, train_fold


@pytest.fixture
def folder(tmp_path):
    small_runs.make_cache(tmp_path)
    return tmp_path


def record_of(head, train):
    return {"aus": [1, 2], "cache": "c", "head": head.model_dump(), "train": train.model_dump()}


def test_an_overview_has_folds_settings_losses_and_next_commands(folder, monkeypatch):
    run = make_run(folder, record=record_of(HEAD, TRAIN))
    train_fold(run, "P1")
    monkeypatch.setattr(HeadTraining, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_heads([(run, "P2")])
    overview = read_overview(run.folder)
    assert [fold.state for fold in overview.folds] == ["finished", "partial", "missing"]
    assert [fold.num_epochs for fold in overview.folds] == [3, 3, 0]
    assert overview.folds[0].losses == tuple(read_history(run.fold_folder("P1"))["loss"])
    changed = overview.settings(only_changed=True)
    assert changed == {
        "head.dim": 8,
        "head.num_blocks": 1,
        "train.num_epochs": 3,
        "train.batch_size": 4,
        "train.lr": 1e-2,
    }
    assert overview.settings()["train.kd_weight"] == 0.2
    assert overview.next_commands()[0] == "fantrans train small --experiment small"
    assert "fantrans export a --part P1 --out FOLDER" in overview.next_commands()
    document = overview.as_json()
    assert {each["name"]: each["value"] for each in document["settings"] if each["is_changed"]} == changed
    assert document["folds"][1]["state"] == "partial"
    assert "fold-P1/result.json" in [file["path"] for file in document["files"]]


def test_a_run_without_a_finished_fold_has_no_report(folder):
    run = make_run(folder)
    write_record(run)
    overview = read_overview(run.folder)
    assert overview.report is None
    assert [fold.state for fold in overview.folds] == ["missing"] * 3
    assert overview.next_commands() == ["fantrans train small --experiment small"]


def test_a_comparison_lists_differing_settings_and_the_paired_difference(folder):
    other_train = TrainConfig(num_epochs=3, batch_size=4, lr=1e-3)
    runs = [
        make_run(folder, name=name, train=train, record=record_of(HEAD, train))
        for name, train in (("a", TRAIN), ("b", other_train), ("c", TRAIN))
    ]
    for run, parts in zip(runs, (("P1", "P2"), ("P2", "P1", "P3"), ("P3",)), strict=True):
        for part in parts:
            train_fold(run, part)
    a, b, c = (run.folder for run in runs)
    comparison = compare_folders([a, b])
    assert comparison.settings == {"train.lr": (1e-2, 1e-3)}
    assert comparison.parts == ("P1", "P2")
    rows = [read_row(each.name, [each], published=None, parts=("P1", "P2")) for each in (a, b)]
    expected = difference(rows[1], rows[0])
    gap = comparison.as_json()["runs"][1]["over_first"]
    assert gap["points"] == pytest.approx(float(expected.points[-1]))
    assert [gap["low_points"], gap["high_points"]] == pytest.approx([expected.low[-1], expected.high[-1]])
    assert comparison.as_json()["runs"][0]["over_first"] is None
    apart = compare_folders([a, c]).as_json()
    assert apart["settings"] == []
    assert apart["parts"] == []
    assert apart["runs"][1]["not_comparable"] == "no fold is finished in both"


@pytest.mark.parametrize("is_coloured", [True, False])
@pytest.mark.parametrize(
    "losses", [{}, {"P1": []}, {"P1": [0.4]}, {"P1": [math.nan]}, {"P1": [0.4, math.nan]}, {"P1": [math.inf, 0.4]}]
)
def test_a_chart_needs_two_finite_losses(losses, is_coloured):
    assert loss_chart(losses, width=80, is_coloured=is_coloured) == ""


@pytest.mark.parametrize("num_epochs", [2, 3, 12, 300])
def test_a_chart_fits_its_width_and_marks_each_fold(num_epochs):
    losses = {f"P{fold}": [fold + 1 / (1 + epoch) for epoch in range(num_epochs)] for fold in (1, 2, 3)}
    losses["P2"][0] = math.nan
    text = loss_chart(losses, width=80, is_coloured=False)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    plot = "\n".join(line.split("│", 1)[-1] for line in text.splitlines() if "│" in line)
    for fold in ("1", "2") if num_epochs == 2 else ("1", "2", "3"):
        assert fold in text
    assert plot
    assert str(num_epochs) in text.splitlines()[-1]
    assert "\x1b[" in loss_chart(losses, width=80, is_coloured=True)

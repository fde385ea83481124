import json
import logging
import math
from types import SimpleNamespace

import pandas as pd
import pytest

from pipeline.training.epoch_log import EpochLog, sparkline
from pipeline.training.head_training import HeadTraining
from pipeline.training.run_files import read_history
from pipeline.training.trainer import train_heads
from tests.unit import small_runs
from tests.unit.small_runs import make_run


@pytest.fixture
def folder(tmp_path):
    small_runs.make_cache(tmp_path)
    return tmp_path


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="fantrans")
    return lambda: [record.getMessage() for record in caplog.records if "epoch " in record.getMessage()]


def make_head(num_epochs=3):
    return SimpleNamespace(num_epochs=num_epochs, history=[], fault=None)


def end_epoch(head, loss):
    head.history.append({"epoch": len(head.history), "loss": loss, "loss_cls": loss - 0.1, "loss_kd": 0.5, "lr": 1e-3})


def test_each_of_few_heads_logs_its_epochs(lines):
    head = make_head(12)
    log = EpochLog({"fold P1": head})
    assert log.lines() == "fold P1: epoch 0 of 12  "
    for loss in (0.9, 0.5, 0.412):
        end_epoch(head, loss)
        log.on_epoch("fold P1")
    assert lines()[-1] == ("fold P1, epoch 3 of 12: loss 0.412 (classification 0.312, distillation 0.500), lr 1.0e-03")
    assert len(lines()) == 3
    assert log.lines() == "fold P1: epoch 3 of 12  loss 0.412 █▂▁"


def test_a_head_of_one_branch_logs_no_distillation(lines):
    head = make_head(12)
    log = EpochLog({"fold P1": head})
    end_epoch(head, 0.5)
    head.history[-1]["loss_kd"] = 0.0
    log.on_epoch("fold P1")
    assert lines() == ["fold P1, epoch 1 of 12: loss 0.500, lr 1.0e-03"]


def test_many_heads_share_a_line_per_epoch(lines):
    heads = {f"head {i}": make_head() for i in range(10)}
    heads["head 9"] = make_head(num_epochs=1)
    log = EpochLog(heads)
    assert log.lines() == "10 heads, no epoch finished"
    for epoch in range(3):
        for i, (name, head) in enumerate(heads.items()):
            if epoch == 2 and i == 8:
                head.fault = "the loss is nan"
            elif epoch < head.num_epochs:
                end_epoch(head, 1 + i / 10 - epoch / 10)
            log.on_epoch(name)
    assert lines() == [
        "10 heads, epoch 1 of 3: loss 1.450 on average (1.000 to 1.900)",
        "9 heads, epoch 2 of 3: loss 1.300 on average (0.900 to 1.700)",
        "8 heads, epoch 3 of 3: loss 1.150 on average (0.800 to 1.500)",
    ]
    assert log.lines().startswith("8 heads, epoch 3 of 3: loss 1.150")


def test_a_resumed_training_of_many_heads_logs_new_epochs_only(lines):
    heads = {f"head {i}": make_head() for i in range(10)}
    for head in heads.values():
        end_epoch(head, 1.0)
    log = EpochLog(heads)
    for name, head in heads.items():
        end_epoch(head, 0.5)
        log.on_epoch(name)
    assert lines() == ["10 heads, epoch 2 of 3: loss 0.500 on average (0.500 to 0.500)"]


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([math.nan], "·"),
        ([2.0, math.nan, 1.0], "█·▁"),
        ([1.0, 1.0], "▁▁"),
        (range(8), "▁▂▃▄▅▆▇█"),
        ([9.0] * 30 + [1.0], "█" * 23 + "▁"),
    ],
)
def test_sparklines(values, bars):
    assert sparkline(values) == bars


def test_the_history_has_exactly_the_finished_epochs_of_the_checkpoint(folder, monkeypatch, lines):
    run = make_run(folder)
    fold = run.fold_folder("P1")
    train = HeadTraining.train_on_page

    def interrupted(self, page, *, on_progress):
        if page.epoch == 2:
            raise KeyboardInterrupt
        train(self, page, on_progress=on_progress)

    monkeypatch.setattr(HeadTraining, "train_on_page", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_heads([(run, "P1")])
    assert read_history(fold)["epoch"].tolist() == [0, 1]
    before = read_history(fold)
    pd.concat([before, before]).to_csv(fold / "history.csv", index=False)  # as if written before the checkpoint
    HeadTraining.start(run, "P1", "cpu")
    pd.testing.assert_frame_equal(read_history(fold), before)
    monkeypatch.setattr(HeadTraining, "train_on_page", train)
    train_heads([(run, "P1")])
    table = pd.read_csv(fold / "history.csv")
    assert table.to_dict("records") == json.loads((fold / "result.json").read_bytes())["history"]
    assert [line.split(":")[0] for line in lines()] == [f"fold P1, epoch {epoch} of 3" for epoch in (1, 2, 3)]


def test_the_history_of_a_fold_from_before_the_csv_is_read(folder):
    run = make_run(folder)
    train_heads([(run, "P1")])
    fold = run.fold_folder("P1")
    (fold / "history.csv").unlink()
    assert len(read_history(fold)) == 3

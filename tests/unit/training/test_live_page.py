"""The page of a training while it lasts: what it shows, what it costs, and that it ends no training."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch

from pipeline.errors import TrainingError
from pipeline.training import live_page, step, trainer
from pipeline.training.head_training import HeadTraining
from pipeline.training.live_page import LivePages, chart, describe, pause_after
from pipeline.training.run_files import read_history
from pipeline.training.trainer import train_heads
from tests.unit import small_runs
from tests.unit.small_runs import make_run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    small_runs.make_cache(folder)
    return folder


def make_head(num_epochs=4):
    return SimpleNamespace(num_epochs=num_epochs)


def test_a_page_shows_the_training_and_then_links_the_report(world, monkeypatch):
    run = make_run(world, name="shown")
    page, made, seen = run.folder / "live.html", [], []

    class Kept(LivePages):
        def __enter__(self):
            made.append(self)
            return super().__enter__()

    def watched(self, *losses):
        end_epoch(self, *losses)
        made[0].write("training")
        seen.append(page.read_text())

    end_epoch = HeadTraining._end_epoch
    monkeypatch.setattr(HeadTraining, "_end_epoch", watched)
    monkeypatch.setattr(trainer, "LivePages", Kept)
    train_heads([(run, "P1")])
    history = read_history(run.fold_folder("P1"))
    assert len(seen) == len(history) == 3
    for epoch, text in enumerate(seen, 1):
        assert 'http-equiv="refresh"' in text
        assert f"<td>{epoch} of 3</td>" in text
        assert f"<td>{history['loss'][epoch - 1]:.3f}</td>" in text
        assert f"<td>{history['f1_train_percent'][epoch - 1]:.1f}</td>" in text
        assert "src=" not in text, "it is one file"
    assert "33 %" in seen[0]
    assert 'href="report.html"' in page.read_text()
    assert 'http-equiv="refresh"' not in page.read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt, TrainingError])
def test_the_page_of_a_training_that_is_stopped_says_so(world, monkeypatch, error):
    run = make_run(world, name=f"stopped-{error.__name__}")

    def stop(self, page, *, on_progress):
        raise error("stop")

    monkeypatch.setattr(HeadTraining, "train_on_page", stop)
    with pytest.raises(error):
        train_heads([(run, "P1")])
    assert "Stopped. The same <code>fantrans train</code> continues" in (run.folder / "live.html").read_text()


def test_the_page_of_a_head_without_a_finite_loss_says_why(world, monkeypatch):
    run = make_run(world, name="nan")
    monkeypatch.setattr(HeadTraining, "_learn", lambda self, batch: not_finite(self))
    with pytest.raises(TrainingError, match="the loss of epoch 1 is nan"):
        train_heads([(run, "P1")])
    text = (run.folder / "live.html").read_text()
    assert "Fold P1 has stopped:</strong> the loss of epoch 1 is nan" in text
    assert 'http-equiv="refresh"' not in text


def not_finite(training):
    training._counts.append(torch.zeros(3, 2, dtype=torch.long))
    return torch.full((3,), math.nan)


def test_a_page_that_cannot_be_written_is_one_warning_and_the_training_ends_as_usual(world, caplog):
    run = make_run(world, name="unwritable")
    (run.folder / "live.html").mkdir(parents=True)
    caplog.set_level(logging.WARNING, logger="fantrans")
    train_heads([(run, "P1")])
    assert run.is_fold_finished("P1")
    lines = [record.getMessage() for record in caplog.records if "live page" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("the training continues without its live page: ")
    assert "live.html is a folder" in lines[0]


@pytest.mark.parametrize("took_s", [0.0, 0.001, 0.5, 20.0])
def test_writing_takes_less_than_one_percent_of_the_time(took_s):
    pause_s = pause_after(took_s)
    assert took_s / (took_s + pause_s) <= 0.01
    assert pause_s >= live_page.EVERY_S


def test_the_thread_pauses_after_a_slow_write(monkeypatch):
    pauses = []

    def wait(pause_s):
        pauses.append(pause_s)
        return len(pauses) == 3

    monkeypatch.setattr(LivePages, "write", lambda self, state: 2.0)
    pages = LivePages([])
    monkeypatch.setattr(pages, "_over", SimpleNamespace(wait=wait))
    pages._write_until_over()
    assert pauses == [0, pytest.approx(198), pytest.approx(198)]


def test_the_training_f1_is_that_of_the_batches(world, monkeypatch):
    run = make_run(world, name="f1")
    outputs = []
    learn = HeadTraining._learn

    def spied(self, batch):
        with monkeypatch.context() as patch:
            run_head = step.run_head
            patch.setattr(step, "run_head", lambda head, maps: keep(run_head(head, maps), batch))
            return learn(self, batch)

    def keep(output, batch):
        outputs.append((output.deployed.detach().sigmoid() >= 0.5, batch.labels_BA))
        return output

    monkeypatch.setattr(HeadTraining, "_learn", spied)
    train_heads([(run, "P1")])
    per_epoch = len(outputs) // 3
    for epoch, found in enumerate(read_history(run.fold_folder("P1"))["f1_train_percent"]):
        percents = []
        for au in range(2):
            pairs = [
                (bool(present), int(label))
                for predicted, labels in outputs[epoch * per_epoch : (epoch + 1) * per_epoch]
                for present, label in zip(predicted[:, au], labels[:, au], strict=True)
                if label >= 0
            ]
            tp = sum(present and label == 1 for present, label in pairs)
            wrong = sum(present != bool(label) for present, label in pairs)
            percents += [100 * 2 * tp / (2 * tp + wrong)] if tp + wrong else []
        assert found == pytest.approx(sum(percents) / len(percents))


def test_a_chart_spans_all_epochs_and_leaves_out_what_is_not_finite():
    drawn = chart("Loss", {"P1": [2.0, math.nan, 1.0], "P2": []}, [make_head(), make_head()])
    assert (drawn["high"], drawn["low"], drawn["last"]) == ("2", "1", 4)
    first, second = drawn["curves"]
    assert first["points"] == ["0.0,0.0", "280.0,150.0"]
    assert second["points"] == []
    assert chart("Loss", {"P1": [math.nan]}, [make_head()])["is_empty"]
    assert len(chart("Loss", {"P1": [1.0] * 5000}, [make_head(5000)])["curves"][0]["points"]) <= 402


def test_a_machine_is_named_by_its_gpu_or_its_processor():
    machine = {"system": "Linux", "cpu": "EPYC", "num_cores": 2, "gpu": None}
    assert describe(machine) == "EPYC, 2 cores, Linux"
    assert describe(machine | {"gpu": "H200"}) == "H200, 2 cores, Linux"
    assert describe({}) == ""

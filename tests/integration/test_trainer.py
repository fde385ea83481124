import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from pipeline.config import HeadConfig, TrainConfig
from pipeline.errors import ConfigError, DataError, TrainingError
from pipeline.protocols import PARTS
from pipeline.report.run import read_report, write_report
from pipeline.training import loader
from pipeline.training.export import load_deployed
from pipeline.training.head_training import HeadTraining, learning_rate
from pipeline.training.heads import build_head
from pipeline.training.loader import HeadBatches
from pipeline.training.predict import predict
from pipeline.training.runs import write_record
from pipeline.training.trainer import train_heads
from tests.devices import DEVICES
from tests.processes import make_process
from tests.unit import small_cache, small_runs
from tests.unit.small_runs import HEAD, RULES, TRAIN, make_run, train_fold


def make_pages_small():
    """So that an epoch has several, and batches go over their ends."""
    loader.MAX_PAGE_ROWS, loader.NEIGHBOUR_ROWS = 8, 2


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr(loader, "MAX_PAGE_ROWS", loader.MAX_PAGE_ROWS)
    monkeypatch.setattr(loader, "NEIGHBOUR_ROWS", loader.NEIGHBOUR_ROWS)
    make_pages_small()


@pytest.fixture
def folder(tmp_path):
    small_runs.make_cache(tmp_path)
    return tmp_path


def test_a_fold_trains_scores_and_is_not_trained_twice(folder):
    run = make_run(folder)
    fold = train_fold(run, "P1")
    result = json.loads((fold / "result.json").read_text())
    assert len(result["history"]) == 3
    assert result["history"][-1]["loss"] < result["history"][0]["loss"]
    assert result["num_test_frames"] == 10
    assert result["machine"]["num_threads"] == torch.get_num_threads()
    assert not (fold / "checkpoint.pt").exists()
    counts = pd.read_parquet(fold / "counts.parquet")
    assert counts[["tp", "fp", "fn", "tn", "unknown"]].to_numpy().sum() == 2 * 10
    assert counts.loc[counts["au"] == 2, "unknown"].sum() == 2  # frame 1 of either tested subject
    before = (fold / "head.safetensors").stat().st_mtime_ns
    assert train_fold(run, "P1") == fold
    assert (fold / "head.safetensors").stat().st_mtime_ns == before


def test_the_deployed_weights_give_the_stored_predictions(folder):
    run = make_run(folder)
    fold = train_fold(run, "P2")
    head = load_deployed(fold / "deployed").head
    again = predict(head, run.cache, run.frames, aus=RULES.aus, test_part="P2", device="cpu")
    pd.testing.assert_frame_equal(again, pd.read_parquet(fold / "predictions.parquet"))


def _train_and_die(folder: Path, device: str) -> None:
    make_pages_small()
    run = make_run(Path(folder), name="killed")
    see = HeadTraining.train_on_page

    def dying(self, page, *, on_progress):
        if (page.epoch, page.number) == (2, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        see(self, page, on_progress=on_progress)

    HeadTraining.train_on_page = dying
    train_fold(run, "P1", device=device)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("device", DEVICES)
def test_a_killed_fold_ends_with_the_weights_of_an_undisturbed_one(folder, device):
    whole = train_fold(make_run(folder), "P1", device=device)
    process = make_process(target=_train_and_die, args=(folder, device))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run = make_run(folder, name="killed")
    assert (run.fold_folder("P1") / "checkpoint.pt").is_file()
    assert not run.is_fold_finished("P1")
    before = torch.load(run.fold_folder("P1") / "checkpoint.pt", weights_only=True)["parts"]["training"]["history"]
    resumed = train_fold(run, "P1", device=device)
    after = json.loads((resumed / "result.json").read_text())["history"]
    assert (len(before), len(after)) == (2, 3)
    assert after[:2] == before, "finished epochs, with the seconds that they took, are not trained again"
    for name, tensor in load_file(whole / "head.safetensors").items():
        assert torch.equal(tensor, load_file(resumed / "head.safetensors")[name]), name


def test_a_checkpoint_of_another_version_is_refused(folder):
    run = make_run(folder)
    path = run.fold_folder("P1") / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    torch.save({"head": {}, "optimiser": {}, "history": []}, path)
    with pytest.raises(TrainingError, match=r"P1: .*checkpoint.pt was written by another version; delete it to"):
        train_fold(run, "P1")


@pytest.mark.usefixtures("small_pages")
def test_a_fold_with_a_damaged_checkpoint_starts_over(folder):
    run = make_run(folder)
    path = run.fold_folder("P1") / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    fold = train_fold(run, "P1")
    undisturbed = train_fold(make_run(folder, name="b"), "P1")
    assert (fold / "head.safetensors").read_bytes() == (undisturbed / "head.safetensors").read_bytes()
    assert not list(fold.glob("checkpoint*"))


def get_weights(folds):
    return [load_file(fold / "head.safetensors") for fold in folds]


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("device", DEVICES)
def test_heads_that_read_together_learn_what_each_learns_alone(folder, device):
    settings = [TRAIN, TrainConfig(num_epochs=2, batch_size=3, lr=1e-2, seed=5), TRAIN]
    heads = [HEAD, HEAD, HeadConfig(dim=8, num_blocks=1, variant="flat")]
    alone = [make_run(folder, name=f"alone-{i}", train=settings[i], head=heads[i]) for i in range(3)]
    for run in alone:
        for part in ("P1", "P2", "P3"):
            train_fold(run, part, device=device)
    together = [make_run(folder, name=f"together-{i}", train=settings[i], head=heads[i]) for i in range(3)]
    train_fold(together[0], "P2", device=device)
    share = train_heads([(run, part) for run in together for part in ("P1", "P2", "P3")], device=device)
    assert 0 <= share <= 1
    for one, other in zip(alone, together, strict=True):
        for part in ("P1", "P2", "P3"):
            ours, theirs = get_weights([one.fold_folder(part), other.fold_folder(part)])
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
            pd.testing.assert_frame_equal(
                *(pd.read_parquet(run.fold_folder(part) / "predictions.parquet") for run in (one, other))
            )


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_learns_in_a_lower_precision_and_keeps_weights_in_fp32(folder, device):
    fp32, bf16 = (
        make_run(folder, name=name, train=TRAIN.model_copy(update={"precision": name})) for name in ("fp32", "bf16")
    )
    folds = [train_fold(run, "P1", device=device) for run in (fp32, bf16)]
    one, other = get_weights(folds)
    assert all(tensor.dtype != torch.bfloat16 for tensor in other.values())
    assert any(not torch.equal(one[name], other[name]) for name in one)
    first_losses = [json.loads((fold / "result.json").read_bytes())["history"][0]["loss"] for fold in folds]
    assert first_losses[1] == pytest.approx(first_losses[0], rel=0.02)


@pytest.mark.usefixtures("small_pages")
def test_weights_do_not_depend_on_the_number_of_threads(folder):
    num_threads = torch.get_num_threads()
    folds = []
    for num in (1, 3):
        torch.set_num_threads(num)
        run = make_run(folder, name=f"threads-{num}")
        train_heads([(run, part) for part in ("P1", "P2", "P3")])
        folds.append(run.fold_folder("P2"))
    torch.set_num_threads(num_threads)
    one, three = get_weights(folds)
    assert all(torch.equal(one[name], three[name]) for name in one)


def test_a_fault_in_one_head_ends_the_training_and_keeps_what_was_finished(folder, monkeypatch):
    run = make_run(folder)
    finish = HeadTraining.finish

    def failing(self):
        if self.test_part == "P3":
            raise DataError("the disk is gone")
        finish(self)

    monkeypatch.setattr(HeadTraining, "finish", failing)
    with pytest.raises(DataError, match="the disk is gone"):
        train_heads([(run, part) for part in ("P1", "P2", "P3")])
    monkeypatch.undo()
    assert (run.fold_folder("P3") / "checkpoint.pt").is_file()
    train_heads([(run, part) for part in ("P1", "P2", "P3")])
    assert all(run.is_fold_finished(part) for part in ("P1", "P2", "P3"))


def test_a_head_whose_loss_goes_out_of_bounds_is_named_and_the_others_are_trained(folder, monkeypatch):
    good, wild = make_run(folder, name="good"), make_run(folder, name="wild")
    learn = HeadTraining._learn

    def blowing_up(self, batch):
        return learn(self, batch) * (float("nan") if self.run is wild and self.num_epochs_done == 1 else 1.0)

    monkeypatch.setattr(HeadTraining, "_learn", blowing_up)
    with pytest.raises(TrainingError, match=r"small, folds P1, P2: the loss of epoch 2 is nan; lower `train.lr`"):
        train_heads([(run, part) for run in (good, wild) for part in ("P1", "P2")])
    assert good.is_fold_finished("P1")
    assert good.is_fold_finished("P2")
    assert not wild.is_fold_finished("P1")
    monkeypatch.undo()
    train_heads([(wild, "P1")])
    assert all(
        torch.equal(*pair)
        for pair in zip(
            *(tensors.values() for tensors in get_weights([good.fold_folder("P1"), wild.fold_folder("P1")])),
            strict=True,
        )
    )


def test_no_tested_subject_is_in_any_training_batch_and_every_other_one_is(folder, monkeypatch):
    seen = []
    from_page = HeadBatches.from_page

    def noted(self, page):
        for batch in from_page(self, page):
            seen.extend(batch.frame_ids)
            yield batch

    monkeypatch.setattr(HeadBatches, "from_page", noted)
    run = make_run(folder)
    subjects = run.frames.set_index("frame_id")["subject"]
    for part in ("P1", "P2", "P3"):
        seen.clear()
        train_fold(run, part)
        others = run.frames.loc[run.frames["part"] != part, "subject"]
        assert len(seen) == 3 * 20, "three epochs of both other parts"
        assert set(subjects[seen]) == set(others)
        scored = pd.read_parquet(run.fold_folder(part) / "predictions.parquet")
        assert set(scored["subject"]).isdisjoint(others)


def test_labels_of_the_tested_part_change_no_weight(folder):
    run = make_run(folder)
    is_tested = run.frames["part"] == "P2"
    other_labels = run.frames.assign(au_01=run.frames["au_01"].mask(is_tested, 1 - run.frames["au_01"]))
    folds = [train_fold(run, "P2"), train_fold(make_run(folder, name="b", frames=other_labels), "P2")]
    one, other = get_weights(folds)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_weight_decay_shrinks_every_weight_as_adamw_does(folder):
    """In the only step of one epoch, both runs have the same gradients: they differ by lr x decay x first weights."""
    settings = TrainConfig(num_epochs=1, batch_size=20, lr=1e-2)
    decaying = settings.model_copy(update={"weight_decay": 0.5})
    runs = [make_run(folder, name=name, train=train) for name, train in (("plain", settings), ("decay", decaying))]
    plain, decayed = get_weights([train_fold(run, "P1") for run in runs])
    torch.manual_seed(settings.seed)
    first = dict(build_head(runs[0]).head.named_parameters())
    for name, weights in first.items():
        torch.testing.assert_close(decayed[name] - plain[name], -1e-2 * 0.5 * weights.detach(), atol=2e-6, rtol=0)
    assert max(weights.abs().max() for weights in first.values()) > 0.1


def test_report_aggregates_the_finished_folds(folder):
    run = make_run(folder)
    write_record(run)
    with pytest.raises(DataError, match="has no finished fold"):
        read_report(run.folder)
    for part in ("P1", "P3"):
        train_fold(run, part)
    report = write_report(run.folder)
    content = json.loads((run.folder / "report.json").read_text())
    assert content["tested_parts"] == ["P1", "P3"]
    by_hand = [
        np.nanmean(
            [f["f1_percent"] if f["f1_percent"] is not None else np.nan for f in content["folds"] if f["au"] == au]
        )
        for au in RULES.aus
    ]
    assert content["mean_f1_percent"] == pytest.approx(np.mean(by_hand))
    table = pd.read_csv(run.folder / "report.csv")
    assert table["au"].tolist() == ["AU1", "AU2", "mean"]
    assert table.loc[2, "f1_percent"] == pytest.approx(report.scores.f1_percent)
    predictions = [pd.read_parquet(run.fold_folder(part) / "predictions.parquet") for part in ("P1", "P3")]
    known = [each[each["au_01"] >= 0] for each in predictions]
    by_hand = [100 * average_precision_score(each["au_01"], each["p_01"]) for each in known]
    assert table.loc[0, "ap_percent"] == pytest.approx(np.mean(by_hand))
    (calibrated,) = (each["mean"] for each in content["measures"] if each["measure"] == "calibrated F1")
    assert table.loc[2, "calibrated_f1_percent"] == pytest.approx(calibrated["percent"])
    for name in ("roc_auc_percent", "ece_percent"):
        assert table.loc[2, name] == pytest.approx(table.loc[:1, name].mean())
    lines = (run.folder / "report.md").read_text().splitlines()
    assert any(line.startswith("| AU1 |") for line in lines)
    assert any(line.endswith("| of | AP | calibrated F1 | AUC | ECE |") for line in lines)
    with pytest.raises(DataError, match="is not a run"):
        read_report(folder)


def test_a_head_starts_from_the_same_part_of_another_run(folder):
    source = make_run(folder)
    train_fold(source, "P1")
    short = TrainConfig(num_epochs=1, batch_size=4, lr=1e-9)
    run = make_run(folder, name="b", train=short, init_from=source.folder)
    started = load_file(train_fold(run, "P1") / "head.safetensors")
    trained = load_file(source.fold_folder("P1") / "head.safetensors")
    torch.testing.assert_close(started["conv.reduce.weight"], trained["conv.reduce.weight"], atol=1e-5, rtol=0)
    with pytest.raises(
        TrainingError, match=r"fold P2: .*fold-P2/head.safetensors does not exist; train that fold first"
    ):
        train_fold(run, "P2")
    damaged = make_run(folder, name="d")
    (train_fold(damaged, "P1") / "head.safetensors").write_bytes(b"cut")
    with pytest.raises(TrainingError, match=r"is damaged \(.*`fantrans train` .*, or pass another run to --init-from"):
        train_fold(make_run(folder, name="e", init_from=damaged.folder), "P1")
    full = HeadConfig(dim=8, num_blocks=1, attention_drop="full")
    other = make_run(folder, name="c", head=full, init_from=source.folder)
    with pytest.raises(ConfigError, match=r"cannot start from a: its head is .* this run's is"):
        train_fold(other, "P1")


@pytest.mark.parametrize(("epoch", "lr"), [(0, 1e-4), (3, 1e-4), (4, 3e-5), (8, 9e-6), (11, 9e-6)])
def test_step_schedule_drops_after_epochs_4_and_8(epoch, lr):
    assert learning_rate(epoch * 10 + 9, settings=TrainConfig(), steps_per_epoch=10) == pytest.approx(lr)


def test_one_cycle_rises_then_falls_to_zero():
    settings = TrainConfig(schedule="one_cycle", lr=1.0, num_epochs=10)
    rates = [learning_rate(step, settings=settings, steps_per_epoch=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] < 0.01


@pytest.mark.parametrize("schedule", ["step", "one_cycle"])
def test_history_has_the_learning_rate_of_each_epochs_last_step(folder, schedule):
    settings = TrainConfig(num_epochs=5, batch_size=4, lr=1.3e-2, schedule=schedule, lr_step_epochs=2)
    fold = train_fold(make_run(folder, train=settings), "P1")
    history = json.loads((fold / "result.json").read_text())["history"]
    steps_per_epoch = 20 // 4
    last_steps = [steps_per_epoch * (epoch + 1) - 1 for epoch in range(5)]
    expected = [learning_rate(step, settings=settings, steps_per_epoch=steps_per_epoch) for step in last_steps]
    assert [entry["lr"] for entry in history] == expected


def test_faults_are_one_sentence(folder):
    run = make_run(folder, head=HeadConfig(dim=8, top_k=3))
    with pytest.raises(ConfigError, match="experiment small: top_k must be 1 to 2"):
        build_head(run)


@pytest.mark.parametrize("label", [0, -1])
def test_a_fold_without_a_positive_label_is_named_and_the_others_are_trained(folder, caplog, label):
    frames = make_run(folder).frames
    only_p2 = frames["au_01"].where(frames["part"] == "P2", label)
    run = make_run(folder, frames=frames.assign(au_01=only_p2))
    what = "is positive for" if label == 0 else "has a known label of"
    sentence = (
        rf"^small, fold P2: no training frame {what} AU1, .*; check the codes .*, or set `leave_out: \[1\]` in the "
        r"catalog's entry of small \(2 of 3 folds are finished; `fantrans report a` prints their F1\)$"
    )
    with pytest.raises(TrainingError, match=sentence):
        train_heads([(run, part) for part in PARTS])
    assert "not trained: small, fold P2: no training frame" in caplog.text
    assert [part for part in PARTS if run.is_fold_finished(part)] == ["P1", "P3"]
    assert read_report(run.folder).parts == ("P1", "P3")
    caplog.clear()
    with pytest.raises(TrainingError, match=sentence):
        train_heads([(run, part) for part in PARTS])
    assert "not trained" not in caplog.text, "the error is enough where nothing is trained"


def test_heads_of_one_fold_share_the_sentence_of_their_fault(folder):
    frames = make_run(folder).frames
    never = frames.assign(au_01=pd.array(np.zeros(len(frames)), "Int8"))
    runs = [make_run(folder, name=name, frames=never) for name in "ab"]
    with pytest.raises(TrainingError, match=r"^small, folds P1, P2: no training frame .*\(0 of 4 folds are"):
        train_heads([(run, part) for run in runs for part in ("P1", "P2")])


def test_an_action_unit_with_most_of_the_weight_is_named_once_per_fold(folder, caplog):
    rare = small_cache.make_frames()
    rare["au_01"] = rare["au_02"] = rare["au_04"] = pd.array(np.arange(len(rare)) % 2, "Int8")
    rare["au_04"] = rare["au_04"].where(rare.index.isin([rare.index[rare["part"] == "P3"][1]]), 0)
    rules = replace(RULES, aus=(1, 2, 4))
    runs = [make_run(folder, name=name, frames=rare, rules=rules) for name in "ab"]
    train_heads([(run, "P1") for run in runs])
    lines = [record.message for record in caplog.records if "of the weight" in record.message]
    assert lines == [
        "small, fold P1: AU4 has 83 % of the weight of all 3 action units in the loss: 1 of 20 training frames are "
        "positive; add frames with it, or set `leave_out: [4]` in the catalog's entry of small"
    ]

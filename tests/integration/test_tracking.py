"""Each tracker for real: a small head trains, and its values are read back with the tracker's own reader."""

import json
import logging
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from pipeline.catalog import load_catalog
from pipeline.errors import CatalogError, ConfigError
from pipeline.training import tracking, trainer
from pipeline.training.head_training import HeadTraining
from pipeline.training.run_files import read_counts, read_history
from pipeline.training.trainer import train_heads
from tests.processes import make_process
from tests.unit import small_runs
from tests.unit.small_runs import make_run

LOSSES = ("loss", "loss_cls", "loss_kd", "lr", "seconds", "f1_train_percent")
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    small_runs.make_cache(tmp_path)
    return tmp_path


def read_tensorboard(run, part):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run.folder / "tensorboard" / part)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_mlflow(run, part):
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{run.folder.parent / 'mlruns/mlflow.db'}")
    experiment = client.get_experiment_by_name("fantrans").experiment_id
    (found,) = client.search_runs([experiment], f"tags.run = '{run.folder.name}' and tags.fold = '{part}'")
    names = found.data.metrics
    return {name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)] for name in names}


def read_wandb_records(path):
    """Records of a .wandb file: a LevelDB log (blocks of 32 KiB, headers of 7 bytes) of protocol buffers."""
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, at, parts = path.read_bytes(), 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = proto.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_whole_wandb(path):
    """All records of a .wandb file, once its service has written the last one: shortly after `finish` returns."""
    until = time.monotonic() + 60
    while not (records := list(read_wandb_records(path))) or not records[-1].HasField("exit"):
        assert time.monotonic() < until, f"{path} has no end"
        time.sleep(0.1)
    return records


def read_wandb(run, part):
    paths = sorted((run.folder.parent / "wandb").glob("offline-run-*/*.wandb"))
    values, scores = {}, {}
    for path in paths:
        records = read_whole_wandb(path)
        (started,) = (record.run for record in records if record.HasField("run"))
        if (started.run_group, started.display_name) != (run.folder.name, f"{run.folder.name}-{part}"):
            continue
        for record in records:
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            for name, value in items.items():
                if not name.startswith("_"):
                    values.setdefault(name, []).append((record.history.step.num, json.loads(value)))
            for item in record.summary.update:
                scores[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    num_epochs = max(step for step, _ in values["loss"])
    return values | {name: [(num_epochs, scores[name])] for name in scores if name.startswith("f1_percent/")}


READERS = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb}


@pytest.mark.parametrize("name", READERS)
def test_losses_per_epoch_and_scores_are_read_back(folder, name):
    pytest.importorskip(PACKAGES[name])
    run = make_run(folder)
    train_heads([(run, part) for part in ("P1", "P2", "P3")], tracking=name)
    for part in ("P1", "P2", "P3"):
        values, fold = READERS[name](run, part), run.fold_folder(part)
        history = read_history(fold)
        for column in LOSSES:
            assert values[column] == [
                (epoch + 1, pytest.approx(value, rel=1e-6)) for epoch, value in enumerate(history[column])
            ]
        sums = read_counts(fold).groupby("au")[["tp", "fp", "fn"]].sum()
        f1 = 200 * sums["tp"] / (2 * sums["tp"] + sums["fp"] + sums["fn"])
        expected = {f"f1_percent/AU{au}": value for au, value in f1.items() if not pd.isna(value)}
        expected |= {"f1_percent/mean": f1.mean()} if f1.notna().any() else {}
        scores = {tag: logged for tag, logged in values.items() if tag.startswith("f1_percent/")}
        assert all(step == 3 for logged in scores.values() for step, _ in logged)
        found = {tag: value for tag, [(_, value)] in scores.items()}
        assert found == pytest.approx(expected, rel=1e-6)


def test_mlflow_has_the_settings_as_parameters_and_ends_its_runs(folder):
    mlflow = pytest.importorskip("mlflow")
    run = make_run(folder)
    train_heads([(run, "P1")], tracking="mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'runs/mlruns/mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("fantrans").experiment_id])
    assert found.info.run_name == "a-P1"
    assert found.info.status == "FINISHED"
    assert found.data.params["head.dim"] == "8"
    assert found.data.params["experiment"] == "small"


def test_tensorboard_has_the_settings(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = make_run(folder)
    train_heads([(run, "P1")], tracking="tensorboard")
    events = accumulator.EventAccumulator(str(run.folder / "tensorboard/P1")).Reload()
    assert "| head.dim | 8 |" in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_wandb_has_the_settings_and_writes_below_the_runs_root_only(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    run = make_run(folder)
    train_heads([(run, "P1")], tracking="wandb")
    assert set(folder.iterdir()) - {*before, folder / "wandb-cache"} == {folder / "runs"}
    (path,) = (folder / "runs/wandb").glob("offline-run-*/*.wandb")
    records = read_whole_wandb(path)
    (started,) = (record.run for record in records if record.HasField("run"))
    config = {update.key: json.loads(update.value_json) for update in started.config.update}
    assert started.project == "fantrans"
    assert config["head"]["dim"] == 8
    assert records[-1].exit.exit_code == 0


def train_and_die(folder, name):
    run = make_run(Path(folder), name="killed")
    train = HeadTraining.train_on_page

    def dying(self, page, *, on_progress):
        if page.epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        train(self, page, on_progress=on_progress)

    HeadTraining.train_on_page = dying
    train_heads([(run, "P1")], tracking=name)


@pytest.mark.parametrize("name", READERS)
def test_a_resumed_training_logs_each_epoch_once(folder, name):
    pytest.importorskip(PACKAGES[name])
    process = make_process(target=train_and_die, args=(folder, name))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run = make_run(folder, name="killed")
    assert not run.is_fold_finished("P1")
    train_heads([(run, "P1")], tracking=name)
    values = READERS[name](run, "P1")
    assert sorted(step for step, _ in values["loss"]) == [1, 2, 3]
    assert len(values["f1_percent/mean"]) == 1


def test_epochs_before_tracking_was_turned_on_are_logged_too(folder, monkeypatch):
    run = make_run(folder)
    logged = []
    monkeypatch.setitem(tracking._TRACKERS, "tensorboard", (lambda *_, **__: Recorder(logged), "json"))
    monkeypatch.setattr(HeadTraining, "finish", lambda self: None)
    train_heads([(run, "P1")])
    monkeypatch.undo()
    monkeypatch.setitem(tracking._TRACKERS, "tensorboard", (lambda *_, **__: Recorder(logged), "json"))
    train_heads([(run, "P1")], tracking="tensorboard")
    assert logged == ["epoch 1", "epoch 2", "epoch 3", "scores of 3", "closed"]


class Recorder:
    num_logged = 0

    def __init__(self, logged, failing=()):
        self.logged, self.failing = logged, failing

    def _log(self, what):
        if what in self.failing:
            raise OSError(28, "No space left on device")
        self.logged.append(what)

    def log_epoch(self, num_epochs, values):
        self._log(f"epoch {num_epochs}")

    def finish(self, num_epochs, scores):
        self._log(f"scores of {num_epochs}")

    def close(self, *, is_finished):
        self._log("closed" if is_finished else "closed unfinished")


@pytest.mark.parametrize("failing", ["opening", "epoch 2", "scores of 3", "closed"])
def test_a_tracker_that_fails_is_one_warning_and_changes_no_weight(folder, monkeypatch, caplog, failing):
    plain = make_run(folder, name="plain")
    train_heads([(plain, part) for part in ("P1", "P2")])

    def open_tracker(*_, **__):
        if failing == "opening":
            raise ConnectionError("the server does not answer")
        return Recorder([], failing=(failing,))

    monkeypatch.setitem(tracking._TRACKERS, "tensorboard", (open_tracker, "json"))
    run = make_run(folder, name="tracked")
    caplog.clear()
    train_heads([(run, part) for part in ("P1", "P2")], tracking="tensorboard")
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.startswith("tensorboard failed, the training continues without it: ")
    for part in ("P1", "P2"):
        ours, theirs = (each.fold_folder(part) / "head.safetensors" for each in (run, plain))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_training_that_stops_closes_its_trackers_as_unfinished(folder, monkeypatch):
    logged = []
    monkeypatch.setitem(tracking._TRACKERS, "tensorboard", (lambda *_, **__: Recorder(logged), "json"))

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(HeadTraining, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_heads([(make_run(folder), "P1")], tracking="tensorboard")
    assert logged[-1] == "closed unfinished"


def test_a_missing_package_is_one_sentence_that_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(tracking._TRACKERS, "wandb", (tracking._Wandb, "a_package_that_does_not_exist"))
    run = make_run(folder)
    with pytest.raises(ConfigError, match=r"tracking` is wandb, .* run `pip install 'wandb"):
        train_heads([(run, "P1")], tracking="wandb")
    assert not run.folder.exists()


def test_the_catalog_names_the_tracker_of_a_training(folder, monkeypatch):
    monkeypatch.delenv("FANTRANS_TRACKING", raising=False)
    assert load_catalog().tracking == "none"
    monkeypatch.setenv("FANTRANS_TRACKING", "mlflow")
    assert load_catalog().tracking == "mlflow"
    monkeypatch.setenv("FANTRANS_TRACKING", "mlfow")
    with pytest.raises(CatalogError, match="`tracking` is 'mlfow': input should be 'none', 'tensorboard', 'mlflow' or"):
        load_catalog()
    run, logged = make_run(folder), []
    monkeypatch.setenv("FANTRANS_TRACKING", "tensorboard")
    monkeypatch.setitem(tracking._TRACKERS, "tensorboard", (lambda *_, **__: Recorder(logged), "json"))
    monkeypatch.setattr(trainer, "resolve_runs", lambda *_, **__: [run])
    trainer.train_folds("small", dataset="small", parts=["P1"])
    assert logged == ["epoch 1", "epoch 2", "epoch 3", "scores of 3", "closed"]

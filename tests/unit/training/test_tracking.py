"""Each tracker for real: a small head trains, and its values are read back with the tracker's own reader."""

import json
import logging
import os
import signal
import threading
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import ConfigError
from pipeline.training import tracking
from pipeline.training.head_training import HeadTraining
from pipeline.training.runs import read_counts, read_history
from pipeline.training.trainer import train_heads
from tests.unit import small_runs
from tests.unit.processes import PROCESSES
from tests.unit.small_runs import make_run

LOSSES = ("loss", "loss_cls", "loss_kd", "lr", "seconds")
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


READERS = {"tensorboard": read_tensorboard, "mlflow": read_mlflow}


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

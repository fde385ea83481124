"""A golden run: every later version reports, compares, exports and predicts from it, or refuses it with one sentence.

`python -m tests.integration.test_golden_run` writes a new one; do so only for a new version of a run's files, into a
new folder.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import f1_score

from tests.command_line import fantrans
from tests.small_catalog import write_small_catalog

VERSION_1 = Path(__file__).parents[1] / "golden/run_version_1"
EXPERIMENT = """base: demo_quick
cache: {views: {num_views: 2}, features: {precision: fp32}}
head: {dim: 4, num_blocks: 1}
train: {num_epochs: 2, batch_size: 8, precision: fp32}
parts: [P1, P2]
"""
LEFT_OUT = [2, 4, 7, 10, 14, 15, 23, 24]
FACE_PX = 192


def write_catalog(folder):
    """Write a catalog with the data set of the golden run, `faces`, in FOLDER; return its path."""
    path = write_small_catalog(folder, dataset="faces", num_tasks=4, small=2)
    content = yaml.safe_load(path.read_text())
    content["datasets"] = {"faces": content["datasets"]["faces"] | {"leave_out": LEFT_OUT}}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def golden(tmp_path, monkeypatch):
    """A copy of the golden run below the runs root of a catalog of its own."""
    monkeypatch.setenv("FANTRANS_CATALOG", str(write_catalog(tmp_path)))
    (source,) = VERSION_1.glob("faces-*")
    return Path(shutil.copytree(source, tmp_path / "runs" / source.name))


@pytest.fixture(scope="module")
def expected():
    return json.loads((VERSION_1 / "expected.json").read_bytes())


def test_a_run_of_version_1_is_listed_and_reported_with_the_same_scores(golden, expected):
    (row,) = json.loads(fantrans("runs", "ls", "--json").out)["runs"]
    assert (row["run"], row["state"]) == (golden.name, "finished")
    ended = fantrans("report", golden.name, "--json")
    assert ended.status == 0, ended.err
    (report,) = json.loads(ended.out)["runs"]
    assert {name: report[name] for name in expected["report"]} == {
        name: pytest.approx(value, abs=1e-6) for name, value in expected["report"].items()
    }
    assert (golden / "report.html").stat().st_size > 100_000


def test_a_run_of_version_1_is_compared_with_another_one(golden):
    other = Path(shutil.copytree(golden, golden.with_name("faces-again")))
    ended = fantrans("compare", golden.name, other.name, "--json")
    assert ended.status == 0, ended.err
    assert {each["points"] for each in json.loads(ended.out)["action_units"]} == {0}


def test_the_head_of_a_run_of_version_1_is_exported_with_the_best_thresholds_of_the_other_fold(golden, tmp_path):
    out = tmp_path / "exported"
    ended = fantrans("export", golden.name, "--part", "P1", "--calibrated", "--out", out)
    assert ended.status == 0, ended.err
    before, after = (load_file(folder / "head.safetensors") for folder in (golden / "fold-P1/deployed", out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    description = json.loads((out / "head.json").read_bytes())
    others = pd.read_parquet(golden / "fold-P2/predictions.parquet")
    for au, threshold in zip(description["aus"], description["threshold"], strict=True):
        known = others[others[f"au_{au:02d}"] >= 0]
        labels, given = known[f"au_{au:02d}"], known[f"p_{au:02d}"]
        best = max(f1_score(labels, given >= value, zero_division=0) for value in given)
        assert f1_score(labels, given >= threshold, zero_division=0) == pytest.approx(best)
    assert len(set(description["threshold"])) > 1

    ended = fantrans("predict", VERSION_1 / "face.jpg", "--model", out, "--out", tmp_path / "au.csv")
    assert ended.status == 0, ended.err
    (row,) = pd.read_csv(tmp_path / "au.csv").to_dict("records")
    for au, threshold in zip(description["aus"], description["threshold"], strict=True):
        assert row[f"au_{au:02d}"] == (row[f"p_{au:02d}"] >= threshold)


def test_thresholds_need_another_finished_fold(golden, tmp_path):
    shutil.rmtree(golden / "fold-P2")
    ended = fantrans("export", golden.name, "--calibrated", "--out", tmp_path / "exported")
    assert ended.status == 1
    assert f"chosen on the other folds of {golden}, and it has P1; finish them with `fantrans train`" in ended.err
    assert not (tmp_path / "exported").exists()


def test_a_run_of_version_1_predicts_the_same(golden, expected, tmp_path):
    out = tmp_path / "au.csv"
    ended = fantrans("predict", VERSION_1 / "face.jpg", "--model", golden.name, "--out", out, "--device", "cpu")
    assert ended.status == 0, ended.err
    (row,) = pd.read_csv(out).to_dict("records")
    assert {name: row[name] for name in expected["face"]} == pytest.approx(expected["face"], abs=2e-3)


def write_golden():
    """Write a run of two folds on rendered faces, one of the faces, and what is expected of them."""
    from pipeline.refresh.stages import refresh_cache
    from pipeline.training.trainer import train_folds

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        os.environ["FANTRANS_CATALOG"] = str(write_catalog(folder))
        experiment = folder / "golden.yaml"
        experiment.write_text(EXPERIMENT)
        refresh_cache("faces", experiment=str(experiment), device="cpu")
        (run,) = train_folds(str(experiment), dataset="faces", device="cpu")
        shutil.copytree(run, VERSION_1 / run.name, ignore=shutil.ignore_patterns(".lock", "live.html"))
        image = cv2.imread(str(sorted((folder / "raw").rglob("*.jpg"))[3]))
        cv2.imwrite(str(VERSION_1 / "face.jpg"), cv2.resize(image, (FACE_PX, FACE_PX), interpolation=cv2.INTER_AREA))
        fantrans("predict", VERSION_1 / "face.jpg", "--model", run, "--out", folder / "au.csv", "--device", "cpu")
        (row,) = pd.read_csv(folder / "au.csv").to_dict("records")
        (report,) = json.loads(fantrans("report", run.name, "--json").out)["runs"]
        kept = ("mean_f1_percent", "interval_95_percent", "pooled_f1_percent", "always_positive_f1_percent")
        expected = {
            "report": {name: report[name] for name in kept},
            "face": {name: value for name, value in row.items() if name.startswith("p_") or name in ("x1", "y2")},
        }
        (VERSION_1 / "expected.json").write_text(json.dumps(expected, indent=2))


if __name__ == "__main__":
    write_golden()

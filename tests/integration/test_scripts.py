"""Each recipe of docs/scripts.md, run as it stands there on a small data set that is named bp4d."""

import json
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.recipes import RECIPES, run_recipe
from tests.small_catalog import write_small_catalog

FOR_A_SERVER = ["Alert if a worker or the server is down", "Run a deployment and wait for its end"]
"""Recipes that tests/e2e/test_operations.py runs with a server."""


class World:
    """A project folder, and the recipes that run in it."""

    def __init__(self, folder):
        self.folder = folder
        ours = ("PREFECT_", "FANTRANS_", "COLUMNS")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environment["FANTRANS_CATALOG"] = str(write_small_catalog(folder, dataset="bp4d", num_tasks=4, small=2))

    def run(self, title, *, status=0, replace=("", ""), **variables):
        """Run a recipe; returns what it prints."""
        ended = run_recipe(title, environment=self.environment | variables, folder=self.folder, replace=replace)
        assert ended.returncode == status, ended.stdout + ended.stderr
        return ended.stdout

    @property
    def cache(self):
        (folder,) = self.folder.glob("cache/bp4d/*")
        return folder

    @property
    def runs(self):
        return sorted(path.parent for path in self.folder.glob("runs/*/run.json"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data set that one recipe refreshed, and three runs that another one trained."""
    world = World(tmp_path_factory.mktemp("world"))
    world.run("Refresh only if there is something to do")
    assert (world.cache / "current.json").is_file()
    world.run("Sweep lambda and save the table")
    table = pd.read_csv(world.folder / "sweep.csv")
    assert list(table["member"]) == [f"train.kd_weight={value}" for value in ("0", "0.2", "0.5")]
    assert table["f1_percent"].between(table["low_percent"], table["high_percent"]).all()
    return world


def test_every_recipe_has_one_block_and_is_run():
    source = Path(__file__).read_text()
    assert len(RECIPES) >= 20
    for title, blocks in RECIPES.items():
        assert len(blocks) == 1, title
        assert f'"{title}"' in source, title


def test_damage_raises_an_alert_until_a_refresh_has_repaired_it(world):
    shard = next(world.cache.glob("arrays.zarr/*/*/c.*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert world.run("Alert on damage").startswith("ALERT: bp4d is damaged or away")
    assert not json.loads((world.folder / "verify.json").read_text())["is_intact"]
    (line,) = world.run("List the damaged frames").splitlines()
    assert line.startswith(str(world.cache))
    frame_ids = pd.read_parquet(next(world.cache.glob("index-*.parquet")))["frame_id"]
    assert 0 < len(set(line.split()) & set(frame_ids)) < len(frame_ids)

    plan = world.run("Stop if the disk has not enough room").split()
    assert (float(plan[0]) > 0, plan[1], plan[3]) == (True, "bytes,", "hours")
    is_full = ("shutil.disk_usage(root).free", "0")
    assert world.run("Stop if the disk has not enough room", status=1, replace=is_full).startswith(" ".join(plan[:2]))

    assert world.run("Check the catalog before a refresh") == ""
    assert world.run("Alert on damage") == ""
    published = (world.cache / "current.json").stat().st_mtime_ns
    world.run("Refresh only if there is something to do")
    assert (world.cache / "current.json").stat().st_mtime_ns == published


def test_weights_with_another_checksum_are_listed_and_stop_a_refresh(world):
    catalog = yaml.safe_load((world.folder / "data_catalog.yaml").read_text())
    (world.folder / "fan.safetensors").write_bytes(b"damaged")
    entry = {"path": "fan.safetensors", "sha256": "0" * 64, "family": "fan", "width": 64, "num_stacks": 2}
    damaged = world.folder / "damaged.yaml"
    damaged.write_text(yaml.safe_dump(catalog | {"weights": {"mine": entry | {"pooling": "avg"}}}))
    title = "List the weights whose file is damaged or missing"
    assert world.run(title, FANTRANS_CATALOG=str(damaged)).split() == ["mine"]
    assert "weights 'mine'" in world.run("Check the catalog before a refresh", FANTRANS_CATALOG=str(damaged))


def test_an_old_cache_and_a_failure_raise_alerts(world):
    assert world.run("Alert if a cache is old") == ""
    pointer = world.cache / "current.json"
    times = pointer.stat()
    os.utime(pointer, (time.time() - 8 * 86400,) * 2)
    assert world.run("Alert if a cache is old") == f"ALERT: older than a week: {world.cache}\n"
    os.utime(pointer, (times.st_atime, times.st_mtime))

    title = "Tell a failure from wrong usage"
    assert world.run(title).startswith("ALERT: wrong usage, nothing was computed: error: experiment 'shallow'")
    (world.folder / "configs").mkdir()
    (world.folder / "configs/shallow.yaml").write_text("base: demo_quick\ncache: {features: {profile: exact}}\n")
    assert world.run(title).startswith("ALERT: failed with status 1: error: ")


def test_runs_are_listed_compared_read_and_exported(world):
    world.run("Save a list of all runs")
    runs = pd.read_csv(world.folder / "runs.csv").sort_values("f1_percent", ignore_index=True)
    assert sorted(runs["run"]) == [run.name for run in world.runs]
    best, worst = runs["run"].iloc[-1], runs["run"].iloc[0]

    losses = world.run("Follow the losses of a training").splitlines()
    assert [line.split()[1] for line in losses] == ["fold-P1", "fold-P2"]
    assert "'loss': " in losses[0]
    f1_by_run = dict(line.split() for line in world.run("Compare one action unit over all runs").splitlines())
    assert set(f1_by_run) == set(runs["run"])
    report = json.loads((world.folder / "runs" / best / "report.json").read_text())
    (au12,) = (each["f1_percent"] for each in report["action_units"] if each["au"] == 12)
    assert float(f1_by_run[best]) == pytest.approx(au12)

    sentence = world.run("Act only if two runs are distinguishable")
    compared = json.loads((world.folder / "compare.json").read_text())
    assert (compared["ours"], compared["theirs"]) == (best, worst)
    assert bool(sentence) == compared["mean"]["is_distinguishable"]
    predictions = world.run("Read the predictions of a run")
    table = pd.read_parquet(world.folder / "runs" / best / "fold-P1/predictions.parquet")
    assert all(subject in predictions for subject in table["subject"])
    world.run("Export the best run")
    assert {path.name for path in (world.folder / "best").iterdir()} >= {"head.json", "head.onnx", "head.safetensors"}


def test_seeds_are_trained_and_old_runs_removed_but_none_by_a_dry_run(world):
    before = world.runs
    num_seeds, f1_percent, _ = json.loads(
        world.run("Train seeds 0 to 2 and print mean and deviation").replace("(", "[").replace(")", "]")
    )
    assert (num_seeds, 0 < f1_percent < 100) == (3, True)
    trained = world.runs
    assert len(trained) - len(before) == 2  # seed 0 is the sweep's run with the default lambda

    shown = world.run("Print what a removal of weak runs would remove")
    assert shown.count("would remove: ") == len(trained)
    assert world.runs == trained
    assert world.run("Remove runs that are older than a month") == ""
    old = trained[0]
    for path in old.glob("fold-*/result.json"):
        finished_at = (datetime.now(UTC) - timedelta(days=31)).isoformat()
        path.write_text(json.dumps(json.loads(path.read_text()) | {"finished_at": finished_at}))
    assert f"removed: {old}\n" in world.run("Remove runs that are older than a month")
    assert world.runs == trained[1:]


def test_unused_caches_are_listed_and_what_is_freed_is_counted(world):
    assert world.run("List the caches that no run uses") == ""
    unused = world.folder / "cache/undisturbed" / world.cache.name
    shutil.copytree(world.cache, unused)
    assert world.run("List the caches that no run uses").split()[0] == str(unused)

    shutil.rmtree(world.folder / "raw/BP4D-training/F001")
    catalog = yaml.safe_load((world.folder / "data_catalog.yaml").read_text())
    del catalog["datasets"]["bp4d"]["rendered"]  # or the subject would be rendered again
    catalog["datasets"]["bp4d"]["max_lost_frac"] = 1
    fewer = world.folder / "fewer.yaml"
    fewer.write_text(yaml.safe_dump(catalog))
    world.run("Refresh only if there is something to do", FANTRANS_CATALOG=str(fewer))
    before = {path: path.stat().st_size for path in world.folder.glob("*/bp4d/**/c.*")}
    for path in world.folder.glob("*/bp4d/**/*"):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    freed_bytes = int(world.run("Prune and print what was freed"))
    assert freed_bytes == sum(size for path, size in before.items() if not path.exists()) > 0


@pytest.mark.parametrize("title", FOR_A_SERVER)
def test_a_server_that_does_not_answer_raises_an_alert(world, title):
    alert = world.run(title, PREFECT_API_URL="http://127.0.0.1:9/api", PREFECT_HOME=str(world.folder / "prefect"))
    assert alert.startswith("ALERT: ")


def test_deployments_with_problems_and_those_that_do_not_run_are_listed(world):
    title = "List deployments that failed, are late, or have not run for eight days"
    old, new = (f"{datetime.now(UTC) - timedelta(hours=hours):%Y-%m-%dT%H:%M:%S+00:00}" for hours in (193, 191))
    runs = [("old", old, "0 2 * * * UTC"), ("new", new, "0 2 * * * UTC"), ("off", old, "0 2 * * * UTC, off")]
    runs += [("by hand", old, None), ("never", None, "0 2 * * * UTC")]
    listed = [{"name": name, "last_run_at": at, "schedule": schedule} for name, at, schedule in runs]
    status = repr({"problems": ["x is late"], "deployments": listed})
    shown = world.run(title, replace=('read_json("ops", "status")', status))
    assert shown == f"x is late\nold ran last at {old}\nnever has never run\n"
    server = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(world.folder / "prefect")}
    assert world.run(title, status=1, **server) == ""

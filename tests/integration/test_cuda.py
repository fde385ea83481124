"""A GPU gives nearly the values of a CPU, and the same bytes each time, however the work is distributed."""

from contextlib import nullcontext
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from distributed import Client, LocalCluster
from skimage.data import astronaut

from flows.cluster import GPU, Cluster
from flows.cluster_workers import ClusterWorkers
from models.fan_trans import FanTransHead
from models.head import HeadInputs
from pipeline.cache.reader import open_cache
from pipeline.catalog import load_catalog
from pipeline.config import TrainConfig
from pipeline.faces.features import extract_features, load_fan
from pipeline.refresh import stages
from pipeline.refresh.job import cache_build, prepare_refresh
from pipeline.refresh.maintenance import verify_caches
from pipeline.tables import VALUE_COLUMNS
from pipeline.training.export import load_deployed
from pipeline.training.predict import predict
from pipeline.training.run_files import read_history
from pipeline.training.runs import prepare_run
from pipeline.training.step import NUM_ORDINARY_STEPS, CudaGraphs, GraphedStep, Step
from pipeline.training.trainer import train_heads
from tests.devices import needs_cuda
from tests.small_catalog import write_small_catalog

pytestmark = needs_cuda

PROFILES = ("exact", "standard", "compact")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with rendered faces, refreshed on the CPU in each profile."""
    folder = tmp_path_factory.mktemp("cuda")
    with pytest.MonkeyPatch.context() as patch:
        catalog = write_small_catalog(folder, dataset="faces", small=3)
        places = yaml.safe_load(catalog.read_text())
        places["roots"] |= {"work": "${oc.env:FANTRANS_WORK,work}", "cache": "${oc.env:FANTRANS_CACHE,cache}"}
        catalog.write_text(yaml.safe_dump(places))
        patch.setenv("FANTRANS_CATALOG", str(catalog))
        job = prepare_refresh("faces")
        run(job, stages.RenderStage, stages.IndexStage, stages.DetectStage, stages.CropStage)
        for profile in PROFILES[::-1]:  # the exact one last: the others would be encoded from it
            run(prepare_refresh("faces", profile=profile), stages.ExtractStage)
        yield folder


def run(job, *kinds, workers=None):
    """Run stages of a job; returns the last one's summary."""
    for kind in kinds:
        summary = stages.run_stage(kind(), job, workers or job.workers)
    return summary


def extract_on_cluster(job):
    return run(job, stages.ExtractStage, workers=ClusterWorkers("cuda"))


def cache_of(job):
    return open_cache(cache_build(job).folder)


def array_bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("c.*"))}


def relative_l2(found, true):
    return (found.double() - true.double()).norm() / true.double().norm()


@pytest.mark.parametrize("weights", ["fan-64", "fan-128"])
def test_in_fp32_a_fan_gives_the_values_of_a_cpu(weights):
    crops = cv2.resize(astronaut(), (256, 256))[None].repeat(3, 0)
    entry = load_catalog().get_weights(weights)
    on_cpu, on_gpu = (extract_features(load_fan(entry, device), crops) for device in ("cpu", "cuda"))
    for name, values in on_cpu.items():
        assert relative_l2(torch.from_numpy(on_gpu[name]), torch.from_numpy(values)) < 1e-3, name


def test_it_finds_the_same_boxes(place, tmp_path, monkeypatch):
    on_cpu = pd.read_parquet(prepare_refresh("faces").boxes_path)
    monkeypatch.setenv("FANTRANS_WORK", str(tmp_path))
    job = prepare_refresh("faces", device="cuda")
    run(job, stages.IndexStage, stages.DetectStage)
    on_gpu = pd.read_parquet(job.boxes_path)
    pd.testing.assert_series_equal(on_gpu["status"], on_cpu["status"])
    np.testing.assert_allclose(on_gpu[list(VALUE_COLUMNS)], on_cpu[list(VALUE_COLUMNS)], atol=0.01)


@pytest.mark.parametrize("profile", PROFILES)
def test_it_extracts_the_same_features(place, monkeypatch, tmp_path, profile):
    on_cpu = cache_of(prepare_refresh("faces", profile=profile))
    monkeypatch.setenv("FANTRANS_CACHE", str(tmp_path))
    job = prepare_refresh("faces", profile=profile, device="cuda")
    assert run(job, stages.ExtractStage).num_computed == len(on_cpu.index)
    on_gpu = cache_of(job)
    assert (on_gpu.index["frame_id"] == on_cpu.index["frame_id"]).all()
    for view in range(on_cpu.num_views):
        ours, theirs = (
            cache.codec.decode(
                {name: torch.from_numpy(values) for name, values in cache.read(cache.rows(), view=view).items()}
            )
            for cache in (on_gpu, on_cpu)
        )
        for name, values in theirs.items():
            assert relative_l2(ours[name], values) < 0.05, (name, view)  # bf16
    assert not any(verify_caches(load_catalog(), "faces", is_deep=True, device="cuda").values())
    assert not any(verify_caches(load_catalog(), "faces", is_deep=True, device="cpu").values())
    again = run(prepare_refresh("faces", profile=profile), stages.ExtractStage)
    assert again.num_computed == 0


def test_bytes_do_not_depend_on_the_processes_that_extract(place, tmp_path, monkeypatch):
    found = {}
    for name in ("one process", "two processes", "two Dask workers"):
        monkeypatch.setenv("FANTRANS_CACHE", str(tmp_path / name))
        job = prepare_refresh("faces", device="cuda", num_workers=2 if name == "two processes" else 1)
        if name == "two Dask workers":
            settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "resources": {GPU: 1}}
            with LocalCluster(**settings) as cluster, Client(cluster, set_as_default=False) as client:
                client.submit(extract_on_cluster, job, pure=False).result()
        else:
            run(job, stages.ExtractStage)
        found[name] = array_bytes(tmp_path / name)
    assert len(found["one process"]) == 3 * 3 * 7  # blocks, views, arrays
    assert found["one process"] == found["two processes"] == found["two Dask workers"]


def test_dask_cuda_starts_one_process_per_gpu_that_offers_it(place):
    pytest.importorskip("dask_cuda")
    runner = Cluster(cuda=True).task_runner()
    made = runner.resolved_cluster_class(**runner.cluster_kwargs)
    with made as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(torch.cuda.device_count(), timeout=60)
        offered = [worker["resources"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
        assert offered == [{GPU: 1}] * torch.cuda.device_count()
        names = client.submit(lambda: torch.cuda.get_device_name("cuda:0"), resources={GPU: 1}).result(60)
        assert names == torch.cuda.get_device_name(0)


def test_a_head_scores_as_on_a_cpu(place):
    run = prepare_run(str(place / "small.yaml"), dataset="faces")
    train_heads([(run, "P1")], device="cuda")
    head = load_deployed(run.fold_folder("P1") / "deployed").head
    here = predict(head, run.cache, run.frames, aus=run.rules.aus, test_part="P1", device="cpu")
    there = pd.read_parquet(run.fold_folder("P1") / "predictions.parquet")
    numbers = here.select_dtypes("number").columns
    np.testing.assert_allclose(there[numbers], here[numbers], atol=1e-4)
    on_cpu = replace(run, folder=run.folder.with_name("on-cpu"))
    train_heads([(on_cpu, "P1")])
    ours, theirs = (read_history(each.fold_folder("P1"))["loss"].item() for each in (run, on_cpu))
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_steps_learn_what_ordinary_ones_learn_beside_each_other(precision):
    inputs, graphs = HeadInputs(num_channels=64, map_size=64, num_aus=12), CudaGraphs(torch.device("cuda:0"))
    ordinary = make_step(inputs, precision)
    recorded = [GraphedStep(make_step(inputs, precision), graphs) for _ in range(2)]
    numbers = torch.Generator("cuda").manual_seed(1)
    losses = []
    for _ in range(200):
        maps = {k: torch.rand(v.shape, generator=numbers, device="cuda") for k, v in inputs.random_maps(8).items()}
        labels_BA = torch.randint(0, 2, (8, 12), generator=numbers, device="cuda", dtype=torch.int8)
        losses.append([take(maps, labels_BA).losses for take in (ordinary, *recorded)])
    assert all(take._replay is not None for take in recorded)
    for i in (1, 2):
        ours, theirs = (torch.stack([each[k] for each in losses]) for k in (i, 0))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_training_records_the_step_of_each_head_once(place, caplog, monkeypatch):
    run = prepare_run(str(place / "small.yaml"), dataset="faces")
    train = run.experiment.train.model_copy(update={"num_epochs": NUM_ORDINARY_STEPS + 2})
    experiment = run.experiment.model_copy(update={"train": train})
    run = replace(run, experiment=experiment, folder=run.folder.with_name("recorded"))
    made, record = [], CudaGraphs.record
    monkeypatch.setattr(CudaGraphs, "record", lambda self, work: made.append(self) or record(self, work))
    train_heads([(run, "P1"), (run, "P2")], device="cuda")
    assert len(made) == 2
    assert made[0] is made[1]
    assert "cannot be recorded" not in caplog.text


def make_step(inputs, precision):
    torch.manual_seed(0)
    head = FanTransHead.from_inputs(inputs, dim=48).cuda().train()
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3, fused=True)
    return Step(head, optimiser, torch.ones(12, device="cuda"), TrainConfig(precision=precision), nullcontext())


def test_a_step_that_waits_for_the_device_cannot_be_recorded_and_training_continues(caplog):
    class Waiting(FanTransHead):
        def forward_features(self, features):
            features["lf"].sum().item()
            return super().forward_features(features)

    inputs = HeadInputs(num_channels=4, map_size=16, num_aus=12)
    step = make_step(inputs, "fp32")
    step.head.__class__ = Waiting
    take, before = GraphedStep(step, CudaGraphs(torch.device("cuda:0"))), torch.cuda.current_stream()
    maps = {name: values.cuda() for name, values in inputs.random_maps(4).items()}
    labels_BA = torch.ones(4, 12, dtype=torch.int8, device="cuda")
    losses = torch.stack([take(maps, labels_BA).losses[0] for _ in range(20)]).tolist()
    assert losses == sorted(losses, reverse=True)
    assert "cannot be recorded as a CUDA graph (" in caplog.text
    assert "previous error" not in caplog.text, "it is the reason, not what follows from it"
    assert torch.cuda.current_stream() == before

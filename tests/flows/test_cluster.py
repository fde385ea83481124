"""Tasks on the workers of a Dask cluster: which workers get them, and the error if none can."""

import sys

import pytest
from distributed import Client, LocalCluster, SpecCluster, get_worker
from pydantic import ValidationError

from flows.cluster import GPU, Cluster
from flows.cluster_workers import ClusterWorkers
from pipeline.errors import ConfigError
from pipeline.runtime import executors


@pytest.fixture(scope="module")
def client():
    """A client of one worker without a GPU; it is not set as default, since Dask would keep using it afterwards."""
    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**settings) as cluster, Client(cluster, set_as_default=False) as client:
        yield client


def names_of_workers(device, num_tasks):
    with ClusterWorkers(device).open("worker", num_tasks=num_tasks) as pool:
        return [result.unwrap() for result in pool.run(name_of_worker, range(num_tasks))]


def test_a_state_is_freed_when_its_pool_is_closed(client):
    assert client.submit(names_of_workers, "cpu", 2, pure=False).result(60)
    assert client.run(lambda: list(executors._states)) == {worker: [] for worker in client.run(lambda: None)}


def name_of_worker(state, _):
    return f"{state} {get_worker().name}"


def test_a_gpu_device_without_a_worker_that_offers_a_gpu_is_an_error(client):
    with pytest.raises(
        ConfigError,
        match=r"none of the 1 workers of .* offers a GPU, which device cuda:0 needs; start "
        r"one with `dask worker ADDRESS --nthreads 1 --resources GPU=1`",
    ):
        client.submit(names_of_workers, "cuda:0", 1, pure=False).result(60)
    assert len(client.submit(names_of_workers, "cpu", 3, pure=False).result(60)) == 3


def test_tasks_for_a_gpu_go_to_a_worker_that_offers_one():
    workers = {"plain": {"nthreads": 1}, "gpu": {"nthreads": 1, "resources": {GPU: 1}}}
    spec = {name: {"cls": "distributed.Nanny", "options": options} for name, options in workers.items()}
    scheduler = {"cls": "distributed.Scheduler", "options": {"dashboard_address": ":0"}}
    with SpecCluster(workers=spec, scheduler=scheduler) as cluster, Client(cluster, set_as_default=False) as client:
        assert set(client.submit(names_of_workers, "cuda:0", 6, pure=False).result(60)) == {"worker gpu"}


@pytest.mark.parametrize("given", [{}, {"num_workers": 2, "cuda": True}, {"address": "tcp://a:1", "num_workers": 2}])
def test_a_cluster_is_given_in_exactly_one_way(given):
    with pytest.raises(ValidationError, match="give a cluster one of address, num_workers, cuda"):
        Cluster(**given)


def test_the_error_without_dask_cuda_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    with pytest.raises(ConfigError, match="run `pip install dask-cuda`"):
        Cluster(cuda=True).task_runner()

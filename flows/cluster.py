"""Workers of a Dask cluster, on which a refresh can detect and extract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Self, TypeVar

import torch
from distributed import Worker, WorkerPlugin, worker_client
from prefect_dask.task_runners import DaskTaskRunner
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import ConfigError
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.executors import WorkerPool, drop_state, keep_state, new_state_name

GPU = "GPU"
"""Resource that a worker offers, `dask worker ... --resources GPU=1`: each GPU runs one task at a time."""

_START_S = 60

_State = TypeVar("_State")


class Cluster(BaseModel):
    """A running cluster, by its scheduler's address, or a local one that ends with the flow run.

    All workers need this package and see the catalog's folders under the same paths.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = None
    """Address of the scheduler, such as tcp://10.0.0.5:8786."""
    num_workers: Annotated[int, Field(ge=1)] | None = None
    """Number of local processes, of one thread each."""
    cuda: bool = False
    """Whether to start one local process per GPU, with dask-cuda."""

    @model_validator(mode="after")
    def _is_exactly_one(self) -> Self:
        if (self.address is not None) + (self.num_workers is not None) + self.cuda != 1:
            raise ValueError("give a cluster one of address, num_workers, cuda")
        return self

    def task_runner(self) -> DaskTaskRunner:
        """Return a runner for Prefect tasks on the cluster; `ConfigError` if dask-cuda is needed and not installed."""
        if self.address is not None:
            return DaskTaskRunner(address=self.address, client_kwargs={"timeout": _START_S})
        if not self.cuda:
            return DaskTaskRunner(
                cluster_kwargs={"n_workers": self.num_workers, "threads_per_worker": 1, "dashboard_address": None}
            )
        try:
            return DaskTaskRunner(
                cluster_class="dask_cuda.LocalCUDACluster",
                cluster_kwargs={"resources": {GPU: 1}, "dashboard_address": None},
            )
        except ImportError:
            raise ConfigError(
                "a cluster with cuda needs dask-cuda, which is not installed; run `pip install dask-cuda`"
            ) from None


@dataclass(frozen=True)
class ClusterWorkers:
    """Workers of the Dask cluster that this Prefect task runs on; tasks for a GPU go to workers that offer one."""

    device: str

    @contextmanager
    def open(self, state: _State, *, num_tasks: int) -> Iterator[WorkerPool[_State] | None]:
        """Give each worker, also one that joins later, a copy of `state`; see `pipeline.runtime.executors.Workers`.

        Raises `ConfigError` if the device is a GPU and no worker offers one: Dask would wait for one forever.
        """
        if num_tasks == 0:
            yield None
            return
        needed = {GPU: 1} if torch.device(self.device).type == "cuda" else {}
        with worker_client() as client:
            offered = [worker["resources"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
            if needed and not any(resources.get(GPU, 0) >= 1 for resources in offered):
                raise ConfigError(
                    f"none of the {len(offered)} workers of {client.scheduler.address} offers a {GPU}, which device "
                    f"{self.device} needs; start one with `dask worker ADDRESS --nthreads 1 --resources {GPU}=1`"
                )
            plugin = _StatePlugin(new_state_name(), state)
            try:
                client.register_plugin(plugin)
                yield WorkerPool(client.get_executor(pure=False, resources=needed), plugin.name)
            finally:
                client.unregister_worker_plugin(plugin.name)


class _StatePlugin(WorkerPlugin):
    """Keeps a pool's state in a worker's process while the pool is open."""

    idempotent = False

    def __init__(self, name: str, state: object) -> None:
        self.name, self._state = name, state

    def setup(self, worker: Worker) -> None:
        """Set up the worker's process and keep the state."""
        tune_allocator()
        keep_state(self.name, self._state)

    def teardown(self, worker: Worker) -> None:
        """Drop the worker's state."""
        drop_state(self.name)

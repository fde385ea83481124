"""Compute on the workers of a Dask cluster: imported by flow runs that have one, since Dask takes half a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from distributed import Worker, WorkerPlugin, worker_client

from flows.cluster import GPU
from pipeline.errors import ConfigError
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.executors import WorkerPool, drop_state, keep_state, new_state_name

_State = TypeVar("_State")


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

"""Where a refresh detects and extracts, if not in its own process: workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Annotated, Self

import torch
from distributed import worker_client
from prefect_dask import DaskTaskRunner
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import ConfigError

GPU = "GPU"
"""Resource that a worker offers, `dask worker ... --resources GPU=1`: one piece of work on it at a time."""

_START_S = 60


class Cluster(BaseModel):
    """A running cluster by its scheduler's address, or one of this machine's that lives as long as the flow run.

    All workers need this package and see the catalog's folders under the same paths.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = None
    """Scheduler, as in tcp://10.0.0.5:8786."""
    num_workers: Annotated[int, Field(ge=1)] | None = None
    """Processes of one thread each."""
    cuda: bool = False
    """A process for each GPU of this machine, through dask-cuda."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.address is not None) + (self.num_workers is not None) + self.cuda != 1:
            raise ValueError("give a cluster one of address, num_workers, cuda")
        return self

    def task_runner(self) -> DaskTaskRunner:
        """Runs Prefect tasks there. Raises `ConfigError` if dask-cuda is needed and not there."""
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
                "a cluster with cuda needs dask-cuda, which does not exist; run `pip install dask-cuda`"
            ) from None


@contextmanager
def cluster_workers(device: str) -> Iterator[Executor]:
    """The cluster that this Prefect task runs on, as an executor that gives work for a GPU to workers that offer one.

    Raises `ConfigError` if none does, since Dask would wait for one for ever.
    """
    needed = {GPU: 1} if torch.device(device).type == "cuda" else {}
    with worker_client() as client:
        offered = [worker["resources"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
        if needed and not any(resources.get(GPU, 0) >= 1 for resources in offered):
            raise ConfigError(
                f"none of the {len(offered)} workers of {client.scheduler.address} offers a {GPU}, which "
                f"device {device} needs; start one with `dask worker ADDRESS --nthreads 1 --resources "
                f"{GPU}=1`"
            )
        yield client.get_executor(pure=False, resources=needed)

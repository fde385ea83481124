"""A Dask cluster on which a refresh can detect and extract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from prefect_dask.task_runners import DaskTaskRunner

GPU = "GPU"
"""Resource that a worker offers, `dask worker ... --resources GPU=1`: each GPU runs one task at a time."""

_START_S = 60


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
        from prefect_dask.task_runners import DaskTaskRunner  # noqa: PLC0415 - takes half a second

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

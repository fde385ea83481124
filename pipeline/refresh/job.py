"""A refresh job: one data set, its resolved settings, and where its outputs are.

{work}/{dataset}/frames.parquet
{work}/{dataset}/faces-{fingerprint of the detection}.parquet, and .parts/ until detection has finished
{work}/{dataset}/boxes-{fingerprint of the boxes}.parquet
{work}/{dataset}/crops/{crop fingerprint}/
{cache}/{dataset}/{cache fingerprint}/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from pipeline import experiments, fingerprint
from pipeline.cache import prepare
from pipeline.cache.build import CacheBuild
from pipeline.cache.crops import CropReader
from pipeline.catalog import Catalog, DatasetEntry, load_catalog
from pipeline.config import CacheConfig, Profile, first_fault
from pipeline.errors import ConfigError
from pipeline.faces.detect import load_detector
from pipeline.faces.features import load_network
from pipeline.runtime.device import checked_device
from pipeline.runtime.executors import LocalWorkers
from pipeline.runtime.machine import describe_machine
from pipeline.store.format import StoreFormat
from pipeline.store.hashing import hash_document

StageName = Literal["index", "detect", "crop", "extract"]


@dataclass(frozen=True, kw_only=True)
class RefreshJob:
    """One data set and everything that decides its cache."""

    dataset: str
    catalog: Catalog
    config: CacheConfig
    limit: int | None
    device: str
    num_workers: int = 1
    allow_lost: bool = False
    """Whether frames may lose their image or video, any number of them."""
    until: StageName = "extract"
    """The last stage that is run."""

    @property
    def entry(self) -> DatasetEntry:
        """The data set's entry in the catalog."""
        return self.catalog.get_dataset(self.dataset)

    @property
    def work(self) -> Path:
        """Folder of the data set's index, boxes and crops."""
        return self.catalog.work_folder(self.dataset)

    @property
    def crops_root(self) -> Path:
        """Folder of the data set's crop stores, one per fingerprint."""
        return self.catalog.crops_folder(self.dataset)

    @property
    def faces_path(self) -> Path:
        """All faces that the job's detector finds; boxes with other settings of tracks are chosen from the same."""
        document = fingerprint.faces_document(self.config, self.catalog)
        return self.work / f"faces-{hash_document(document)}.parquet"

    @property
    def boxes_path(self) -> Path:
        """Boxes of the subjects."""
        document = fingerprint.boxes_document(self.config, self.catalog)
        return self.work / f"boxes-{hash_document(document)}.parquet"

    @property
    def workers(self) -> LocalWorkers:
        """The job's processes on this machine."""
        return LocalWorkers(self.num_workers)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the manifest records of the values' origin, beside fingerprint and versions."""
        return {"dataset": self.dataset, "device": self.device, "machine": describe_machine(self.device)}


def prepare_refresh(
    dataset: str,
    *,
    experiment: str | None = None,
    base: str | None = None,
    overrides: Sequence[str] = (),
    profile: str | None = None,
    num_views: int | None = None,
    limit: int | None = None,
    device: str = "cpu",
    check_device: bool = True,
    checks_weights: bool = True,
    num_workers: int = 1,
    allow_lost: bool = False,
    until: StageName = "extract",
) -> RefreshJob:
    """Resolve the settings of a refresh: those of the experiments, overridden by the caller's.

    experiment, base, overrides: see `experiments.resolve`; default: the data set's own experiment. A set whose members
    need several caches is refused. check_device: whether this machine must have the device; workers of a cluster may.
    checks_weights: whether to load the weights once, so that a fault in them (`WeightsError`) is found before any stage
    runs.
    """
    catalog = load_catalog()
    chosen = experiments.resolve(catalog, dataset, experiment, base=base, overrides=overrides)
    document = chosen.cache.model_dump()
    if profile is not None:
        document["features"]["profile"] = profile
    if num_views is not None:
        document["views"]["num_views"] = num_views
    if check_device:
        checked_device(device)
    try:
        cache = CacheConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(first_fault(error, CacheConfig)) from None
    catalog.get_weights(cache.detector.weights)
    fingerprint.cache_document(cache, catalog)  # refuses weights without features, or without this profile
    job = RefreshJob(
        dataset=dataset,
        catalog=catalog,
        config=cache,
        limit=limit,
        device=device,
        num_workers=num_workers,
        allow_lost=allow_lost,
        until=until,
    )
    if checks_weights:
        _check_weights(job)
    return job


def _check_weights(job: RefreshJob) -> None:
    """Load the job's weights once, before any stage runs; raises `WeightsError` for those that cannot be used."""
    load_detector(job.catalog.get_weights(job.config.detector.weights), torch.device("cpu"))
    load_network(job.catalog.get_weights(job.config.features.weights), "cpu")
    prepare.load_codec(job.config, job.catalog)


def crop_format(job: RefreshJob) -> StoreFormat:
    """Return the format of the job's crops."""
    return prepare.crop_format(job.config, job.catalog)


def crop_reader(job: RefreshJob) -> CropReader:
    """Open the job's crops at their newest revision."""
    return prepare.open_crops(job.config, job.catalog, dataset=job.dataset)


def cache_build(job: RefreshJob) -> CacheBuild:
    """Return the job's feature cache and how its values are computed."""
    return prepare.cache_build(
        job.config, job.catalog, dataset=job.dataset, device=job.device, provenance=job.provenance
    )


def with_profile(job: RefreshJob, profile: Profile) -> RefreshJob:
    """Return the same job in another profile."""
    return replace(job, config=prepare.with_profile(job.config, profile))

"""A refresh and everything that decides its result: the data set, its settings, where things lie, what the cache holds.

{work}/{dataset}/frames.parquet
{work}/{dataset}/boxes-{detector fingerprint}.parquet, and .parts/ while it is being made
{work}/{dataset}/crops/{crop fingerprint}/
{cache}/{dataset}/{cache fingerprint}/
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from pipeline import fingerprint
from pipeline.cache import crops
from pipeline.cache.codecs import Codec, make_codec
from pipeline.cache.format import features_format
from pipeline.cache.writer import Extractor
from pipeline.catalog import Catalog, DatasetEntry, load_catalog
from pipeline.config import CacheConfig, first_fault
from pipeline.errors import ConfigError
from pipeline.faces.features import extract_features, load_network
from pipeline.runtime.atomic import write_bytes_atomically
from pipeline.runtime.device import checked_device
from pipeline.store.format import StoreFormat
from pipeline.store.revisions import load_revision


@dataclass(frozen=True, kw_only=True)
class RefreshJob:
    """One data set and everything that decides its cache."""

    dataset: str
    catalog: Catalog
    config: CacheConfig
    limit: int | None
    device: str
    num_workers: int = 1

    @property
    def entry(self) -> DatasetEntry:
        """The data set's entry in the catalog."""
        return self.catalog.dataset(self.dataset)

    @property
    def work(self) -> Path:
        """Folder of the data set's index, boxes and crops."""
        return self.catalog.work_dir(self.dataset)

    @property
    def boxes_path(self) -> Path:
        """Boxes of the job's detector."""
        document = fingerprint.boxes_document(self.config, self.catalog)
        return self.work / f"boxes-{fingerprint.fingerprint(document)}.parquet"


def prepare_refresh(
    dataset: str,
    *,
    config: str | None = None,
    base: str | None = None,
    profile: str | None = None,
    num_views: int | None = None,
    limit: int | None = None,
    device: str = "cpu",
    check_device: bool = True,
    num_workers: int = 1,
) -> RefreshJob:
    """Settings of a refresh: those of the experiments (default: the data set's own), with what the caller overrides.

    config, base: see `Catalog.experiments_of`; a set whose variants need several caches is refused. `check_device`:
    whether this machine must have the device; a cluster's workers may have it.
    """
    catalog = load_catalog()
    chosen = catalog.experiments_of(dataset, config, base=base)
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
        raise ConfigError(first_fault(error)) from None
    catalog.get_weights(cache.detector.weights)
    fingerprint.cache_document(cache, catalog)  # refuses weights that have no features, or not of this profile
    return RefreshJob(
        dataset=dataset, catalog=catalog, config=cache, limit=limit, device=device, num_workers=num_workers
    )


class Features(NamedTuple):
    """How a job's features are stored."""

    format: StoreFormat
    codec: Codec
    basis: bytes | None


def feature_storage(job: RefreshJob) -> Features:
    """The format and codec of the job's cache, with the basis that the catalog names for its FAN."""
    settings = job.config.features
    shapes = fingerprint.map_shapes(job.catalog.get_weights(settings.weights))
    file = fingerprint.codec_file(job.config, job.catalog) if settings.profile == "compact" else None
    basis = None if file is None else file.checked_path().read_bytes()
    codec = make_codec(settings.profile, shapes, basis=basis)
    return Features(features_format(fingerprint.cache_document(job.config, job.catalog), codec), codec, basis)


def crop_format(job: RefreshJob) -> StoreFormat:
    """The format of the job's crops."""
    return crops.crops_format(fingerprint.crops_document(job.config, job.catalog), job.config.crop)


def crop_reader(job: RefreshJob) -> crops.CropReader:
    """The job's crops, as the crop stage left them."""
    return crops.CropReader(crop_format(job).folder_in(job.work / "crops"))


def make_extractor(job: RefreshJob) -> Extractor:
    """The job's network, giving what its codec stores."""
    settings = job.config.features
    network = load_network(job.catalog.get_weights(settings.weights), job.device)
    return partial(extract_features, network, encode=feature_storage(job).codec.encode, precision=settings.precision)


def find_exact_cache(job: RefreshJob) -> Path | None:
    """The cache of the same settings in the profile exact, from which another is encoded; None if there is none."""
    if job.config.features.profile == "exact":
        return None
    features = job.config.features.model_copy(update={"profile": "exact"})
    exact = replace(job, config=job.config.model_copy(update={"features": features}))
    folder = feature_storage(exact).format.folder_in(job.catalog.cache_dir(job.dataset))
    return folder if load_revision(folder) is not None else None


_RATES_NAME = "rates.json"
_TELLING_S = 10.0


def _rates(job: RefreshJob) -> dict[str, float]:
    """Units of work a second of each stage, when it last ran: for the time that a plan states."""
    path = job.work / _RATES_NAME
    try:
        return json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError:  # damaged: the next rates are written over it
        return {}


def remember_rate(job: RefreshJob, stage: str, num: int, *, seconds: float) -> None:
    """Note how fast a stage was, for the next plan; a short one, mostly start-up, would tell a wrong rate."""
    if seconds >= _TELLING_S:
        write_bytes_atomically(job.work / _RATES_NAME, json.dumps({**_rates(job), stage: num / seconds}).encode())


def seconds_for(job: RefreshJob, stage: str, num: int) -> float | None:
    """How long a stage would take at its last rate; None if it never ran."""
    rate = _rates(job).get(stage)
    return 0.0 if num == 0 else num / rate if rate else None

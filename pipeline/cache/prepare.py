"""From settings and catalog to the crops and the feature cache of a data set: codec, format and network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline import fingerprint
from pipeline.cache.build import CacheBuild
from pipeline.cache.codecs import Codec, make_codec
from pipeline.cache.crops import CropReader, crops_format
from pipeline.cache.format import features_format
from pipeline.cache.units import Extractor
from pipeline.catalog import Catalog
from pipeline.config import CacheConfig, Profile
from pipeline.faces.features import extract_features, load_network
from pipeline.store.format import StoreFormat
from pipeline.store.revisions import load_revision


def crop_format(settings: CacheConfig, catalog: Catalog) -> StoreFormat:
    """Return the format of the settings' crops."""
    return crops_format(fingerprint.crops_document(settings, catalog), settings.crop)


def open_crops(settings: CacheConfig, catalog: Catalog, *, dataset: str) -> CropReader:
    """Open the crops of a data set at their newest revision; `StoreError` if there are none."""
    return CropReader(crop_format(settings, catalog).folder_in(catalog.crops_folder(dataset)))


def cache_build(
    settings: CacheConfig,
    catalog: Catalog,
    *,
    dataset: str,
    device: str,
    provenance: Mapping[str, Any] = MappingProxyType({}),
) -> CacheBuild:
    """Return the feature cache of a data set, and how its values are computed."""
    codec, basis = load_codec(settings, catalog)
    return CacheBuild(
        root=catalog.caches_folder(dataset),
        format=features_format(fingerprint.cache_document(settings, catalog), codec),
        codec=codec,
        basis=basis,
        views=settings.views,
        view_px=settings.crop.size_px,
        make_extractor=partial(make_extractor, settings, catalog, device),
        exact=_find_exact_cache(settings, catalog, dataset=dataset),
        provenance=provenance,
    )


def make_extractor(settings: CacheConfig, catalog: Catalog, device: str) -> Extractor:
    """Load the settings' network; it returns what the codec stores."""
    features = settings.features
    network = load_network(catalog.get_weights(features.weights), device)
    codec, _ = load_codec(settings, catalog)
    return partial(extract_features, network, encode=codec.encode, precision=features.precision)


def load_codec(settings: CacheConfig, catalog: Catalog) -> tuple[Codec, bytes | None]:
    """Return the codec, and the basis that the catalog names for its FAN if the profile needs one."""
    shapes = fingerprint.map_shapes(catalog.get_weights(settings.features.weights))
    profile = settings.features.profile
    file = fingerprint.codec_file(settings, catalog) if profile == "compact" else None
    basis = None if file is None else file.checked_path().read_bytes()
    return make_codec(profile, shapes, basis=basis), basis


def with_profile(settings: CacheConfig, profile: Profile) -> CacheConfig:
    """Return the same settings in another profile."""
    return settings.model_copy(update={"features": settings.features.model_copy(update={"profile": profile})})


def _find_exact_cache(settings: CacheConfig, catalog: Catalog, *, dataset: str) -> Path | None:
    """Return the cache with the same settings in the profile exact, from which this one can be encoded."""
    if settings.features.profile == "exact":
        return None
    name = fingerprint.cache_fingerprint(with_profile(settings, "exact"), catalog)
    folder = catalog.caches_folder(dataset) / name
    return folder if load_revision(folder) is not None else None

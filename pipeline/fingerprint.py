"""Fingerprints decide reuse: hashes of everything that can change a stored value, and of nothing else.

Included: the format's version, detector weights and settings, crop settings, the views' ranges and seed, FAN weights,
width, stacks and pooling, profile and precision. Weights count by content (sha256), not by name or path.
Left out: device, batch size, workers, shard size (they change speed or layout), the number of views (a view is a
function of seed, frame and its own number, so more views are added to the same cache), labels (joined at load time),
and the frames themselves (each row carries a key of its image and box, so that a refresh recomputes just what changed).
A new field of `CacheConfig` or of a section of it is included without a line here, unless it is excluded by name.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from models import maps
from pipeline.catalog import Catalog, FileEntry, WeightsEntry
from pipeline.config import CacheConfig
from pipeline.errors import ConfigError
from pipeline.store.hashing import hash_document

FORMAT_VERSION = 3
"""Increased when the same settings give other values or another layout."""


def faces_document(settings: CacheConfig, catalog: Catalog) -> dict[str, Any]:
    """Return everything that decides the detected faces, given the frames; not which of them is the subject's."""
    detector = settings.detector.model_dump(include={"score_threshold", "nms_iou", "max_side_px"})
    return {
        "kind": "faces",
        "version": FORMAT_VERSION,
        "detector": {**detector, **_weights(catalog.get_weights(settings.detector.weights))},
    }


def boxes_document(settings: CacheConfig, catalog: Catalog) -> dict[str, Any]:
    """Return everything that decides boxes, given the frames."""
    faces = faces_document(settings, catalog)
    detector = settings.detector.model_dump(exclude={"weights"})
    return {**faces, "kind": "boxes", "detector": {**faces["detector"], **detector}}


def crops_document(settings: CacheConfig, catalog: Catalog) -> dict[str, Any]:
    """Return everything that decides the pixels of crops, given the frames."""
    return {**boxes_document(settings, catalog), "kind": "crops", "crop": settings.crop.model_dump()}


def cache_document(settings: CacheConfig, catalog: Catalog) -> dict[str, Any]:
    """Return everything that decides the values of cached features, given the frames."""
    features = settings.features.model_dump(exclude={"weights"})
    entry = catalog.get_weights(settings.features.weights)
    features["shapes"] = {name: list(shape) for name, shape in map_shapes(entry).items()}
    if settings.features.profile == "compact":
        features["codec"] = {"sha256": codec_file(settings, catalog).recorded_sha256()}
    return {
        **crops_document(settings, catalog),
        "kind": "features",
        "views": settings.views.model_dump(exclude={"num_views"}),
        "features": {**features, **_weights(entry)},
    }


def map_shapes(entry: WeightsEntry) -> dict[str, tuple[int, int, int]]:
    """Return the shape (C, H, W) of each map of a network; `ConfigError` for one without features."""
    if entry.family == "resnet18":
        return maps.RESNET_SHAPES
    if entry.width is None:
        raise ConfigError(
            f"features come from a fan or a resnet18, and {entry.path} is a {entry.family}; name another "
            "in `cache: {features: {weights}}`"
        )
    return maps.map_shapes(entry.width)


def codec_file(settings: CacheConfig, catalog: Catalog) -> FileEntry:
    """Return the file of the basis of the profile compact; `ConfigError` if the catalog names none for this FAN."""
    name = settings.features.weights
    entry = catalog.get_weights(name)
    if entry.family != "fan":
        raise ConfigError(
            f"the profile compact stores a FAN's maps, and {name} is a {entry.family}; set "
            "`cache: {features: {profile: standard}}`"
        )
    codec = entry.codec
    if codec is None:
        raise ConfigError(
            f"the catalog has no `codec` for {name}, and the profile compact needs one; fit it with "
            f"`fantrans weights fit-codec DATASET --experiment EXPERIMENT --out {name}-codec.safetensors`"
        )
    return codec


def cache_fingerprint(settings: CacheConfig, catalog: Catalog) -> str:
    """Return the fingerprint of the settings' feature cache: the name of its folder."""
    return hash_document(cache_document(settings, catalog))


def overrides_for(settings: CacheConfig, document: Mapping[str, Any], catalog: Catalog) -> list[str] | None:
    """Return the `KEY=VALUE` of `--set` with which settings have the cache of a fingerprint document; None if none do.

    [] if they have it already. The number of views is not in the document.
    """
    ours = settings.model_dump(mode="json")
    theirs: dict[str, Any] = {section: dict(document[section]) for section in ours if section in document}
    if not all("sha256" in theirs.get(section, ()) for section in ("detector", "features")):
        return None  # of another version
    for section in ("detector", "features"):
        names = [name for name, entry in catalog.weights.items() if _is_of(theirs[section], entry)]
        if names and ours[section]["weights"] not in names:
            theirs[section]["weights"] = names[0]
    changed = dict(_changed(ours, theirs, "cache"))
    overrides = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()]
    try:
        found = cache_document(CacheConfig.model_validate(ours), catalog)
    except (ConfigError, ValueError):
        return None
    return overrides if hash_document(found) == hash_document(document) else None


def _changed(ours: dict[str, Any], theirs: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Give `ours` the values of `theirs` under its own keys; yield each that differed, by dotted key."""
    for name in sorted(ours.keys() & theirs.keys()):
        if isinstance(ours[name], dict):
            yield from _changed(ours[name], theirs[name], f"{prefix}.{name}")
        elif ours[name] != theirs[name]:
            ours[name] = theirs[name]
            yield f"{prefix}.{name}", theirs[name]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a stored value, for a manifest's provenance.

    OpenCV states its own: several distributions provide it (opencv-python, its headless and contrib variants).
    """
    import cv2  # noqa: PLC0415 - training and reports read fingerprints and load no images

    names = ("fantrans", "av", "numpy", "pandas", "simplejpeg", "torch", "zarr")
    own = {"python": platform.python_version(), "opencv": cv2.__version__}
    return own | {name: metadata.version(name) for name in names}


def find_weights(features: Mapping[str, Any], catalog: Catalog) -> WeightsEntry | None:
    """Return the catalog's entry of the weights in a cache's `features` document; None if the catalog has none."""
    return next((entry for entry in catalog.weights.values() if _is_of(features, entry)), None)


def _is_of(features: Mapping[str, Any], entry: WeightsEntry) -> bool:
    is_same_file = str(features["sha256"]).startswith(entry.sha256)
    return is_same_file and _shape(entry).items() <= features.items()


def _weights(entry: WeightsEntry) -> dict[str, Any]:
    return {**_shape(entry), "sha256": entry.recorded_sha256()}


def _shape(entry: WeightsEntry) -> dict[str, Any]:
    return entry.model_dump(include={"family", "width", "num_stacks", "pooling"}, exclude_none=True)

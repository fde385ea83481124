from importlib import metadata
from pathlib import Path

import cv2
import pytest
import yaml

from pipeline.catalog import Catalog, Roots, WeightsEntry
from pipeline.config import CacheConfig, TrackConfig
from pipeline.errors import ConfigError
from pipeline.fingerprint import (
    boxes_document,
    cache_document,
    cache_fingerprint,
    crops_document,
    faces_document,
    overrides_for,
    versions,
)
from pipeline.store.hashing import canonical_json, hash_document

FAN = {"family": "fan", "width": 64, "num_stacks": 2, "pooling": "avg"}
OTHER_SETTINGS = {
    "detector.score_threshold": 0.6,
    "detector.nms_iou": 0.3,
    "detector.max_side_px": 512,
    "detector.max_gap_frames": 4,
    "detector.tracks": TrackConfig(min_iou=0.4),
    "detector.subject": "longest",
    "detector.min_side_px": 20.0,
    "detector.min_side_frac": 0.3,
    "detector.min_inside_frac": 0.8,
    "detector.max_roll_deg": 60.0,
    "detector.keeps_implausible": True,
    "crop.side_per_box_frac": 0.8,
    "crop.size_px": 128,
    "crop.context_frac": 2.0,
    "views.seed": 1,
    "views.max_rotation_deg": 14.0,
    "views.min_scale": 0.8,
    "views.max_scale": 1.2,
    "views.max_shift_px": 9.0,
    "views.flip_probability": 0.4,
    "features.profile": "exact",
    "features.precision": "bf16",
}
NO_MATTER = {"views.num_views": 5}
NAMES_OF_WEIGHTS = {"detector.weights": "face", "features.weights": "fan"}


def make_catalog(fan=FAN, *, fan_sha="a" * 64, face_sha="b" * 64, folder="models"):
    weights = {
        "retinaface-mobilenet": {"family": "retinaface-mobilenet", "sha256": face_sha},
        "face": {"family": "retinaface-mobilenet", "sha256": face_sha},
        "fan-128": {**fan, "sha256": fan_sha},
        "fan": {**fan, "sha256": fan_sha},
    }
    entries = {name: WeightsEntry(path=Path(folder) / name, **entry) for name, entry in weights.items()}
    return Catalog(roots=Roots(work=folder, cache=folder, runs=folder), datasets={}, weights=entries)


def changed(settings, where, value):
    section, name = where.split(".")
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update={name: value})})


BASE = cache_fingerprint(CacheConfig(), make_catalog())


def test_every_setting_is_either_in_it_or_known_not_to_matter():
    settings = CacheConfig()
    fields = {f"{section}.{name}" for section, part in settings for name in type(part).model_fields}
    assert fields == OTHER_SETTINGS.keys() | NO_MATTER.keys() | NAMES_OF_WEIGHTS.keys()


@pytest.mark.parametrize("where", OTHER_SETTINGS)
def test_a_setting_that_changes_values_makes_another_cache(where):
    assert OTHER_SETTINGS[where] != getattr(getattr(CacheConfig(), where.split(".")[0]), where.split(".")[1])
    assert cache_fingerprint(changed(CacheConfig(), where, OTHER_SETTINGS[where]), make_catalog()) != BASE


@pytest.mark.parametrize("where", OTHER_SETTINGS)
def test_the_option_that_gives_another_cache_is_found_from_its_document(where):
    other = changed(CacheConfig(), where, OTHER_SETTINGS[where])
    (override,) = overrides_for(CacheConfig(), cache_document(other, make_catalog()), make_catalog())
    key, _, value = override.removeprefix("cache.").partition("=")
    content = yaml.safe_load(value)
    for name in reversed(key.split(".")):
        content = {name: content}
    assert CacheConfig.model_validate(content) == other


def test_no_option_gives_a_cache_of_unknown_weights_or_of_another_version():
    settings, document = CacheConfig(), cache_document(CacheConfig(), make_catalog())
    assert overrides_for(settings, document, make_catalog()) == []
    assert overrides_for(changed(settings, "features.weights", "fan"), document, make_catalog()) == []
    assert overrides_for(settings, document, make_catalog(fan_sha="c" * 64)) is None
    assert overrides_for(settings, document | {"version": 2}, make_catalog()) is None


@pytest.mark.parametrize(("where", "value"), [*NO_MATTER.items(), *NAMES_OF_WEIGHTS.items()])
def test_more_views_and_names_of_the_same_weights_do_not(where, value):
    assert cache_fingerprint(changed(CacheConfig(), where, value), make_catalog()) == BASE


def test_places_do_not():
    assert cache_fingerprint(CacheConfig(), make_catalog(folder="elsewhere")) == BASE


@pytest.mark.parametrize(
    "catalog",
    [
        make_catalog(fan_sha="c" * 64),
        make_catalog(face_sha="c" * 64),
        make_catalog({**FAN, "pooling": "max"}),
        make_catalog({**FAN, "width": 128}),
        make_catalog({**FAN, "num_stacks": 4}),
    ],
)
def test_other_weights_or_another_pooling_do(catalog):
    assert cache_fingerprint(CacheConfig(), catalog) != BASE


def test_a_basis_counts_for_the_profile_that_uses_it_and_by_its_bytes():
    def with_codec(sha, path="x"):
        return make_catalog({**FAN, "codec": {"path": path, "sha256": sha * 64}})

    compact = changed(CacheConfig(), "features.profile", "compact")
    assert cache_fingerprint(compact, with_codec("d")) != cache_fingerprint(compact, with_codec("e"))
    assert cache_fingerprint(compact, with_codec("d")) == cache_fingerprint(compact, with_codec("d", "elsewhere/y"))
    assert cache_fingerprint(CacheConfig(), with_codec("d")) == BASE
    with pytest.raises(ConfigError, match="the catalog has no `codec` for fan-128, and the profile compact needs one"):
        cache_fingerprint(compact, make_catalog())


def test_crops_depend_on_detector_and_crop_settings_alone():
    def crops_fingerprint(*arguments):
        return hash_document(crops_document(*arguments))

    crops = crops_fingerprint(CacheConfig(), make_catalog())
    assert crops != BASE
    assert crops_fingerprint(changed(CacheConfig(), "views.seed", 1), make_catalog(fan_sha="c" * 64)) == crops
    assert crops_fingerprint(changed(CacheConfig(), "features.profile", "exact"), make_catalog()) == crops
    assert crops_fingerprint(changed(CacheConfig(), "crop.size_px", 128), make_catalog()) != crops
    assert crops_fingerprint(CacheConfig(), make_catalog(face_sha="c" * 64)) != crops


def test_boxes_depend_on_the_detector_alone():
    boxes = boxes_document(CacheConfig(), make_catalog())
    assert boxes_document(changed(CacheConfig(), "crop.size_px", 128), make_catalog(fan_sha="c" * 64)) == boxes
    assert boxes_document(CacheConfig(), make_catalog(face_sha="c" * 64)) != boxes
    assert boxes_document(changed(CacheConfig(), "detector.nms_iou", 0.3), make_catalog()) != boxes


@pytest.mark.parametrize("where", [where for where in OTHER_SETTINGS if where.startswith("detector.")])
def test_other_tracks_are_chosen_from_the_same_faces(where):
    faces = faces_document(CacheConfig(), make_catalog())
    other = faces_document(changed(CacheConfig(), where, OTHER_SETTINGS[where]), make_catalog())
    decides_faces = where in ("detector.score_threshold", "detector.nms_iou", "detector.max_side_px")
    assert (other != faces) == decides_faces
    assert faces_document(CacheConfig(), make_catalog(face_sha="c" * 64)) != faces


def test_one_document_has_one_byte_string():
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5]}'
    assert hash_document({"a": 1, "b": 2}) == hash_document({"b": 2, "a": 1}) == "43258cff783fe703"
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_versions_need_no_particular_distribution_of_opencv(monkeypatch):
    whole = metadata.version

    def headless(name):
        if name == "opencv-python":
            raise metadata.PackageNotFoundError(name)
        return whole(name)

    monkeypatch.setattr(metadata, "version", headless)
    assert versions()["opencv"] == cv2.__version__
    assert versions()["torch"] == whole("torch")

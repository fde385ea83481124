"""Which model predicts, and everything that it needs: detector, crop, network, codec and head, as in its training."""

# N faces, A action units, P landmarks
from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from models.fan import decode_landmarks
from pipeline.cache.codecs import Codec, make_codec
from pipeline.catalog import Catalog, WeightsEntry
from pipeline.config import CropConfig, DetectorConfig
from pipeline.errors import ConfigError, DataError, UsageError
from pipeline.faces.detect import load_detector
from pipeline.faces.features import Precision, extract_features, load_network
from pipeline.fingerprint import find_weights
from pipeline.project import PACKAGES_FOLDER
from pipeline.runtime.atomic import file_sha256
from pipeline.runtime.text import unknown_name
from pipeline.training.export import DESCRIPTION_NAME, WEIGHTS_NAME, load_deployed
from pipeline.training.run_files import DEPLOYED_NAME, find_run, finished_folds, run_folder

logger = logging.getLogger("fantrans")

SHIPPED_MODELS = PACKAGES_FOLDER / "models/heads"
"""Holds a folder with head.safetensors and head.json per shipped model."""
DEFAULT_MODEL = "default"


def shipped_models() -> list[str]:
    """Return the names of the models that the package ships."""
    return sorted(path.parent.name for path in SHIPPED_MODELS.glob(f"*/{DESCRIPTION_NAME}"))


def find_model(catalog: Catalog, model: str | None = None, *, part: str | None = None) -> Path:
    """Return the folder of a model's head.safetensors and head.json.

    model: a folder of `fantrans export`, a shipped model or a run; default: the shipped model "default". part: the fold
    of a run, by its tested part; default: the first finished one. Raises `UsageError` for an unknown name or part.
    """
    folder = None if model is None else Path(model)
    if folder is None or not (folder / DESCRIPTION_NAME).is_file():
        folder = SHIPPED_MODELS / (model or DEFAULT_MODEL)
    if (folder / DESCRIPTION_NAME).is_file():
        if part is not None:
            raise UsageError(f"{folder} has no folds, so --part has no effect; leave it out")
        return folder
    if model is None:
        raise UsageError("this installation has no default model; name one with --model, see `fantrans runs ls`")
    run = run_folder(catalog, model)
    if run is None:
        if not catalog.run_names() or Path(model).is_dir():
            known = [*shipped_models(), *catalog.run_names()]
            raise UsageError(
                f"{unknown_name('model', model, known)}; name a run, a folder of `fantrans export` or a shipped model"
            )
        return find_run(catalog, model)  # raises, with the nearest names
    folds = finished_folds(run)
    if not folds:
        raise DataError(f"{run} has no finished fold; finish its training with `fantrans train`")
    if part is not None and part not in folds:
        raise UsageError(f"{run.name} has no finished fold {part}; finished: {', '.join(folds)}")
    return folds[part or next(iter(folds))] / DEPLOYED_NAME


@dataclass(frozen=True)
class Model:
    """A deployed head with the settings by which its maps come from an image; what `open_model` returns.

    document: hashes of the head's files. threshold_A: probability from which an action unit is present.
    """

    folder: Path
    document: Mapping[str, str]
    aus: tuple[int, ...]
    threshold_A: np.ndarray
    averages_flip: bool
    detector: DetectorConfig
    crop: CropConfig
    precision: Precision
    detector_weights: WeightsEntry
    network_weights: WeightsEntry
    codec: Codec

    @property
    def has_landmarks(self) -> bool:
        """Whether the network gives the 68 landmarks: a FAN does."""
        return self.network_weights.family == "fan"


def open_model(folder: Path, catalog: Catalog) -> Model:
    """Read the description of a model and find its networks in the catalog; loads no weights.

    Raises `ConfigError` if the catalog lacks a network of the model, `WeightsError` if a file is missing or damaged.
    """
    deployed = load_deployed(folder)
    description = deployed.description
    features = description["features"]
    detector_document = description.get("detector")
    if detector_document is None:
        logger.warning(
            "%s is of an earlier version, without the settings of detector and crop; the defaults are used",
            folder / DESCRIPTION_NAME,
        )
        detector, detector_weights = DetectorConfig(), catalog.get_weights(DetectorConfig().weights)
    else:
        detector = DetectorConfig.model_validate(_known(detector_document, DetectorConfig))
        detector_weights = _find(detector_document, catalog, what="detector", folder=folder)
    network = _find(features, catalog, what="network of the features", folder=folder)
    for entry in (detector_weights, network):
        entry.checked_path()
    if features["precision"] not in get_args(Precision):
        raise DataError(f"{folder / DESCRIPTION_NAME} has the precision {features['precision']!r}; export it again")
    return Model(
        folder=folder,
        document={name: file_sha256(folder / name) for name in (WEIGHTS_NAME, DESCRIPTION_NAME)},
        aus=deployed.aus,
        threshold_A=np.broadcast_to(np.asarray(description["threshold"], np.float32), len(deployed.aus)),
        averages_flip=description["averages_flip"],
        detector=detector,
        crop=CropConfig.model_validate(_known(description.get("crop", {}), CropConfig)),
        precision=features["precision"],
        detector_weights=detector_weights,
        network_weights=network,
        codec=_codec(features, network, folder),
    )


def _known(document: Mapping[str, Any], settings: type[DetectorConfig | CropConfig]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name in settings.model_fields}


def _find(document: Mapping[str, Any], catalog: Catalog, *, what: str, folder: Path) -> WeightsEntry:
    if "sha256" not in document:
        raise DataError(f"{folder / DESCRIPTION_NAME} does not name the weights of its {what}; train the head again")
    entry = find_weights(document, catalog)
    if entry is None:
        raise ConfigError(
            f"the {what} of {folder} (sha256 {document['sha256'][:12]}...) is not in the catalog; add its weights "
            f"with `fantrans weights fetch` or `fantrans weights add`, then check `fantrans weights ls`"
        )
    return entry


def _codec(features: Mapping[str, Any], network: WeightsEntry, folder: Path) -> Codec:
    shapes = {name: tuple(shape) for name, shape in features["shapes"].items()}
    if "codec" not in features:
        return make_codec(features["profile"], shapes)
    path = None if network.codec is None else network.codec.checked_path()
    if path is None or file_sha256(path) != features["codec"]["sha256"]:
        raise ConfigError(
            f"{folder} reads maps in the basis with sha256 {features['codec']['sha256'][:12]}..., which is not the "
            f"`codec` of {network.path} in the catalog; put the file there that the head was trained with"
        )
    return make_codec(features["profile"], shapes, basis=path.read_bytes())


class FaceReader:
    """Reads action units from faces: the networks of a model on one device."""

    def __init__(self, model: Model, device: str) -> None:
        self.model, self.device = model, torch.device(device)
        self.detector = load_detector(model.detector_weights, self.device)
        self._network = load_network(model.network_weights, self.device)
        self._head = load_deployed(model.folder).head.to(self.device)

    def read(self, views: np.ndarray, flipped: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Return probabilities (N, A) and landmarks (N, P, 2) in px of the view (None without heatmaps), fp32.

        views, flipped: clean and flipped views, RGB uint8 (N, S, S, 3). With `flipped` the logits of both are averaged.
        The bytes of a face's result do not depend on the other faces.
        """
        found = self._extract(views)
        logits_NA = torch.from_numpy(found["logits"])
        if flipped is not None:
            logits_NA = torch.stack([logits_NA, torch.from_numpy(self._extract(flipped)["logits"])]).mean(0)
        # in fp32 the last bit would depend on a value's place in the array
        probabilities_NA = logits_NA.double().sigmoid().float()
        return probabilities_NA.numpy(), found.get("landmarks")

    def _extract(self, views: np.ndarray) -> dict[str, np.ndarray]:
        return extract_features(self._network, views, encode=self._run_head, precision=self.model.precision)

    def _run_head(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        codec = self.model.codec
        logits = {"logits": self._head(codec.decode(codec.encode(maps))).float()}
        return logits | ({"landmarks": decode_landmarks(maps["hm"])} if "hm" in maps else {})

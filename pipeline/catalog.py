"""Names to paths: data sets, weights and roots. No other code does this.

`data_catalog.yaml` is typed, and an unknown key is an error. Beside `pipeline.project`, which finds the file, and
`pipeline.store.lock` (FANTRANS_LOCKS), no other code of `pipeline` reads the environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from pipeline.config import OneOf, PositiveInt, Settings, first_fault
from pipeline.datasets import LAYOUTS
from pipeline.datasets.index import INDEX_NAME
from pipeline.datasets.layout import Layout
from pipeline.errors import CatalogError, WeightsError, WeightsNotFoundError
from pipeline.project import CATALOG_NAME, PACKAGES_FOLDER, anchor_folder, find_catalog, shipped_file
from pipeline.protocols import PROTOCOLS, Protocol
from pipeline.runtime.atomic import file_sha256
from pipeline.runtime.text import unknown_name
from pipeline.yaml_settings import read_yaml, resolve_settings

CATALOG_FILE = shipped_file(CATALOG_NAME)
RUN_RECORD_NAME = "run.json"
"""File that makes a folder below the runs root a run."""


def _not_empty(path: object) -> object:
    if path == "":
        raise ValueError("the path is empty; set the variable that it takes, or unset it for the default")
    return path


def _folder_name(name: str) -> str:
    if name.strip() != name or not name.strip(".") or name.startswith((".", "-")) or not name.isprintable():
        raise ValueError("the name becomes a folder; expected visible characters that begin with neither . nor -")
    if "/" in name or "\\" in name:
        raise ValueError("the name becomes a folder below the roots; expected one without / and \\")
    return name


DatasetName = Annotated[str, AfterValidator(_folder_name)]
"""The name of a data set, and of its folders below the roots."""

NamedPath = Annotated[Path, BeforeValidator(_not_empty)]
"""A path that is not empty: an empty variable would name the project folder itself."""


class RenderedEntry(Settings):
    """Settings of a rendered data set."""

    num_subjects: PositiveInt
    num_tasks: PositiveInt
    num_frames: PositiveInt
    """Per task."""
    size_px: PositiveInt
    seed: Annotated[int, Field(ge=0)]


class DatasetEntry(Settings):
    """A data set in its raw layout."""

    root: NamedPath
    layout: Annotated[str, OneOf(LAYOUTS)]
    protocol: Annotated[str, OneOf(PROTOCOLS)]
    experiment: str = "fan_trans"
    """The experiment for commands that name none."""
    rendered: RenderedEntry | None = None

    @model_validator(mode="after")
    def _protocol_fits_layout(self) -> DatasetEntry:
        if self.raw_layout.has_intensity != (self.rules.min_positive_intensity is not None):
            raise ValueError(f"protocol {self.protocol} does not fit layout {self.layout}")
        if self.is_rendered and self.raw_layout.rendered_protocol is None:
            raise ValueError(f"faces are not rendered in layout {self.layout}; remove `rendered`")
        return self

    @property
    def raw_layout(self) -> Layout:
        """The layout that the entry names."""
        return LAYOUTS[self.layout]

    @property
    def rules(self) -> Protocol:
        """The protocol that the entry names."""
        return PROTOCOLS[self.protocol]

    @property
    def is_rendered(self) -> bool:
        """Whether the data set is rendered."""
        return self.rendered is not None

    def missing_folders(self) -> list[Path]:
        """Return the raw folders of the layout that do not exist."""
        return self.raw_layout.missing_folders(self.root)

    def count_unrendered(self) -> tuple[int, int]:
        """Return the number of missing frames of a rendered data set and that of all its frames; (0, 0) for others."""
        if self.rendered is None:
            return 0, 0
        from pipeline.synthetic.dataset import count_missing_frames  # noqa: PLC0415 - see `render`

        return count_missing_frames(self.root, layout=self.layout, **self.rendered.model_dump())

    def render(self, *, num_workers: int | None = None) -> None:
        """Render the missing frames of a rendered data set; does nothing for others.

        num_workers: processes; default: one per core.
        """
        if self.rendered is None:
            return
        from pipeline.synthetic.dataset import write_dataset  # noqa: PLC0415 - the renderer loads a video library

        num_workers = num_workers or os.cpu_count() or 1
        write_dataset(self.root, layout=self.layout, num_workers=num_workers, **self.rendered.model_dump())


class FileEntry(Settings):
    """A safetensors file and the sha256 of its bytes."""

    path: NamedPath
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    def checked_path(self) -> Path:
        """Return the path after checking that the file has the catalog's sha256.

        Raises `WeightsNotFoundError` if it does not exist, `WeightsError` for another sha256.
        """
        if not self.path.is_file():
            raise WeightsNotFoundError(
                f"{self.path} does not exist; put the weights there or fix `path` in the catalog"
            )
        found = file_sha256(self.path)
        if found != self.sha256:
            raise WeightsError(
                f"weights {self.path} have sha256 {found[:12]}..., the catalog expects {self.sha256[:12]}...; "
                "fetch them again, or fix `sha256` in the catalog if the change is intended"
            )
        return self.path


class WeightsEntry(FileEntry):
    """A file of weights, and what cannot be read from its tensors."""

    family: Literal["fan", "resnet18", "retinaface-mobilenet", "retinaface-resnet50"]
    width: PositiveInt | None = None
    """Channels of a FAN."""
    num_stacks: PositiveInt | None = None
    pooling: Literal["avg", "max"] | None = None
    """Pooling of a FAN: both kinds have the same state dict and different features."""

    codec: FileEntry | None = None
    """The basis in which the profile compact keeps this FAN's maps."""

    @model_validator(mode="after")
    def _fan_is_complete(self) -> WeightsEntry:
        if self.family == "fan" and None in (self.width, self.num_stacks, self.pooling):
            raise ValueError("a fan needs width, num_stacks and pooling")
        return self


class Roots(Settings):
    """Folders below which the pipeline writes."""

    work: NamedPath
    cache: NamedPath
    runs: NamedPath


class Catalog(Settings):
    """Roots, and data sets and weights by name."""

    roots: Roots
    tracking: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    """Where trainings log losses and scores beside their own files; see docs/runs.md."""
    datasets: dict[DatasetName, DatasetEntry]
    weights: dict[str, WeightsEntry] = Field(default_factory=dict)
    """With those that the package ships: a catalog adds entries, or replaces one by its name."""

    def get_dataset(self, name: str) -> DatasetEntry:
        """Return a data set's entry; `CatalogError` for an unknown name."""
        if name not in self.datasets:
            raise CatalogError(unknown_name("data set", name, self.datasets))
        return self.datasets[name]

    def dataset_names(self, dataset: str | None = None) -> list[str]:
        """Return the names of all data sets, or only `dataset`; `CatalogError` if it is unknown."""
        if dataset is not None:
            self.get_dataset(dataset)
        return [dataset] if dataset else list(self.datasets)

    def get_weights(self, name: str) -> WeightsEntry:
        """Return the entry of weights; `CatalogError` for an unknown name."""
        if name not in self.weights:
            raise CatalogError(unknown_name("weights", name, self.weights, where=" in the catalog"))
        return self.weights[name]

    def work_folder(self, dataset: str) -> Path:
        """Return the folder of a data set's index, boxes and crops."""
        return self.roots.work / dataset

    def index_path(self, dataset: str) -> Path:
        """Return the path of a data set's frame index."""
        return self.work_folder(dataset) / INDEX_NAME

    def crops_folder(self, dataset: str) -> Path:
        """Return the folder of a data set's crops, one folder per fingerprint."""
        return self.work_folder(dataset) / "crops"

    def caches_folder(self, dataset: str) -> Path:
        """Return the folder of a data set's feature caches, one folder per fingerprint."""
        return self.roots.cache / dataset

    def run_names(self) -> list[str]:
        """Return the names of all runs below the runs root, sorted."""
        return sorted(path.parent.name for path in self.roots.runs.glob(f"*/{RUN_RECORD_NAME}"))

    def find_faults(self, dataset: str | None = None) -> list[str]:
        """Return the faults on disk of one data set (default: all) and all weights, one sentence each, with its fix."""
        checked = self.datasets if dataset is None else {dataset: self.get_dataset(dataset)}
        found = [
            f"data set {name!r}: {folder} does not exist; {_repair_hint(name, entry)}"
            for name, entry in checked.items()
            for folder in entry.missing_folders()
        ]
        for name, weights in self.weights.items():
            for file in (weights, weights.codec):
                try:
                    if file is not None:
                        file.checked_path()
                except WeightsError as error:
                    found.append(f"weights {name!r}: {error}")
        return found


def _repair_hint(name: str, entry: DatasetEntry) -> str:
    if entry.is_rendered:
        return f"run `fantrans render {name}`"
    return f"unpack the data set there, or fix `root` of {name} in the catalog or the variable that it takes"


def load_catalog(path: Path | None = None) -> Catalog:
    """Read the catalog (default: `find_catalog`), fill in its variables and add the shipped weights.

    Raises `CatalogError`, one sentence, for a missing file, a typo, a duplicate name or an unset variable.
    """
    path = path or find_catalog()
    catalog = _read(path)
    if path.resolve() == CATALOG_FILE.resolve():
        return _anchored(catalog, anchor_folder(path), weights_folder=PACKAGES_FOLDER)
    own, shipped = _anchored(catalog, anchor_folder(path)), load_catalog(CATALOG_FILE)
    return own.model_copy(update={"weights": shipped.weights | own.weights})


def _read(path: Path) -> Catalog:
    if not path.is_file():
        raise CatalogError(f"catalog {path} does not exist; set FANTRANS_CATALOG to a data_catalog.yaml")
    content = resolve_settings(read_yaml(path, error=CatalogError), where=path, error=CatalogError)
    try:
        return Catalog.model_validate(content)
    except ValidationError as error:
        raise CatalogError(f"{path}: {first_fault(error, Catalog)}") from None


def _anchored(catalog: Catalog, folder: Path, *, weights_folder: Path | None = None) -> Catalog:
    """Return the catalog with relative paths resolved against `folder`, those of weights against `weights_folder`."""
    return Catalog(
        tracking=catalog.tracking,
        roots=Roots(**{name: folder / path.expanduser() for name, path in catalog.roots}),
        datasets={n: e.model_copy(update={"root": folder / e.root.expanduser()}) for n, e in catalog.datasets.items()},
        weights={name: _anchored_weights(entry, weights_folder or folder) for name, entry in catalog.weights.items()},
    )


def _anchored_weights(entry: WeightsEntry, folder: Path) -> WeightsEntry:
    path = {"path": folder / entry.path.expanduser()}
    if entry.codec is None:
        return entry.model_copy(update=path)
    codec = entry.codec.model_copy(update={"path": folder / entry.codec.path.expanduser()})
    return entry.model_copy(update={**path, "codec": codec})

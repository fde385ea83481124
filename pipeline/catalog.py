"""The only code that turns a name into a place: data sets, weights and the roots of what is written.

`data_catalog.yaml` is typed and closed. The environment is read here and nowhere below.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.config import OneOf, PositiveInt, Settings, first_fault, read_yaml
from pipeline.datasets import LAYOUTS
from pipeline.datasets.index import FILE_NAME
from pipeline.datasets.layout import Layout
from pipeline.errors import CatalogError, WeightsError, WeightsNotFoundError
from pipeline.protocols import PROTOCOLS, Protocol
from pipeline.runtime.atomic import file_sha256

CATALOG_FILE = Path(__file__).parent.parent / "data_catalog.yaml"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


class RenderedEntry(Settings):
    """What a data set of rendered faces is made from."""

    num_subjects: PositiveInt
    num_tasks: PositiveInt
    num_frames: PositiveInt
    """Per task."""
    size_px: PositiveInt
    seed: Annotated[int, Field(ge=0)]


class DatasetEntry(Settings):
    """A data set in its raw layout."""

    root: Path
    layout: Annotated[str, OneOf(LAYOUTS)]
    protocol: Annotated[str, OneOf(PROTOCOLS)]
    experiment: str = "fan_trans"
    """The experiment whose settings count where a command names none."""
    rendered: RenderedEntry | None = None

    @model_validator(mode="after")
    def _protocol_is_of_the_layout(self) -> DatasetEntry:
        if self.raw_layout.has_intensity != (self.rules.min_positive_intensity is not None):
            raise ValueError(f"protocol {self.protocol} does not go with layout {self.layout}")
        if self.is_rendered and self.raw_layout.rendered_protocol is None:
            raise ValueError(f"faces are not rendered in layout {self.layout}; remove `rendered`")
        return self

    @property
    def raw_layout(self) -> Layout:
        """The layout by its name."""
        return LAYOUTS[self.layout]

    @property
    def rules(self) -> Protocol:
        """The protocol by its name."""
        return PROTOCOLS[self.protocol]

    @property
    def is_rendered(self) -> bool:
        """Whether the data set is one of rendered faces."""
        return self.rendered is not None

    def missing_folders(self) -> list[Path]:
        """Return the raw folders of the layout that do not exist."""
        return self.raw_layout.missing_folders(self.root)

    def count_unrendered(self) -> tuple[int, int]:
        """Return how many frames of a rendered data set are missing on disk, and of how many; (0, 0) for others."""
        if self.rendered is None:
            return 0, 0
        from pipeline.synthetic.dataset import count_missing_frames  # noqa: PLC0415 - see `render`

        return count_missing_frames(self.root, layout=self.layout, **self.rendered.model_dump())

    def render(self, *, num_workers: int | None = None) -> None:
        """Render what is missing of a data set of rendered faces; does nothing for any other.

        num_workers: processes; default: one per core.
        """
        if self.rendered is None:
            return
        from pipeline.synthetic.dataset import write_dataset  # noqa: PLC0415 - the renderer loads a video library

        num_workers = num_workers or os.cpu_count() or 1
        write_dataset(self.root, layout=self.layout, num_workers=num_workers, **self.rendered.model_dump())


class FileEntry(Settings):
    """A file (safetensors), known by its bytes."""

    path: Path
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    def checked_path(self) -> Path:
        """The file, once its bytes have the catalog's sha256."""
        if not self.path.is_file():
            raise WeightsNotFoundError(
                f"{self.path} does not exist; put the weights there or fix `path` in the catalog"
            )
        found = file_sha256(self.path)
        if found != self.sha256:
            raise WeightsError(
                f"weights {self.path} have sha256 {found[:12]}..., the catalog expects {self.sha256[:12]}...; "
                "fetch them again, or fix `sha256` in the catalog if they were meant to change"
            )
        return self.path


class WeightsEntry(FileEntry):
    """Weights and what their tensors cannot tell."""

    family: Literal["fan", "resnet18", "retinaface-mobilenet", "retinaface-resnet50"]
    width: PositiveInt | None = None
    """Channels of a FAN."""
    num_stacks: PositiveInt | None = None
    pooling: Literal["avg", "max"] | None = None
    """A FAN's pooling: the state dict is the same for both, the features are not."""

    codec: FileEntry | None = None
    """The basis in which the profile compact keeps this FAN's maps."""

    @model_validator(mode="after")
    def _fan_is_described(self) -> WeightsEntry:
        if self.family == "fan" and None in (self.width, self.num_stacks, self.pooling):
            raise ValueError("a fan needs width, num_stacks and pooling")
        return self


class Roots(Settings):
    """Where the pipeline writes."""

    work: Path
    cache: Path
    runs: Path


class Catalog(Settings):
    """All places by name."""

    roots: Roots
    datasets: dict[str, DatasetEntry]
    weights: dict[str, WeightsEntry]

    def dataset(self, name: str) -> DatasetEntry:
        """A data set by name."""
        if name not in self.datasets:
            raise CatalogError(f"there is no data set {name!r} in the catalog; known ones: {', '.join(self.datasets)}")
        return self.datasets[name]

    def names(self, dataset: str | None = None) -> list[str]:
        """One data set, once it is known, or all."""
        if dataset is not None:
            self.dataset(dataset)
        return [dataset] if dataset else list(self.datasets)

    def get_weights(self, name: str) -> WeightsEntry:
        """Weights by name."""
        if name not in self.weights:
            raise CatalogError(f"there are no weights {name!r} in the catalog; known ones: {', '.join(self.weights)}")
        return self.weights[name]

    def work_dir(self, dataset: str) -> Path:
        """Folder of a data set's index, boxes and crops."""
        return self.roots.work / dataset

    def index_path(self, dataset: str) -> Path:
        """File of a data set's frame index."""
        return self.work_dir(dataset) / FILE_NAME

    def crops_dir(self, dataset: str) -> Path:
        """Folder of a data set's crops, one folder per fingerprint."""
        return self.work_dir(dataset) / "crops"

    def cache_dir(self, dataset: str) -> Path:
        """Folder of a data set's feature caches, one folder per fingerprint."""
        return self.roots.cache / dataset

    def faults(self, dataset: str | None = None) -> list[str]:
        """Everything that `fantrans catalog check` finds wrong on disk, of one data set or all, a sentence each."""
        checked = self.datasets if dataset is None else {dataset: self.dataset(dataset)}
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
        return f"run `fantrans render --dataset {name}`"
    return f"unpack the data set there, or fix `root` of {name} in the catalog or the variable that it takes"


def load_catalog(path: Path | None = None, *, environment: Mapping[str, str] = os.environ) -> Catalog:
    """Read the catalog (FANTRANS_CATALOG, else the one of this checkout) with its variables filled in.

    Raises `CatalogError`, one sentence, for a missing file, a typo, a duplicate name or an unset variable.
    """
    path = path or Path(environment.get("FANTRANS_CATALOG", CATALOG_FILE))
    if not path.is_file():
        raise CatalogError(f"there is no catalog at {path}; set FANTRANS_CATALOG to a data_catalog.yaml")
    content = _filled(read_yaml(path, error=CatalogError), environment, path)
    try:
        catalog = Catalog.model_validate(content)
    except ValidationError as error:
        raise CatalogError(f"{path}: {first_fault(error)}") from None
    return _anchored(catalog, path.resolve().parent)


def _filled(value: object, environment: Mapping[str, str], path: Path) -> object:
    """`value` with each ${NAME:-default} replaced, in strings at any depth."""

    def fill(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name not in environment and default is None:
            raise CatalogError(f"{path}: variable {name} is not set and has no default; set it in the environment")
        return environment.get(name) or default or ""

    if isinstance(value, str):
        return _VARIABLE.sub(fill, value)
    if isinstance(value, dict):
        return {key: _filled(item, environment, path) for key, item in value.items()}
    return value


def _anchored(catalog: Catalog, folder: Path) -> Catalog:
    """The catalog with every relative place made absolute against the catalog's folder."""
    return Catalog(
        roots=Roots(**{name: folder / place.expanduser() for name, place in catalog.roots}),
        datasets={n: e.model_copy(update={"root": folder / e.root.expanduser()}) for n, e in catalog.datasets.items()},
        weights={name: _anchored_weights(entry, folder) for name, entry in catalog.weights.items()},
    )


def _anchored_weights(entry: WeightsEntry, folder: Path) -> WeightsEntry:
    path = {"path": folder / entry.path.expanduser()}
    if entry.codec is None:
        return entry.model_copy(update=path)
    codec = entry.codec.model_copy(update={"path": folder / entry.codec.path.expanduser()})
    return entry.model_copy(update={**path, "codec": codec})

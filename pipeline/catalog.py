"""Names to paths: data sets, weights and roots. No other code does this.

`data_catalog.yaml` is typed, and an unknown key is an error. Beside `pipeline.project`, which finds the file, and
`pipeline.store.lock` (FANTRANS_LOCKS), no other code of `pipeline` reads the environment.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from pipeline.config import OneOf, PositiveInt, Settings, first_fault
from pipeline.datasets import LAYOUTS
from pipeline.datasets.files import describe_missing
from pipeline.datasets.index import INDEX_NAME
from pipeline.datasets.layout import Layout
from pipeline.datasets.origin import check_origin
from pipeline.datasets.settings import DatasetSettings, NamedPath
from pipeline.errors import CatalogError, WeightsError, WeightsNotFoundError
from pipeline.project import CATALOG_NAME, PACKAGES_FOLDER, anchor_folder, expand_home, find_catalog, shipped_file
from pipeline.protocols import PROTOCOLS, Protocol
from pipeline.runtime.atomic import file_sha256
from pipeline.runtime.text import unknown_name
from pipeline.weights.folder import entry_path, read_entries
from pipeline.weights.kinds import FileKind, file_kind
from pipeline.weights.published import PUBLISHED, Family, Pooling
from pipeline.yaml_settings import find_variable, read_yaml, resolve_settings

CATALOG_FILE = shipped_file(CATALOG_NAME)
RUN_RECORD_NAME = "run.json"
"""File that makes a folder below the runs root a run."""


def _folder_name(name: str) -> str:
    if name.strip() != name or not name.strip(".") or name.startswith((".", "-")) or not name.isprintable():
        raise ValueError("the name becomes a folder; expected visible characters that begin with neither . nor -")
    if "/" in name or "\\" in name:
        raise ValueError("the name becomes a folder below the roots; expected one without / and \\")
    return name


DatasetName = Annotated[str, AfterValidator(_folder_name)]
"""The name of a data set, and of its folders below the roots."""


class RenderedEntry(Settings):
    """Settings of a rendered data set."""

    num_subjects: PositiveInt
    num_tasks: PositiveInt
    num_frames: PositiveInt
    """Per task."""
    size_px: PositiveInt
    seed: Annotated[int, Field(ge=0)]


class DatasetEntry(DatasetSettings):
    """A data set in its raw layout."""

    root: NamedPath
    layout: Annotated[str, OneOf(LAYOUTS)]
    protocol: Annotated[str, OneOf(PROTOCOLS)]
    experiment: str = "fan_trans"
    """The experiment for commands that name none."""
    rendered: RenderedEntry | None = None

    @model_validator(mode="after")
    def _keys_fit_together(self) -> DatasetEntry:
        layout, given = self.raw_layout, self.model_fields_set
        if self.is_rendered and layout.rendered_protocol is None:
            raise ValueError(f"faces are not rendered in layout {self.layout}; remove `rendered`")
        for other in LAYOUTS.values():
            for key in sorted(other.own_keys & given - layout.own_keys):
                raise ValueError(f"`{key}` has no effect with layout {self.layout}; it belongs to layout {other.name}")
        if "table" in layout.own_keys and self.table is None:
            raise ValueError("layout table needs `table`, which names its file and columns; see docs/datasets.md")
        for role in self.folders:
            if role not in layout.roles(self):
                known = ", ".join(sorted(layout.roles(self))) or "no folders"
                raise ValueError(f"`folders.{role}` is unknown to layout {self.layout}, which has {known}")
        if self.is_rendered and (self.folders or self.camera != "left"):
            raise ValueError("rendered faces are in the layout's own folders; remove `folders` and `camera`")
        self._check_protocol()
        return self

    def _check_protocol(self) -> None:
        rules, has_intensity = PROTOCOLS[self.protocol], self.raw_layout.has_intensity
        if has_intensity is not None and has_intensity != (rules.min_positive_intensity is not None):
            raise ValueError(f"protocol {self.protocol} does not fit layout {self.layout}")
        if self.table is None and not rules.aus:
            raise ValueError(f"protocol {self.protocol} has no action units; it fits layout table only")
        aus = rules.aus if self.table is None else tuple(self.table.aus)
        unknown = [str(au) for au in self.leave_out if au not in aus and au not in self.raw_layout.other_aus]
        if unknown:
            known = ", ".join(map(str, aus))
            raise ValueError(f"`leave_out` names AU {', '.join(unknown)}, which is not one of {known}")
        if set(aus) <= set(self.leave_out):
            raise ValueError("`leave_out` leaves no action unit")

    @property
    def raw_layout(self) -> Layout:
        """The layout that the entry names."""
        return LAYOUTS[self.layout]

    @property
    def rules(self) -> Protocol:
        """The protocol that the entry names, with what its keys change."""
        rules, table = PROTOCOLS[self.protocol], self.table
        if table is not None:
            min_positive = table.min_positive if table.values == "intensity" else None
            rules = replace(rules, aus=tuple(sorted(table.aus)), min_positive_intensity=min_positive)
        return replace(
            rules,
            aus=tuple(au for au in rules.aus if au not in self.leave_out),
            left_out=self.leave_out,
            bad_frames=rules.bad_frames if self.bad_frames == "drop" else {},
        )

    @property
    def is_rendered(self) -> bool:
        """Whether the data set is rendered."""
        return self.rendered is not None

    def missing_folders(self) -> list[Path]:
        """Return the raw folders of the layout that do not exist."""
        return self.raw_layout.open(self.root, self).missing_folders()

    def anchored(self, folder: Path) -> DatasetEntry:
        """Return the entry with relative paths resolved against `folder`."""
        frames = tuple(folder / expand_home(path) for path in self.frames)
        return self.model_copy(update={"root": folder / expand_home(self.root), "frames": frames})

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


def _sha256_text(digits: object) -> object:
    if isinstance(digits, int | float):
        raise ValueError("YAML reads these digits as a number; put them in quotes")
    if isinstance(digits, str) and not re.fullmatch(r"[0-9a-fA-F]{8,64}", digits):
        raise ValueError("expected the 64 hex digits of a sha256, or at least its first 8")
    return digits.lower() if isinstance(digits, str) else digits


class FileEntry(Settings):
    """A safetensors file and the sha256 of its bytes."""

    path: NamedPath
    sha256: Annotated[str, BeforeValidator(_sha256_text)]
    """All 64 hex digits, or at least the first 8."""

    def checked_path(self) -> Path:
        """Return the path after checking that the file has the catalog's sha256.

        Raises `WeightsNotFoundError` if it does not exist, `WeightsError` for another sha256.
        """
        self.full_sha256()
        return self.path

    def full_sha256(self) -> str:
        """Return all digits of the file's sha256; raises as `checked_path` does."""
        if not self.path.is_file():
            raise WeightsNotFoundError(
                f"{self.path} does not exist; put the weights there or fix `path` in the catalog"
            )
        found = file_sha256(self.path)
        if not found.startswith(self.sha256):
            if file_kind(self.path) is not FileKind.SAFETENSORS:  # raises for a page, a pointer or a cut file
                raise WeightsError(f"{self.path} is not safetensors; run `fantrans weights add {self.path}`")
            raise WeightsError(
                f"weights {self.path} have sha256 {found[:12]}..., the catalog expects {self.sha256[:12]}...; "
                "fetch them again, or fix `sha256` in the catalog if the change is intended"
            )
        return found

    def recorded_sha256(self) -> str:
        """Return all digits of the file's sha256: the catalog's, or the file's if the catalog has the first ones."""
        return self.sha256 if len(self.sha256) == _SHA256_DIGITS else self.full_sha256()


_SHA256_DIGITS = 64


class WeightsSource(Settings):
    """The file that added weights were converted from."""

    file: str
    sha256: str
    url: str | None = None


_FAN_KEYS = ("width", "num_stacks", "pooling")
_WHOLE_ENTRIES = {
    True: "{path: fan.safetensors, sha256: 0f3a..., family: fan, width: 256, num_stacks: 2, pooling: max}",
    False: "{path: detector.safetensors, sha256: 0f3a..., family: retinaface-resnet50}",
}


class WeightsEntry(FileEntry):
    """A file of weights, and what cannot be read from its tensors."""

    family: Family
    width: PositiveInt | None = None
    """Channels of a FAN."""
    num_stacks: PositiveInt | None = None
    pooling: Pooling | None = None
    """Pooling of a FAN: both kinds have the same state dict and different features."""

    codec: FileEntry | None = None
    """The basis in which the profile compact keeps this FAN's maps."""
    source: WeightsSource | None = None

    @model_validator(mode="before")
    @classmethod
    def _names_what_is_missing(cls, entry: Any) -> Any:
        if not isinstance(entry, dict) or set(entry) - set(cls.model_fields):
            return entry  # a misspelt key has its own sentence
        is_fan = entry.get("family") == "fan"
        needed = ("path", "sha256", "family", *(_FAN_KEYS if is_fan else ()))
        missing = [key for key in needed if entry.get(key) is None]
        if missing:
            kind, are = "a fan" if is_fan else "an entry of weights", "are" if missing[1:] else "is"
            raise ValueError(
                f"{', '.join(missing)} {are} missing; {kind} needs {', '.join(needed[:-1])} and {needed[-1]}, "
                f"as in {_WHOLE_ENTRIES[is_fan]}; `fantrans weights add FILE` writes one"
            )
        return entry


class Roots(Settings):
    """Folders below which the pipeline writes: indexes, boxes and crops; caches; runs and tables; added weights."""

    work: NamedPath
    cache: NamedPath
    runs: NamedPath
    weights: NamedPath = Field(default_factory=lambda: Path(os.environ.get("FANTRANS_WEIGHTS") or "var/weights"))
    """Weights that were added with `fantrans weights add` or `fetch`; the default is that of the shipped catalog."""


class Catalog(Settings):
    """Roots, and data sets and weights by name."""

    roots: Roots
    tracking: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    """Where trainings log losses and scores beside their own files; see docs/runs.md."""
    datasets: dict[DatasetName, DatasetEntry]
    weights: dict[str, WeightsEntry] = Field(default_factory=dict)
    """Shipped ones, then those of the weights folder, then the catalog's own; a later one replaces one by its name."""

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
            if name in PUBLISHED:
                raise CatalogError(
                    f"weights {name!r} are published, not in the catalog; run `fantrans weights fetch {name}`"
                )
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

    def check_labels(self, dataset: str) -> None:
        """Raise `DataError` if a data set's labels, or its keys, changed since its index was made."""
        entry, folder = self.get_dataset(dataset), self.work_folder(dataset)
        check_origin(folder, entry.root, entry.raw_layout, entry, protocol=entry.protocol, dataset=dataset)

    def caches_folder(self, dataset: str) -> Path:
        """Return the folder of a data set's feature caches, one folder per fingerprint."""
        return self.roots.cache / dataset

    def run_names(self) -> list[str]:
        """Return the names of all runs below the runs root, sorted."""
        return sorted(path.parent.name for path in self.roots.runs.glob(f"*/{RUN_RECORD_NAME}"))

    def find_faults(self, dataset: str | None = None) -> list[str]:
        """Return the faults on disk of one data set (default: all), one sentence each, with its fix."""
        checked = self.datasets if dataset is None else {dataset: self.get_dataset(dataset)}
        return [
            f"data set {name!r}: {describe_missing(folder)}; {_repair_hint(name, entry)}"
            for name, entry in checked.items()
            for folder in entry.missing_folders()
        ]


def _repair_hint(name: str, entry: DatasetEntry) -> str:
    if entry.is_rendered:
        return f"run `fantrans render {name}`"
    return f"unpack the data set there, or fix `root` of {name} in the catalog or the variable that it takes"


def load_catalog(path: Path | None = None) -> Catalog:
    """Read the catalog (default: `find_catalog`), fill in its variables, add shipped weights and the weights folder's.

    Raises `CatalogError`, one sentence, for a missing file, a typo, a duplicate name or an unset variable.
    """
    path = path or find_catalog()
    catalog = _read(path)
    if path.resolve() == CATALOG_FILE.resolve():
        own = _anchored(catalog, anchor_folder(path), weights_folder=PACKAGES_FOLDER)
        return own.model_copy(update={"weights": own.weights | added_weights(own.roots.weights)})
    own, shipped = _anchored(catalog, anchor_folder(path)), shipped_weights()
    return own.model_copy(update={"weights": shipped | added_weights(own.roots.weights) | own.weights})


def shipped_weights() -> dict[str, WeightsEntry]:
    """Return the weights that the package ships, by name."""
    return _anchored(_read(CATALOG_FILE), PACKAGES_FOLDER).weights


def added_weights(folder: Path) -> dict[str, WeightsEntry]:
    """Return the weights of a weights folder by name; `CatalogError` for a damaged entry."""
    found = {}
    for name, entry in read_entries(folder).items():
        try:
            found[name] = _anchored_weights(WeightsEntry.model_validate(entry), folder)
        except ValidationError as error:
            fault = first_fault(error, WeightsEntry).removeprefix("``: ")
            raise CatalogError(
                f"entry {entry_path(folder, name)} is damaged ({fault}); delete it, then add the weights again"
            ) from None
    return found


def _read(path: Path) -> Catalog:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CatalogError(f"catalog {path} {what}; set FANTRANS_CATALOG to a data_catalog.yaml")
    written = read_yaml(path, error=CatalogError)
    content = resolve_settings(written, where=path, error=CatalogError)
    try:
        return Catalog.model_validate(content)
    except ValidationError as error:
        named = next((name for fault in error.errors() if (name := find_variable(written, fault["loc"]))), None)
        origin = "" if named is None else f"; the value is that of the variable {named}"
        raise CatalogError(f"{path}: {first_fault(error, Catalog)}{origin}") from None


def _anchored(catalog: Catalog, folder: Path, *, weights_folder: Path | None = None) -> Catalog:
    """Return the catalog with relative paths resolved against `folder`, those of weights against `weights_folder`."""
    return Catalog(
        tracking=catalog.tracking,
        roots=Roots(**{name: folder / expand_home(path) for name, path in catalog.roots}),
        datasets={name: entry.anchored(folder) for name, entry in catalog.datasets.items()},
        weights={name: _anchored_weights(entry, weights_folder or folder) for name, entry in catalog.weights.items()},
    )


def _anchored_weights(entry: WeightsEntry, folder: Path) -> WeightsEntry:
    path = {"path": folder / expand_home(entry.path)}
    if entry.codec is None:
        return entry.model_copy(update=path)
    codec = entry.codec.model_copy(update={"path": folder / expand_home(entry.codec.path)})
    return entry.model_copy(update={**path, "codec": codec})

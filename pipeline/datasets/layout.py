"""The description of a raw layout: one `Layout` per file beside this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pipeline.datasets.files import describe_missing, find_path
from pipeline.datasets.settings import DatasetSettings
from pipeline.errors import DataError, DataNotFoundError
from pipeline.protocols import Protocol

Folders = Mapping[str, tuple[Path, ...]]
"""By role (`labels`, `images`), the folders relative to the root, one of which must exist."""


@dataclass(frozen=True)
class RawData:
    """A data set on disk: its root and its folders by role, in any case of their names."""

    root: Path
    settings: DatasetSettings = field(default_factory=DatasetSettings)
    folders: Folders = field(default_factory=dict)

    def folder(self, role: str) -> Path:
        """Return the folder of a role, relative to the root.

        Raises `DataNotFoundError` if none exists, `DataError` if two do.
        """
        found = self._found(role)
        if not found:
            raise DataNotFoundError(
                f"{describe_missing(self.root / self.folders[role][0])}; "
                "run `fantrans catalog check` to see what is missing"
            )
        if len(found) > 1:
            raise DataError(
                f"{self.root} has both {found[0]} and {found[1]}; choose one in the catalog: `folders: {{{role}: "
                f"{found[0]}}}`"
            )
        return found[0]

    def missing_folders(self) -> list[Path]:
        """Return the folders that do not exist: the first one of each role, or the root of a layout without folders."""
        if not self.folders and not self.root.is_dir():
            return [self.root]
        return [self.root / paths[0] for role, paths in self.folders.items() if not self._found(role)]

    def _found(self, role: str) -> list[Path]:
        paths = (find_path(self.root, path) for path in self.folders[role])
        return [path for path in dict.fromkeys(paths) if path is not None and (self.root / path).is_dir()]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The raw folders and files of a data set, and how they become index rows.

    `index_rows(raw, protocol)` returns one row per coded frame: `FRAME_COLUMNS` without the part (or with it, where the
    data set itself has parts), then `au_01`... of the protocol's action units and, where coded, `int_01`...;
    `source_file` is empty where a frame has no image or video.
    """

    name: str
    """As in the catalog's `layout:`."""
    folders: Callable[[DatasetSettings], Folders]
    """Folders that must exist, before the catalog's `folders:` replaces some."""
    optional_roles: frozenset[str] = frozenset()
    """Roles that `folders:` of the catalog may add."""
    index_rows: Callable[[RawData, Protocol], pd.DataFrame]
    label_files: Callable[[RawData], list[Path]]
    """The files with labels, relative to the root; the index is out of date when one of them changes."""
    source_hint: Callable[[RawData, pd.Series], str]
    """Of a row without an image or video: a clause that says where it is missing."""
    source_pattern: Path | None
    """Path of an image or video relative to the root, with {names} for what varies; for error messages. None if it
    depends on the settings."""
    own_keys: frozenset[str] = frozenset()
    """Keys of `DatasetSettings` that only this layout uses."""
    other_aus: tuple[int, ...] = ()
    """Action units that are coded beside those of a protocol; `leave_out` may name them."""
    has_intensity: bool | None
    """Whether action units are coded by intensity, which needs a protocol that defines what counts as present; None if
    the data set's settings decide."""
    labels_whole_videos: bool = False
    """Whether a video has as many frames as labels, or one fewer."""
    rendered_protocol: str | None = None
    """The protocol of faces rendered in this layout; None if the renderer does not write this layout."""

    def open(self, root: Path, settings: DatasetSettings | None = None) -> RawData:
        """Return the data set in this layout below `root`; reads nothing."""
        settings = settings or DatasetSettings()
        own = {role: (path,) for role, path in settings.folders.items()}
        return RawData(root, settings, {**self.folders(settings), **own})

    def roles(self, settings: DatasetSettings) -> set[str]:
        """Return the roles that `folders:` of the catalog may name."""
        return {*self.folders(settings), *self.optional_roles}

"""The description of a raw layout: one `Layout` per file beside this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.protocols import Protocol


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The raw folders and files of a data set, and how they become index rows.

    `index_rows(root, protocol)` returns one row per coded frame: `FRAME_COLUMNS` without the part, then `au_01`... of
    the protocol's action units and, where coded, `int_01`...; `source_file` is empty where a frame has no image or
    video.
    """

    name: str
    """As in the catalog's `layout:`."""
    folders: tuple[Path, ...]
    """Relative to the root; a data set exists if all of them do."""
    index_rows: Callable[[Path, Protocol], pd.DataFrame]
    source_pattern: Path
    """Path of an image or video relative to the root, with {names} for what varies; for error messages."""
    has_intensity: bool
    """Whether action units are coded by intensity, which needs a protocol that defines what counts as present."""
    rendered_protocol: str | None = None
    """The protocol of faces rendered in this layout; None if the renderer does not write this layout."""

    def missing_folders(self, root: Path) -> list[Path]:
        """Return the folders that do not exist below `root`."""
        return [root / name for name in self.folders if not (root / name).is_dir()]

"""What the pipeline must know of a data set's raw layout: one `Layout` per file beside this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.protocols import Protocol


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The raw folders and files of a data set, and how they become index rows.

    `index_rows(root, protocol)` gives one row per coded frame: `FRAME_COLUMNS` without the part, then `au_01`... of the
    protocol's action units and, where coded, `int_01`...; `source_file` is empty where a frame has no image or video.
    """

    name: str
    """As in the catalog's `layout:`."""
    folders: tuple[Path, ...]
    """Below the root; a data set is there when all of them are."""
    index_rows: Callable[[Path, Protocol], pd.DataFrame]
    source_pattern: Path
    """An image or video below the root, with {names} in place of what varies; for error messages."""
    has_intensity: bool
    """Whether action units are coded by intensity, which needs a protocol that says what counts as present."""
    rendered_protocol: str | None = None
    """The protocol of faces rendered in this layout; None where the renderer does not write it."""

    def missing_folders(self, root: Path) -> list[Path]:
        """Return the folders that do not exist below `root`."""
        return [root / name for name in self.folders if not (root / name).is_dir()]

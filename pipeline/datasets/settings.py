"""Keys of a catalog's data set that decide its index; docs/datasets.md describes each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config import Fraction, Settings


def _not_empty(path: object) -> object:
    if path == "":
        raise ValueError("the path is empty; set the variable that it takes, or unset it for the default")
    return path


def _as_list(names: object) -> object:
    return [names] if isinstance(names, str | Path) else names


NamedPath = Annotated[Path, BeforeValidator(_not_empty)]
"""A path that is not empty: an empty variable would name the project folder itself."""

ActionUnit = Annotated[int, Field(ge=1, le=99)]


class TableSettings(Settings):
    """The file of `layout: table` and the names of its columns; a column that is None does not exist."""

    file: NamedPath
    """CSV or Parquet with one row per frame, relative to the root."""
    subject: str = "subject"
    task: str | None = None
    """Without it, each subject has one task, `all`."""
    frame: str = "frame"
    source_file: str = "source_file"
    """Image or video, relative to the root; an empty cell is a frame without one."""
    source_frame: str | None = None
    """0-based frame of the video, empty for an image; without this column, each file is an image."""
    part: str | None = None
    """P1, P2 or P3; without it, the protocol decides."""
    aus: Annotated[dict[ActionUnit, str], Field(min_length=1)]
    """Column by action unit."""
    values: Literal["presence", "intensity"] = "presence"
    min_positive: Annotated[int, Field(ge=1, le=5)] = 2
    """Lowest intensity that counts as present."""
    unknown: tuple[int, ...] = (-1, 9)
    """Values of a label that is not coded; an empty cell is unknown as well."""

    @model_validator(mode="after")
    def _no_key_is_ignored(self) -> TableSettings:
        if self.values == "presence" and "min_positive" in self.model_fields_set:
            raise ValueError("`min_positive` has no effect with `values: presence`; remove one of them")
        return self


class DatasetSettings(Settings):
    """What decides the index of a data set beside its root, layout and protocol."""

    folders: dict[str, NamedPath] = Field(default_factory=dict)
    """Folders relative to the root, by role, where they differ from those of the layout."""
    camera: Literal["left", "right"] = "left"
    """DISFA's camera."""
    images_start: Literal[0, 1] | None = None
    """Number of the first image, where DISFA's videos are folders of images."""
    bad_frames: Literal["drop", "keep"] = "drop"
    """Whether the protocol's known bad frames are in the index."""
    frames: Annotated[tuple[NamedPath, ...], BeforeValidator(_as_list)] = ()
    """Lists of frame names; frames outside them are not in the index."""
    frames_start: Literal[0, 1] = 1
    """Number that the lists give to the first frame."""
    leave_out: tuple[ActionUnit, ...] = ()
    """Action units of the protocol that are not used."""
    max_lost_frac: Fraction = 0.01
    """Largest share of frames that may lose their image or video in one refresh."""
    table: TableSettings | None = None
    """For `layout: table` only."""

    @model_validator(mode="after")
    def _lists_have_a_start(self) -> DatasetSettings:
        if "frames_start" in self.model_fields_set and not self.frames:
            raise ValueError("`frames_start` has no effect without `frames`; remove it, or name the list of frames")
        return self

    def index_document(self) -> dict[str, Any]:
        """Return the keys that decide the index and are not the default, as JSON values; lists of frames are files."""
        return self.model_dump(mode="json", include=_DECIDING, exclude_defaults=True)


_DECIDING = set(DatasetSettings.model_fields) - {"frames", "max_lost_frac"}

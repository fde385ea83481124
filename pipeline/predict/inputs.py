"""What the user wants predicted: images, videos, folders and patterns become a list of sources."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from pipeline.datasets.files import printable
from pipeline.datasets.videos import describe_video
from pipeline.errors import DataError, UsageError
from pipeline.project import expand_home
from pipeline.runtime.text import join_first, nearest_name

logger = logging.getLogger("fantrans")

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")

_WITH_PAGES = (".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Source:
    """An image file or a video."""

    path: Path
    is_video: bool

    @property
    def name(self) -> str:
        """The path as the user gave it, bytes that are not UTF-8 as escapes: the content of the column `input`."""
        return printable(str(self.path))


def find_sources(words: Sequence[str | Path], *, recursive: bool = False) -> list[Source]:
    """Return the images and videos that paths, folders and patterns name, each once, those of a folder by name.

    recursive: also of subfolders. Raises `UsageError` for a file that does not exist, a folder or pattern without any,
    and a file that is neither.
    """
    found = [source for word in words for source in _sources(str(word), recursive=recursive)]
    sources = list({source.path: source for source in found}.values())
    for source in sources:
        if source.path.suffix.lower() in _WITH_PAGES and (num_pages := cv2.imcount(str(source.path))) > 1:
            logger.warning("%s has %d pages, of which the first is predicted", source.name, num_pages)
    return sources


def _sources(word: str, *, recursive: bool) -> list[Source]:
    if not word or "://" in word:
        raise UsageError(f"{word!r} is {'an address' if word else 'empty'}; name an image, a video or a folder on disk")
    path = expand_home(Path(word))
    if path.is_dir():
        return _in_folder(path, recursive=recursive)
    if path.is_file():
        return [_source(path)]
    if glob.has_magic(word):
        matched = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
        files = [each for each in matched if each.is_file()]
        if not files:
            raise UsageError(f"no file matches {word!r}; check the pattern with `ls {word}`")
        return [_source(each) for each in files]
    if os.path.lexists(path):
        raise UsageError(f"{printable(str(path))} is not a file: a pipe, a device or a broken link; name a file")
    raise UsageError(f"{printable(str(path))} does not exist; {_nearest(path)}")


def _nearest(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    if folder != path.parent:
        return f"the nearest folder is {folder}"
    names = sorted(each.name for each in folder.iterdir())
    near = nearest_name(path.name, names)
    return f"did you mean {folder / near}?" if near else f"{folder} has {join_first(names, 5) or 'no files'}"


def _in_folder(folder: Path, *, recursive: bool) -> list[Source]:
    known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    files = sorted(folder.rglob("*") if recursive else folder.iterdir())
    found = [
        Source(path, is_video=path.suffix.lower() in VIDEO_SUFFIXES)
        for path in files
        if path.suffix.lower() in known and not _is_hidden(path.relative_to(folder)) and path.is_file()
    ]
    if not found:
        has_folders = not recursive and any(path.is_dir() for path in files)
        fix = "pass --recursive to search its subfolders" if has_folders else "name another folder"
        raise UsageError(f"{folder} has no image or video ({' '.join(known)}); {fix}")
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _source(path: Path) -> Source:
    """Return the source of a file: by its suffix, else by its content."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES:
        return Source(path, is_video=suffix in VIDEO_SUFFIXES)
    if cv2.haveImageReader(str(path)):
        return Source(path, is_video=False)
    try:
        describe_video(path)
    except DataError:
        raise UsageError(f"{path} is neither an image nor a video that can be read; convert it to PNG or MP4") from None
    return Source(path, is_video=True)


def overlay_names(sources: Iterable[Source]) -> dict[Source, str]:
    """Return a file name for the overlay of each source: its own name, with a number where names repeat."""
    names: dict[Source, str] = {}
    used: set[str] = set()
    for source in sources:
        stem, suffix = source.path.stem, ".mp4" if source.is_video else ".png"
        name, number = f"{stem}{suffix}", 1
        while name in used:
            number += 1
            name = f"{stem}-{number}{suffix}"
        used.add(name)
        names[source] = name
    return names

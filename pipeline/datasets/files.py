"""Names of raw files: found in any case and with any usual extension; what systems leave behind is skipped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipeline.errors import DataError
from pipeline.runtime.text import join_first

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset({".avi", ".mp4", ".mkv", ".mov", ".wmv"})

_ARCHIVE_SUFFIXES = frozenset({".zip", ".rar", ".7z", ".tar", ".tgz", ".gz"})
_LEFT_BEHIND = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "lost+found"})
_MAX_DIGITS = 18


def list_names(folder: Path) -> list[str]:
    """Return the sorted names in a folder, without hidden ones and those that systems leave; none if it is missing."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names, not 300,000 paths
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if not name.startswith(".") and name.casefold() not in _LEFT_BEHIND)


def split_suffix(name: str) -> tuple[str, str]:
    """Return the stem of a file's name and its extension in lower case: `("2440", ".jpg")`."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - see `list_names`
    return stem, suffix.lower()


def read_number(stem: str) -> int | None:
    """Return the number that a stem is, with any zero-padding; None if it is not one."""
    return int(stem) if stem.isascii() and stem.isdecimal() and len(stem) <= _MAX_DIGITS else None


def files_by_number(
    names: Iterable[str],
    *,
    suffixes: frozenset[str] = IMAGE_SUFFIXES,
    number: Callable[[str], int | None] = read_number,
) -> dict[int, list[str]]:
    """Return the names of files with one of the extensions, by the number that `number` reads from their stem."""
    found: dict[int, list[str]] = {}
    for name in names:
        stem, suffix = split_suffix(name)
        if suffix in suffixes and (value := number(stem)) is not None:
            found.setdefault(value, []).append(name)
    return found


def only_one(names: Sequence[str], *, folder: Path, what: str) -> str:
    """Return the only name; `DataError` that names the first two of several."""
    if len(names) > 1:
        raise DataError(
            f"{folder} has two files for {what}, {printable(names[0])} and {printable(names[1])}; remove one of them"
        )
    return names[0]


def find_child(folder: Path, name: str) -> str | None:
    """Return the name in `folder` that is `name` in any case; None if there is none, `DataError` if there are two."""
    found = [each for each in list_names(folder) if each.casefold() == name.casefold()]
    return only_one(found, folder=folder, what=name) if found else None


def find_path(root: Path, path: Path) -> Path | None:
    """Return the path, relative to `root`, whose parts are those of `path` in any case; None if there is none."""
    if path.is_absolute() or ".." in path.parts:
        return path if (root / path).exists() else None
    found = Path()
    for part in path.parts:
        child = find_child(root / found, part)
        if child is None:
            return None
        found /= child
    return found


def checked_name(name: str, *, folder: Path) -> str:
    """Return a file's name; `DataError` if it is not UTF-8, so that no table can hold it."""
    if printable(name) != name:
        raise DataError(f"the name {printable(name)} in {folder} is not UTF-8; rename the file")
    return name


def printable(name: str) -> str:
    """Return a name with the bytes that are not UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def describe_missing(folder: Path) -> str:
    """Return that a folder does not exist, with the archive that is not unpacked, if there is one."""
    first = folder
    while not first.parent.is_dir() and first.parent != first:
        first = first.parent
    archives = [printable(name) for name in list_names(first.parent) if _is_archive_for(name, first.name)]
    hint = f" ({archives[0]} is not unpacked)" if archives else ""
    return f"{folder} does not exist{hint}"


def describe_missing_file(folder: Path, stems: Sequence[str], *, what: str) -> str:
    """Return that `folder` has no file for `what`, with the names that are nearly one of `stems`."""
    if not folder.is_dir():
        return describe_missing(folder)
    wanted = {stem.casefold().lstrip("0") for stem in stems}
    near = [printable(n) for n in list_names(folder) if split_suffix(n)[0].casefold().lstrip("0") in wanted]
    archives = [printable(name) for name in list_names(folder) if split_suffix(name)[1] in _ARCHIVE_SUFFIXES]
    hint = f" (there is {join_first(near, 2)})" if near else f" ({archives[0]} is not unpacked)" if archives else ""
    return f"{folder} has no {what}{hint}"


def _is_archive_for(name: str, wanted: str) -> bool:
    stem, suffix = split_suffix(name)
    rest = stem.casefold().removeprefix(wanted.casefold())
    return suffix in _ARCHIVE_SUFFIXES and len(rest) < len(stem) and not rest[:1].isalnum()

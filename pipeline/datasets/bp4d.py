"""BP4D's and BP4D+'s raw layout to index rows.

    BP4D-training/{subject}/{task}/{frame}.jpg    or Sequences/...; integer stems, zero-padded to any width
    BP4D-training/2F01_T5.avi, 2F01_09.avi        or a video per task; frame 1 is its first
    AUCoding/AU_OCC/{subject}_{task}.csv          header: 0 (the frame column), then AU numbers; codes 0, 1, 9
    AUCoding/AU_INT/AU06/{subject}_{task}_AU06.csv    optional, without a header: frame, intensity 0..5 or 9

One release adds a last column without an AU number: an occlusion flag whose 1 makes the whole row unknown.
"""

from __future__ import annotations

import re
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.codes import OddCodes, check_frames, read_codes
from pipeline.datasets.files import (
    VIDEO_SUFFIXES,
    checked_name,
    describe_missing_file,
    files_by_number,
    find_child,
    list_names,
    only_one,
    read_number,
    split_suffix,
)
from pipeline.datasets.layout import Layout, RawData
from pipeline.errors import DataError, DataNotFoundError
from pipeline.protocols import Protocol, presence_from_occurrence
from pipeline.tables import UNKNOWN, au_column, intensity_column

CODES = Path("AUCoding/AU_OCC")
IMAGES = Path("BP4D-training")
_OTHER_IMAGES = Path("Sequences")
_INTENSITIES = "intensities"
_VIDEO_TASKS = {"T1": "01", "T2": "03", "T3": "07", "T4": "08", "T5": "09", "T6": "10", "T7": "11", "T8": "13"}
"""Suffix of each task's video as recorded (FMAE-IAT, AU/BP4D_preprocess.py)."""


def codes_file(subject: str, task: str) -> Path:
    """Return the path of a task's occurrence codes, relative to the root."""
    return CODES / f"{subject}_{task}.csv"


def images_folder(subject: str, task: str) -> Path:
    """Return the folder of a task's images, relative to the root."""
    return IMAGES / subject / task


def index_rows(raw: RawData, rules: Protocol) -> pd.DataFrame:
    """Return one row per coded frame, without its part; `source_file` is empty where it has no image."""
    folder = raw.root / raw.folder("labels")
    files = _sequences(folder, rules)
    if not files:
        raise DataNotFoundError(
            describe_missing_file(folder, [], what="{subject}_{task}.csv") + "; expected BP4D's occurrence codes"
        )
    sources, odd, odd_intensities = _Sources(raw), OddCodes((0, 1, 9)), OddCodes((0, 1, 2, 3, 4, 5, 9))
    sequences = []
    for (subject, task), name in files.items():
        columns = _labels(folder / name, rules, odd)
        frames = columns["frame"]
        files_, numbers = sources.find(subject, task, frames)
        intensities = _intensities(raw, subject, task, frames, odd_intensities)
        sequences.append(
            {
                "frame_id": np.array([f"{subject}/{task}/{frame}" for frame in frames], object),
                "subject": np.full(len(frames), subject, object),
                "task": np.full(len(frames), task, object),
                "frame": frames,
                "source_file": np.array(files_, object),
                "source_frame": np.array(numbers, np.int64),
                **{name: values for name, values in columns.items() if name != "frame"},
                **intensities,
            }
        )
    odd.log("occurrence codes (if these are intensities, they belong in AU_INT)")
    odd_intensities.log("intensities")
    return pd.DataFrame({name: np.concatenate([columns[name] for columns in sequences]) for name in sequences[0]})


def _code_files(folder: Path) -> list[str]:
    return [name for name in list_names(folder) if split_suffix(name)[1] == ".csv"]


def _sequences(folder: Path, rules: Protocol) -> dict[tuple[str, str], str]:
    """Return the code file of each subject and task, sorted by name; refuses copies and two files for one task."""
    stems = {split_suffix(name)[0] for name in _code_files(folder)}
    names: dict[tuple[str, str], list[str]] = {}
    for name in _code_files(folder):
        stem = split_suffix(checked_name(name, folder=folder))[0]
        _refuse_copy(folder / name, stem, stems)
        subject, _, task = stem.partition("_")
        if not task:
            raise DataError(f"{folder / name} names no task; expected {{subject}}_{{task}}.csv")
        key = rules.find_subject(subject), rules.find_task(task)
        if rules.tasks and key[1] not in rules.tasks:
            raise DataError(
                f"{folder / name}: {task} is not a task of protocol {rules.name}, which has {', '.join(rules.tasks)}; "
                "move the file away if it is a copy"
            )
        names.setdefault(key, []).append(name)
    return {key: only_one(found, folder=folder, what="_".join(key)) for key, found in names.items()}


def _refuse_copy(path: Path, stem: str, stems: set[str]) -> None:
    """Raise `DataError` if a name is that of another file with something added, or holds blanks or parentheses."""
    begins = (stem[: mark.start()].strip() for mark in re.finditer(r"[^A-Za-z0-9]", stem))
    original = next((begin for begin in begins if begin in stems), None)
    if original is not None or re.search(r"[\s()]", stem):
        of = f" of {original}.csv" if original is not None else ""
        raise DataError(
            f"{path} looks like a copy{of}; move it out of this folder, or rename it {{subject}}_{{task}}.csv"
        )


def _labels(path: Path, rules: Protocol, odd: OddCodes) -> dict[str, np.ndarray]:
    """Return a task's coded frames, and the labels of each of the protocol's action units, int8."""
    codes = read_codes(path)
    is_au = [read_number(str(name)) is not None for name in codes.columns]
    if len(codes.columns) < 2 or not all(is_au[:-1]):
        found = ", ".join(map(str, codes.columns[:6]))
        raise DataError(f"{path}: expected the header 0, AU, AU, ...; found {found}...")
    is_occluded = np.zeros(len(codes), bool)
    if not is_au[-1]:
        is_occluded = codes.iloc[:, -1].to_numpy() == 1
        codes = codes.iloc[:, :-1]
    frames = codes.iloc[:, 0]
    check_frames(path, frames)
    codes = codes.iloc[:, 1:].set_axis([int(name) for name in codes.columns[1:]], axis=1)
    missing = [au for au in rules.aus if au not in codes.columns]
    if missing:
        aus = ", ".join(map(str, missing))
        raise DataError(
            f"{path} has no column for AU {aus}; protocol {rules.name} needs it, unless the catalog's data set has "
            f"`leave_out: [{aus}]`"
        )
    odd.add(path, codes[list(rules.aus)])
    labels = {au_column(au): presence_from_occurrence(codes[au].to_numpy()) for au in rules.aus}
    known = {name: np.where(is_occluded, UNKNOWN, present).astype(np.int8) for name, present in labels.items()}
    return {"frame": frames.to_numpy(), **known}


def _intensities(raw: RawData, subject: str, task: str, frames: np.ndarray, odd: OddCodes) -> dict[str, np.ndarray]:
    """Return the intensities of a task's frames, int8, by column; none if the catalog names no folder of them."""
    columns = {}
    for au, folder in _intensity_folders(raw).items():
        name = find_child(folder, f"{subject}_{task}_{folder.name}.csv")
        values = np.full(len(frames), UNKNOWN, np.int8)
        if name is not None:
            table = read_codes(folder / name, names=["frame", str(au)])
            check_frames(folder / name, table["frame"])
            odd.add(folder / name, table[[str(au)]])
            coded = table.set_index("frame")[str(au)].reindex(frames, fill_value=UNKNOWN).to_numpy()
            values = np.where((coded >= 0) & (coded <= 5), coded, UNKNOWN).astype(np.int8)
        columns[intensity_column(au)] = values
    return columns


def _intensity_folders(raw: RawData) -> dict[int, Path]:
    """Return the folder AU06, AU10, ... of each action unit with intensities."""
    if _INTENSITIES not in raw.folders:
        return {}
    folder = raw.root / raw.folder(_INTENSITIES)
    numbers = {name: read_number(name[2:]) for name in list_names(folder) if name[:2].upper() == "AU"}
    return {au: folder / name for name, au in sorted(numbers.items()) if au is not None}


class _Sources:
    """Finds the images or the video of each task."""

    def __init__(self, raw: RawData) -> None:
        self._root, self._images = raw.root, raw.folder("images")

    def find(self, subject: str, task: str, frames: np.ndarray) -> tuple[list[str], list[int]]:
        """Return the file of each frame, "" if it has none, and its 0-based number in a video, -1 for an image."""
        folder = self._task_folder(subject, task)
        if folder is not None:
            files = [f"{folder}/{name}" if name else "" for name in self._images_in(folder, frames.tolist())]
            return files, [-1] * len(files)
        video = self.find_video(subject, task)
        if video is None:
            return [""] * len(frames), [-1] * len(frames)
        return [video] * len(frames), (frames - 1).tolist()

    def _images_in(self, folder: Path, frames: list[int]) -> list[str]:
        path = self._root / folder
        names = files_by_number(list_names(path))
        return [only_one(names[n], folder=path, what=f"frame {n}") if n in names else "" for n in frames]

    def _task_folder(self, subject: str, task: str) -> Path | None:
        of_subject = find_child(self._root / self._images, subject) or ""
        name = find_child(self._root / self._images / of_subject, task) if of_subject else None
        return None if name is None else self._images / of_subject / name

    def find_video(self, subject: str, task: str) -> str | None:
        """Return the path of a task's video, relative to the root; None if it has none."""
        found = [name for stem in _video_stems(subject, task) for name in self._videos.get(stem.casefold(), [])]
        if not found:
            return None
        return f"{self._images}/{only_one(found, folder=self._root / self._images, what=f'{subject}/{task}')}"

    @cached_property
    def _videos(self) -> dict[str, list[str]]:
        """Names of videos by their stem, in lower case."""
        videos: dict[str, list[str]] = {}
        for name in list_names(self._root / self._images):
            stem, suffix = split_suffix(name)
            if suffix in VIDEO_SUFFIXES:
                videos.setdefault(stem.casefold(), []).append(name)
        return videos


@cache
def _video_stems(subject: str, task: str) -> tuple[str, ...]:
    """Return the names that a task's video may have: F001_T5, 2F01_T5, 2F01_09."""
    short = re.fullmatch(r"([FM])0([0-9]{2})", subject)
    if short is None:
        return (f"{subject}_{task}",)
    recorded = [f"2{short[1]}{short[2]}_{each}" for each in (task, _VIDEO_TASKS.get(task)) if each is not None]
    return (f"{subject}_{task}", *recorded)


def _label_files(raw: RawData) -> list[Path]:
    folder = raw.folder("labels")
    intensities = (path.relative_to(raw.root) for path in _intensity_folders(raw).values())
    return [each / name for each in (folder, *intensities) for name in _code_files(raw.root / each)]


def _source_hint(raw: RawData, row: pd.Series) -> str:
    subject, task, frame = row["subject"], row["task"], row["frame"]
    images = raw.root / raw.folder("images")
    folder = images / (find_child(images, subject) or subject)
    folder /= find_child(folder, task) or task
    if _Sources(raw).find_video(subject, task) is not None:
        return f"the video of {subject}/{task} ends before frame {frame}"
    return describe_missing_file(folder, [str(frame)], what=f"image {frame}")


LAYOUT = Layout(
    name="bp4d",
    folders=lambda _: {"images": (IMAGES, _OTHER_IMAGES), "labels": (CODES,)},
    optional_roles=frozenset({_INTENSITIES}),
    index_rows=index_rows,
    label_files=_label_files,
    source_hint=_source_hint,
    source_pattern=images_folder("{subject}", "{task}") / "{frame}.jpg",
    has_intensity=False,
    rendered_protocol="rendered_bp4d",
)

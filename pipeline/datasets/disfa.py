"""DISFA's raw layout to index rows.

    Videos_LeftCamera/LeftVideo{subject}_comp.avi      or Video_RightCamera/RightVideo{subject}_comp.avi
    {images}/{subject}/{number}.png                    or a folder of images per subject
    ActionUnit_Labels/{subject}/{subject}_au{n}.txt    lines "frame,intensity"; frame is 1-based, intensity 0..5

Label line n belongs to the video frame of 0-based index n - 1. A video can be one frame shorter than its labels.
"""

from __future__ import annotations

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
from pipeline.datasets.layout import Folders, Layout, RawData
from pipeline.datasets.settings import DatasetSettings
from pipeline.errors import DataError, DataNotFoundError
from pipeline.protocols import Protocol, presence_from_intensity
from pipeline.tables import UNKNOWN, au_column, intensity_column

LABELS = Path("ActionUnit_Labels")
VIDEOS = Path("Videos_LeftCamera")
_RIGHT_VIDEOS = Path("Video_RightCamera")
CODED_AUS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
TASK = "left"
"""DISFA has one session per subject; its task is named after the camera."""

_LABEL_SUFFIXES = frozenset({".txt", ".csv"})
_CAMERAS = {"left": "LeftVideo", "right": "RightVideo"}


def video_file(subject: str) -> Path:
    """Return the path of a subject's video, relative to the root."""
    return VIDEOS / f"{_video_stem(subject, TASK)}.avi"


def intensity_file(subject: str, au: int) -> Path:
    """Return the path of a subject's intensities of one action unit, relative to the root."""
    return LABELS / subject / f"{subject}_au{au}.txt"


def _video_stem(subject: str, camera: str) -> str:
    return f"{_CAMERAS[camera]}{subject}_comp"


def index_rows(raw: RawData, rules: Protocol) -> pd.DataFrame:
    """Return one row per coded frame, without its part; `source_file` is empty where the subject has no video."""
    labels = raw.root / raw.folder("labels")
    subjects: dict[str, list[str]] = {}
    for name in _subject_folders(labels):
        subjects.setdefault(rules.find_subject(checked_name(name, folder=labels)), []).append(name)
    if not subjects:
        raise DataNotFoundError(
            describe_missing_file(labels, [], what="subject's folder") + "; expected DISFA's intensity labels there"
        )
    coded, odd = [au for au in CODED_AUS if au not in rules.left_out], OddCodes((0, 1, 2, 3, 4, 5, 9))
    rows = [
        _subject_rows(labels / only_one(names, folder=labels, what=subject), subject, coded, raw, rules, odd)
        for subject, names in subjects.items()
    ]
    odd.log("intensities")
    return pd.concat(rows, ignore_index=True)


def _subject_folders(labels: Path) -> list[str]:
    return [name for name in list_names(labels) if (labels / name).is_dir()]


def _subject_rows(
    folder: Path, subject: str, coded: list[int], raw: RawData, rules: Protocol, odd: OddCodes
) -> pd.DataFrame:
    files = _intensity_files(folder)
    columns = [_intensities(folder, files.get(au, []), subject, au, odd) for au in coded]
    intensities = pd.concat(columns, axis=1)
    if intensities.isna().any(axis=None):
        short = ", ".join(str(au) for au in coded if intensities[au].isna().any())
        raise DataError(f"{folder}: AU {short} lacks frames that other AUs code; expected the same frames in all files")
    frames, camera = intensities.index.to_numpy(np.int64), raw.settings.camera
    source_files, source_frames = _find_sources(raw, subject, frames)
    rows = pd.DataFrame(
        {
            "frame_id": [f"{subject}/{camera}/{frame}" for frame in frames],
            "subject": subject,
            "task": camera,
            "frame": frames,
            "source_file": source_files,
            "source_frame": source_frames,
        }
    )
    assert rules.min_positive_intensity is not None
    for au in rules.aus:
        values = intensities[au].to_numpy()
        rows[au_column(au)] = presence_from_intensity(values, min_positive=rules.min_positive_intensity)
    for au in coded:
        values = intensities[au].to_numpy()
        rows[intensity_column(au)] = np.where((values >= 0) & (values <= 5), values, UNKNOWN).astype(np.int8)
    return rows


def _intensity_files(folder: Path) -> dict[int, list[str]]:
    """Return the names of a subject's label files by action unit."""

    def read_au(stem: str) -> int | None:
        subject, _, au = stem.casefold().rpartition("_au")
        return read_number(au) if subject == folder.name.casefold() else None

    return files_by_number(list_names(folder), suffixes=_LABEL_SUFFIXES, number=read_au)


def _intensities(folder: Path, names: list[str], subject: str, au: int, odd: OddCodes) -> pd.Series:
    """Return intensities by 1-based frame, named by the AU."""
    wanted = f"{subject}_au{au}"
    if not names:
        raise DataNotFoundError(
            f"{folder / wanted}.txt does not exist; DISFA has one such file per AU: {', '.join(map(str, CODED_AUS))}"
        )
    path = folder / only_one(names, folder=folder, what=f"AU {au}")
    lines = read_codes(path, names=["frame", str(au)])
    check_frames(path, lines["frame"])
    odd.add(path, lines[[str(au)]])
    return lines.set_index("frame")[str(au)].rename(au)


def _find_sources(raw: RawData, subject: str, frames: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the file of each frame, "" if it has none, and its 0-based number in a video, -1 for an image."""
    images, start = raw.folder("images"), raw.settings.images_start
    videos = _videos(raw.root / images, subject, raw.settings.camera)
    folders = [name for name in list_names(raw.root / images) if name.casefold() == subject.casefold()]
    found = [*videos, *folders]
    if not found:
        return [""] * len(frames), frames - 1
    name = only_one(found, folder=raw.root / images, what=f"subject {subject}")
    if videos:
        return [f"{images}/{name}"] * len(frames), frames - 1
    folder = images / name
    if start is None:
        raise DataError(
            f"{raw.root / folder} is a folder of images; set `images_start: 0` or `images_start: 1` in the catalog, "
            "the number of the image that belongs to the first label line"
        )
    by_number = files_by_number(list_names(raw.root / folder), number=_trailing_number)
    files = [
        f"{folder}/{only_one(by_number[number], folder=raw.root / folder, what=f'image {number}')}"
        if number in by_number
        else ""
        for number in (frames - 1 + start).tolist()
    ]
    return files, np.full(len(frames), -1)


def _videos(images: Path, subject: str, camera: str) -> list[str]:
    """Return the names of a subject's videos: LeftVideoSN001_comp or SN001, with any extension."""
    stems = {_video_stem(subject, camera).casefold(), subject.casefold()}
    split = {name: split_suffix(name) for name in list_names(images)}
    return [name for name, (stem, suffix) in split.items() if suffix in VIDEO_SUFFIXES and stem.casefold() in stems]


def _trailing_number(stem: str) -> int | None:
    """Return the number at the end of `LeftVideoSN001_comp_0001`, or of a stem that is one."""
    return read_number(stem.rpartition("_")[2])


def _label_files(raw: RawData) -> list[Path]:
    labels = raw.folder("labels")
    return [
        labels / name / file
        for name in _subject_folders(raw.root / labels)
        for files in _intensity_files(raw.root / labels / name).values()
        for file in files
    ]


def _source_hint(raw: RawData, row: pd.Series) -> str:
    subject, frame = row["subject"], int(row["frame"])
    images, stem = raw.root / raw.folder("images"), _video_stem(row["subject"], raw.settings.camera)
    if _videos(images, subject, raw.settings.camera):
        return f"the video ends before frame {frame}"
    folder = find_child(images, subject)
    if folder is not None:
        number = frame - 1 + (raw.settings.images_start or 0)
        return describe_missing_file(images / folder, [str(number)], what=f"image {number}")
    return describe_missing_file(images, [stem, subject], what=f"video {stem}.avi")


def _folders(settings: DatasetSettings) -> Folders:
    return {"images": (VIDEOS if settings.camera == TASK else _RIGHT_VIDEOS,), "labels": (LABELS,)}


LAYOUT = Layout(
    name="disfa",
    folders=_folders,
    index_rows=index_rows,
    label_files=_label_files,
    source_hint=_source_hint,
    source_pattern=video_file("{subject}"),
    own_keys=frozenset({"camera", "images_start"}),
    other_aus=CODED_AUS,
    has_intensity=True,
    labels_whole_videos=True,
    rendered_protocol="rendered_disfa",
)

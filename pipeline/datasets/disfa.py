"""DISFA's raw layout to index rows.

    Videos_LeftCamera/LeftVideo{subject}_comp.avi
    ActionUnit_Labels/{subject}/{subject}_au{n}.txt    lines "frame,intensity"; frame is 1-based, intensity 0..5

Label line n belongs to the video frame of 0-based index n - 1. A video can be one frame shorter than its labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.codes import read_codes
from pipeline.datasets.layout import Layout
from pipeline.errors import DataError, DataNotFoundError
from pipeline.protocols import Protocol, presence_from_intensity
from pipeline.tables import au_column, intensity_column

LABELS = Path("ActionUnit_Labels")
VIDEOS = Path("Videos_LeftCamera")
CODED_AUS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
TASK = "left"
"""DISFA has one session per subject; its task is named after the camera."""


def video_file(subject: str) -> Path:
    """Return the path of a subject's video, relative to the root."""
    return VIDEOS / f"LeftVideo{subject}_comp.avi"


def intensity_file(subject: str, au: int) -> Path:
    """Return the path of a subject's intensities of one action unit, relative to the root."""
    return LABELS / subject / f"{subject}_au{au}.txt"


def index_rows(root: Path, rules: Protocol) -> pd.DataFrame:
    """Return one row per coded frame, without its part; `source_file` is empty where the subject has no video."""
    folders = sorted(folder for folder in (root / LABELS).glob("*") if folder.is_dir())
    if not folders:
        raise DataNotFoundError(f"{root / LABELS} has no subject's folder; expected DISFA's intensity labels there")
    return pd.concat([_subject_rows(folder, root, rules) for folder in folders], ignore_index=True)


def _subject_rows(folder: Path, root: Path, rules: Protocol) -> pd.DataFrame:
    subject = folder.name
    intensities = pd.concat([_intensities(root / intensity_file(subject, au), au) for au in CODED_AUS], axis=1)
    if intensities.isna().any(axis=None):
        short = ", ".join(str(au) for au in CODED_AUS if intensities[au].isna().any())
        raise DataError(f"{folder}: AU {short} lacks frames that other AUs code; expected the same frames in all files")
    frames = intensities.index.to_numpy(np.int64)
    video = video_file(subject)
    rows = pd.DataFrame(
        {
            "frame_id": [f"{subject}/{TASK}/{frame}" for frame in frames],
            "subject": subject,
            "task": TASK,
            "frame": frames,
            "source_file": str(video) if (root / video).is_file() else "",
            "source_frame": frames - 1,
        }
    )
    assert rules.min_positive_intensity is not None
    for au in rules.aus:
        values = intensities[au].to_numpy()
        rows[au_column(au)] = presence_from_intensity(values, min_positive=rules.min_positive_intensity)
    for au in CODED_AUS:
        rows[intensity_column(au)] = intensities[au].to_numpy(np.int8)
    return rows


def _intensities(path: Path, au: int) -> pd.Series:
    """Return intensities by 1-based frame, named by the AU."""
    if not path.is_file():
        raise DataNotFoundError(
            f"{path} does not exist; DISFA has one such file per AU: {', '.join(map(str, CODED_AUS))}"
        )
    lines = read_codes(path, names=["frame", au])
    if lines["frame"].duplicated().any():
        raise DataError(f"{path} codes a frame twice; remove one of the lines")
    return lines.set_index("frame")[au]


LAYOUT = Layout(
    name="disfa",
    folders=(VIDEOS, LABELS),
    index_rows=index_rows,
    source_pattern=video_file("{subject}"),
    has_intensity=True,
    rendered_protocol="rendered_disfa",
)

"""BP4D's raw layout to index rows.

    BP4D-training/{subject}/{task}/{frame}.jpg    integer stems, zero-padded to a width that varies by release
    AUCoding/AU_OCC/{subject}_{task}.csv          header: 0 (the frame column), then AU numbers; codes 0, 1, 9

One release adds a last column without an AU number: an occlusion flag whose 1 makes the whole row unknown.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.codes import read_codes
from pipeline.datasets.layout import Layout
from pipeline.errors import DataError, DataNotFoundError
from pipeline.protocols import Protocol, presence_from_occurrence
from pipeline.tables import UNKNOWN, au_column

CODES = Path("AUCoding/AU_OCC")
IMAGES = Path("BP4D-training")


def codes_file(subject: str, task: str) -> Path:
    """Return the path of a task's occurrence codes, relative to the root."""
    return CODES / f"{subject}_{task}.csv"


def images_folder(subject: str, task: str) -> Path:
    """Return the folder of a task's images, relative to the root."""
    return IMAGES / subject / task


def index_rows(root: Path, rules: Protocol) -> pd.DataFrame:
    """Return one row per coded frame, without its part; `source_file` is empty where it has no image."""
    sequences = [_sequence_columns(path, root, rules) for path in sorted((root / CODES).glob("*.csv"))]
    if not sequences:
        raise DataNotFoundError(f"{root / CODES} has no {{subject}}_{{task}}.csv; expected BP4D's occurrence codes")
    return pd.DataFrame({name: np.concatenate([columns[name] for columns in sequences]) for name in sequences[0]})


def _sequence_columns(path: Path, root: Path, rules: Protocol) -> dict[str, np.ndarray]:
    subject, _, task = path.stem.partition("_")
    if not task:
        raise DataError(f"{path} names no task; expected {{subject}}_{{task}}.csv")
    codes = read_codes(path)
    is_au = [str(name).strip().isdigit() for name in codes.columns]
    if len(codes.columns) < 2 or not all(is_au[:-1]):
        found = ", ".join(map(str, codes.columns[:6]))
        raise DataError(f"{path}: expected the header 0, AU, AU, ...; found {found}...")
    is_occluded = np.zeros(len(codes), bool)
    if not is_au[-1]:
        is_occluded = codes.iloc[:, -1].to_numpy() == 1
        codes = codes.iloc[:, :-1]
    codes.columns = [int(name) for name in codes.columns]
    missing = [au for au in rules.aus if au not in codes.columns]
    if missing:
        raise DataError(f"{path} has no column for AU {', '.join(map(str, missing))}; protocol {rules.name} needs it")

    frames = codes.iloc[:, 0].to_numpy()
    if len(np.unique(frames)) != len(frames):
        raise DataError(f"{path} codes a frame twice; remove one of the rows")
    folder = images_folder(subject, task)
    name_by_frame = {int(p.stem): p.name for p in (root / folder).glob("*.jpg") if p.stem.isdigit()}
    labels = {au_column(au): presence_from_occurrence(codes[au].to_numpy()) for au in rules.aus}
    files = [f"{folder}/{name_by_frame[frame]}" if frame in name_by_frame else "" for frame in frames]
    return {
        "frame_id": np.array([f"{subject}/{task}/{frame}" for frame in frames], object),
        "subject": np.full(len(frames), subject, object),
        "task": np.full(len(frames), task, object),
        "frame": frames,
        "source_file": np.array(files, object),
        "source_frame": np.full(len(frames), -1),
        **{name: np.where(is_occluded, UNKNOWN, present).astype(np.int8) for name, present in labels.items()},
    }


LAYOUT = Layout(
    name="bp4d",
    folders=(IMAGES, CODES),
    index_rows=index_rows,
    source_pattern=images_folder("{subject}", "{task}") / "{frame}.jpg",
    has_intensity=False,
    rendered_protocol="rendered_bp4d",
)

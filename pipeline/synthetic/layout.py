"""Where a rendered data set keeps its files: subjects, sequences, paths and action units of the two raw layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count, islice, zip_longest
from pathlib import Path

import numpy as np

from pipeline.datasets import bp4d, disfa
from pipeline.protocols import PROTOCOLS

FORMAT = 3
"""Raised when the same settings give other pixels or labels."""

# fmt: off
BP4D_RATES = {
    1: 0.211, 2: 0.170, 4: 0.203, 6: 0.461, 7: 0.549, 10: 0.594, 12: 0.562, 14: 0.466, 15: 0.169, 17: 0.344, 23: 0.165,
    24: 0.152,
} | {5: 0.04, 9: 0.06, 16: 0.05, 20: 0.03, 25: 0.30, 26: 0.20}
"""Fraction of BP4D's frames with each of its twelve action units, then estimates for the others that are rendered."""

DISFA_RATES = {
    1: 0.050, 2: 0.040, 4: 0.150, 5: 0.02, 6: 0.079, 9: 0.042, 12: 0.129, 15: 0.03, 17: 0.06, 20: 0.02, 25: 0.278,
    26: 0.089,
}
"""Fraction of DISFA's frames with intensity 2 or more."""

BP4D_COLUMNS = (
    1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 27, 28, 29, 30, 31, 32, 33, 34, 35,
    36, 37, 38, 39,
)
# fmt: on


@dataclass(frozen=True)
class Settings:
    """Everything that decides the content of a rendered data set. num_frames: per task; layout: bp4d or disfa."""

    layout: str
    num_subjects: int
    num_tasks: int
    num_frames: int
    seed: int
    size_px: int
    format: int = FORMAT

    @property
    def rates(self) -> Mapping[int, float]:
        """Fraction of frames with each action unit."""
        return BP4D_RATES if self.layout == "bp4d" else DISFA_RATES


def subject_names(layout: str, num_subjects: int) -> list[str]:
    """Return the protocol's subjects, women and men in turn (BP4D), then further numbers."""
    known = sorted(PROTOCOLS[layout].subject_parts)
    if layout == "disfa":
        return list(islice(chain(known, (f"SN{n:03}" for n in count(int(known[-1][2:]) + 1))), num_subjects))
    women, men = ([name for name in known if name[0] == sex] for sex in "FM")
    in_turn = [name for pair in zip_longest(women, men) for name in pair if name]
    last = len(women), len(men)
    more = chain.from_iterable((f"F{last[0] + n:03}", f"M{last[1] + n:03}") for n in count(1))
    return list(islice(chain(in_turn, more), num_subjects))


def sequence_names(settings: Settings) -> list[str]:
    """Return the names of a subject's sequences; each is written as a whole."""
    return [disfa.TASK] if settings.layout == "disfa" else [task_name(k) for k in range(settings.num_tasks)]


def task_name(task: int) -> str:
    """Return the name of a BP4D task by its number from 0."""
    return f"T{task + 1}"


def first_frame(settings: Settings, subject_index: int, task: int) -> int:
    """Return the number of a sequence's first coded frame; 2440 for the very first sequence, as in BP4D."""
    if subject_index == task == 0:
        return 2440
    return int(np.random.default_rng([settings.seed, 4, subject_index, task]).integers(1, 2500))


def truth_path(out: Path, subject: str, sequence: str) -> Path:
    """Return the path of a sequence's truth, JSON rows by frame."""
    return out / "truth" / f"{subject}_{sequence}.json"


def image_path(out: Path, subject: str, task: int, frame: int) -> Path:
    """Return the path of a BP4D frame."""
    return out / bp4d.images_folder(subject, task_name(task)) / f"{frame:04}.jpg"


def codes_path(out: Path, subject: str, task: int) -> Path:
    """Return the path of a BP4D sequence's labels."""
    return out / bp4d.codes_file(subject, task_name(task))


def video_path(out: Path, subject: str) -> Path:
    """Return the path of a DISFA subject's video."""
    return out / disfa.video_file(subject)


def levels_path(out: Path, subject: str, au: int) -> Path:
    """Return the path of a DISFA subject's levels of one action unit."""
    return out / disfa.intensity_file(subject, au)


def is_subject_complete(out: Path, settings: Settings, subject: str) -> bool:
    """Return whether all files of a subject exist."""
    if settings.layout == "disfa":
        labels = [levels_path(out, subject, au) for au in disfa.CODED_AUS]
        return all(path.is_file() for path in [video_path(out, subject), truth_path(out, subject, disfa.TASK), *labels])
    return all(is_sequence_complete(out, settings, subject, task) for task in range(settings.num_tasks))


def is_sequence_complete(out: Path, settings: Settings, subject: str, task: int) -> bool:
    """Return whether labels, which are written last, and all images of a BP4D sequence exist."""
    folder = out / bp4d.images_folder(subject, task_name(task))
    files = codes_path(out, subject, task), truth_path(out, subject, task_name(task))
    return all(path.is_file() for path in files) and len(list(folder.glob("[0-9]*.jpg"))) == settings.num_frames

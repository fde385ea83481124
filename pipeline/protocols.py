"""Protocols: the part of each subject, the action units that are scored, and the meaning of label codes.

Parts are those of the field's three-fold protocol, identical in all public lists; folds are named by the part they
test, because fold *numbers* differ between repositories. See docs/protocols.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from pipeline.errors import DataError
from pipeline.tables import UNKNOWN

PARTS = ("P1", "P2", "P3")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A data set's rules.

    `aus`: action units in the order of every label array. `subject_parts`: published part of each subject.
    `assigns_by_number`: subjects outside the lists get part (number mod 3) + 1 (rendered faces and own recordings);
    otherwise they are refused. `min_positive_intensity`: lowest intensity 0..5 that counts as present, None where the
    data set codes presence. `bad_frames`: 1-based inclusive ranges without a usable face, left out of the index.
    `tasks`: of each subject, empty if any name will do. `left_out`: action units that the catalog leaves out of `aus`.
    `num_frames`, `positive_percent`: published counts of all coded frames, bad ones included, and their percentage of
    positive labels by action unit; 0 and empty where none are published.
    """

    name: str
    aus: tuple[int, ...]
    subject_parts: Mapping[str, str]
    assigns_by_number: bool = False
    min_positive_intensity: int | None = None
    bad_frames: Mapping[str, tuple[tuple[int, int], ...]]
    tasks: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()
    num_frames: int = 0
    positive_percent: Mapping[int, float] = field(default_factory=dict)

    def get_part(self, subject: str) -> str:
        """Return the part of a subject; `DataError` for a subject outside the protocol."""
        if self.assigns_by_number:
            number = re.search(r"([0-9]{1,18})$", subject)
            if number is None:
                raise DataError(
                    f"subject {subject!r} has no number at its end, from which protocol {self.name} assigns parts"
                )
            return _part_by_number(int(number.group(1)))
        if subject not in self.subject_parts:
            raise DataError(
                f"subject {subject!r} is in no part of protocol {self.name}; expected one of "
                f"{', '.join(sorted(self.subject_parts)[:3])}..., "
                "or a protocol that assigns parts by number, see docs/protocols.md"
            )
        return self.subject_parts[subject]

    def find_subject(self, name: str) -> str:
        """Return the protocol's subject that is `name` in any case; `name` if there is none."""
        return _find_name(name, self.subject_parts)

    def find_task(self, name: str) -> str:
        """Return the protocol's task that is `name` in any case; `name` if there is none."""
        return _find_name(name, self.tasks)

    def is_bad_frame(self, subject: str, frame: int) -> bool:
        """Return whether 1-based `frame` is in one of the subject's known bad ranges."""
        return any(first <= frame <= last for first, last in self.bad_frames.get(subject, ()))


def _part_by_number(number: int) -> str:
    return PARTS[number % len(PARTS)]


def _find_name(name: str, known: Collection[str]) -> str:
    if name in known:
        return name
    return next((each for each in known if each.casefold() == name.casefold()), name)


def presence_from_occurrence(codes: np.ndarray) -> np.ndarray:
    """Convert BP4D's occurrence codes to labels, int8: 0, 1, and -1 (unknown) for 9 and any other code."""
    codes = np.asarray(codes)
    return np.where((codes == 0) | (codes == 1), codes, UNKNOWN).astype(np.int8)


def presence_from_intensity(intensities: np.ndarray, *, min_positive: int) -> np.ndarray:
    """Convert intensities 0..5 to labels, int8: 1 from `min_positive` up, else 0, and -1 (unknown) outside 0..5."""
    intensities = np.asarray(intensities)
    is_known = (intensities >= 0) & (intensities <= 5)
    return np.where(is_known, intensities >= min_positive, UNKNOWN).astype(np.int8)


def _part_by_subject(**parts: str) -> dict[str, str]:
    """Return the part of each subject from the subjects of each part, separated by spaces."""
    return {subject: part for part, subjects in parts.items() for subject in subjects.split()}


_BP4D_PARTS = _part_by_subject(
    P1="F001 F002 F008 F009 F010 F016 F018 F023 M001 M004 M007 M008 M012 M014",
    P2="F003 F005 F011 F013 F020 F022 M002 M005 M010 M011 M013 M016 M017 M018",
    P3="F004 F006 F007 F012 F014 F015 F017 F019 F021 M003 M006 M009 M015",
)
_BP4D_PLUS_PARTS = {
    f"{sex}{number:03}": _part_by_number(number)
    for sex, last in (("F", 82), ("M", 58))
    for number in range(1, last + 1)
}
"""By number: no published list has three parts of BP4D+."""
_DISFA_PARTS = _part_by_subject(
    P1="SN001 SN002 SN009 SN010 SN016 SN026 SN027 SN030 SN032",
    P2="SN006 SN011 SN012 SN013 SN018 SN021 SN024 SN028 SN031",
    P3="SN003 SN004 SN005 SN007 SN008 SN017 SN023 SN025 SN029",
)
_DISFA_BAD_FRAMES = {
    "SN001": ((398, 420), (3190, 3243)),
    "SN002": ((800, 826),),
    "SN004": ((4541, 4555),),
    "SN006": ((1349, 1405),),
    "SN009": ((1736, 1808), (1851, 1885)),
    "SN011": ((4529, 4533), (4830, 4845)),
    "SN021": (
        (574, 616),
        (985, 1164),
        (1190, 1205),
        (1305, 1338),
        (1665, 1710),
        (1862, 2477),
        (2554, 4657),
        (4710, 4722),
    ),
    "SN023": ((1021, 1049), (3378, 3557), (3584, 3668), (4547, 4621), (4741, 4772), (4825, 4845)),
    "SN025": ((4596, 4662), (4816, 4835)),
    "SN027": ((3461, 3494), (4738, 4785)),
    "SN028": ((1875, 1885), (4571, 4690)),
    "SN029": ((4090, 4543),),
    "SN030": ((939, 962), (1406, 1422), (2100, 2132), (2893, 2955)),
}

_BP4D_AUS = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
_BP4D_TASKS = tuple(f"T{number}" for number in range(1, 9))
_BP4D_PLUS_TASKS = ("T1", "T6", "T7", "T8")
"""The tasks of BP4D+ whose action units are coded."""
_DISFA_AUS = (1, 2, 4, 6, 9, 12, 25, 26)

_BP4D_POSITIVE_PERCENT = dict(
    zip(_BP4D_AUS, (21.1, 17.1, 20.3, 46.1, 54.9, 59.4, 56.2, 46.6, 16.9, 34.3, 16.5, 15.1), strict=True)
)
_DISFA_POSITIVE_PERCENT = dict(zip(_DISFA_AUS, (5.0, 4.3, 15.2, 7.9, 4.2, 12.9, 27.7, 8.8), strict=True))

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="bp4d",
            aus=_BP4D_AUS,
            subject_parts=_BP4D_PARTS,
            bad_frames={},
            tasks=_BP4D_TASKS,
            num_frames=146_847,
            positive_percent=_BP4D_POSITIVE_PERCENT,
        ),
        Protocol(
            name="bp4d_plus", aus=_BP4D_AUS, subject_parts=_BP4D_PLUS_PARTS, bad_frames={}, tasks=_BP4D_PLUS_TASKS
        ),
        Protocol(name="rendered_bp4d", aus=_BP4D_AUS, subject_parts={}, assigns_by_number=True, bad_frames={}),
        Protocol(
            name="disfa",
            aus=_DISFA_AUS,
            subject_parts=_DISFA_PARTS,
            min_positive_intensity=2,
            bad_frames=_DISFA_BAD_FRAMES,
            num_frames=130_814,
            positive_percent=_DISFA_POSITIVE_PERCENT,
        ),
        Protocol(
            name="rendered_disfa",
            aus=_DISFA_AUS,
            subject_parts={},
            assigns_by_number=True,
            min_positive_intensity=2,
            bad_frames={},
        ),
        Protocol(name="by_number", aus=(), subject_parts={}, assigns_by_number=True, bad_frames={}),
    )
}
"""By name. `by_number` has no action units of its own: a table names them."""


def train_parts(test_part: str) -> tuple[str, ...]:
    """Return the parts to train on when `test_part` is tested."""
    return tuple(part for part in PARTS if part != test_part)


def check_subject_exclusive(frames: pd.DataFrame) -> None:
    """Raise `DataError` if a subject has frames in two parts, or a part has no frames."""
    num_parts = frames.groupby("subject")["part"].nunique()
    crossing = num_parts[num_parts > 1]
    if len(crossing):
        raise DataError(
            f"subject {crossing.index[0]} has frames in {crossing.iloc[0]} parts; each subject belongs to one part"
        )
    empty = [part for part in PARTS if part not in set(frames["part"])]
    if empty:
        raise DataError(f"part {empty[0]} has no frames; a fold needs subjects in each of {', '.join(PARTS)}")

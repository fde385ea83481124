"""Folds by the part they test: the other parts train. Subjects never cross, and that is checked where folds load."""

from __future__ import annotations

import pandas as pd

from pipeline.errors import DataError
from pipeline.protocols import PARTS


def train_parts(test_part: str) -> tuple[str, ...]:
    """The parts that train when `test_part` tests."""
    return tuple(part for part in PARTS if part != test_part)


def check_subject_exclusive(frames: pd.DataFrame) -> None:
    """Raise `DataError` if a subject has frames in two parts, or a part has no frames."""
    parts_a_subject = frames.groupby("subject")["part"].nunique()
    crossing = parts_a_subject[parts_a_subject > 1]
    if len(crossing):
        raise DataError(f"subject {crossing.index[0]} has frames in {crossing.iloc[0]} parts; each belongs in one")
    empty = [part for part in PARTS if part not in set(frames["part"])]
    if empty:
        raise DataError(f"part {empty[0]} has no frames; a fold needs subjects in each of {', '.join(PARTS)}")

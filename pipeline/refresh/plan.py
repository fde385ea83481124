"""Plans and summaries of stages: counts, and the tables that one stage passes to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Tables of earlier stages: read from disk, or as their plans expect them (None: not known).

    frames: the index. boxes: `BOX_COLUMNS`, one row per frame of the index. crops: frame_id, key and status.
    """

    frames: pd.DataFrame | None = None
    boxes: pd.DataFrame | None = None
    crops: pd.DataFrame | None = None


class Duration(NamedTuple):
    """How long a stage would take, in seconds; `is_typical` if it never ran here, and a typical rate stands in."""

    seconds: float
    is_typical: bool = False


NO_TIME = Duration(0.0)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Frames that a stage keeps, computes and drops."""

    stage: str
    num_kept: int
    num_computed: int
    num_dropped: int = 0

    @property
    def is_noop(self) -> bool:
        """Whether there is nothing to compute and nothing to drop."""
        return self.num_computed == self.num_dropped == 0


@dataclass(frozen=True, kw_only=True)
class StagePlan(Counts):
    """What a stage would do.

    num_bytes: to write, None if few. is_current: whether running the plan would change nothing on disk. expected: the
    tables that the next stage will read.
    """

    num_bytes: int | None = None
    duration: Duration = NO_TIME
    is_current: bool
    expected: Tables = field(default_factory=Tables, repr=False)


@dataclass(frozen=True, kw_only=True)
class StageSummary(Counts):
    """What a stage kept and did, and how long that took."""

    note: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        """One line for a log."""
        dropped = f", {self.num_dropped:,} dropped" if self.num_dropped else ""
        computed = f"{self.num_computed:,} new" if self.num_computed else "nothing to do"
        return f"{self.stage}: {computed}, {self.num_kept:,} kept{dropped}{self.note and '; ' + self.note}"

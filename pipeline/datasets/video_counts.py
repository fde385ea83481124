"""Compare videos with their labels: frames beyond a video's end have no source, and other counts are logged."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pipeline.errors import DataError, FantransError
from pipeline.runtime.text import join_first

logger = logging.getLogger("fantrans")

_MAX_DIFFERENCE = 1
"""In frames: DISFA's videos are up to one frame shorter than their labels."""
_MAX_DIFFERENCE_FRAC = 0.01
"""Of the labels; labels of a video that differs by more belong to other frames."""


class VideoCounts:
    """Numbers of frames of videos; a video whose size and modification time are known is not read again."""

    def __init__(self, root: Path, known: Mapping[str, Sequence[int]] | None = None) -> None:
        self._root, self._known = root, known or {}
        self._found: dict[str, tuple[int, int, int]] = {}

    def count(self, file: str) -> int | None:
        """Return the number of frames of a video, relative to the root; None if it cannot be read."""
        from pipeline.datasets.videos import describe_video  # noqa: PLC0415 - training reads indexes without videos

        status = os.stat(self._root / file)  # noqa: PTH116 - fails for a file that vanished, as reading it would
        state = status.st_size, status.st_mtime_ns
        known = self._known.get(file, ())
        if tuple(known[:2]) == state:
            num = known[2]
        else:
            try:
                num = describe_video(self._root / file).num_frames
            except FantransError:  # the stage detect names the frames that it cannot read
                return None
        self._found[file] = (*state, num)
        return num

    def document(self) -> dict[str, list[int]]:
        """Return size, modification time in ns and number of frames of each counted video."""
        return {file: list(found) for file, found in sorted(self._found.items())}


def drop_sources_beyond_end(rows: pd.DataFrame, counts: VideoCounts, *, is_whole: bool) -> pd.DataFrame:
    """Return the rows with an empty `source_file` where the video ends before the frame.

    is_whole: whether labels cover each video from its first to its last frame. If so, a video whose number of frames
    differs by more than one is logged, and one that differs by more than 1 % raises `DataError`; if not, only a video
    that is too short is logged.
    """
    is_video = (rows["source_frame"] >= 0) & (rows["source_file"] != "")
    said, beyond = [], pd.Series(data=False, index=rows.index)
    for file, numbers in rows.loc[is_video, "source_frame"].groupby(rows["source_file"]):
        num_labelled, num_frames = int(numbers.max()) + 1, counts.count(str(file))
        if num_frames is None:
            continue
        difference = num_frames - num_labelled
        if is_whole and abs(difference) > max(_MAX_DIFFERENCE, _MAX_DIFFERENCE_FRAC * num_labelled):
            raise DataError(
                f"{file} has {num_frames:,} frames, its labels {num_labelled:,}; expected the same number or one "
                "fewer, so the labels belong to other frames: copy the video and its labels again from their source"
            )
        if difference < -_MAX_DIFFERENCE * is_whole or (is_whole and difference > _MAX_DIFFERENCE):
            said.append(f"{file} has {num_frames:,} frames, its labels {num_labelled:,}")
        beyond.loc[numbers.index] = numbers >= num_frames
    if said:
        logger.warning("videos that differ from their labels: %s", join_first(said, 5, separator="; "))
    return rows.assign(source_file=rows["source_file"].mask(beyond, ""))

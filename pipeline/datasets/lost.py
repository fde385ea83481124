"""Frames whose image, video or labels are gone, which stop a refresh before it drops anything."""

from __future__ import annotations

import pandas as pd

from pipeline.datasets.index import describe_no_source
from pipeline.datasets.layout import Layout, RawData
from pipeline.errors import DataError


def find_lost(before: pd.DataFrame, now: pd.DataFrame, *, is_same_selection: bool) -> pd.DataFrame:
    """Return the rows of an earlier index whose image or video is gone.

    is_same_selection: whether both indexes list the frames of the same settings; if so, a frame that the new one does
    not list is lost as well.
    """
    source = before["frame_id"].map(now.set_index("frame_id")["source_file"])
    return before[(before["source_file"] != "") & ((source == "") | (source.isna() & is_same_selection))]


def refuse_lost(
    before: pd.DataFrame, now: pd.DataFrame, *, layout: Layout, raw: RawData, dataset: str, is_same_selection: bool
) -> None:
    """Raise `DataError` if more frames than the data set's `max_lost_frac` lost their image, video or labels."""
    lost = find_lost(before, now, is_same_selection=is_same_selection)
    num_known = int((before["source_file"] != "").sum())
    if len(lost) <= raw.settings.max_lost_frac * num_known:
        return
    is_labelled = lost["frame_id"].isin(now["frame_id"])
    if is_labelled.any():
        what = "have lost it" if is_labelled.all() else "have lost it or their labels"
        hint = describe_no_source(lost[is_labelled], layout, raw)
    else:
        what, hint = "are no longer in the label files", f"the first is {lost['frame_id'].iloc[0]}"
    raise DataError(
        f"{len(lost):,} of the {num_known:,} frames of {dataset} that had an image or video {what}; {hint}; nothing "
        "was dropped: bring them back (is a disk away, or a label file?), or, if they are gone for good, run "
        f"`fantrans refresh {dataset} --allow-lost`"
    )

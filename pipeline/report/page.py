"""The page of a report: one HTML file that opens offline, with its data, charts and images inside.

The template is `templates/page.html`; see `pipeline.report.rendering`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.catalog import Catalog
from pipeline.report import page_content as content
from pipeline.report.published import PUBLISHED_FILE
from pipeline.report.rendering import Cell, number_cell, render_page
from pipeline.report.scored import MAX_CURVE_POINTS, Scored, worst_frames
from pipeline.runtime.atomic import write_bytes_atomically
from pipeline.training.run_files import read_run

logger = logging.getLogger("fantrans")

STRIP_NAME = "figures/score_cam.png"
"""The strip that `--figures` draws, within a run's folder."""

_NUM_WORST = 6
_MAX_THUMBNAILS = 100
_THUMBNAIL_PX, _STRIP_PX = 112, 900
_MAX_POINTS = 100_000


@dataclass(frozen=True)
class Page:
    """What a page is about.

    every: the runs or members that it shows, the first one first. legend: sentences on the numbers. commands: what
    makes it again; empty for those of each run. shows_images: whether faces are on it, None for rendered faces only.
    """

    title: str
    dataset: str
    what_data: str
    every: Sequence[Scored]
    legend: str
    commands: Sequence[str] = ()
    shows_images: bool | None = None
    published: str = ""
    """What the published numbers are, in a sentence."""


def num_curve_points(num_scored: int) -> int:
    """Return how many points each precision-recall curve may have, so that a page of many runs stays small."""
    return max(20, min(MAX_CURVE_POINTS, _MAX_POINTS // (36 * num_scored)))


def describe_data(catalog: Catalog, dataset: str) -> str:
    """Return what the frames of a data set are, in words; its name if the catalog does not have it any more."""
    entry = catalog.datasets.get(dataset)
    if entry is None:
        return dataset
    return "rendered faces" if entry.is_rendered else f"{entry.layout.upper()}, protocol {entry.protocol}"


def published_scores(catalog: Catalog, dataset: str) -> Mapping[str, float]:
    """Return the paper's F1 of FAN-Trans on the data of a data set's layout; empty where it has none."""
    entry = catalog.datasets.get(dataset)
    if entry is None:
        return {}
    table = pd.read_csv(PUBLISHED_FILE)
    own = table[(table["dataset"] == entry.layout) & (table["method"] == "FAN-Trans")]
    return {str(au): float(percent) for au, percent in zip(own["au"], own["f1_percent"], strict=True)}


def write_page(path: Path, page: Page, catalog: Catalog) -> None:
    """Write a page; faces and other images are left out unless the page or the data set shows them."""
    entry = catalog.datasets.get(page.dataset)
    is_rendered = entry is not None and entry.is_rendered
    shows_images = is_rendered if page.shows_images is None else page.shows_images
    write_bytes_atomically(path, render(page, catalog, shows_images=shows_images).encode())


def render(page: Page, catalog: Catalog, *, shows_images: bool) -> str:
    """Return the page as HTML."""
    worst = [worst_frames(scored, num_frames=_NUM_WORST) for scored in page.every]
    images = _thumbnails(page, catalog, worst) if shows_images else {}
    data = {
        "aus": content.au_names(page.every[0]),
        "grid": content.grid_thresholds(),
        "members": [content.chart_data(each, num_points=num_curve_points(len(page.every))) for each in page.every],
        "differences": content.paired_differences(page.every),
        "images": images,
    }
    return render_page(
        "page",
        data,
        title=page.title,
        page=page,
        members=[_member(scored, frames, shows_images) for scored, frames in zip(page.every, worst, strict=True)],
        overview=content.member_table(page.every),
        measures=list(dict.fromkeys(name for scored in page.every for name in scored.measures)),
        legends=content.LEGENDS,
        has_images=bool(images),
        shows_images=shows_images,
    )


def _member(scored: Scored, worst: pd.DataFrame, shows_images: bool) -> dict[str, Any]:
    """What the template shows of one run or member."""
    from pipeline.report.faces import file_uri  # noqa: PLC0415 - loads cv2

    strip = scored.folders[0] / STRIP_NAME
    return {
        "name": scored.name,
        "has_predictions": bool(scored.predictions),
        "scores": content.score_table(scored),
        "thresholds": content.threshold_table(scored),
        "parts": content.part_table(scored),
        "gaps": content.gaps(scored),
        "runs": [content.run_facts(folder) for folder in scored.folders],
        "strip": file_uri(strip, width_px=_STRIP_PX) if shows_images else None,
        "worst": [_worst_row(f"AU{au}", frames) for au, frames in worst.groupby("au", sort=False)]
        if len(worst)
        else [],
    }


def _worst_row(name: str, frames: pd.DataFrame) -> dict[str, Any]:
    rows = [
        {
            "frame_id": row["frame_id"],
            "part": row["part"],
            "label": "present" if row["label"] == 1 else "absent",
            "probability": Cell(f"{row['probability']:.3f}", row["probability"]).text,
            "loss": number_cell(row["loss"], ".2f").text,
        }
        for row in frames.to_dict("records")
    ]
    return {"au": name, "frames": rows}


def _thumbnails(page: Page, catalog: Catalog, worst: Sequence[pd.DataFrame]) -> dict[str, str]:
    """Faces by frame_id: of all members the worst frames first, up to `_MAX_THUMBNAILS`."""
    from pipeline.report.faces import thumbnails  # noqa: PLC0415 - loads cv2

    tables = [
        table.assign(cache=read_run(scored.folders[0])["cache"])
        for table, scored in zip(worst, page.every, strict=True)
        if len(table)
    ]
    if not tables:
        return {}
    chosen = pd.concat(tables).sort_values("rank", kind="stable").drop_duplicates("frame_id").head(_MAX_THUMBNAILS)
    found: dict[str, str] = {}
    for fingerprint, frames in chosen.groupby("cache"):
        found |= thumbnails(catalog, page.dataset, str(fingerprint), list(frames["frame_id"]), width_px=_THUMBNAIL_PX)
    return found

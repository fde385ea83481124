"""The page of a cache, below the runs root: one HTML file that opens offline."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from pipeline.catalog import Catalog
from pipeline.datasets.index import Coverage, coverage
from pipeline.errors import FantransError
from pipeline.fingerprint import find_weights
from pipeline.report import cache_boxes
from pipeline.report import cache_content as content
from pipeline.report.cache_content import CacheFacts, read_cache_facts
from pipeline.report.listing import list_runs
from pipeline.report.page import describe_data
from pipeline.report.page_files import REPORT_PAGE, cache_page_path
from pipeline.report.rendering import Cell, Rows, count_cell, number_cell, render_page, utc_minute
from pipeline.runtime.atomic import write_bytes_atomically
from pipeline.runtime.text import join_first
from pipeline.training.run_files import flattened

logger = logging.getLogger("fantrans")

_THUMBNAIL_PX = 168
_MAX_THUMBNAILS = 60


def write_cache_page(
    catalog: Catalog, dataset: str, folder: Path, *, shows_images: bool | None = None, is_quick: bool = False
) -> Path:
    """Write the page of a cache, given by its folder; return its path.

    shows_images: whether frames are on it, None for rendered ones only. is_quick: leave out what takes long: the check
    of all files, and images from videos. Raises `StoreError` for a cache without a finished revision.
    """
    is_rendered = catalog.get_dataset(dataset).is_rendered
    facts = read_cache_facts(catalog, dataset, folder, checks_files=not is_quick)
    path = cache_page_path(catalog, dataset, folder.name)
    text = render(facts, shows_images=is_rendered if shows_images is None else shows_images, reads_videos=not is_quick)
    write_bytes_atomically(path, text.encode())
    return path


def render(facts: CacheFacts, *, shows_images: bool, reads_videos: bool = True) -> str:
    """Return the page as HTML."""
    frames, document, summary = facts.frames, facts.store.document, facts.summary
    detector, boxes = document.get("detector", {}), facts.boxes
    measures = pd.DataFrame() if boxes is None else cache_boxes.box_measures(boxes)
    chosen = content.examples(frames)
    images = _thumbnails(facts, chosen, reads_videos=reads_videos) if shows_images else {}
    fidelity, fidelity_note = content.fidelity_table(facts.store)
    revisions, revisions_note = content.revision_table(facts.folder)
    sequences = cache_boxes.sequence_table(boxes) if boxes is not None else ([], [])
    has_boxes = len(measures) > 0 and "min_side_px" in detector
    arrays = content.bytes_table(facts.store)
    others = {
        each.fingerprint: quote(path.name)
        for each in facts.others
        if each.folder != facts.folder
        and (path := cache_page_path(facts.catalog, facts.dataset, each.fingerprint)).is_file()
    }
    charts = cache_boxes.spread_charts(measures, detector) if has_boxes else None
    data = {
        "coverage": content.coverage_map(frames),
        "boxes": charts,
        "arrays": {"names": _column(arrays, 0)[:-1], "bytes": _values(arrays, 2)[:-1]},
        "fidelity": {name: _values(fidelity, i) for i, name in enumerate(fidelity[0]) if i}
        | {"maps": _column(fidelity, 0)},
        "images": images,
    }
    return render_page(
        "cache",
        data,
        title=f"Cache of {facts.dataset}",
        facts=facts,
        summary=summary,
        what_data=describe_data(facts.catalog, facts.dataset),
        cards=_cards(facts),
        missing=_missing_sentence(facts),
        stages=list(content.STAGES),
        coverage_by={by: content.coverage_table(frames, by) for by in ("subject", "task")},
        num_subjects=frames["subject"].nunique(),
        max_subjects=content.MAX_SUBJECTS,
        failures=content.failure_table(frames),
        examples={
            name: [
                {"frame_id": row["frame_id"], "image": images.get(row["frame_id"])} for row in table.to_dict("records")
            ]
            for name, table in chosen.items()
        },
        shows_images=shows_images,
        has_boxes=has_boxes,
        measures=[] if charts is None else list(charts["histograms"]),
        spread=cache_boxes.spread_table(measures) if has_boxes else ([], []),
        notes=cache_boxes.track_notes(boxes, detector) if boxes is not None and "max_side_px" in detector else [],
        sequences=(sequences[0], sequences[1][: cache_boxes.MAX_SEQUENCES]),
        num_sequences=len(sequences[1]),
        fidelity=fidelity,
        fidelity_note=fidelity_note,
        arrays=arrays,
        caches=content.cache_table(facts.others, others),
        revisions=revisions,
        revisions_note=revisions_note,
        states=content.state_sentences(facts),
        damages=content.damage_table(facts.damages or ()),
        num_damages=len(facts.damages or ()),
        readers=_reader_table(facts),
        provenance=_provenance(facts),
        settings={name: _plain(value) for name, value in flattened(document).items()},
        commands=[
            summary.refresh_command,
            f"fantrans cache verify {facts.dataset} --deep",
            f"fantrans cache report {facts.dataset} --fingerprint {facts.fingerprint}",
        ],
    )


def _column(rows: Rows, i: int) -> list[str]:
    return [cells[i].text for cells in rows[1]]


def _values(rows: Rows, i: int) -> list[float | None]:
    return [None if cells[i].value is None else round(float(cells[i].value or 0), 5) for cells in rows[1]]


def _cards(facts: CacheFacts) -> list[tuple[str, str, str]]:
    """Return name, number and note of each card."""
    frames, summary = facts.frames, facts.summary
    num_cached = int(frames["is_cached"].sum())
    found = _coverage(facts)
    of_subjects, of_tasks = (f"of {n:,}" if n else "" for n in (found.num_expected, found.num_expected_tasks))
    return [
        ("frames cached", f"{100 * num_cached / max(1, len(frames)):.1f} %", f"{num_cached:,} of {len(frames):,}"),
        ("subjects", f"{found.num_subjects:,}", of_subjects),
        ("sequences", f"{found.num_tasks:,}", of_tasks),
        ("views per frame", f"{summary.num_views}", summary.profile),
        ("size", f"{summary.size_bytes / 1e9:,.2f} GB", f"revision {summary.revision}"),
        ("state", summary.state.split(maxsplit=1)[0], "as far as known" if facts.damages is None else "files checked"),
    ]


def _coverage(facts: CacheFacts) -> Coverage:
    return coverage(facts.frames, facts.catalog.get_dataset(facts.dataset).rules)


def _missing_sentence(facts: CacheFacts) -> str:
    found = _coverage(facts)
    names = f" Missing: {join_first(found.missing_subjects)}." if found.missing_subjects else ""
    return "" if found.is_complete else f"Not all of the data set: {found}.{names}"


def _thumbnails(facts: CacheFacts, chosen: Mapping[str, pd.DataFrame], *, reads_videos: bool) -> dict[str, str]:
    """Frames without features by frame_id, with their boxes drawn, of all reasons in turn."""
    from pipeline.report.faces import frame_thumbnails  # noqa: PLC0415 - loads cv2

    tables = [table.assign(turn=range(len(table))) for table in chosen.values() if len(table)]
    if not tables:
        return {}
    frames = pd.concat(tables).sort_values("turn", kind="stable")
    frames = frames[frames["has_image"] & frames["source_file"].notna()].head(_MAX_THUMBNAILS)
    if not reads_videos:
        frames = frames[frames["source_frame"] < 0]
    root = facts.catalog.get_dataset(facts.dataset).root
    return frame_thumbnails(root, frames, facts.boxes, width_px=_THUMBNAIL_PX)


def _reader_table(facts: CacheFacts) -> Rows:
    """Return one row per run that was trained on the cache, with a link to its report."""
    runs = list_runs(facts.catalog.roots.runs, is_quick=True)
    runs = runs[(runs["cache"] == facts.fingerprint) & (runs["dataset"] == facts.dataset)]
    rows = []
    for run in runs.astype(object).where(runs.notna(), None).to_dict("records"):
        has_page = (Path(run["folder"]) / REPORT_PAGE).is_file()
        name = Cell(run["run"], link=f"../{quote(run['run'])}/{REPORT_PAGE}" if has_page else "")
        finished = "-" if run["finished_at"] is None else utc_minute(run["finished_at"].timestamp())
        percent = number_cell(float("nan") if run["f1_percent"] is None else run["f1_percent"])
        rows.append(
            [
                name,
                Cell(run["experiment"]),
                Cell(run["state"]),
                count_cell(run["num_finished"] or 0),
                percent,
                Cell(finished),
            ]
        )
    return ["run", "experiment", "state", "folds", "mean F1", "finished at"], rows


def _provenance(facts: CacheFacts) -> dict[str, str]:
    manifest = facts.store.manifest
    made, features = manifest["provenance"], facts.store.document["features"]
    names = {id(entry): name for name, entry in facts.catalog.weights.items()}
    try:
        entry = find_weights(features, facts.catalog)
    except FantransError:
        entry = None
    weights = "" if entry is None else f"{names[id(entry)]}, "
    published = facts.summary.published_at
    return {
        "fingerprint": facts.fingerprint,
        "folder": str(facts.folder),
        "published at": "-" if published is None else utc_minute(published.timestamp()),
        "weights": f"{weights}{facts.summary.weights}, sha256 {features['sha256'][:12]}",
        "profile": str(features["profile"]),
        "device": str(made.get("device", "not recorded")),
        "processor": str((made.get("machine") or {}).get("cpu", "not recorded")),
        "versions": ", ".join(f"{name} {number}" for name, number in made.get("versions", {}).items())
        or "not recorded",
    }


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)

"""Summarise a refresh and its cache as a page: Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pipeline.cache.reader import CacheReader, open_cache
from pipeline.datasets.index import coverage, read_index
from pipeline.refresh.boxes import face_notes
from pipeline.refresh.job import RefreshJob, cache_build, crop_reader
from pipeline.refresh.plan import StageSummary
from pipeline.runtime.html import write_html
from pipeline.runtime.text import join_first
from pipeline.tables import Status, read_table_if_intact

PAGE_NAME = "refresh.html"


def write_summary(job: RefreshJob, stages: Sequence[StageSummary]) -> tuple[str, Path]:
    """Write the page as HTML into the data set's work folder; return it as Markdown, and the path of the HTML."""
    now = datetime.now().astimezone()
    lines = [
        f"# Refresh of {job.dataset}, {now:%Y-%m-%d %H:%M}",
        "",
        *_stages(stages),
        *(["", *_frames(job)] if job.until in ("crop", "extract") else []),
        *(["", *_cache(open_cache(cache_build(job).folder))] if job.until == "extract" else []),
    ]
    markdown = "\n".join(lines) + "\n"
    path = job.work / PAGE_NAME
    write_html(path, markdown)
    return markdown, path


def _stages(stages: Sequence[StageSummary]) -> list[str]:
    rows = [
        f"| {s.stage} | {s.num_kept:,} | {s.num_computed:,} | {s.num_dropped:,} | {s.seconds:,.1f} | {_rate(s)} |"
        for s in stages
    ]
    return ["| stage | frames kept | computed | dropped | seconds | frames/s |", "|---|---|---|---|---|---|", *rows]


def _rate(stage: StageSummary) -> str:
    return f"{stage.num_computed / stage.seconds:,.1f}" if stage.num_computed else "-"


def _frames(job: RefreshJob) -> list[str]:
    frames = crop_reader(job).listed
    missed = frames[~frames["status"].isin((Status.OK, Status.INTERPOLATED))]
    counts = ", ".join(f"{count:,} {status}" for status, count in frames["status"].value_counts().items())
    lines = [f"**{len(frames):,} frames:** {counts}."]
    found = coverage(read_index(job.work, dataset=job.dataset), job.entry.rules)
    if not found.is_complete:
        names = f" Missing: {join_first(found.missing_subjects)}." if found.missing_subjects else ""
        lines += ["", f"**Not all of the data set:** {found}.{names}"]
    if len(missed):
        names = join_first(
            f"`{name}` {status}" for name, status in zip(missed["frame_id"], missed["status"], strict=True)
        )
        lines += ["", f"Without features: {names}."]
    boxes = read_table_if_intact(job.boxes_path)
    notes = [] if boxes is None else face_notes(boxes, job.config.detector)
    if notes:
        lines += ["", f"Faces: {'; '.join(notes)}."]
    return lines


def _cache(cache: CacheReader) -> list[str]:
    manifest, features = cache.manifest, cache.document["features"]
    fidelity = manifest["provenance"]["fidelity"]
    errors = ", ".join(f"{name} {error:.4f}" for name, error in fidelity["relative_l2"].items())
    lines = [
        f"**Cache `{cache.fingerprint}`, revision {cache.revision}:** {len(cache.index):,} frames x {cache.num_views} "
        f"views, {manifest['num_bytes'] / 1e9:,.2f} GB, profile {features['profile']}, "
        f"weights `{features['sha256'][:12]}`, device {manifest['provenance']['device']}.",
        "",
        f"Fidelity, as the mean relative L2 error of a map: {errors}.",
    ]
    if fidelity["f1"]:
        cost = fidelity["f1"]["trained_on_it"]
        low, high = cost["interval"]
        lines[-1] += f" In F1: {cost['points']:+.2f} points ({low:+.2f} to {high:+.2f}) on {fidelity['f1']['dataset']}."
    return [*lines, "", f"Folder: `{cache.folder}`"]

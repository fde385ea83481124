"""The start page, `index.html` below the runs root: data sets, caches, runs and tables, with links to their pages.

It is made from what is on disk, without torch and without reading a map, so that commands can write it again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd

from pipeline.catalog import Catalog
from pipeline.datasets.index import coverage
from pipeline.refresh.caches import CacheSummary, list_caches
from pipeline.report.listing import list_runs
from pipeline.report.page_files import REPORT_PAGE, START_PAGE, TABLES, cache_page_path
from pipeline.report.rendering import Cell, Rows, count_cell, number_cell, render_page, utc_minute
from pipeline.runtime.atomic import write_bytes_atomically
from pipeline.tables import read_table_if_intact

logger = logging.getLogger("fantrans")


class StartPage(NamedTuple):
    """The page as HTML, and the files below the runs root that it links to, by their address on the page."""

    html: str
    files: Mapping[str, Path]


def write_start_page(catalog: Catalog) -> Path:
    """Write the start page below the runs root; return its path."""
    path = catalog.roots.runs / START_PAGE
    write_bytes_atomically(path, read_start_page(catalog).html.encode())
    return path


def read_start_page(catalog: Catalog) -> StartPage:
    """Return the start page of what is on disk now."""
    root = catalog.roots.runs
    links = _Links(root)
    runs = list_runs(root, is_quick=True)
    caches = {name: list_caches(catalog, name, names_commands=False) for name in catalog.datasets}
    html = render_page(
        "start",
        {},
        title="Data sets, caches, runs and tables",
        has_charts=False,
        roots={name: str(folder) for name, folder in catalog.roots},
        datasets=_dataset_table(catalog, caches, runs),
        caches=_cache_table(catalog, [each for found in caches.values() for each in found], links),
        runs=_run_table(runs, links),
        tables=_set_table(root / TABLES, links),
    )
    return StartPage(html, links.files)


class _Links:
    """Relative addresses of files below a root; remembers those that it gave."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.files: dict[str, Path] = {}

    def to(self, path: Path) -> str:
        """Return the address of a file; "" if it does not exist."""
        if not path.is_file():
            return ""
        address = quote(str(path.relative_to(self._root)))
        self.files[address] = path
        return address


def _dataset_table(catalog: Catalog, caches: Mapping[str, Sequence[CacheSummary]], runs: pd.DataFrame) -> Rows:
    rows = []
    num_runs = runs["dataset"].value_counts()
    for name, entry in catalog.datasets.items():
        index_path = catalog.index_path(name)
        frames = read_table_if_intact(index_path)
        if frames is not None:
            found = coverage(frames, entry.rules)
            subjects = _of_expected(found.num_subjects, found.num_expected)
            tasks = _of_expected(found.num_tasks, found.num_expected_tasks)
            counts = [subjects, tasks, count_cell(len(frames)), Cell(utc_minute(index_path.stat().st_mtime))]
            state = "indexed" if found.is_complete else "indexed in part"
        else:
            missing = "not rendered" if entry.is_rendered else "raw data is missing"
            state = missing if entry.missing_folders() else "not refreshed"
            counts = [Cell("-")] * 4
        users = [count_cell(len(caches[name])), count_cell(int(num_runs.get(name, 0)))]
        rows.append([Cell(name), Cell(state), *counts, *users, Cell("rendered" if entry.is_rendered else entry.layout)])
    columns = ["data set", "state", "subjects", "tasks", "frames", "indexed at", "caches", "runs", "layout"]
    return columns, rows


def _of_expected(count: int, expected: int | None) -> Cell:
    return Cell(f"{count:,}" + (f" of {expected:,}" if expected else ""), count)


def _cache_table(catalog: Catalog, caches: Sequence[CacheSummary], links: _Links) -> Rows:
    rows = []
    for cache in caches:
        page = links.to(cache_page_path(catalog, cache.dataset, cache.fingerprint))
        published = "-" if cache.published_at is None else utc_minute(cache.published_at.timestamp())
        rows.append(
            [
                Cell(cache.fingerprint, link=page),
                Cell(cache.dataset),
                Cell(cache.state),
                Cell(f"{cache.weights} {cache.profile}"),
                count_cell(cache.num_frames),
                count_cell(cache.num_views),
                Cell(f"{cache.size_bytes / 1e6:,.0f}", cache.size_bytes),
                count_cell(cache.num_runs),
                Cell(published),
            ]
        )
    return ["cache", "data set", "state", "made with", "frames", "views", "MB", "runs", "published at"], rows


def _run_table(runs: pd.DataFrame, links: _Links) -> Rows:
    rows = []
    runs = runs.sort_values("age_s", kind="stable")
    for run in runs.astype(object).where(runs.notna(), None).to_dict("records"):
        state = "in training" if run["in_training"] else run["state"]
        folds = "-" if run["num_folds"] is None else f"{run['num_finished']}/{run['num_folds']}"
        low, high = run["low_percent"], run["high_percent"]
        interval = Cell("-") if low is None or high is None else Cell(f"{low:.1f} to {high:.1f}", low)
        rows.append(
            [
                Cell(run["run"], link=links.to(Path(run["folder"]) / REPORT_PAGE)),
                Cell(run["dataset"] or "-"),
                Cell(run["experiment"] or "-"),
                Cell("-") if run["seed"] is None else count_cell(run["seed"]),
                Cell(state),
                Cell(folds, run["num_finished"]),
                _percent(run["f1_percent"]),
                interval,
                Cell("-" if run["finished_at"] is None else utc_minute(run["finished_at"].timestamp())),
            ]
        )
    return ["run", "data set", "experiment", "seed", "state", "folds", "mean F1", "95 %", "finished at"], rows


def _percent(value: float | None) -> Cell:
    return number_cell(float("nan") if value is None else value)


def _set_table(folder: Path, links: _Links) -> Rows:
    """Return one row per table of a set that can be read."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        try:
            document = json.loads(path.read_bytes())
            members = document["rows"]
            scored = [row for row in members if row.get("f1_percent") is not None]
            best = max(scored, key=lambda row: row["f1_percent"], default=None)
            cells = [Cell(document["set"], link=links.to(path.with_suffix(".html"))), Cell(document["dataset"])]
            cells += [count_cell(len(members)), count_cell(sum(len(row["runs"]) for row in members))]
            cells += [Cell("-" if best is None else best["member"]), _percent(best and best["f1_percent"])]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.debug("%s is not on the start page: %s", path, error)
            continue
        rows.append([*cells, Cell(utc_minute(path.stat().st_mtime))])
    return ["set", "data set", "members", "runs", "highest mean F1", "F1", "written at"], rows

"""Where pages are: all below the runs root, so that they link to each other by relative addresses.

{runs}/index.html                                the start page
{runs}/RUN/report.html                           of a run
{runs}/tables/SET-DATASET.html                   of a set
{runs}/caches/DATASET-FINGERPRINT.html           of a cache
"""

from __future__ import annotations

from pathlib import Path

from pipeline.catalog import Catalog

START_PAGE, REPORT_PAGE, TABLES, CACHE_PAGES = "index.html", "report.html", "tables", "caches"


def cache_page_path(catalog: Catalog, dataset: str, fingerprint: str) -> Path:
    """Return where the page of a cache is written."""
    return catalog.roots.runs / CACHE_PAGES / f"{dataset}-{fingerprint}.html"

"""Write pages after what changed them; a page that cannot be written is a warning, and never an error of the job."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.catalog import load_catalog

if TYPE_CHECKING:
    from pipeline.refresh.job import RefreshJob

logger = logging.getLogger("fantrans")


def rewrite_start_page() -> Path | None:
    """Write the start page from what is on disk now; return its path, None if it could not be written."""
    from pipeline.report.start_page import write_start_page  # noqa: PLC0415 - only once the job is done

    try:
        return write_start_page(load_catalog())
    except Exception as error:  # whatever it is, the job itself has done its work
        logger.warning("the start page was not written: %s", error, exc_info=logger.isEnabledFor(logging.DEBUG))
        return None


def write_refreshed_page(job: RefreshJob) -> Path | None:
    """Write the page of the cache that a job has refreshed; None if it has none or could not be written."""
    if job.until != "extract":
        return None
    from pipeline.fingerprint import cache_fingerprint  # noqa: PLC0415 - as above
    from pipeline.report.cache_page import write_cache_page  # noqa: PLC0415

    try:
        folder = job.catalog.caches_folder(job.dataset) / cache_fingerprint(job.config, job.catalog)
        return write_cache_page(job.catalog, job.dataset, folder, is_quick=True)
    except Exception as error:
        logger.warning("the page of the cache was not written: %s", error, exc_info=logger.isEnabledFor(logging.DEBUG))
        return None

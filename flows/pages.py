"""Write pages after what changed them; a page that cannot be written is a warning, and never an error of the job."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.catalog import load_catalog

if TYPE_CHECKING:
    from pipeline.refresh.job import RefreshJob

logger = logging.getLogger("fantrans")


def rewrite_start_page(*, creates: bool = True) -> None:
    """Write the start page from what is on disk now. creates: whether to write it where there is none yet."""
    from pipeline.report.page_files import START_PAGE  # noqa: PLC0415 - only once the job is done
    from pipeline.report.start_page import write_start_page  # noqa: PLC0415

    try:
        catalog = load_catalog()
        if creates or (catalog.roots.runs / START_PAGE).is_file():
            with _without_warnings():
                write_start_page(catalog)
    except Exception as error:  # whatever it is, the job itself has done its work
        logger.warning("the start page was not written: %s", error, exc_info=logger.isEnabledFor(logging.DEBUG))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Log errors only, unless details are asked for: damaged runs and caches are on the page."""
    level = logger.level
    if level != logging.DEBUG:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def write_refreshed_page(job: RefreshJob) -> None:
    """Write the page of the cache that a job has refreshed, if it has one, and log its path."""
    if job.until != "extract":
        return
    from pipeline.fingerprint import cache_fingerprint  # noqa: PLC0415 - as above
    from pipeline.report.cache_page import write_cache_page  # noqa: PLC0415

    try:
        folder = job.catalog.caches_folder(job.dataset) / cache_fingerprint(job.config, job.catalog)
        path = write_cache_page(job.catalog, job.dataset, folder, is_quick=True)
        logger.info("report: %s", path.absolute())
    except Exception as error:
        logger.warning("the page of the cache was not written: %s", error, exc_info=logger.isEnabledFor(logging.DEBUG))

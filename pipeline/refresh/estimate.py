"""How many bytes crops and features take before any are written."""

from __future__ import annotations

import logging
import math

from pipeline import fingerprint
from pipeline.refresh.caches import free_bytes
from pipeline.refresh.job import RefreshJob, crop_format

logger = logging.getLogger("fantrans")

STORED_FRAC = {"exact": 1.354, "standard": 0.211, "compact": 0.060}
"""Stored bytes over those of the maps LF, H1 and H2 in fp16, by profile; measured, see docs/fidelity.md."""
_GATED_BY = "hm"
_FP16_BYTES = 2


def view_bytes(job: RefreshJob) -> int:
    """Return the bytes that one view of one frame takes in the job's profile."""
    shapes = fingerprint.map_shapes(job.catalog.get_weights(job.config.features.weights))
    num_values = sum(math.prod(shape) for name, shape in shapes.items() if name != _GATED_BY)
    return round(num_values * _FP16_BYTES * STORED_FRAC[job.config.features.profile])


def frame_bytes(job: RefreshJob) -> int:
    """Return the bytes that a frame takes as a crop and in all its views."""
    crop_bytes = sum(spec.row_bytes for spec in crop_format(job).arrays)  # stored as they are
    return crop_bytes + job.config.views.num_views * view_bytes(job)


def warn_if_full(job: RefreshJob, num_bytes: int, *, what: str) -> None:
    """Log a warning if the caches' disk has less free space than a stage is expected to write."""
    free = free_bytes(job.catalog.roots.cache)
    if num_bytes > free:
        logger.warning(
            "%s take about %s GB, and %s GB are free below %s; stop with Ctrl-C to choose another disk with "
            "FANTRANS_CACHE, fewer --views or --profile compact: what is computed until then is kept",
            what,
            f"{num_bytes / 1e9:,.1f}",
            f"{free / 1e9:,.1f}",
            job.catalog.roots.cache,
        )

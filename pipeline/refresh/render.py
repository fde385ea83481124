"""Rendered data sets of the catalog."""

from __future__ import annotations

import os

from pipeline.catalog import load_catalog
from pipeline.synthetic.dataset import write_dataset


def render_dataset(dataset: str, *, num_workers: int | None = None) -> None:
    """Render a data set of the catalog where it does not exist yet; nothing to do for one that is not rendered."""
    catalog = load_catalog()
    entry = catalog.dataset(dataset)
    if entry.rendered is None:
        return
    write_dataset(
        entry.root, layout=entry.layout, num_workers=num_workers or os.cpu_count() or 1, **entry.rendered.model_dump()
    )

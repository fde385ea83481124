"""Data sets as their owners ship them: raw layouts, the frame index, and frames as images.

A new layout is one file with a `LAYOUT`, and its entry here.
"""

from __future__ import annotations

from pipeline.datasets import bp4d, disfa
from pipeline.datasets.layout import Layout

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (bp4d.LAYOUT, disfa.LAYOUT)}

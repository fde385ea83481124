"""Raw layouts of data sets, the frame index, and the images of frames.

A new layout is one file with a `LAYOUT`, and its entry here.
"""

from __future__ import annotations

from pipeline.datasets import bp4d, disfa, table
from pipeline.datasets.layout import Layout

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (bp4d.LAYOUT, disfa.LAYOUT, table.LAYOUT)}

"""Loss curves as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotext

_COLOURS = ("red", "blue", "green", "magenta", "cyan", "orange")


def loss_chart(losses: Mapping[str, Sequence[float]], *, width: int, height: int = 14, is_coloured: bool) -> str:
    """Return a chart of losses per epoch, one curve per name, `width` characters wide.

    is_coloured: colours tell the curves apart, in ANSI sequences; otherwise each is drawn in the last letter of its
    name. Losses that are not finite are left out; without two finite ones in any curve, returns an empty text.
    """
    points = {
        name: [(epoch, loss) for epoch, loss in enumerate(values, 1) if math.isfinite(loss)]
        for name, values in losses.items()
    }
    drawn = {name: found for name, found in points.items() if len(found) > 1}
    if not drawn:
        return ""
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plot_size(width, height)
    plotext.theme("clear")
    for i, (name, found) in enumerate(drawn.items()):
        epochs, values = zip(*found, strict=True)
        marker, colour = ("braille", _COLOURS[i % len(_COLOURS)]) if is_coloured else (name[-1], None)
        plotext.plot(epochs, values, marker=marker, color=colour)
    last = max(epoch for found in drawn.values() for epoch, _ in found)
    first = min(epoch for found in drawn.values() for epoch, _ in found)
    plotext.xticks(sorted({first, *range(0, last + 1, max(1, round(last / 6)))[1:], last} - set(range(first))))
    text: str = plotext.build()
    plotext.clear_figure()
    return text if is_coloured else plotext.uncolorize(text)

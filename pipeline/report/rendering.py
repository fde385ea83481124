"""Pages from templates: one HTML file each that opens offline, with its data, charts and images inside.

`templates/base.html`, `parts.html`, `page.css` and `shared.js` are what all pages have in common. A page NAME adds
`NAME.html` and `NAME.js`. Charts are drawn by Plotly, whose script its package has.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, the number that it is sorted by, and the relative address that it links to."""

    text: str
    value: float | None = None
    link: str = ""


Rows = tuple[list[str], list[list[Cell]]]
"""Names of the columns, and the rows of a table."""


def number_cell(value: float, form: str = ".1f") -> Cell:
    """Return a cell with a number; "-" if it is undefined."""
    return Cell("-") if math.isnan(value) else Cell(f"{value:{form}}", float(value))


def count_cell(count: int) -> Cell:
    """Return a cell with a whole number."""
    return Cell(f"{count:,}", float(count))


def utc_minute(timestamp: float) -> str:
    """Return a time, in seconds since 1970, as text."""
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M} UTC"


def render_page(name: str, data: Mapping[str, Any], *, title: str, has_charts: bool = True, **content: Any) -> str:
    """Return the page NAME as HTML.

    data: numbers for its script, as JSON has them. has_charts: whether the page holds Plotly's script, 1.5 MB. content:
    what its template shows.
    """
    import jinja2  # noqa: PLC0415 - commands that write no page start without it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(f"{name}.html").render(
        **content,
        title=title,
        made_at=utc_minute(time.time()),
        version=version("fantrans"),
        data=as_json(data),
        plotly=_packed_plotly() if has_charts else "",
        script="".join((_TEMPLATES / file).read_text() for file in ("shared.js", f"{name}.js")),
        style=(_TEMPLATES / "page.css").read_text(),
    )


def _packed_plotly() -> str:
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - as above

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def as_json(data: Mapping[str, Any]) -> str:
    """Return JSON that may stand within a script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")

"""Long lists in one line of a log, an error or a report."""

from __future__ import annotations

from collections.abc import Iterable

MAX_LISTED = 50


def join_first(items: Iterable[str], limit: int = MAX_LISTED, *, separator: str = ", ") -> str:
    """Join the first `limit` items and the number of further ones: `join_first("abc", 2) == "a, b, and 1 more"`."""
    items = list(items)
    more = [f"and {len(items) - limit:,} more"] if len(items) > limit else []
    return separator.join([*items[:limit], *more])

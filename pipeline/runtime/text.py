"""Long lists, numbers and unknown names in one line of a log, an error or a report."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches

MAX_LISTED = 50


def join_first(items: Iterable[str], limit: int = MAX_LISTED, *, separator: str = ", ") -> str:
    """Join the first `limit` items and the number of further ones: `join_first("abc", 2) == "a, b, and 1 more"`."""
    items = list(items)
    more = [f"and {len(items) - limit:,} more"] if len(items) > limit else []
    return separator.join([*items[:limit], *more])


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `counted(1, "face") == "1 face"`, `counted(2000, "face") == "2,000 faces"`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def unknown_name(kind: str, name: str, known: Collection[str], *, where: str = "") -> str:
    """Return the sentence that a name does not exist, with the nearest of the known ones, if one is near.

    `unknown_name("data set", "bp4", ["bp4d"])` is "data set 'bp4' does not exist; did you mean 'bp4d'? known ones:
    bp4d". where: words after "does not exist".
    """
    near = nearest_name(name, known)
    meant = f"did you mean {near!r}? " if near is not None else ""
    return f"{kind} {name!r} does not exist{where}; {meant}known ones: {join_first(known, 20) or 'none'}"


def nearest_name(name: str, known: Collection[str]) -> str | None:
    """Return the known name that is most like `name`, None if none is like it."""
    by_case = {each.casefold(): each for each in known}
    found = get_close_matches(name.casefold(), by_case, n=1)
    return by_case[found[0]] if found else None


def age_in_words(age_s: float) -> str:
    """Return an age in its largest unit that fits twice: "45 min", "30 h", "12 d"."""
    for unit, size_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if age_s >= 2 * size_s:
            return f"{age_s / size_s:.0f} {unit}"
    return f"{age_s:.0f} s"

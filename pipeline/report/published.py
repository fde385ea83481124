"""The paper's numbers, as `published_f1.csv` lists them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pipeline.errors import ConfigError
from pipeline.experiments import ExperimentSet
from pipeline.runtime.text import unknown_name

PUBLISHED_FILE = Path(__file__).with_name("published_f1.csv")


def read_published(chosen: ExperimentSet, *, layout: str) -> pd.DataFrame:
    """Return the rows of a set's published table that were measured on the data set of a layout.

    Raises `ConfigError` if the set, or a member of it, names a table or a row that is not there.
    """
    published = pd.read_csv(PUBLISHED_FILE)
    _check_published(chosen, published)
    return published[(published["table"] == chosen.published_table) & (published["dataset"] == layout)]


def _check_published(chosen: ExperimentSet, published: pd.DataFrame) -> None:
    if chosen.published_table is None:
        return
    known = set(published.loc[published["table"] == chosen.published_table, "method"])
    if not known:
        raise ConfigError(
            f"{chosen.spec}: "
            + unknown_name("`published_table`", chosen.published_table, sorted(set(published["table"])))
        )
    for member in chosen.members:
        if member.published is not None and member.published not in known:
            raise ConfigError(
                f"{chosen.spec}: {chosen.published_table} has no row {member.published!r} for "
                f"{member.name}; known ones: {', '.join(sorted(known))}"
            )

"""The comparison of two runs, or of two members of sets with all their finished seeds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pipeline.catalog import Catalog, load_catalog
from pipeline.config import OwnHeadConfig
from pipeline.errors import ConfigError, DataError, StoreError, UsageError
from pipeline.experiments import Member, resolve, split_member
from pipeline.report.rows import Difference, Row, difference, read_row
from pipeline.report.training_chance import LENT_FREE
from pipeline.training.run_files import find_run, finished_folds
from pipeline.training.runs import Runs

logger = logging.getLogger("fantrans")


def compare_runs(
    ours: str,
    theirs: str,
    *,
    dataset: str | None = None,
    base: str | None = None,
    init_from: str | None = None,
    overrides: Sequence[str] = (),
) -> Difference:
    """Return the paired difference of two runs, or of two members with all their finished seeds.

    ours, theirs: runs (folder, or name below the runs root); with a data set, experiments or SET:MEMBER. The other
    arguments are those of `train_folds`, for experiments and members. Raises `UsageError` for an unknown run,
    `DataError` if nothing is finished, or if the two were not tested on the same frames and labels.
    """
    catalog = load_catalog()
    settings: dict[str, Any] = {"dataset": dataset, "base": base, "init_from": init_from, "overrides": overrides}
    rows = [_row_named(name, catalog, **settings) for name in (ours, theirs)]
    is_measured = sum(len(row.folders) - 1 for row in rows) >= LENT_FREE
    beside = [] if dataset is None or is_measured else _rows_beside((ours, theirs), catalog, **settings)
    return difference(*rows, beside=beside)


def _rows_beside(
    names: Sequence[str],
    catalog: Catalog,
    *,
    dataset: str,
    base: str | None,
    init_from: str | None,
    overrides: Sequence[str],
) -> list[Row]:
    """Return the rows of the sets whose members are compared: their runs help to tell how far trainings vary."""
    rows, runs = [], Runs(catalog, dataset, init_from=init_from)
    for set_name in dict.fromkeys(of_set for of_set, member in map(split_member, names) if member is not None):
        for member in resolve(catalog, dataset, set_name, base=base, overrides=overrides).members:
            try:
                rows.append(_read_finished(member, runs))
            except (StoreError, ConfigError, DataError) as error:
                logger.debug("%s: %s", member.name, error)  # it is not one of the two that are compared
    return list({row.folders: row for row in rows}.values())  # a run that two sets share counts once


def _row_named(
    name: str,
    catalog: Catalog,
    *,
    dataset: str | None,
    base: str | None,
    init_from: str | None,
    overrides: Sequence[str],
) -> Row:
    if dataset is None:
        folder = find_run(catalog, name)
        return read_row(name, [folder] if finished_folds(folder) else [], published=None)
    chosen = resolve(catalog, dataset, name, base=base, overrides=overrides)
    if len(chosen.members) > 1:
        raise UsageError(f"{name} has {len(chosen.members)} members; pass one, such as {name}:{chosen.members[0].name}")
    member = chosen.members[0]._replace(name=name)
    row, head = read_member(member, Runs(catalog, dataset, init_from=init_from)), member.experiments[0].head
    if row.values is None and isinstance(head, OwnHeadConfig):
        raise DataError(
            f"no run of {name} with {head.class_} as it is now is finished; train it, or compare runs of an older "
            "source by their names (`fantrans runs ls`)"
        )
    return row


def read_member(member: Member, runs: Runs) -> Row:
    """Return the row of a member's finished runs; without runs, and with a warning, if its cache is missing."""
    try:
        return _read_finished(member, runs)
    except (StoreError, ConfigError) as error:  # the cache of one row may be missing
        logger.warning("%s: %s", member.name, error)
        return read_row(member.name, [], published=member.published)


def _read_finished(member: Member, runs: Runs) -> Row:
    made = [runs.resolve(experiment) for experiment in member.experiments]
    parts = member.experiments[0].parts
    return read_row(
        member.name, [run.folder for run in made if run.is_finished], published=member.published, parts=parts
    )

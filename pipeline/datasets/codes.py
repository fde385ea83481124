"""Read tables of integer codes; any other cell is an error, so that it never becomes a label."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import DataError


def read_codes(path: Path, *, names: list[str | int] | None = None) -> pd.DataFrame:
    """Read a comma-separated table, int64, with its own header or, if it has none, with `names`.

    Raises `DataError` with the line of a cell that is missing or not a whole number, or for a file that is not a table.
    """
    header = None if names else 0
    with suppress(ValueError, OverflowError):  # five times as fast, for a table without faults
        return pd.read_csv(path, names=names, header=header, index_col=False, dtype=np.int64)
    try:
        cells = pd.read_csv(path, names=names, header=header, index_col=False, dtype=str)
    except ValueError as error:  # empty, ragged, or not text
        fault = " ".join(str(error).split())
        raise DataError(
            f"{path} is not a table of comma-separated whole numbers: {fault}; fetch the file again"
        ) from None
    numbers: pd.DataFrame = cells.apply(pd.to_numeric, errors="coerce").astype(float)
    wrong = np.argwhere((numbers.isna() | (numbers % 1 != 0)).to_numpy())
    if len(wrong):
        row, column = wrong[0]
        found = cells.iloc[row, column]
        raise DataError(
            f"{path}, line {row + (1 if names else 2)}, column {cells.columns[column]}: expected a whole number, found "
            f"{'nothing' if pd.isna(found) else repr(found)}; fix the line"
        )
    return numbers.astype(np.int64)

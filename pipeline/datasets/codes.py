"""Read tables of integer codes; any other cell is an error, so that it never becomes a label."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import DataError
from pipeline.runtime.atomic import open_regular

logger = logging.getLogger("fantrans")

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(?:\.0*)?")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}


def read_codes(path: Path, *, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a comma-separated table, int64, with its own header or, if it has none, with `names`.

    The table's index is the 1-based line of each row. Raises `DataError` with the line of a row of another length, of
    a cell that is missing or not a whole number, for another separator, or for a file that is not a table.
    """
    with open_regular(path) as file:
        data = file.read()
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise _not_a_table(path, "it is not UTF-8 text") from None
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    if not numbers:
        raise _not_a_table(path, "it is empty")
    first = lines[numbers[0] - 1]
    if "\0" in first:
        raise _not_a_table(path, "it is not text")
    if "," not in first:
        for mark, word in _SEPARATORS.items():
            if mark in first.strip():
                raise DataError(f"{path} separates its values by {word}; expected commas: save the file again as CSV")
    header = list(names) if names is not None else _cells(first)
    if "" in header:
        raise DataError(
            f"{path}, line {numbers[0]}: column {header.index('') + 1} has no heading; name it (`occluded` for a "
            "column of occlusion flags)"
        )
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path}, line {numbers[0]}: two columns are named {twice}; expected each once")
    rows = numbers if names is not None else numbers[1:]
    if not rows:
        raise _not_a_table(path, "it has a header and no rows")
    values = _read_fast([lines[number - 1] for number in rows], len(header))
    if values is None:
        values = _read_strictly(path, [(number, lines[number - 1]) for number in rows], header)
    return pd.DataFrame(values, columns=header, index=pd.Index(rows, name="line"))


def _read_fast(lines: Sequence[str], num_columns: int) -> np.ndarray | None:
    """Return the values of a table without faults; None where each cell must be read on its own."""
    if not lines or {line.count(",") for line in lines} != {num_columns - 1}:
        return None
    try:
        return pd.read_csv(io.StringIO("\n".join(lines)), header=None, dtype=np.int64).to_numpy()
    except (ValueError, OverflowError):
        return None


def _read_strictly(path: Path, lines: Sequence[tuple[int, str]], header: Sequence[str]) -> np.ndarray:
    values = np.zeros((len(lines), len(header)), np.int64)
    rows = [(number, _cells(line)) for number, line in lines]
    lengths = {len(cells) for _, cells in rows}
    for row, (number, cells) in enumerate(rows):
        if len(cells) != len(header):
            has_flags = lengths == {len(header) + 1}
            hint = "name the last column in the header (`occluded` for flags)" if has_flags else "fix the line"
            raise DataError(f"{path}, line {number}: expected {len(header)} values, found {len(cells)}; {hint}")
        for column, cell in enumerate(cells):
            if not _WHOLE_NUMBER.fullmatch(cell):
                raise DataError(
                    f"{path}, line {number}, column {header[column]}: expected a whole number, found "
                    f"{repr(cell) if cell else 'nothing'}; fix the line"
                )
            values[row, column] = int(cell.partition(".")[0])
    return values


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]


def _not_a_table(path: Path, fault: str) -> DataError:
    return DataError(f"{path} is not a table of comma-separated whole numbers: {fault}; fetch the file again")


def check_frames(path: Path, frames: pd.Series) -> None:
    """Raise `DataError` for a frame number below 1 or one that appears twice; the index is the line of each row."""
    below = frames[frames < 1]
    if len(below):
        raise DataError(
            f"{path}, line {below.index[0]}: frame {below.iloc[0]}; frame numbers start at 1, and labels that start at "
            "0 would get the image after their own: add 1 to all"
        )
    twice = frames[frames.duplicated(keep=False)]
    if len(twice):
        frame = twice.iloc[0]
        first, second = twice.index[twice == frame][:2]
        raise DataError(
            f"{path} codes a frame twice: lines {first} and {second} have frame {frame}; remove one of them"
        )


class OddCodes:
    """Counts codes that are not among the known ones, and so become unknown labels; logs them once."""

    def __init__(self, known: Sequence[int]) -> None:
        self._known, self._count, self._num_files, self._first = known, 0, 0, ""

    def add(self, path: Path, codes: pd.DataFrame) -> None:
        """Count the codes of a file; the index is the line of each row."""
        is_odd = ~np.isin(codes.to_numpy(), self._known)
        if not is_odd.any():
            return
        row, column = np.argwhere(is_odd)[0]
        if not self._count:
            self._first = f"{path}, line {codes.index[row]}, AU {codes.columns[column]}: {codes.iloc[row, column]}"
        self._count += int(is_odd.sum())
        self._num_files += 1

    def log(self, kind: str) -> None:
        """Log how many there are, and the first of them."""
        if self._count:
            known = f"{', '.join(map(str, self._known[:-1]))} or {self._known[-1]}"
            logger.warning(
                "%s %s in %d file(s) are not %s, and count as unknown; the first: %s",
                f"{self._count:,}",
                kind,
                self._num_files,
                known,
                self._first,
            )

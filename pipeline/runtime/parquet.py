"""Read Parquet."""

from __future__ import annotations

import pandas as pd


def parse_parquet(content: bytes) -> pd.DataFrame:
    """Return the table of a Parquet file, as `pandas.read_parquet` does, but on this thread alone.

    A thread of pyarrow that still starts when a process ends may abort it (github.com/apache/arrow, issue 34314).
    Raises pyarrow's `ValueError` or `OSError` for a damaged file.
    """
    import pyarrow as pa  # noqa: PLC0415 - most commands read no table
    import pyarrow.parquet as pq  # noqa: PLC0415

    with pq.ParquetFile(pa.BufferReader(content)) as file:
        table: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    return table

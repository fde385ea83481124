import subprocess
import sys

import pandas as pd

from pipeline.runtime.parquet import parse_parquet

COUNT_THREADS = """
import sys
from pathlib import Path
import pyarrow.parquet
from pipeline.runtime.parquet import parse_parquet

threads = Path("/proc/self/task")
before = len(list(threads.iterdir()))
parse_parquet(Path(sys.argv[1]).read_bytes())
print(len(list(threads.iterdir())) - before)
"""


def test_a_table_is_that_of_pandas_and_starts_no_thread(tmp_path):
    columns = {"name": ["a", None], "au": pd.array([1, None], "Int8"), "box": [0.5, 1.5], "time": pd.Timestamp(0)}
    table, path = pd.DataFrame(columns), tmp_path / "table.parquet"
    table.to_parquet(path)
    pd.testing.assert_frame_equal(parse_parquet(path.read_bytes()), pd.read_parquet(path))
    words = (sys.executable, "-c", COUNT_THREADS, path)
    assert int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) == 0

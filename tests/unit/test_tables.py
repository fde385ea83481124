import pandas as pd
import pytest

from pipeline.errors import DataError
from pipeline.tables import read_record, read_table, read_table_if_intact, write_table


def test_tables_round_trip_and_a_foreign_one_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(path, pd.DataFrame({"a": [1]}))
    assert read_table(path, columns=("a",), made_by="make it")["a"].tolist() == [1]
    with pytest.raises(DataError, match="lacks the columns b, c; run `make it`"):
        read_table(path, columns=("a", "b", "c"), made_by="make it")


def test_a_table_without_a_schema_has_the_bytes_of_every_version(tmp_path):
    """The hash of the frame index is part of a run's name, so no version may stand in it."""
    table = pd.DataFrame({"a": [1], "b": ["x"]})
    write_table(tmp_path / "ours.parquet", table)
    table.to_parquet(tmp_path / "pandas.parquet", index=False)
    assert (tmp_path / "ours.parquet").read_bytes() == (tmp_path / "pandas.parquet").read_bytes()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 and not a table PAR1"])
def test_a_damaged_table_is_refused_or_rebuilt(tmp_path, caplog, content):
    path = tmp_path / "t.parquet"
    assert read_table_if_intact(path) is None
    assert not caplog.messages
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t.parquet is damaged; delete it, and run `make it` to rebuild it"):
        read_table(path, columns=("a",), made_by="make it")
    assert read_table_if_intact(path) is None
    assert caplog.messages == [f"{path} is damaged and will be rebuilt"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}'])
def test_a_damaged_record_is_refused(tmp_path, content):
    path = tmp_path / "run.json"
    with pytest.raises(DataError, match=r"run.json does not exist; run `make it` to create it"):
        read_record(path, keys=("a", "b"), made_by="make it")
    path.write_text(content)
    with pytest.raises(DataError, match=r"run.json is damaged: expected JSON with a, b; delete it, and run `make it`"):
        read_record(path, keys=("a", "b"), made_by="make it")

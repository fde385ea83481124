import json
import logging
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.errors import DataError, WriteError
from pipeline.runtime import progress
from pipeline.runtime.atomic import (
    file_sha256,
    write_atomically,
    write_bytes_atomically,
    write_json,
    write_safetensors,
)
from pipeline.tables import read_record, read_table, read_table_if_intact, write_table


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "folder" / "value"
    write_bytes_atomically(path, b"old")

    def fail(temp):
        temp.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(WriteError, match="value cannot be written: disk full; free space or fix permissions"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [found.name for found in path.parent.iterdir()] == ["value"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "value"
    write_bytes_atomically(path, b"old")
    script = (
        "import sys, time, pathlib; from pipeline.runtime.atomic import write_atomically\n"
        "def slow(temp):\n    temp.write_bytes(b'half'); print('writing', flush=True); time.sleep(60)\n"
        "write_atomically(pathlib.Path(sys.argv[1]), slow)"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_a_document_is_indented_json(tmp_path):
    write_json(tmp_path / "folder/a.json", {"b": [1, None]})
    assert (tmp_path / "folder/a.json").read_bytes() == json.dumps({"b": [1, None]}, indent=2).encode()


def test_weights_are_stored_as_given_or_in_half_precision(tmp_path):
    state = {"w": torch.rand(4, 3).t().requires_grad_(), "num_steps": torch.tensor(3)}
    write_safetensors(tmp_path / "a", state, metadata={"of": "test"})
    write_safetensors(tmp_path / "b", state, half=True)
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"of": "test"}
        assert torch.equal(file.get_tensor("w"), state["w"])
    half = load_file(tmp_path / "b")
    assert torch.equal(half["w"], state["w"].half())
    assert half["num_steps"].dtype == torch.int64
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert state["w"].dtype == torch.float32


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_tables_round_trip_and_a_foreign_one_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(path, pd.DataFrame({"a": [1]}))
    assert read_table(path, columns=("a",), made_by="make it")["a"].tolist() == [1]
    with pytest.raises(DataError, match="lacks the columns b, c; run `make it`"):
        read_table(path, columns=("a", "b", "c"), made_by="make it")


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


def test_a_log_gets_rate_and_time_left(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    with (
        caplog.at_level(logging.INFO, logger="fantrans"),
        progress.track("crop", total=4, unit="frames") as on_progress,
    ):
        for _ in range(4):
            time.sleep(0.01)
            on_progress(1)
    assert "crop: 1 of 4 frames" in caplog.messages[0]
    assert "s left" in caplog.messages[0]
    assert caplog.messages[-1].startswith("crop: 4 frames in")


def test_a_log_has_a_line_for_each_named_piece_and_a_listener_is_called_from_any_thread(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    reported = []

    def listener(description, percent):
        reported.append((description, percent))

    with (
        progress.progress_listener(listener),
        progress.track("extract", total=8, unit="views", num_before=2) as on_progress,
    ):
        worker = threading.Thread(target=on_progress, args=(3, "block 7"))
        with caplog.at_level(logging.INFO, logger="fantrans"):
            worker.start()
            worker.join()
        on_progress(3)
    assert caplog.messages[0].startswith("extract: block 7; 5 of 8 views, ")
    assert reported == [("extract", 25.0), ("extract", 62.5), ("extract", 100.0), ("extract", 100.0)]
    with progress.track("without a listener", total=1, unit="views") as on_progress:
        on_progress(1)
    assert len(reported) == 4

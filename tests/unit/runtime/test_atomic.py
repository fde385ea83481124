import signal
import subprocess
import sys

import pytest

from pipeline.errors import WriteError
from pipeline.runtime.atomic import file_sha256, write_atomically, write_bytes_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "folder" / "value"
    write_bytes_atomically(path, b"old")

    def fail(temp):
        temp.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(WriteError, match="value cannot be written: disk full; fix the place and run this again"):
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


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")

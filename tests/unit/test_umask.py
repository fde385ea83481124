"""Everything that is written has the permissions that the umask gives: colleagues read what a group shares.

ONNX: tests/integration/test_onnx.py.
"""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from pipeline.cache.hdf5 import export_hdf5
from pipeline.runtime.atomic import write_atomically
from pipeline.runtime.checkpoint import Checkpoint
from tests.unit import small_runs


@pytest.fixture(params=[0o022, 0o027])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    """Permissions of everything below a folder, by its path."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


def test_every_written_file_has_the_permissions_of_the_umask(tmp_path, umask):
    _, cache = small_runs.make_cache(tmp_path)
    small_runs.train_fold(small_runs.make_run(tmp_path), "P1")
    export_hdf5(cache, tmp_path / "hdf5")
    Checkpoint(tmp_path / "checkpoint.pt", {}, head=torch.nn.Linear(2, 2)).save(1)
    write_atomically(tmp_path / "private.safetensors", lambda temp: save_file({"a": torch.ones(2)}, temp))
    found = modes(tmp_path)
    kinds = {path.rpartition(".")[2] for path in found}
    assert {"h5", "json", "lock", "parquet", "pt", "safetensors"} <= kinds
    assert any(path.endswith("c.0.0.0.0") for path in found)
    expected = {0o666 & ~umask, 0o777 & ~umask}
    assert {path: oct(mode) for path, mode in found.items() if mode not in expected} == {}

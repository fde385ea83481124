"""`fantrans init`: a project that the other commands use."""

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipeline.catalog import CATALOG_FILE, load_catalog
from pipeline.errors import ConfigError
from pipeline.experiments import load_experiment


def init(folder):
    result = CliRunner().invoke(app, ["init", str(folder)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_a_new_project_has_the_data_sets_and_weights_of_the_shipped_catalog(tmp_path, monkeypatch):
    monkeypatch.delenv("FANTRANS_CATALOG", raising=False)
    folder = tmp_path / "parent/mine"
    printed = init(folder)
    assert printed.endswith(f"next: cd {folder} && fantrans demo --quick\n")
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == {"data_catalog.yaml", "configs/example.yaml", "README.md", ".gitignore"}
    assert all(str(folder / name) in printed for name in written)
    monkeypatch.chdir(folder / "configs")
    mine, shipped = load_catalog(), load_catalog(CATALOG_FILE)
    assert list(mine.datasets) == list(shipped.datasets)
    assert mine.weights == shipped.weights
    assert mine.roots.runs == folder / "var/runs"
    example, base = load_experiment("example"), load_experiment("fan_trans")
    assert example.cache == base.cache
    assert example.head != base.head


def test_a_folder_with_anything_in_it_is_refused(tmp_path):
    init(tmp_path)  # empty: fine
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for taken in (tmp_path, tmp_path / "README.md"):
        with pytest.raises(ConfigError, match="is not an empty folder; name a new one"):
            init(taken)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

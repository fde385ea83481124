"""Where catalog and experiments are found: in a checkout, in a project, and in an installed package."""

import hashlib
from pathlib import Path

import pytest

from pipeline import catalog as catalog_module
from pipeline import project
from pipeline.catalog import CATALOG_FILE, load_catalog
from pipeline.errors import CatalogError, ConfigError
from pipeline.experiments import load_experiment
from pipeline.project import expand_home, find_catalog, find_experiment, project_file, project_folder, shipped_file

PROJECT = "roots: {work: w, cache: c, runs: r}\ndatasets: {}\n"


@pytest.fixture(autouse=True)
def outside(tmp_path, monkeypatch):
    """A working folder without a catalog, in it or above it."""
    monkeypatch.delenv("FANTRANS_CATALOG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The packages as a wheel installs them: the shipped files are in a folder of their own."""
    site = tmp_path / "site-packages"
    shipped = site / "pipeline/shipped"
    shipped.mkdir(parents=True)
    (shipped / "data_catalog.yaml").write_bytes(CATALOG_FILE.read_bytes())
    (shipped / "configs").symlink_to(shipped_file("configs"))
    (site / "models").symlink_to(project.PACKAGES_FOLDER / "models")
    monkeypatch.setattr(project, "_INSTALLED", shipped)
    monkeypatch.setattr(project, "SHIPPED_FOLDER", shipped)
    monkeypatch.setattr(catalog_module, "CATALOG_FILE", shipped / "data_catalog.yaml")
    monkeypatch.setattr(catalog_module, "PACKAGES_FOLDER", site)
    return site


def make_project(folder, text=PROJECT):
    (folder / "configs").mkdir(parents=True)
    (folder / "data_catalog.yaml").write_text(text)
    return folder


def test_the_nearest_catalog_above_the_working_folder_is_used(tmp_path, monkeypatch):
    assert find_catalog() == CATALOG_FILE
    outer, inner = make_project(tmp_path / "outer"), make_project(tmp_path / "outer/a/inner")
    (inner / "b").mkdir()
    for folder, found in ((inner / "b", inner), (inner, inner), (outer / "a", outer)):
        monkeypatch.chdir(folder)
        assert find_catalog() == found / "data_catalog.yaml"
        assert project_folder() == found
        assert load_catalog().roots.work == found / "w"
    monkeypatch.setenv("FANTRANS_CATALOG", str(inner / "data_catalog.yaml"))
    assert project_folder() == inner
    monkeypatch.setenv("FANTRANS_CATALOG", "")
    assert project_folder() == outer
    monkeypatch.setenv("FANTRANS_CATALOG", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(CatalogError, match=r"nowhere\.yaml does not exist"):
        load_catalog()


def test_an_installed_package_writes_below_the_working_folder(installed, tmp_path):
    catalog = load_catalog()
    assert catalog.roots.runs == tmp_path / "var/runs"
    assert catalog.get_dataset("demo_quick").root == tmp_path / "var/data/demo_quick"
    assert project_folder() == tmp_path
    weights = catalog.get_weights("fan-64")
    assert weights.path == installed / "models/weights/fan-64.safetensors"
    assert weights.checked_path()
    assert weights.codec.checked_path()


def test_a_project_of_an_installed_package_has_its_own_folders_and_the_shipped_weights(
    installed, tmp_path, monkeypatch
):
    monkeypatch.chdir(make_project(tmp_path / "mine"))
    catalog = load_catalog()
    assert catalog.roots.runs == tmp_path / "mine/r"
    assert catalog.get_weights("fan-128").path == installed / "models/weights/fan-128.safetensors"
    assert catalog.find_faults() == []


def test_a_catalog_adds_weights_and_replaces_them_by_name(tmp_path, monkeypatch):
    entry = f"{{path: mine.safetensors, sha256: {hashlib.sha256(b'x').hexdigest()}, family: resnet18}}"
    folder = make_project(tmp_path / "mine", PROJECT + f"weights: {{resnet18-rendered: {entry}, other: {entry}}}\n")
    (folder / "mine.safetensors").write_bytes(b"x")
    monkeypatch.chdir(folder)
    catalog = load_catalog()
    for name in ("resnet18-rendered", "other"):
        assert catalog.get_weights(name).checked_path() == folder / "mine.safetensors"
    assert catalog.get_weights("fan-64") == load_catalog(CATALOG_FILE).get_weights("fan-64")


def test_experiments_of_the_project_come_before_the_shipped_ones(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "mine")
    (folder / "configs/demo.yaml").write_text("train: {num_epochs: 99}")
    (folder / "configs/short.yaml").write_text("base: demo")
    monkeypatch.chdir(folder)
    assert find_experiment("demo") == folder / "configs/demo.yaml"
    assert find_experiment("table1") == shipped_file("configs/table1.yaml")
    assert load_experiment("short").train.num_epochs == 99
    (folder / "configs/demo.yaml").unlink()
    assert load_experiment("short").train == load_experiment("demo").train
    with pytest.raises(ConfigError) as caught:
        find_experiment("dmo")
    where = f"{folder / 'configs'} or {shipped_file('configs')}"
    expected = f"'dmo' does not exist in {where}; did you mean 'demo'? known ones: best, demo,"
    assert expected in str(caught.value)
    assert "settings, short, smoke" in str(caught.value)


def test_a_file_of_the_project_comes_before_the_shipped_one(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "mine")
    monkeypatch.chdir(folder)
    assert project_file("prefect.yaml") == shipped_file("prefect.yaml")
    (folder / "prefect.yaml").touch()
    assert project_file("prefect.yaml") == folder / "prefect.yaml"


def test_the_home_of_an_unknown_user_stays_as_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    paths = ("~/faces", "~no-such-user/faces", "faces/~", "~")
    assert [str(expand_home(Path(path))) for path in paths] == ["/home/ada/faces", *paths[1:3], "/home/ada"]

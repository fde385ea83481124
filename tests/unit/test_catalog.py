import hashlib
from pathlib import Path

import pytest

from pipeline.catalog import CATALOG_FILE, load_catalog
from pipeline.errors import CatalogError, WeightsError

TEXT = """
roots: {work: "${oc.env:WORK,w}", cache: c, runs: r}
datasets:
  faces: {root: "${oc.env:FACES_ROOT,raw}", layout: bp4d, protocol: bp4d}
weights:
  fan: {path: fan.safetensors, sha256: SHA, family: fan, width: 64, num_stacks: 2, pooling: avg}
"""


def write(folder: Path, text: str = TEXT, data: bytes = b"tensors") -> Path:
    (folder / "fan.safetensors").write_bytes(data)
    path = folder / "data_catalog.yaml"
    path.write_text(text.replace("SHA", hashlib.sha256(b"tensors").hexdigest()))
    return path


def test_shipped_catalog_loads_and_its_weights_are_whole():
    catalog = load_catalog(CATALOG_FILE)
    assert {"bp4d", "disfa", "bp4d-synthetic"} <= set(catalog.datasets)
    for entry in catalog.weights.values():
        assert entry.checked_path().is_file()


def test_places_come_from_the_environment_or_stand_beside_the_catalog(tmp_path, monkeypatch):
    path = write(tmp_path)
    monkeypatch.setenv("WORK", "/elsewhere")
    catalog = load_catalog(path)
    assert catalog.roots.work == Path("/elsewhere")
    assert catalog.get_dataset("faces").root == tmp_path / "raw"
    assert catalog.caches_folder("faces") == tmp_path / "c" / "faces"
    assert catalog.crops_folder("faces") == Path("/elsewhere/faces/crops")
    assert catalog.index_path("faces") == Path("/elsewhere/faces/frames.parquet")
    monkeypatch.setenv("FANTRANS_CATALOG", str(path))
    monkeypatch.delenv("WORK")
    named = load_catalog()
    assert named.work_folder("faces") == tmp_path / "w" / "faces"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "layout: bp4d",
            "layout: bp5d",
            "is 'bp5d': did you mean 'bp4d'? expected one of bp4d",
        ),
        ("protocol: bp4d", "protocol: ck", "expected one of bp4d"),
        ("layout:", "layuot:", "unknown key `datasets.faces.layuot`; did you mean `layout`?"),
        (", num_stacks: 2", ", num_stacks: 2, widht: 3", "unknown key `weights.fan.widht`; did you mean `width`?"),
        ("layout: bp4d", "layout: disfa", "protocol bp4d does not fit layout disfa"),
        ("weights:", "weight:", "weight"),
        ("weights:\n", "weights:\n  fan: {}\n", "found duplicate key fan"),
        ("${oc.env:WORK,w}", "${oc.env:WORK}", "`roots.work`: variable WORK is not set"),
        ("${oc.env:WORK,w}", "${WORK:-w}", "the spelling ${WORK:-w} of a variable is now ${oc.env:WORK,w}; rewrite it"),
        ("pooling: avg", "pooling: mean", "pooling"),
        (", width: 64", "", "a fan needs width"),
    ],
)
def test_faults_are_one_sentence(tmp_path, old, new, sentence):
    assert old in TEXT
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, TEXT.replace(old, new, 1)))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_variable_does_not_name_the_project_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORK", "")
    with pytest.raises(
        CatalogError, match=r"`roots.work` is '': the path is empty; set the variable that it takes, or"
    ):
        load_catalog(write(tmp_path))


def test_unknown_names_list_the_known_ones(tmp_path):
    catalog = load_catalog(write(tmp_path))
    with pytest.raises(CatalogError, match="data set 'face' does not exist; did you mean 'faces'\\? known ones: faces"):
        catalog.get_dataset("face")
    with pytest.raises(CatalogError, match=r"known ones: .*fan-128.*, fan$"):
        catalog.get_weights("fun")
    with pytest.raises(CatalogError, match=r"catalog .* does not exist"):
        load_catalog(tmp_path / "nowhere.yaml")


def test_check_names_missing_folders_and_damaged_weights(tmp_path):
    catalog = load_catalog(write(tmp_path, data=b"tensorz"))
    faults = catalog.find_faults()
    assert len(faults) == 3
    assert "raw/BP4D-training does not exist" in faults[0]
    assert "fix `root` of faces" in faults[0]
    assert catalog.find_faults("faces")[:2] == faults[:2]
    assert "have sha256" in faults[2]
    with pytest.raises(WeightsError, match="have sha256"):
        catalog.get_weights("fan").checked_path()
    (tmp_path / "fan.safetensors").unlink()
    with pytest.raises(WeightsError, match="does not exist"):
        catalog.get_weights("fan").checked_path()


def test_rendered_entries_are_rendered_and_others_left_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "pipeline.synthetic.dataset.write_dataset", lambda out, **settings: asked.append((out, settings))
    )
    monkeypatch.setenv("DISFA_SYNTHETIC_ROOT", str(tmp_path))
    catalog = load_catalog(CATALOG_FILE)
    assert not catalog.get_dataset("disfa").is_rendered
    catalog.get_dataset("disfa").render(num_workers=3)
    assert asked == []
    entry = catalog.get_dataset("disfa-synthetic")
    assert entry.is_rendered
    entry.render(num_workers=3)
    assert asked == [(tmp_path, {"layout": "disfa", "num_workers": 3, **entry.rendered.model_dump()})]


def test_check_is_silent_when_all_is_there(tmp_path):
    for name in ("raw/BP4D-training", "raw/AUCoding/AU_OCC"):
        (tmp_path / name).mkdir(parents=True)
    assert load_catalog(write(tmp_path)).find_faults() == []


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", r"a\\b", r"a\nb", "", ".", "..", ".hidden", "-x", " x", "x "])
def test_a_name_that_would_leave_the_roots_or_cannot_be_typed_is_refused(tmp_path, name):
    with pytest.raises(CatalogError, match=r"`datasets` has the name '.*': the name becomes a folder"):
        load_catalog(write(tmp_path, TEXT.replace("  faces:", f'  "{name}":')))


@pytest.mark.parametrize("name", ["BP4D+ (2013)", "gesichter-\u00e4", "a.b_c", "[old] set"])
def test_other_names_are_folders_below_the_roots(tmp_path, name):
    catalog = load_catalog(write(tmp_path, TEXT.replace("  faces:", f'  "{name}":')))
    assert catalog.caches_folder(name) == tmp_path / "c" / name

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.catalog import CATALOG_FILE, load_catalog
from pipeline.errors import CatalogError, WeightsError, WeightsNotFoundError

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
        ("layout:", "layuot:", "unknown key `datasets.faces.layuot`; did you mean `datasets.faces.layout`?"),
        (", num_stacks: 2", ", num_stacks: 2, widht: 3", "key `weights.fan.widht`; did you mean `weights.fan.width`?"),
        ("layout: bp4d", "layout: disfa", "protocol bp4d does not fit layout disfa"),
        ("weights:", "weight:", "weight"),
        ("weights:\n", "weights:\n  fan: {}\n", "found duplicate key fan"),
        ("${oc.env:WORK,w}", "${oc.env:WORK}", "`roots.work`: variable WORK is not set"),
        ("${oc.env:WORK,w}", "${WORK:-w}", "the spelling ${WORK:-w} of a variable is now ${oc.env:WORK,w}; rewrite it"),
        ("pooling: avg", "pooling: mean", "pooling"),
        (", width: 64", "", "`weights.fan`: width is missing; a fan needs path, sha256, family, width, num_stacks"),
        (
            ", width: 64",
            "",
            "as in {path: fan.safetensors, sha256: 0f3a..., family: fan, width: 256, num_stacks: 2, poo",
        ),
        (
            "sha256: SHA, family: fan, ",
            "",
            "sha256, family are missing; an entry of weights needs path, sha256 and fami",
        ),
        (
            "SHA",
            "12345678",
            "`weights.fan.sha256` is 12345678: YAML reads these digits as a number; put them in",
        ),
        ("SHA", "123456e7", "put them in quotes"),
        ("SHA", "abcdefg1", "`weights.fan.sha256` is 'abcdefg1': expected the 64 hex digits of a sha256, or at least"),
        ("SHA", "abcdef1", "or at least its first 8"),
    ],
)
def test_faults_are_one_sentence(tmp_path, old, new, sentence):
    assert old in TEXT
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, TEXT.replace(old, new, 1)))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ("camera: right", "`camera` has no effect with layout bp4d; it belongs to layout disfa"),
        ("images_start: 1", "`images_start` has no effect with layout bp4d; it belongs to layout disfa"),
        ("folders: {videos: x}", "`folders.videos` is unknown to layout bp4d, which has images, intensities, labels"),
        ("frames_start: 0", "`frames_start` has no effect without `frames`"),
        ("leave_out: [5]", "`leave_out` names AU 5, which is not one of 1, 2, 4"),
        ("bad_frames: no", "bad_frames"),
        ("max_lost_frac: 2", "max_lost_frac"),
        ("table: {file: a.csv, aus: {1: a}}", "`table` has no effect with layout bp4d; it belongs to layout table"),
        ("frames: ''", "the path is empty"),
    ],
)
def test_keys_of_a_data_set_that_do_not_fit_are_refused(tmp_path, keys, sentence):
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, TEXT.replace("protocol: bp4d}", f"protocol: bp4d, {keys}}}")))
    assert sentence in str(caught.value)


def test_layout_table_needs_its_table_and_by_number_fits_no_other(tmp_path):
    for layout, sentence in (("table", "layout table needs `table`"), ("bp4d", "protocol by_number has no action")):
        text = TEXT.replace("layout: bp4d, protocol: bp4d", f"layout: {layout}, protocol: by_number")
        with pytest.raises(CatalogError, match=sentence):
            load_catalog(write(tmp_path, text))


def test_keys_change_the_rules_and_lists_stand_beside_the_catalog(tmp_path):
    keys = "frames: lists/a.txt, leave_out: [24], bad_frames: keep"
    entry = load_catalog(write(tmp_path, TEXT.replace("protocol: bp4d}", f"protocol: bp4d, {keys}}}"))).get_dataset(
        "faces"
    )
    assert entry.frames == (tmp_path / "lists/a.txt",)
    assert entry.rules.aus == (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23)
    text = TEXT.replace("layout: bp4d, protocol: bp4d", "layout: disfa, protocol: disfa, leave_out: [5]")
    rules = load_catalog(write(tmp_path, text)).get_dataset("faces").rules
    assert rules.aus == (1, 2, 4, 6, 9, 12, 25, 26), "AU 5 is coded, and not one of the protocol's"
    assert rules.is_bad_frame("SN002", 800)
    kept = load_catalog(write(tmp_path, text.replace("leave_out: [5]", "bad_frames: keep"))).get_dataset("faces").rules
    assert not kept.is_bad_frame("SN002", 800)


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


def test_check_names_missing_folders_and_weights_are_checked(tmp_path):
    catalog = load_catalog(write(tmp_path, data=b"tensorz"))
    faults = catalog.find_faults()
    assert len(faults) == 2
    assert "raw/BP4D-training does not exist" in faults[0]
    assert "fix `root` of faces" in faults[0]
    assert catalog.find_faults("faces") == faults
    with pytest.raises(WeightsError, match=r"fan.safetensors is not a file of weights"):
        catalog.get_weights("fan").checked_path()
    save_file({"a": torch.zeros(1)}, tmp_path / "fan.safetensors")
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


@pytest.mark.parametrize("change", [str.upper, lambda digits: digits[:8], lambda digits: digits[:9].upper()])
def test_a_sha256_may_be_in_capitals_or_its_first_digits(tmp_path, change):
    digits = hashlib.sha256(b"tensors").hexdigest()
    entry = load_catalog(write(tmp_path, TEXT.replace("SHA", change(digits)))).get_weights("fan")
    assert entry.checked_path() == tmp_path / "fan.safetensors"
    assert entry.full_sha256() == entry.recorded_sha256() == digits
    (tmp_path / "fan.safetensors").unlink()
    with pytest.raises(WeightsNotFoundError, match="does not exist"):
        entry.full_sha256()


def test_published_weights_that_are_not_added_are_fetched(tmp_path):
    with pytest.raises(CatalogError, match=r"'2dfan2' are published, not in the catalog; run `fantrans weights fetch"):
        load_catalog(write(tmp_path)).get_weights("2dfan2")


def test_the_catalogs_own_weights_replace_those_of_the_folder_which_replace_shipped_ones(tmp_path, monkeypatch):
    digits = hashlib.sha256(b"tensors").hexdigest()
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("fan", "fan-64"):
        entry = {
            "path": "x.safetensors",
            "sha256": digits,
            "family": "fan",
            "width": 32,
            "num_stacks": 3,
            "pooling": "max",
        }
        (folder / f"{name}.json").write_text(json.dumps(entry))
    monkeypatch.setenv("FANTRANS_WEIGHTS", str(folder))
    catalog = load_catalog(write(tmp_path))
    assert catalog.roots.weights == folder
    assert catalog.get_weights("fan").width == 64
    assert catalog.get_weights("fan-64").path == folder / "x.safetensors"
    assert catalog.get_weights("fan-128").width == 128
    assert load_catalog(CATALOG_FILE).get_weights("fan").path == folder / "x.safetensors"
    monkeypatch.delenv("FANTRANS_WEIGHTS")
    assert load_catalog(write(tmp_path)).roots.weights == tmp_path / "var/weights"
    monkeypatch.setenv("FANTRANS_WEIGHTS", str(folder))
    (folder / "fan.json").write_text('{"path": "x.safetensors"}')
    with pytest.raises(CatalogError, match=r"entry .*fan.json is damaged \(.*sha256, family are missing.*delete"):
        load_catalog(write(tmp_path))
    (folder / "fan.json").write_text("{")
    with pytest.raises(CatalogError, match=r"entry .*fan.json is damaged; delete it"):
        load_catalog(write(tmp_path))


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", r"a\\b", r"a\nb", "", ".", "..", ".hidden", "-x", " x", "x "])
def test_a_name_that_would_leave_the_roots_or_cannot_be_typed_is_refused(tmp_path, name):
    with pytest.raises(CatalogError, match=r"`datasets` has the name '.*': the name becomes a folder"):
        load_catalog(write(tmp_path, TEXT.replace("  faces:", f'  "{name}":')))


@pytest.mark.parametrize("name", ["BP4D+ (2013)", "gesichter-\u00e4", "a.b_c", "[old] set"])
def test_other_names_are_folders_below_the_roots(tmp_path, name):
    catalog = load_catalog(write(tmp_path, TEXT.replace("  faces:", f'  "{name}":')))
    assert catalog.caches_folder(name) == tmp_path / "c" / name

from pathlib import Path

import pandas as pd
import pytest

from pipeline.catalog import load_catalog
from pipeline.datasets import LAYOUTS
from pipeline.datasets.index import index_frames
from pipeline.datasets.layout import Layout
from pipeline.datasets.settings import DatasetSettings
from pipeline.errors import CatalogError, DataNotFoundError
from pipeline.protocols import PROTOCOLS
from pipeline.tables import FRAME_COLUMNS, au_column

CODES = Path("codes.csv")


def read_rows(raw, rules):
    root = raw.root
    table = pd.read_csv(root / raw.folder("labels") / CODES)
    frames = table[["subject", "task", "frame"]].copy()
    frames.insert(0, "frame_id", [f"{s}/{t}/{f}" for s, t, f in frames.itertuples(index=False)])
    frames["source_file"] = [f"images/{name}" if (root / "images" / name).is_file() else "" for name in table["image"]]
    frames["source_frame"] = -1
    return frames.join(table[[f"AU{au}" for au in rules.aus]].set_axis([au_column(au) for au in rules.aus], axis=1))


CSV = Layout(
    name="csv",
    folders=lambda _: {"images": (Path("images"),), "labels": (Path("labels"),)},
    index_rows=read_rows,
    label_files=lambda raw: [raw.folder("labels") / CODES],
    source_hint=lambda _, row: f"no image for {row['frame_id']}",
    source_pattern=Path("images/{image}"),
    has_intensity=False,
)


def write_catalog(folder: Path, *, protocol="rendered_bp4d", more=""):
    (folder / "catalog.yaml").write_text(
        "roots: {work: w, cache: c, runs: r}\nweights: {}\n"
        f"datasets: {{mine: {{root: raw, layout: csv, protocol: {protocol}{more}}}}}\n"
    )
    return folder / "catalog.yaml"


def test_a_third_layout_is_one_object_in_one_place(tmp_path, monkeypatch):
    path = write_catalog(tmp_path)
    with pytest.raises(CatalogError, match=r"`datasets.mine.layout` is 'csv': expected one of bp4d, disfa, table$"):
        load_catalog(path)
    monkeypatch.setitem(LAYOUTS, "csv", CSV)
    catalog = load_catalog(path)
    entry = catalog.get_dataset("mine")
    assert [str(each.relative_to(entry.root)) for each in entry.missing_folders()] == ["images", "labels"]
    assert "raw/images does not exist; unpack the data set there" in catalog.find_faults("mine")[0]
    with pytest.raises(DataNotFoundError, match="raw/images does not exist; run `fantrans catalog check`"):
        index_frames(entry.root, entry.raw_layout, entry.rules)

    aus = PROTOCOLS["rendered_bp4d"].aus
    for name in ("images", "labels"):
        (entry.root / name).mkdir(parents=True)
    (entry.root / "images/a.png").touch()
    lines = [f"S{i},talk,{7 - i},{'abc'[i]}.png" + f",{i % 2}" * len(aus) for i in range(3)]
    header = "subject,task,frame,image," + ",".join(f"AU{au}" for au in aus)
    (entry.root / "labels" / CODES).write_text("\n".join([header, *lines]))

    frames = index_frames(entry.root, entry.raw_layout, entry.rules)
    assert catalog.find_faults("mine") == []
    assert tuple(frames.columns) == (*FRAME_COLUMNS, *(au_column(au) for au in aus))
    assert frames["frame_id"].tolist() == ["S0/talk/7", "S1/talk/6", "S2/talk/5"]
    assert frames["source_file"].tolist() == ["images/a.png", "", ""]
    assert frames["part"].tolist() == ["P1", "P2", "P3"]
    assert frames["au_24"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"protocol": "disfa"}, "protocol disfa does not fit layout csv"),
        (
            {"more": ", rendered: {num_subjects: 1, num_tasks: 1, num_frames: 1, size_px: 64, seed: 0}"},
            "faces are not rendered in layout csv; remove `rendered`",
        ),
    ],
)
def test_an_entry_goes_with_its_layout(tmp_path, monkeypatch, settings, sentence):
    monkeypatch.setitem(LAYOUTS, "csv", CSV)
    with pytest.raises(CatalogError, match=sentence):
        load_catalog(write_catalog(tmp_path, **settings))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_goes_with_its_protocols(layout):
    assert LAYOUTS[layout.name] is layout
    if layout.rendered_protocol is not None:
        for name in (layout.name, layout.rendered_protocol):
            assert (PROTOCOLS[name].min_positive_intensity is not None) == layout.has_intensity
        folders = layout.folders(DatasetSettings())
        assert layout.source_pattern.parts[0] in {folder.parts[0] for paths in folders.values() for folder in paths}

import json
from urllib.parse import unquote

import pytest

from pipeline.report.page_files import TABLES, cache_page_path
from pipeline.report.start_page import read_start_page, write_start_page
from tests.unit.report.test_page import Reader
from tests.unit.small_project import NAME, make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start_page")
    catalog, cache = make_project(folder)
    page = cache_page_path(catalog, NAME, cache.fingerprint)
    tables = catalog.roots.runs / TABLES
    for path in (page, tables / "pair-small.html"):
        path.parent.mkdir()
        path.write_text("<!doctype html>")
    rows = [{"member": "a", "f1_percent": 51.5, "runs": ["x", "y"]}, {"member": "<b>", "f1_percent": None, "runs": []}]
    (tables / "pair-small.json").write_text(json.dumps({"set": "pair", "dataset": NAME, "rows": rows}))
    (tables / "damaged.json").write_text("{")
    return catalog, cache


def test_all_that_is_there_is_listed_and_linked_by_relative_addresses(project):
    catalog, cache = project
    path = write_start_page(catalog)
    assert path == catalog.roots.runs / "index.html"
    text = path.read_text()
    page = Reader(text)
    links = {address for address in page.addresses if not address.startswith(("#", "data:"))}
    assert links == {
        f"caches/{NAME}-{cache.fingerprint}.html", "small-b%20%26%20c/report.html", "tables/pair-small.html"
    }  # fmt: skip
    assert all((path.parent / unquote(link)).is_file() for link in links)
    assert read_start_page(catalog).files == {link: path.parent / unquote(link) for link in links}
    assert {NAME, "indexed", "36", "intact", "FAN 4 standard", "small-a", "started", "pair", "51.5"} <= set(page.texts)
    assert "<b>" not in text.partition("<main>")[2]
    assert len(text) < 50_000
    assert len(page.ids) == len(set(page.ids))
    assert "default-src 'none'" in text


def test_an_empty_project_names_the_next_commands(tmp_path, project):
    roots = project[0].roots.model_copy(update={name: tmp_path / name for name in ("work", "cache", "runs")})
    catalog = project[0].model_copy(update={"roots": roots})
    (tmp_path / "raw/BP4D-training").mkdir(parents=True)
    (tmp_path / "raw/AUCoding/AU_OCC").mkdir(parents=True)
    raw = catalog.datasets[NAME].model_copy(update={"root": tmp_path / "raw"})
    page = Reader(write_start_page(catalog.model_copy(update={"datasets": {NAME: raw}})).read_text())
    assert {"not refreshed", "No run yet: run fantrans train DATASET."} <= set(page.texts)
    page = Reader(read_start_page(catalog).html)
    assert "raw data is missing" in page.texts


def test_a_damaged_run_is_listed_as_damaged(tmp_path, project):
    roots = project[0].roots.model_copy(update={"runs": tmp_path})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text("{")
    page = Reader(read_start_page(project[0].model_copy(update={"roots": roots})).html)
    assert {"broken", "damaged"} <= set(page.texts)

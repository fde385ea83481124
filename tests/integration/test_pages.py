"""The start page and the page of a cache: in a real browser, from a server, and after the commands that change them.

Needs the Chromium of the system (`apt-get install chromium`), which no Python package brings.
"""

import http.client
import shutil
from threading import Thread

import pytest

from flows.page_server import PageServer
from pipeline.errors import UsageError
from pipeline.report.cache_page import write_cache_page
from pipeline.report.start_page import write_start_page
from tests.command_line import fantrans
from tests.integration.pages import CHROMIUM, check_layout, chromium, opener
from tests.unit.small_project import MISSED, NAME, SUBJECTS, TASKS, make_project

NO_EXPERIMENTS = "pipeline.refresh.caches.experiment_folders", list
"""None of them refreshes the cache, and looking at all takes seconds."""

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A catalog whose cache and start page are written, and which no test changes."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*NO_EXPERIMENTS)
        catalog, cache = make_project(folder)
        write_cache_page(catalog, NAME, cache.folder, shows_images=True)
        write_start_page(catalog)
    return catalog, cache


@pytest.fixture
def own(project, tmp_path, monkeypatch):
    """A copy of the project, which commands find; returns its folder."""
    folder = shutil.copytree(project[0].roots.runs.parent, tmp_path / "own")
    monkeypatch.setattr(*NO_EXPERIMENTS)
    monkeypatch.setenv("FANTRANS_CATALOG", str(folder / "data_catalog.yaml"))
    for name in ("RUNS", "CACHE", "WORK"):
        monkeypatch.delenv(f"FANTRANS_{name}", raising=False)
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def open_file(browser):
    with opener(browser) as opened:
        yield opened


@pytest.fixture
def open_cache(open_file, project):
    path = project[0].roots.runs / f"caches/{NAME}-{project[1].fingerprint}.html"
    return lambda **settings: open_file(path, wait_for="#chart-arrays .main-svg", **settings)


@pytest.fixture
def open_start(open_file, project):
    path = project[0].roots.runs / "index.html"
    return lambda **settings: open_file(path, wait_for="#table-runs", **settings)


# --- the page of a cache


def drawn(page, chart):
    return page.evaluate(f"document.getElementById('{chart}').data[0]")


@in_browser
def test_every_control_of_a_cache_changes_what_is_drawn(open_cache):
    page = open_cache()
    stages = page.evaluate("numbers.coverage.stages")
    for stage in ("with a box", "with an image", "cached"):
        page.select_option("#stage", stage)
        assert drawn(page, "chart-coverage")["z"] == stages[stage]["percent"]
    assert (drawn(page, "chart-coverage")["y"], drawn(page, "chart-coverage")["x"]) == (list(SUBJECTS), list(TASKS))
    histograms = page.evaluate("numbers.boxes.histograms")
    for measure, found in histograms.items():
        page.select_option("#box-measure", measure)
        assert drawn(page, "chart-boxes")["y"] == found["counts"]
    assert drawn(page, "chart-places")["z"] == page.evaluate("numbers.boxes.places.counts")
    assert drawn(page, "chart-fidelity")["y"] == ["lf", "h1", "h2"]
    page.select_option("#theme", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    page.locator("summary", has_text="By task").click()
    assert page.locator("#table-task").is_visible()
    page.locator("#table-subject thead th").last.get_by_role("button").press("Enter")
    assert page.locator("#table-subject tbody th").all_inner_texts()[-1] == "F001"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as SVG: Bytes of each stored array").click()
    assert download.value.path().read_text().startswith("<svg")


@in_browser
def test_missed_frames_are_shown_by_reason(open_cache):
    page = open_cache()
    for reason in ("no_face", "implausible: small", "unreadable", "no_source"):
        assert page.locator("#failures summary", has_text=reason).count() == 1
    shown = page.locator("#failures img:not([hidden])")
    assert shown.count() == 3
    assert all(page.evaluate("all('#failures img:not([hidden])').map((image) => image.naturalWidth > 0)"))
    assert page.locator("#failures .id").count() == len(MISSED)


@in_browser
@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1280, "light")])
def test_both_pages_are_accessible_and_no_wider_than_their_window(open_cache, open_start, width, theme):
    for opened in (open_cache, open_start):
        check_layout(opened(viewport={"width": width, "height": 844}, color_scheme=theme), width)


@in_browser
def test_both_pages_are_printed_without_controls_and_shown_without_scripts(browser, open_cache, open_start):
    for opened in (open_cache, open_start):
        page = opened(color_scheme="dark")
        assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
        page.emulate_media(media="print")
        assert not page.locator(".toolbar").is_visible()
        context = browser.new_context(java_script_enabled=False)
        plain = context.new_page()
        plain.goto(page.url)
        assert plain.locator("tbody tr").count() > 3
        assert "JavaScript" in plain.locator("noscript").inner_text()
        context.close()


# --- the start page


@in_browser
def test_the_start_page_filters_sorts_and_leads_to_the_other_pages(open_start, project):
    page = open_start()
    page.fill("#filter", "small-B")
    assert page.locator("tbody tr:not([hidden]) th").all_inner_texts() == ["small-b & c"]
    assert page.locator("#found").inner_text().startswith("1 of ")
    page.fill("#filter", "")
    assert page.locator("tbody tr[hidden]").count() == 0
    names = page.locator("#table-runs tbody th")
    page.locator("#table-runs thead th").first.get_by_role("button").click()
    assert names.all_inner_texts() == ["small-b & c", "small-a"]
    address = page.locator("#table-caches a").get_attribute("href")
    assert (project[0].roots.runs / address).is_file()


# --- the server


@pytest.fixture
def server(project):
    with PageServer(project[0], 0) as started:
        thread = Thread(target=started.serve_forever)
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def answer(server, path, *, host=None, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers={"Host": host} if host else {})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def test_the_server_answers_with_the_start_page_and_what_it_links_to(server, project):
    catalog, cache = project
    status, body = answer(server, "/")
    assert status == 200
    assert cache.fingerprint.encode() in body
    path = f"/caches/{NAME}-{cache.fingerprint}.html"
    assert answer(server, path) == (200, (catalog.roots.runs / path[1:]).read_bytes())
    assert answer(server, "/small-b%20%26%20c/report.html")[0] == 200
    assert answer(server, "/index.html", method="HEAD") == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/small-a/run.json",
        "/caches/",
        "/../data_catalog.yaml",
        "/%2e%2e/data_catalog.yaml",
        "/small-a/../../raw",
        "//etc/passwd",
    ],
)
def test_the_server_answers_with_nothing_else(server, path):
    assert answer(server, path)[0] == 404


def test_a_link_that_leaves_the_runs_root_is_not_followed_and_other_names_are_refused(project, tmp_path):
    catalog = project[0]
    roots = catalog.roots.model_copy(update={"runs": tmp_path / "runs"})
    shutil.copytree(catalog.roots.runs, roots.runs)
    report = roots.runs / "small-b & c/report.html"
    report.unlink()
    (tmp_path / "secret.html").write_text("secret")
    report.symlink_to(tmp_path / "secret.html")
    with PageServer(catalog.model_copy(update={"roots": roots}), 0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        assert answer(server, "/small-b%20%26%20c/report.html")[0] == 404
        assert answer(server, "/", host="example.org")[0] == 403
        assert answer(server, "/", host="localhost:9000")[0] == 200
        with pytest.raises(
            UsageError, match=rf"port {server.server_port} cannot be used: .*; choose another with --port"
        ):
            PageServer(catalog, server.server_port)
        server.shutdown()
        thread.join()


# --- commands


def test_page_and_cache_report_print_their_path_and_open_it(own, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or True)
    for words, path in (
        (("page",), own / "runs/index.html"),
        (("cache", "report", NAME), next((own / "runs/caches").glob("*.html"))),
    ):
        path.unlink()
        ended = fantrans(*words, "--open")
        assert (ended.status, ended.out.splitlines()[-1].partition(": ")[2]) == (0, str(path)), ended.err
        assert opened.pop() == path.as_uri()
    assert "--port has no effect without --serve" in fantrans("page", "--port", 1).err


def test_commands_that_change_something_write_the_start_page_again(own):
    page = own / "runs/index.html"
    assert "small-a" in page.read_text()
    assert fantrans("runs", "rm", "small-a", "--dry-run").status == 0
    page.write_text("old")
    assert fantrans("runs", "rm", "small-a", "--dry-run").status == 0
    assert fantrans("runs", "ls").status == 0
    assert page.read_text() == "old"
    assert fantrans("-q", "runs", "rm", "small-a", "--yes").status == 0
    assert "small-b &amp; c" in page.read_text()
    assert "small-a" not in page.read_text()
    (report,) = (own / "runs/caches").glob("*.html")
    removed = fantrans("cache", "rm", NAME, report.stem.rpartition("-")[2], "--yes", "--force")
    assert removed.status == 0, removed.err
    assert not report.exists()
    assert "No cache yet" in page.read_text()


def test_damage_that_verify_finds_is_on_the_start_page(own):
    shard = next(own.glob(f"cache/{NAME}/*/arrays.zarr/view_00/lf/c.*"))
    shard.write_bytes(b"")
    assert fantrans("-q", "cache", "verify", NAME).status == 1
    assert "damaged 1" in (own / "runs/index.html").read_text()


def test_a_start_page_that_cannot_be_written_is_a_warning(own):
    (own / "runs/index.html").unlink()
    (own / "runs/index.html").mkdir()
    ended = fantrans("cache", "prune", NAME)
    assert ended.status == 0
    assert "the start page was not written: " in ended.err

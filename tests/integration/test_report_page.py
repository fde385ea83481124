"""The pages of reports in a real browser: every control, no request, no error, accessible, on screen and on paper.

Needs the Chromium of the system (`apt-get install chromium`), which no Python package brings.
"""

import pytest

from pipeline.report.run import read_report, write_files
from pipeline.training.trainer import train_heads
from tests.integration.pages import CHROMIUM, check_layout, chromium, opener
from tests.unit import small_runs
from tests.unit.small_runs import make_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The page of a run that compares it with two others, of which the last has one fold."""
    folder = tmp_path_factory.mktemp("page")
    small_runs.make_cache(folder)
    runs = [
        make_run(folder, name=name, train=small_runs.TRAIN.model_copy(update={"seed": seed}))
        for name, seed in (("one", 0), ("two", 1), ("third", 2))
    ]
    train_heads([(run, part) for run in runs[:2] for part in ("P1", "P2", "P3")] + [(runs[2], "P1")])
    first, *others = (read_report(run.folder) for run in runs)
    return write_files(first, others=others).with_suffix(".html")


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser, page_file):
    with opener(browser) as open_file:
        yield lambda **settings: open_file(page_file, wait_for="#chart-scores .main-svg", **settings)


def trace(page, chart, name):
    """The trace of a chart by its name."""
    return page.evaluate(
        "([id, name]) => document.getElementById(id).data.find((trace) => trace.name === name)", [chart, name]
    )


def cells(page, table, column):
    rows = page.locator(f"{table} tbody tr:not(.mean)")
    return [rows.nth(i).locator("th, td").nth(column).inner_text() for i in range(rows.count())]


def test_a_table_is_sorted_by_the_column_that_is_pressed(open_page):
    page = open_page()
    header = page.locator("#table-members thead th").nth(2)
    for direction, is_reverse in (("descending", True), ("ascending", False)):
        header.get_by_role("button").press("Enter")
        assert header.get_attribute("aria-sort") == direction
        shown = [float(text) for text in cells(page, "#table-members", 2)]
        assert shown == sorted(shown, reverse=is_reverse)
    scores = page.locator("#table-scores-0")
    scores.locator("thead th").first.get_by_role("button").click()
    assert cells(page, "#table-scores-0", 0) == ["AU2", "AU1"]
    assert scores.locator("tbody tr").last.locator("th").inner_text() == "mean"


def test_the_measure_and_the_run_that_are_chosen_are_shown(open_page):
    page = open_page()
    numbers = page.evaluate("numbers.members.map((member) => member.measures)")
    for i in (0, 1):
        page.select_option("#member", str(i))
        for measure in ("F1", "AP", "calibrated F1"):
            page.select_option("#measure", measure)
            assert trace(page, "chart-scores", measure)["y"] == numbers[i][measure]["values"]
            assert (
                page.locator("#legend")
                .inner_text()
                .startswith(
                    {"F1": "F1 at threshold 0.5", "AP": "Average precision"}.get(
                        measure, "F1 at a threshold per action unit"
                    )
                )
            )
    assert page.locator("#table-scores-1").is_visible()
    assert not page.locator("#table-scores-0").is_visible()
    page.select_option("#member", "2")
    assert page.evaluate("document.getElementById('chart-scores').data") is None
    assert page.locator("#legend").inner_text().startswith("third has no calibrated F1")


def test_f1_follows_the_threshold_that_is_dragged(open_page):
    page = open_page()
    page.select_option("#au", "1")
    grid = page.evaluate("numbers.members[0].grid")
    slider = page.locator("#threshold")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.up()
    dragged = round(100 * float(slider.input_value()))
    assert 70 < dragged < 90
    for place, key in ((dragged, None), (dragged - 1, "ArrowLeft"), (0, "Home")):
        if key:
            slider.press(key)
        assert page.locator("#threshold-value").inner_text() == f"{place / 100:.2f}"
        percent = grid["f1"][1][place]
        shown = "-" if percent is None else f"{percent:.1f}"
        assert f"AU2 at threshold {place / 100:.2f}: F1 {shown}," in page.locator("#at-threshold").inner_text()
        assert page.evaluate("document.getElementById('chart-f1').layout.shapes[0].x0") == place / 100
    page.click("#reset")
    assert page.locator("#threshold-value").inner_text() == "0.50"


def test_two_runs_are_compared_in_either_order(open_page):
    page = open_page()
    points = page.evaluate("numbers.differences['0-1'].F1.points")
    page.select_option("#ours", "0")
    page.select_option("#theirs", "1")
    drawn = "document.getElementById('chart-differences').data[0].y"
    assert page.evaluate(drawn) == points
    page.select_option("#ours", "1")
    page.select_option("#theirs", "0")
    assert page.evaluate(drawn) == [-each for each in points]
    assert "subjects, one run each" in page.locator("#conclusion").inner_text()
    assert page.locator("#differences tbody tr").count() == len(points)
    page.select_option("#ours", "0")
    assert page.locator("#conclusion").inner_text() == "These are the same: choose two different ones."
    page.select_option("#theirs", "2")
    assert "not tested on the same frames" in page.locator("#conclusion").inner_text()


def test_maps_and_training_curves_are_chosen(open_page):
    page = open_page()
    maps = page.evaluate("numbers.members[0].maps")
    for kind in ("co-occurrence", "correlation"):
        page.select_option("#map", kind)
        for chart in ("labels", "predictions"):
            assert page.evaluate(f"document.getElementById('chart-{chart}').data[0].z") == maps[kind][chart]
    losses = page.evaluate("numbers.members[0].losses[0].folds")
    for kind in ("loss_cls", "loss_kd", "lr", "loss"):
        page.select_option("#loss", kind)
        assert trace(page, "chart-losses", "fold P2")["y"] == losses["P2"][kind]


def test_the_theme_is_that_of_the_system_until_another_one_is_chosen(open_page):
    def background(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    def font(page):
        return page.evaluate("document.getElementById('chart-scores').layout.font.color")

    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    assert background(light) != background(dark)
    assert font(light) != font(dark)
    light.select_option("#theme", "dark")
    assert (background(light), font(light)) == (background(dark), font(dark))
    light.select_option("#theme", "")
    assert background(light) == "rgb(255, 255, 255)"
    light.emulate_media(color_scheme="dark")
    light.wait_for_function("getComputedStyle(document.body).backgroundColor !== 'rgb(255, 255, 255)'")
    assert font(light) == font(dark)


def test_a_chart_is_saved(open_page):
    page = open_page()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as SVG: Score of each action unit").click()
    assert download.value.path().read_text().startswith("<svg")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_accessible_and_no_wider_than_its_window(open_page, width, theme):
    check_layout(open_page(viewport={"width": width, "height": 844}, color_scheme=theme), width)


def test_a_page_is_printed_light_without_controls_and_as_it_was_afterwards(open_page):
    page = open_page(color_scheme="dark")
    font, num_closed = "document.getElementById('chart-scores').layout.font.color", "all('details:not([open])').length"
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.seen = [{font}, {num_closed}] }})")
    before = page.evaluate(font)
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    assert page.evaluate("window.seen") == ["rgb(26, 28, 32)", 0]
    assert page.evaluate(font) == before
    assert page.evaluate(num_closed) > 0
    page.emulate_media(media="print")
    for control in (".toolbar", "nav", "#threshold", ".save >> nth=0"):
        assert not page.locator(control).is_visible()


def test_without_scripts_the_tables_are_shown(browser, page_file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator("#table-scores-0 tbody tr").count() == 3
    assert page.locator("#table-scores-1").is_visible()
    assert "Charts, sorting and comparison need JavaScript" in page.locator("noscript").inner_text()
    context.close()

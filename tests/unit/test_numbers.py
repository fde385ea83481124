"""Pages with measured numbers are what their scripts write from docs/results, and so are numbers in sentences."""

import json
from pathlib import Path

import pytest

from benchmarks import better_heads, performance

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results"
BP4D_VIEWS = 146_847 * 14


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_bytes())


def test_every_result_is_on_a_page():
    used = {*performance.SECTIONS, "cost", *(f"{name}-{better_heads.SETTINGS}" for name in ("heads", "shifts"))}
    used |= {f"{better_heads.CLAIMED.stem}-{dataset}" for dataset in better_heads.CLAIMS}
    assert {path.stem for path in RESULTS.iterdir()} <= used


def test_the_page_on_performance_is_up_to_date():
    assert performance.page(RESULTS) == performance.PAGE.read_text(), "run `python benchmarks/performance.py`"


def test_the_page_on_heads_is_up_to_date():
    page = better_heads.PAGE.read_text()
    assert better_heads.filled_in(page, RESULTS) == page, "run `python benchmarks/better_heads.py page`"


def gaps():
    """What the simpler head gains on fresh subjects, by measure."""
    (row,) = [each for each in result(f"claims-{better_heads.FRESH}")["rows"] if each["member"] == "best"]
    return row["seeds"], {each["measure"]: each["over_first"] for each in row["measures"]}


def sentences_of_heads():
    seeds, gap = gaps()
    f1, ap = gap[better_heads.F1], gap[better_heads.AP]
    cost = result("cost")["widths"]["FAN-64, as measured here"]
    assert seeds == 10
    assert 0.4 < cost["flat_early"]["parameters"] / cost["fan_trans"]["parameters"] < 0.6, "half the parameters"
    yield (
        "README.md",
        f"is {f1['points']:.1f} points of F1 ({f1['low_points']:.1f} to {f1['high_points']:.1f}) and "
        f"{ap['points']:.1f} of AP above the paper's, with half the deployed parameters;",
    )
    low_high = [
        f"{each['low_points']:.0f} to {each['high_points']:.0f}" for each in (f1, gap[better_heads.CALIBRATED], ap)
    ]
    yield (
        "docs/better_heads.md",
        f"it is {low_high[0]} points better in F1, {low_high[1]} in calibrated F1 and {low_high[2]} in AP",
    )


def sentences_of_speed():
    found = result("extraction")["fan-128"]
    rates = [found[f"views of a refresh, {precision}"]["median"] for precision in ("fp32", "bf16")]
    hours = [2 * BP4D_VIEWS / rate / 3600 for rate in rates]
    yield "README.md", f"take {hours[0]:.0f} core hours, or {hours[1]:.0f} with `precision: bf16`"
    yield "README.md", f"({rates[0]:.0f} and {rates[1]:.0f} views per second on two cores"


@pytest.mark.parametrize("sentences", [sentences_of_heads, sentences_of_speed])
def test_sentences_have_the_measured_numbers(sentences):
    for page, sentence in sentences():
        text = " ".join((ROOT / page).read_text().split())
        assert sentence in text, f"{page} should have: {sentence}"

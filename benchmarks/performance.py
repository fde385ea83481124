"""Write docs/performance.md from the results of the benchmarks of speed.

    python benchmarks/extraction.py --out docs/results/extraction.json
    python benchmarks/loading.py --out docs/results/loading.json        # after a refresh, see there
    python benchmarks/training.py --out docs/results/training.json
    python benchmarks/growth.py --out docs/results/growth.json
    python benchmarks/performance.py

The page names the machine, the commit and the command of every table. Results that are not there are left out.
`tests/unit/test_numbers.py` fails where the page is not what this script writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.report.run import markdown_table

PAGE = Path(__file__).parent.parent / "docs/performance.md"
RESULTS = PAGE.parent / "results"
INTRODUCTION = """# Performance

Written by `python benchmarks/performance.py` from `docs/results`, one run of each benchmark. All ways of a table took
turns in one process: compare numbers within a table, not between machines. Numbers are medians, with their range.
`fantrans cache plan DATASET` measures your own machine in the same way.
"""


def main() -> None:
    """Parse the command line, read the results, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    arguments.out.write_text(page(arguments.results))


def page(results: Path) -> str:
    """Return the page with the sections whose results are in a folder."""
    found = {name: results / f"{name}.json" for name in SECTIONS}
    sections = [SECTIONS[name](json.loads(path.read_bytes())) for name, path in found.items() if path.is_file()]
    return "\n".join([INTRODUCTION, *sections])


def where(result: Mapping[str, Any]) -> str:
    """Return the machine and the commit of a result."""
    return f"{result['machine']}, at commit {result['commit']}"


def spread(found: Mapping[str, Any]) -> str:
    """Return a range."""
    low, high = found["range"]
    return f"{low:,} to {high:,}"


def extraction(result: Mapping[str, Any]) -> str:
    """Return the section on extraction."""
    product = ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in result["product_gflops"].items())
    lines = [
        "## From frames to features",
        "",
        f"{result['num_frames']} frames of 512 px on {where(result)}; a matrix product: {product}. End to end: "
        "detection, crop, and one view in the profile standard (`python benchmarks/extraction.py`). `face-alignment`, "
        "where it is listed: landmarks with the same weights, as its README uses it.",
    ]
    for name, found in result.items():
        if not isinstance(found, Mapping) or "gflop_per_view" not in found:
            continue
        rows = []
        for work, rate in found.items():
            if isinstance(rate, Mapping):
                rows.append([work, f"{rate['median']:,}", spread(rate)])
            elif work.startswith("frames end to end"):
                rows.append([f"**{work}**", f"**{rate:,}**", ""])
        lines += [
            "",
            f"{name}, {found['gflop_per_view']} GFLOP per view:",
            "",
            *markdown_table(["", "per second", "range"], rows),
        ]
        if "largest difference of the heatmaps" in found:
            difference = found["largest difference of the heatmaps"]
            lines += ["", f"The heatmaps of both differ by {difference:.1e} of their largest value, in fp32."]
    return "\n".join(lines) + "\n"


def loading(result: Mapping[str, Any]) -> str:
    """Return the section on loading."""
    lines = [
        "## Reading features",
        "",
        f"{result['rows']} rows in shuffled order on {where(result)}; frames per second "
        "(`python benchmarks/loading.py`). Warm: the files are in memory. Cold: they are not.",
    ]
    for profile, found in result.items():
        if not isinstance(found, Mapping):
            continue
        rows = [
            [way, f"{warm['median']:,}", spread(warm), f"{found['cold'][way]['median']:,}"]
            for way, warm in found["warm"].items()
        ]
        lines += [
            "",
            f"{profile}, {found['row_bytes'] / 1e6:.2f} MB per row:",
            "",
            *markdown_table(["", "warm", "range", "cold"], rows),
        ]
    return "\n".join(lines) + "\n"


def training(result: Mapping[str, Any]) -> str:
    """Return the section on training."""
    rows = [
        [way, f"{found['seconds']:,}", spread(found), f"{found['f1']:.1f}"] for way, found in result["ways"].items()
    ]
    return (
        "\n".join(
            [
                "## Three folds",
                "",
                f"{result['num_frames']} frames, {result['num_epochs']} epochs on {where(result)}; training and "
                "scoring (`python benchmarks/training.py`). The plain loop reads fp16 arrays by numpy's memmap.",
                "",
                *markdown_table(["", "seconds", "range", "F1"], rows),
            ]
        )
        + "\n"
    )


def growth(result: Mapping[str, Any]) -> str:
    """Return the section on growth."""
    header = ["", *(f"{num:,} frames" for num in result["num_frames"])]
    rows = [
        [command, *(f"{each['seconds']:,} s, {each['peak_mb']:,} MB" for each in found)]
        for command, found in result["commands"].items()
    ]
    lines = [
        "## Time and memory as a data set grows",
        "",
        f"On {where(result)} (`python benchmarks/growth.py`). Memory: the largest process of a command. Training "
        "reads pages of up to 512 rows, so its memory grows until a page is full.",
        "",
        *markdown_table(header, rows),
    ]
    return "\n".join(lines) + "\n"


SECTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "extraction": extraction,
    "loading": loading,
    "training": training,
    "growth": growth,
}

if __name__ == "__main__":
    main()

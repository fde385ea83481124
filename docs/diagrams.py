"""The two diagrams of docs/architecture.md, drawn from the code.

`python -m docs.diagrams` writes them again; tests/unit/test_site.py fails while they are out of date.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import grimp

from pipeline.datasets.index import INDEX_NAME
from pipeline.training.run_files import COUNTS_NAME, DEPLOYED_NAME, PREDICTIONS_NAME

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs/figures"
PACKAGES = ("fantrans", "flows", "models", "pipeline")

STAGES = (
    ("render", "synthetic", "`rendered:` of the catalog", "raw folders, for rendered data sets"),
    ("index", "datasets", "raw labels, names of images", INDEX_NAME),
    ("detect", "faces", f"raw images, {INDEX_NAME}", "faces-*.parquet, boxes-*.parquet"),
    ("crop", "cache", "raw images, boxes-*.parquet", "crops/FINGERPRINT/"),
    ("extract", "cache", "crops/FINGERPRINT/", "CACHE/DATASET/FINGERPRINT/"),
    ("train", "training", f"cache, {INDEX_NAME}", f"RUN/fold-P1/{DEPLOYED_NAME}/, {PREDICTIONS_NAME}"),
    ("report", "report", f"RUN/fold-*/{COUNTS_NAME}", "RUN/report.*, tables/*, index.html"),
    ("predict", "predict", f"images, videos, {DEPLOYED_NAME}/", "one table; overlays"),
)
"""Name, room, what is read and what is written."""

_STYLE = """<style>
text{font:13px ui-sans-serif,system-ui,sans-serif;fill:#24292f}.m{font:12px ui-monospace,monospace}
.s{fill:#57606a}.band{fill:#eaeef2}.box,.dot{fill:#0b6bcb}.on{fill:#fff;font-weight:600}.line{stroke:#8c959f}
@media(prefers-color-scheme:dark){text{fill:#e6e9ee}.s{fill:#a9b1bb}.band{fill:#2d333b}.box,.dot{fill:#2f81d6}}
</style>"""


def layers() -> list[list[str]]:
    """Return the rooms by layer, from the top, as the import contracts in pyproject.toml order them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    top, rooms = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    inner = [f"pipeline.{layer.replace(' | ', ' | pipeline.')}" for layer in rooms]
    place = top.index("pipeline")
    return [layer.split(" | ") for layer in (*top[:place], *inner, *top[place + 1 :])]


def _room(module: str) -> str:
    """Return the room of a module: `pipeline.store` for `pipeline.store.lock`, `flows` for `flows.ops`."""
    return ".".join(module.split(".")[: 2 if module.startswith("pipeline.") else 1])


def imports() -> set[tuple[str, str]]:
    """Return the pairs of rooms of which the first imports the second."""
    graph = grimp.build_graph(*PACKAGES)
    found = {(_room(one), _room(two)) for one in graph.modules for two in graph.find_modules_directly_imported_by(one)}
    return {(one, two) for one, two in found if one != two}


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{title}</title>'
    return "\n".join([head, _STYLE, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, words: str, kind: str = "", more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{f" class={kind!r}" if kind else ""}{more}>{escape(words)}</text>'


def rooms_svg(order: Sequence[Sequence[str]], edges: Collection[tuple[str, str]]) -> str:
    """Return the matrix of imports: a dot where the room of the row imports that of the column."""
    cell, left, top = 19, 128, 116
    rooms = [room for layer in order for room in layer]
    parts, row = [], 0
    for number, layer in enumerate(order):
        if number % 2 == 0:
            box = f'x="0" y="{top + row * cell}" width="{left + len(rooms) * cell}" height="{len(layer) * cell}"'
            parts.append(f'<rect class="band" {box}/>')
        row += len(layer)
    for i, room in enumerate(rooms):
        name, middle = room.removeprefix("pipeline."), top + i * cell + cell / 2
        x = left + i * cell + cell / 2
        parts.append(_text(left - 8, middle + 4.5, name, more=' text-anchor="end"'))
        parts.append(_text(x + 4, top - 8, name, more=f' transform="rotate(-60 {x + 4:g} {top - 8})"'))
        parts.append(f'<rect class="s" x="{x - 4:g}" y="{middle - 0.5:g}" width="8" height="1"/>')
    for i, one in enumerate(rooms):
        for j, two in enumerate(rooms):
            if (one, two) in edges:
                x, y = left + j * cell + cell / 2, top + i * cell + cell / 2
                parts.append(f'<circle class="dot" cx="{x:g}" cy="{y:g}" r="4.5"/>')
    title = "Rooms from the top layer to the bottom one; a dot: the room of the row imports that of the column"
    return _svg(left + len(rooms) * cell + 56, top + len(rooms) * cell + 2, title, parts)


def stages_svg(stages: Sequence[tuple[str, str, str, str]] = STAGES) -> str:
    """Return the stages from raw data to reports, with the room of each, what it reads and what it writes."""
    height, box_x, box_width, right = 44, 240, 156, 434
    parts = [_text(0, 16, "reads", "s"), _text(box_x, 16, "stage (room)", "s"), _text(right, 16, "writes", "s")]
    for i, (name, room, reads, writes) in enumerate(stages):
        y = 28 + i * height
        middle = y + 17
        parts.append(_text(0, middle + 4, reads.replace("`", ""), "m"))
        parts.append(f'<rect class="box" x="{box_x}" y="{y}" width="{box_width}" height="34" rx="6"/>')
        parts.append(_text(box_x + box_width / 2, middle + 4.5, f"{name} ({room})", "on", ' text-anchor="middle"'))
        parts.append(_text(right, middle + 4, writes, "m"))
        for x in (box_x - 24, box_x + box_width + 8):
            parts.append(f'<path class="line" fill="none" d="M{x} {middle}h16m-5-4l5 4l-5 4"/>')
    return _svg(740, 28 + len(stages) * height, "The stages, what each reads and what it writes", parts)


def figures() -> dict[str, str]:
    """Return the diagrams by file name below docs/figures/."""
    return {"rooms.svg": rooms_svg(layers(), imports()), "stages.svg": stages_svg()}


if __name__ == "__main__":
    for name, text in figures().items():
        (FIGURES / name).write_text(text)

"""Fill in docs/better_heads.md: scores of heads from the JSON of their reports, beside what the heads cost.

    fantrans train bp4d-synthetic --experiment heads --set train.lr=1e-3,3e-3,6e-3 --set train.seed=0 --set parts=[P1]
    fantrans report bp4d-synthetic --experiment heads --set train.lr=1e-3,3e-3,6e-3 --set train.seed=0 --set parts=[P1]
    fantrans train bp4d-synthetic --experiment benchmarks/shifts.yaml --set parts=[P1]
    fantrans report bp4d-synthetic --experiment benchmarks/shifts.yaml --set parts=[P1]
    fantrans train bp4d-synthetic-fresh --experiment benchmarks/claims.yaml
    fantrans report bp4d-synthetic-fresh --experiment benchmarks/claims.yaml    # the same on bp4d-synthetic-41
    python benchmarks/better_heads.py cost
    python benchmarks/better_heads.py page

`report` writes JSON into `runs/tables`: copy those files to `docs/results`, as claims-DATASET.json, heads-DATASET.json
and shifts-DATASET.json. `page` reads them there and replaces what stands between the page's comments `<!-- scores -->`
and `<!-- /scores -->`, and so on. `tests/unit/test_numbers.py` fails where the page is not what `page` writes.
`cost` counts parameters and multiply-accumulates of the deployed heads, and times them on one thread in fp32. The heads
take turns, and the fastest of many passes counts: whatever else runs on the machine only adds to the others.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.head import HeadInputs, deployed_head
from models.registry import HEADS
from pipeline.experiments import load_set
from pipeline.report.agreement import ECE, ROC_AUC
from pipeline.report.run import markdown_table
from pipeline.report.scored import AP, CALIBRATED, F1
from pipeline.runtime.machine import describe_machine

PAGE = Path(__file__).parent.parent / "docs/better_heads.md"
RESULTS = PAGE.parent / "results"
NUM_AUS = 12
WIDTHS = {"FAN-64, as measured here": 64, "a published FAN of 256 channels": 256}
"""Channels C of a map; D is 3 C / 4, or C with early pooling."""

FRESH = "bp4d-synthetic-fresh"
CLAIMS = {FRESH: "100 fresh subjects", "bp4d-synthetic-41": "41 fresh subjects"}
SETTINGS = "bp4d-synthetic"
CLAIMED = Path(__file__).with_name("claims.yaml")
"""The heads with the learning rates that were chosen on the data set `SETTINGS`."""

SIGNIFICANT = 0.05


def main() -> None:
    """Parse the command line; measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cost = commands.add_parser("cost")
    cost.add_argument("--out", type=Path, default=RESULTS / "cost.json")
    cost.add_argument("--passes", type=int, default=40)
    commands.add_parser("page")
    arguments = parser.parse_args()
    if arguments.command == "page":
        PAGE.write_text(filled_in(PAGE.read_text(), RESULTS))
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(measure_cost(arguments.passes), indent=1))


def measure_cost(num_passes: int) -> dict[str, Any]:
    """Return parameters, multiply-accumulates per frame and milliseconds per frame, by width and member of the set."""
    members = load_set("heads", base="demo", overrides=["train.seed=0"]).members
    shapes = {member.name: member.experiments[0].head for member in members}
    widths = {name: of_width(width, shapes, num_passes) for name, width in WIDTHS.items()}
    return {"machine": describe_machine("cpu"), "passes": num_passes, "widths": widths}


@torch.inference_mode()
def of_width(width: int, shapes: Mapping[str, Any], num_passes: int) -> dict[str, Any]:
    """Return the cost of each head on maps of `width` channels."""
    torch.set_num_threads(1)
    inputs = HeadInputs(width, 64, NUM_AUS)
    heads = {
        name: deployed_head(HEADS[shape.variant](inputs, **shape.model_dump(exclude={"variant"})))
        for name, shape in shapes.items()
    }
    maps = inputs.random_maps(1)
    seconds: dict[str, list[float]] = {name: [] for name in heads}
    for _ in range(num_passes):
        for name, head in heads.items():
            started = time.perf_counter()
            head(maps)
            seconds[name].append(time.perf_counter() - started)
    found: dict[str, Any] = {}
    for name, head in heads.items():
        with FlopCounterMode(display=False) as counter:
            head(maps)
        sizes = {part: sum(p.numel() for p in module.parameters()) for part, module in head.named_children()}
        found[name] = {
            "parameters": sum(sizes.values()),
            "parameters_after_conv": sum(sizes.values()) - sizes["conv"],
            "mmac": counter.get_total_flops() / 2e6,
            "ms_per_frame": 1000 * min(seconds[name]),
        }
    return found


def filled_in(page: str, results: Path) -> str:
    """Return the page with the tables and conclusions between its comments."""
    claims = {
        what: json.loads(path.read_bytes())
        for name, what in CLAIMS.items()
        if (path := results / f"{CLAIMED.stem}-{name}.json").is_file()
    }
    parts = {
        "scores": "\n".join(section(what, found) for what, found in claims.items()),
        "settings": settings_table(json.loads((results / f"heads-{SETTINGS}.json").read_bytes())),
        "shifts": settings_table(json.loads((results / f"shifts-{SETTINGS}.json").read_bytes())),
        "cost": cost_tables(json.loads((results / "cost.json").read_bytes())),
    }
    for name, part in parts.items():
        before, _, rest = page.partition(f"<!-- {name} -->")
        _, _, after = rest.partition(f"<!-- /{name} -->")
        page = f"{before}<!-- {name} -->\n\n{part.strip()}\n\n<!-- /{name} -->{after}"
    return page


def section(what: str, found: Mapping[str, Any]) -> str:
    """Return the section on one data set."""
    lines = [
        f"### {what[0].upper()}{what[1:]}",
        "",
        f"`fantrans report {found['dataset']} --experiment benchmarks/{CLAIMED.name}`: {found['measured_on']}.",
        "",
        scores_and_differences([row for row in found["rows"] if measures(row)]),
    ]
    return "\n".join(lines)


def scores_and_differences(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the scores of rows, their differences to the first one, and what these say."""
    first, *others = rows
    scores = [
        [row["member"], str(row["seeds"]), *(interval(measures(row)[name]["mean"]) for name in (F1, CALIBRATED, AP))]
        + [f"{row['metrics']['mean'][name]:.1f}" for name in (ROC_AUC, ECE)]
        for row in rows
    ]
    gaps = [
        [row["member"], *(gap_cell(measures(row)[name]["over_first"]) for name in (F1, CALIBRATED, AP))]
        for row in others
    ]
    lines = [
        *markdown_table(["member", "seeds", "F1 at 0.5", "calibrated F1", "AP", "AUC", "ECE"], scores),
        "",
        f"Minus `{first['member']}`, points:",
        "",
        *markdown_table(["member", "F1 at 0.5", "calibrated F1", "AP"], gaps),
        "",
    ]
    return "\n".join([*lines, *(f"- {conclusion(row, first['member'])}" for row in others), ""])


def measures(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measures of a row by name."""
    return {each["measure"]: each for each in row["measures"]}


def interval(mean: Mapping[str, float]) -> str:
    """Return a score with its interval."""
    return f"{mean['percent']:.1f} ({mean['low_percent']:.1f} to {mean['high_percent']:.1f})"


def gap_cell(gap: Mapping[str, float]) -> str:
    """Return a difference with its interval, and a star if it is distinguishable from zero."""
    star = "*" if gap["p_value"] <= SIGNIFICANT else ""
    return f"{gap['points']:+.1f}{star} ({gap['low_points']:+.1f} to {gap['high_points']:+.1f})"


def conclusion(row: Mapping[str, Any], first: str) -> str:
    """Return what the corrected differences of a row to the first say, as one sentence."""
    found: dict[str, list[str]] = {"scored higher than": [], "scored lower than": [], "is not distinguishable from": []}
    higher, lower, unclear = found.values()
    for name, measure in measures(row).items():
        gap = measure["over_first"]
        kind = unclear if gap["p_value"] > SIGNIFICANT else higher if gap["points"] > 0 else lower
        kind.append(name)
    said = [f"{how} `{first}` in {_listed(names)}" for how, names in found.items() if names]
    seeds = "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
    return f"`{row['member']}` ({seeds}) {', and '.join(said)}, at 95 %."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def settings_table(found: Mapping[str, Any]) -> str:
    """Return a table by which a setting was chosen; reports of earlier versions lack the training F1."""
    rows, columns = [], ["member", "seeds", "F1 at 0.5", "AP"]
    has_training = all("train_f1_percent" in row for row in found["rows"])
    for row in found["rows"]:
        cells = [row["member"], str(row["seeds"]), *(interval(measures(row)[name]["mean"]) for name in (F1, AP))]
        rows.append([*cells, f"{row['train_f1_percent']:.1f}"] if has_training else cells)
    return "\n".join(markdown_table([*columns, "training F1"] if has_training else columns, rows))


def cost_tables(cost: Mapping[str, Any]) -> str:
    """Return the tables of what the deployed heads cost."""
    machine = cost["machine"]
    lines = [f"{machine['cpu']}, one thread, fp32; the fastest of {cost['passes']} passes."]
    for name, heads in cost["widths"].items():
        rows = [
            [
                member,
                f"{found['parameters']:,}",
                f"{found['parameters_after_conv']:,}",
                f"{found['mmac']:.1f}",
                f"{found['ms_per_frame']:.1f}",
            ]
            for member, found in heads.items()
        ]
        columns = ["member", "parameters", "after the conv module", "million MACs", "ms per frame"]
        lines += ["", f"On maps of {name}:", "", *markdown_table(columns, rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

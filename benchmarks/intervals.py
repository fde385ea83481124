"""Simulate runs whose truth is known, and count how often the 95 % intervals of reports, tables and `compare` hold it.

    OMP_NUM_THREADS=1 python benchmarks/intervals.py
    python benchmarks/intervals.py --sds-of docs/tables.md

`different`: how often two equally good methods are called different. `power`: how often two methods 2 points of mean F1
apart are. `cover`: how often an interval holds the true difference, or the true F1. A method's true F1 is that of
endless subjects, averaged over endless trainings; a run's, that of its own heads. Subjects, frames and the chance of a
training (the standard deviation `sd` of the mean F1 of a run, in points) are drawn as `World` says; everything from the
counts on is the product's own code. `error` is the largest standard error of the shares of a line.

The second command pools the standard deviations over seeds of the rows of measured tables, and says how often rows with
one common standard deviation would have sample values at least as unlike each other.
"""

# K kinds of error: 0 a present AU is missed, 1 an absent one is predicted. P parts, S subjects, A action units
from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pipeline.report import rows
from pipeline.report.rows import difference, row_from_counts
from pipeline.report.sets import SetTable
from pipeline.training.metrics import compute_scores, f1_percent

RATES_A = np.array([0.21, 0.17, 0.20, 0.46, 0.55, 0.59, 0.56, 0.47, 0.17, 0.34, 0.17, 0.15])
"""How often an action unit is present: BP4D's rates."""
AUS = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
TRUE_POINTS = 2.0
LAYOUTS = {"99 subjects": ((33, 33, 33), 16), "41 subjects": ((14, 14, 13), 400), "27 subjects": ((9, 9, 9), 400)}
"""Subjects per part and frames per subject: the rendered faces, and the sizes of BP4D and DISFA."""
SDS, NUM_RUNS = (0.6, 1.0, 1.4), (1, 3, 10)
NUM_ROWS = 10
UNEVEN_SDS = (1.4, 1.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
"""Of the rows of a set in which the compared rows, the first two and the last, vary more than most others."""


@dataclass(frozen=True)
class World:
    """Subjects, labels and trainings. Everything acts on the logit of a frame being answered correctly.

    A quarter of the variance of a run's mean F1 is common to its action units, the rest is their own, so that the F1 of
    one action unit varies three times as much as their mean. Half of the variance is common to the three folds.
    """

    num_subjects: tuple[int, ...]
    num_frames: int
    sd_points: float
    concentration: float = 6.0
    """Of the beta distribution of the subjects' rates around `RATES_A`."""
    subject_sd: float = 0.7
    """Of a subject and action unit, common to all methods and runs."""
    method_sd: float = 0.35
    """Of how well a method suits a subject and action unit."""
    run_sd: float = 0.35
    """Of how well a run suits a subject and action unit."""

    def subjects(self, rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rates (S, A) of subjects, and how easy they are (2, S, A)."""
        rates_SA = rng.beta(RATES_A * self.concentration, (1 - RATES_A) * self.concentration, (num, len(AUS)))
        return rates_SA, rng.normal(0, self.subject_sd, (2, num, len(AUS)))

    def training(self, rng: np.random.Generator) -> np.ndarray:
        """Return what one training adds to the logits, (P, A)."""
        own_A, own_PA = rng.normal(size=len(AUS)), rng.normal(size=(3, len(AUS)))
        common, common_P1 = rng.normal(), rng.normal(size=(3, 1))
        num_aus = len(AUS)
        unit_PA = np.sqrt(0.75 * num_aus / 2) * (own_A + np.sqrt(3) * own_PA)
        return self.scale * (unit_PA + np.sqrt(0.25 / 2) * (common + np.sqrt(3) * common_P1))

    @cached_property
    def scale(self) -> float:
        """Of the logits, so that the mean F1 of runs has the standard deviation `sd_points`."""
        step = 0.05
        slope = (self.true_percent(np.full((1, 1, 1), step))[-1] - self.true_percent(np.full((1, 1, 1), -step))[-1]) / 2
        return self.sd_points * step / slope

    @cached_property
    def shift(self) -> float:
        """Logits by which a method is better whose mean F1 is about `TRUE_POINTS` higher."""
        return self.scale / self.sd_points * TRUE_POINTS

    @cached_property
    def true_points(self) -> np.ndarray:
        """How much better that method is, (A + 1,), the mean last."""
        return self.method_percent(self.shift) - self.method_percent(0)

    def method_percent(self, shift: float) -> np.ndarray:
        """Return a method's true F1 (A + 1,), averaged over 300 trainings."""
        rng = np.random.default_rng(5)
        return self.true_percent(np.stack([shift + self.training(rng) for _ in range(300)]))

    def true_percent(self, logits_TPA: np.ndarray) -> np.ndarray:
        """Return the F1 (A + 1,) over endless subjects, averaged over trainings that add `logits_TPA`."""
        # trainings enter through a grid of logits, since F1 depends on them alone
        grid_G, f1_GA = self._curve
        f1_TPA = np.stack([np.interp(logits_TPA[..., a % logits_TPA.shape[2]], grid_G, f1_GA[:, a]) for a in range(12)])
        f1_A = f1_TPA.reshape(len(AUS), -1).mean(1)
        return np.append(f1_A, f1_A.mean())

    @cached_property
    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(6)
        rates_SA, easy_KSA = self.subjects(rng, 40000)
        easy_KSA = easy_KSA + rng.normal(0, np.hypot(self.method_sd, self.run_sd), easy_KSA.shape)
        grid_G = np.linspace(-3, 3, 61)
        f1_GA = []
        for logit in grid_G:
            right_KSA = correct(easy_KSA + logit)
            tp_A, fn_A = (rates_SA * right_KSA[0]).sum(0), (rates_SA * (1 - right_KSA[0])).sum(0)
            f1_GA.append(f1_percent(tp_A, ((1 - rates_SA) * (1 - right_KSA[1])).sum(0), fn_A))
        return grid_G, np.stack(f1_GA)


def correct(logits_KSA: np.ndarray) -> np.ndarray:
    """Return the chance that a present AU is found and that an absent one is not predicted."""
    level_K11 = np.array([0.9, 1.7])[:, None, None]
    return 1 / (1 + np.exp(-level_K11 - logits_KSA))


class Sample:
    """One draw of tested subjects with their labels, on which runs of several methods are tested."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.world, self.rng = world, rng
        num = sum(world.num_subjects)
        self.parts_S = np.repeat([f"P{part}" for part in (1, 2, 3)], world.num_subjects)
        self.part_S = np.repeat([0, 1, 2], world.num_subjects)
        rates_SA, self.easy_KSA = world.subjects(rng, num)
        self.positive_SA = rng.binomial(world.num_frames, rates_SA)

    def runs(self, num: int, *, shift: float = 0.0) -> tuple[list[pd.DataFrame], list[np.ndarray]]:
        """Return the counts of runs of one method, and each run's true F1 (A + 1,)."""
        suits_KSA = self.easy_KSA + self.rng.normal(0, self.world.method_sd, self.easy_KSA.shape)
        tables, truths = [], []
        for _ in range(num):
            added_PA = shift + self.world.training(self.rng)
            own_KSA = self.rng.normal(0, self.world.run_sd, suits_KSA.shape)
            right_KSA = correct(suits_KSA + own_KSA + added_PA[self.part_S])
            tables.append(self._counts(right_KSA))
            truths.append(self.world.true_percent(added_PA[None]))
        return tables, truths

    def _counts(self, right_KSA: np.ndarray) -> pd.DataFrame:
        negative_SA = self.world.num_frames - self.positive_SA
        tp_SA, tn_SA = self.rng.binomial(self.positive_SA, right_KSA[0]), self.rng.binomial(negative_SA, right_KSA[1])
        num = len(self.parts_S)
        return pd.DataFrame(
            {
                "part": np.repeat(self.parts_S, len(AUS)),
                "subject": np.repeat([f"{i:03d}" for i in range(num)], len(AUS)),
                "au": np.tile(AUS, num),
                "tp": tp_SA.ravel(),
                "fp": (negative_SA - tn_SA).ravel(),
                "fn": (self.positive_SA - tp_SA).ravel(),
                "tn": tn_SA.ravel(),
                "unknown": 0,
            }
        )


class Shares:
    """Counts of what happened, as shares in percent with their standard errors."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, happened: ArrayLike) -> None:
        """Note one draw of subjects; of several pairs or action units, their mean."""
        self._seen[name].append(float(np.mean(happened)))

    def percent(self) -> dict[str, float]:
        """Return the shares, and the largest of their standard errors as `error`."""
        errors = [np.std(values) / len(values) ** 0.5 for values in self._seen.values()]
        shares = {name: round(100 * float(np.mean(values)), 1) for name, values in self._seen.items()}
        return shares | {"error": round(100 * float(max(errors)), 1)}


def reports(world: World, num_simulations: int) -> dict[int, dict[str, float]]:
    """Return how often the intervals in the report of one run hold the true F1 of its own heads."""
    shares = Shares()
    for seed in range(num_simulations):
        (table,), (true_V,) = Sample(world, np.random.default_rng(seed)).runs(1)
        scores = compute_scores(table, num_resamples=rows.NUM_RESAMPLES)
        shares.add("cover_f1", scores.low_percent <= true_V[-1] <= scores.high_percent)
        low_A, high_A = (scores.aus[f"{end}_percent"].to_numpy() for end in ("low", "high"))
        shares.add("cover_f1_au", (low_A <= true_V[:-1]) & (true_V[:-1] <= high_A))
    return {1: shares.percent()}


def pairs(world: World, num_simulations: int) -> dict[int, dict[str, float]]:
    """Return the shares by number of runs per row, for two rows that are compared with nothing beside them.

    Of ten runs per method there are ten pairs of rows with one run, three with three, and one with ten.
    """
    shares = {num: Shares() for num in NUM_RUNS}
    method_V, true_V = world.method_percent(0), world.true_points
    for seed in range(num_simulations):
        sample = Sample(world, np.random.default_rng(seed))
        first, equal, better = (sample.runs(max(NUM_RUNS), shift=shift)[0] for shift in (0.0, 0.0, world.shift))
        for num, of_num in shares.items():
            groups = [slice(start, start + num) for start in range(0, max(NUM_RUNS) - num + 1, num)]
            made = [[row_from_counts("row", tables[each]) for tables in (first, equal, better)] for each in groups]
            _add_pairs(
                of_num,
                [difference(ours, theirs) for theirs, ours, _ in made],
                [difference(ours, theirs) for theirs, _, ours in made],
                true_V,
            )
            of_num.add("cover_f1", [low <= method_V[-1] <= high for low, high in (row.interval() for row, *_ in made)])
    return {num: of_num.percent() for num, of_num in shares.items()}


def _add_pairs(
    shares: Shares, equal: Sequence[rows.Difference], better: Sequence[rows.Difference], true_V: np.ndarray
) -> None:
    different_NV = np.array([(each.low > 0) | (each.high < 0) for each in equal])
    held_NV = np.array([(each.low <= true_V) & (true_V <= each.high) for each in better])
    shares.add("different", different_NV[:, -1])
    shares.add("cover", held_NV[:, -1])
    shares.add("power", [each.low[-1] > 0 for each in better])
    shares.add("different_au", different_NV[:, :-1])
    shares.add("cover_au", held_NV[:, :-1])


def sets(world: World, num_simulations: int, *, sds: tuple[float, ...] = ()) -> dict[int, dict[str, float]]:
    """Return the shares by number of runs over sets of ten rows, nine equal ones and a better one; sds: of each row.

    Three runs: of pairs within the set, and `any_pair` of its table, how often at least one of the pairs of equal rows
    is called ordered, after its correction. One run: of pairs with one run each, beside other rows with three.
    """
    shares, true_V = {3: Shares(), 1: Shares()}, world.true_points
    worlds = [replace(world, sd_points=sd) for sd in sds] or [world] * NUM_ROWS
    published = pd.DataFrame(
        {"method": [f"m{i}" for i in range(NUM_ROWS)], "au": "AVG", "f1_percent": np.arange(60.0, 60 + NUM_ROWS)}
    )
    for seed in range(num_simulations):
        sample = Sample(world, np.random.default_rng(seed))
        tables = []
        for i, own in enumerate(worlds):
            sample.world = own
            tables.append(sample.runs(3, shift=world.shift if i == NUM_ROWS - 1 else 0.0)[0])
        made = [row_from_counts(f"m{i}", each, published=f"m{i}") for i, each in enumerate(tables)]
        ours, *others, better = made
        _add_pairs(
            shares[3],
            [difference(other, ours, beside=made) for other in (others if not sds else others[:1])],
            [difference(better, ours, beside=made)],
            true_V,
        )
        table = SetTable("set", "simulated", "simulated counts", (ours, *others), 3, published)
        orderings = table.orderings()
        shares[3].add("any_pair", bool(orderings.alike or orderings.reverse))
        for run in range(3):
            single = [row_from_counts("one", tables[i][run : run + 1]) for i in (0, 1, -1)]
            gaps = [difference(each, single[0], beside=others[1:]) for each in single[1:]]
            _add_pairs(shares[1], gaps[:1], gaps[1:], true_V)
    return {name: of_name.percent() for name, of_name in shares.items()}


def uneven_sets(world: World, num_simulations: int) -> dict[int, dict[str, float]]:
    """Return the shares of `sets` whose rows have the standard deviations `UNEVEN_SDS`."""
    return sets(world, num_simulations, sds=UNEVEN_SDS)


def pooled_sd(tables: Path) -> dict[str, float]:
    """Return the standard deviation of a run that the different rows of Markdown tables have in common."""
    names: list[str] = []
    found = set()
    for line in tables.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if "sd" in cells:
            names = cells
        elif names and len(cells) == len(names) and cells[names.index("sd")].replace(".", "").isdigit():
            found.add(tuple(cells[names.index(name)] for name in ("seeds", "F1", "sd", "95 %")))  # tables share rows
    free_N = np.array([int(seeds) - 1 for seeds, *_ in found])
    sds_N = np.array([float(sd) for _, _, sd, _ in found])
    drawn_RN = np.sqrt(np.random.default_rng(0).chisquare(free_N, (20000, len(free_N))) / free_N)
    is_as_unlike_R = np.log(drawn_RN).std(1) >= np.log(sds_N).std()
    return {
        "num_rows": len(found),
        "num_free": int(free_N.sum()),
        "sd_points": round(float(np.sqrt((free_N * sds_N**2).sum() / free_N.sum())), 2),
        "p_of_one_common_sd": round(float(is_as_unlike_R.mean()), 2),
    }


def _remembered(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Return a function of a table that is computed once per table: rows of one, three and ten runs share them."""
    known: dict[int, tuple[pd.DataFrame, np.ndarray]] = {}

    def recall(counts: pd.DataFrame, **settings: int) -> np.ndarray:
        if id(counts) not in known:
            if len(known) > 100:
                known.clear()
            known[id(counts)] = counts, function(counts, **settings)
        return known[id(counts)][1]

    return recall


def main() -> None:
    """Parse the command line, simulate, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=250)
    parser.add_argument("--resamples", type=int, default=300, help="of the subjects; the product takes 2,000")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--sds", type=float, nargs="+", default=list(SDS))
    parser.add_argument("--only", choices=["report", "pair", "set", "uneven set"])
    parser.add_argument("--out", type=Path, default=Path("var/intervals.json"))
    parser.add_argument("--sds-of", type=Path, help="pool the standard deviations in a Markdown file, and end")
    arguments = parser.parse_args()
    if arguments.sds_of is not None:
        print(json.dumps(pooled_sd(arguments.sds_of)))
        return
    rows.NUM_RESAMPLES, rows.resampled_percent = arguments.resamples, _remembered(rows.resampled_percent)  # less time
    found = []
    for layout in arguments.layouts:
        for sd in arguments.sds:
            world = World(*LAYOUTS[layout], sd)
            kinds = {"report": reports, "pair": pairs}
            if layout == next(iter(LAYOUTS)):
                kinds |= {"set": sets} | ({"uneven set": uneven_sets} if sd == UNEVEN_SDS[0] else {})
            for kind, simulate in kinds.items():
                if arguments.only in (None, kind):
                    for num, shares in simulate(world, arguments.simulations).items():
                        found.append(_printed(layout, sd, num, kind, shares))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"simulations": arguments.simulations, "shares_percent": found}, indent=2))


def _printed(layout: str, sd: float, num_runs: int, kind: str, shares: dict[str, float]) -> dict[str, object]:
    words = "  ".join(f"{name} {share:.1f}" for name, share in shares.items())
    print(f"{layout}, sd {sd}, {num_runs} runs, {kind}: {words}", flush=True)
    return {"layout": layout, "sd_points": sd, "num_runs": num_runs, "kind": kind, **shares}


if __name__ == "__main__":
    main()

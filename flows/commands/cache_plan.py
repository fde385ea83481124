"""`fantrans cache plan`: what each profile, and training from crops, would cost on this machine."""

from __future__ import annotations

import logging
from dataclasses import asdict

from rich.box import SIMPLE
from rich.table import Table

from flows.commands.options import Base, Dataset, Device, Experiment, Json, Set, choose_device
from flows.commands.output import print_json, print_line, print_table

logger = logging.getLogger("fantrans")


def plan_cache(
    dataset: Dataset,
    experiment: Experiment = None,
    base: Base = None,
    overrides: Set = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Forecast size and times of each profile, and of training from crops, on this machine.

    Refreshes and trains on a sample of about a hundred frames in a temporary folder of the caches' disk: one to two
    minutes with a shipped FAN on two CPU cores. Prints what an epoch and a whole experiment would take, what bounds
    them, and after how many experiments building the cache has paid for itself.
    """
    from pipeline import experiments
    from pipeline.catalog import load_catalog
    from pipeline.forecast.forecast import forecast
    from pipeline.forecast.sample import measure_sample

    catalog = load_catalog()
    chosen = experiments.resolve(catalog, dataset, experiment, base=base, overrides=overrides or ())
    on = choose_device(device)
    level = logger.level
    logger.info("measuring %s on %s: one to two minutes", dataset, on)
    logger.setLevel(logging.ERROR)  # stages and trainings of the sample are of no interest
    try:
        rates, frames = measure_sample(dataset, chosen.experiments, catalog, device=on)
    finally:
        logger.setLevel(level)
    rows = forecast(rates, chosen.experiments, frames)
    if as_json:
        print_json(
            "cache-plan",
            dataset=dataset,
            experiment=chosen.name,
            device=on,
            num_frames=len(frames),
            forecasts=[asdict(row) for row in rows],
            unavailable=[{"profile": name, "reason": reason} for name, reason in rates.unavailable.items()],
            sample={name: value for name, value in vars(rates).items() if not isinstance(value, dict)},
        )
        return
    table = Table(
        "", "size", "build", "epoch", "experiment", "bound by", "pays after",
        title=f"{chosen.name} on {dataset}: {len(frames):,} frames, {rates.num_frames} sampled, {on}",
        title_justify="left", box=SIMPLE,
    )  # fmt: skip
    for row in rows:
        size = f"{row.num_bytes / 1e9:,.2f} GB" if row.profile else "-"
        pays = "-" if row.profile is None else f"{row.pays_after:,}" if row.pays_after else "never"
        build = _time(row.build_s) if row.profile else "-"
        table.add_row(
            row.profile or "crops mode", size, build, _time(row.epoch_s), _time(row.experiment_s), row.bound, pays
        )
    print_table(table)
    for profile, reason in rates.unavailable.items():
        print_line(f"  no {profile}: {reason}")
    detect_s = len(frames) * (rates.detect_s + rates.crop_s)
    print_line(f"before either: detection and crops, {_time(detect_s)}")
    print_line(
        "pays after: experiments until building and reading the cache took less time than `train --source crops`"
    )


def _time(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"

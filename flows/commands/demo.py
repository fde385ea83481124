"""`fantrans demo`: the main job on rendered faces."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import Device, choose_device
from flows.commands.output import print_line, print_table
from flows.commands.server import is_server_named, set_up_prefect


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Use the small data set: one to two minutes.")] = False,
    device: Device = "auto",
) -> None:
    """Run the main job on rendered faces: frames, boxes, crops, features, three folds, F1 table.

    Prints the F1 table, the path of the report's page, and commands to go on with. Finished work is not repeated.
    """
    from pipeline.catalog import load_catalog
    from pipeline.report.run import write_report
    from pipeline.training.runs import finished_run

    dataset = "demo_quick" if quick else "bp4d-synthetic"
    run = finished_run(load_catalog().get_dataset(dataset).experiment, dataset=dataset)
    if run is not None and _is_up_to_date(dataset):
        print_line("nothing to refresh, nothing to train: this is the report of the last run")
        result = write_report(run.folder)
    else:
        set_up_prefect()
        is_server_named()  # raises if it is down; without one, Prefect starts its own
        from flows.main_job import main_job

        result = main_job(dataset, device=choose_device(device))
    print_table(result.rich_table())
    if quick:
        print_line(
            "two epochs on 240 frames learn little: expect F1 below `always`; `fantrans demo` learns, in less than "
            "15 minutes"
        )
    print_line("next:")
    for command, effect in (
        ("fantrans predict photo.jpg --out au.csv", "action units of your photograph, from the shipped model"),
        (f"fantrans train {dataset} --set head.num_blocks=3", "another head on the same cache"),
        ("fantrans catalog check bp4d", "your own BP4D: set BP4D_ROOT to its folder first"),
    ):
        print_line(f"  {command:<54}  {effect}")
    print_line(f"report: {result.folder / 'report.html'}")


def _is_up_to_date(dataset: str) -> bool:
    """Return whether a refresh of a data set would do nothing; needs no Prefect server."""
    from pipeline.refresh.job import prepare_refresh
    from pipeline.refresh.stages import plan_refresh

    return all(plan.is_noop for plan in plan_refresh(prepare_refresh(dataset)))

"""Options and arguments that several commands have, and the refusal of options without effect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import typer

from flows.commands.base import checked_choice, command_path, has_choices, options_with_value
from flows.commands.names import (
    check_dataset,
    complete_dataset,
    complete_dataset_or_run,
    complete_experiment,
    complete_run,
    complete_weights,
)
from pipeline.errors import ConfigError


@has_choices("profile")
def _profile_names() -> Sequence[str]:
    from pipeline.config import PROFILES

    return PROFILES


@has_choices("layout")
def _layout_names() -> Sequence[str]:
    from pipeline.datasets import LAYOUTS

    return [name for name, layout in LAYOUTS.items() if layout.rendered_protocol]


@has_choices("part")
def _part_names() -> Sequence[str]:
    from pipeline.protocols import PARTS

    return PARTS


def checked_dataset(context: typer.Context, dataset: str | None) -> str | None:
    """Return the data set; raises `CatalogError` for an unknown one, `ConfigError` for an experiment."""
    if dataset is not None:
        check_dataset(
            command_path(context),
            context.meta["fantrans.arguments"],
            options_with_value(context.command),
            dataset,
        )
    return dataset


def _checked_weights(weights: str) -> str:
    from pipeline.catalog import load_catalog

    load_catalog().get_weights(weights)
    return weights


def _checked_device(device: str) -> str:
    if device.startswith("mps"):
        raise ConfigError(
            f"device {device!r} is not supported, because Apple's GPU has no 64-bit floats; pass --device cpu"
        )
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):  # whether it exists is checked later, which loads torch
        raise ConfigError(f"device {device!r} is not known; expected auto, cpu, cuda or cuda:N")
    return device


def choose_device(device: str) -> str:
    """Return the device to work on; loads torch. See `pipeline.runtime.device.choose_device`."""
    from pipeline.runtime.device import choose_device

    return choose_device(device)


Base = Annotated[
    str | None,
    typer.Option(
        help="The experiment that the members of a set are derived from.",
        show_default="the data set's own",
        autocompletion=complete_experiment,
    ),
]
CacheFingerprint = Annotated[
    str | None, typer.Option(help="Fingerprint of the cache, or its beginning.", show_default="the only cache")
]
Dataset = Annotated[
    str,
    typer.Argument(help="A data set of the catalog.", callback=checked_dataset, autocompletion=complete_dataset),
]
DatasetOrRuns = Annotated[
    list[str],
    typer.Argument(
        help="A data set of the catalog; or runs, by folder, name or its beginning.",
        autocompletion=complete_dataset_or_run,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Device: auto, cpu, cuda or cuda:N. auto is CUDA where torch sees it, else the CPU.",
        callback=_checked_device,
    ),
]
Experiment = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        "-e",
        help="An experiment, a set or SET:MEMBER, in configs/ or a .yaml file.",
        show_default="the data set's own",
        autocompletion=complete_experiment,
    ),
]
InitFrom = Annotated[
    str | None,
    typer.Option(
        help="Initialise each fold from the same fold of this run, or of this data set's run of the same experiment.",
        autocompletion=complete_dataset_or_run,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, see docs/cli.md.")]
Layout = Annotated[str, typer.Option(help="Raw layout to write.", callback=checked_choice)]
Images = Annotated[
    bool | None,
    typer.Option("--images/--no-images", help="Show faces on the page.", show_default="rendered faces only"),
]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]
OptionalDataset = Annotated[
    str | None,
    typer.Argument(
        help="A data set of the catalog.",
        show_default="all",
        callback=checked_dataset,
        autocompletion=complete_dataset,
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(help="How much of the maps to keep.", show_default="the experiment's", callback=checked_choice),
]
Run = Annotated[
    str,
    typer.Argument(help="A finished run: its folder, its name or its beginning.", autocompletion=complete_run),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting, such as train.lr=3e-4; several values, train.lr=1e-4,3e-4, are an experiment each.",
        show_default="none",
    ),
]
Weights = Annotated[
    str,
    typer.Argument(help="Weights of the catalog.", callback=_checked_weights, autocompletion=complete_weights),
]


def is_given(context: typer.Context, name: str) -> bool:
    """Return whether the user gave the parameter, even if with its default value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_ignored(context: typer.Context, names: Sequence[str], *, when: str) -> None:
    """Raise `ConfigError` that names the given options among `names`, which have no effect in this case."""
    ignored = [_OPTIONS.get(name, f"--{name.replace('_', '-')}") for name in names if is_given(context, name)]
    if ignored:
        verb, them = ("has", "it") if len(ignored) == 1 else ("have", "them")
        raise ConfigError(f"{', '.join(ignored)} {verb} no effect {when}; leave {them} out")


_OPTIONS = {"as_json": "--json", "overrides": "--set"}
"""Options that are not named as their parameter."""

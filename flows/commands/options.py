"""What the commands share: options, the refusal of options without effect, and printing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from pipeline.errors import ConfigError

console = Console()


def _checked_device(device: str) -> str:
    from pipeline.runtime.device import checked_device

    return checked_device(device)


def _profile_names() -> Sequence[str]:
    from pipeline.config import PROFILES

    return PROFILES


def _layout_names() -> Sequence[str]:
    from pipeline.datasets import LAYOUTS

    return [name for name, layout in LAYOUTS.items() if layout.rendered_protocol]


_CHOICES: dict[str, Callable[[], Sequence[str]]] = {"profile": _profile_names, "layout": _layout_names}
"""Functions that return the choices of an option, by its name; called by the commands that have it."""


def _checked_choice(param: typer.CallbackParam, value: str | None) -> str | None:
    assert param.name is not None
    names = _CHOICES[param.name]()
    if value is not None and value not in names:
        raise ConfigError(f"{param.name} {value!r} does not exist; known ones: {', '.join(names)}")
    return value


class CommandWithChoices(TyperCommand):
    """A command whose help shows the choices of its options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; the metavar of an option with choices lists them."""
        params = super().get_params(ctx)
        for param in params:
            if param.name in _CHOICES:
                param.metavar = f"<{'|'.join(_CHOICES[param.name]())}>"
        return params


Base = Annotated[
    str | None,
    typer.Option(help="The experiment that the members of a set are derived from.", show_default="the data set's own"),
]
CacheFingerprint = Annotated[
    str | None, typer.Option(help="Fingerprint of the cache, or its beginning.", show_default="the only cache")
]
Config = Annotated[str | None, typer.Option(help="An experiment, or SET:MEMBER.", show_default="the data set's own")]
Dataset = Annotated[str, typer.Argument(help="A data set of the catalog.")]
Device = Annotated[str, typer.Option(help="Device to work on, such as cpu, cuda or cuda:1.", callback=_checked_device)]
InitFrom = Annotated[
    str | None,
    typer.Option(
        help="Initialise each fold from the same fold of this run, or of this data set's run of the same experiment."
    ),
]
Layout = Annotated[str, typer.Option(help="Raw layout to write.", callback=_checked_choice)]
OptionalDataset = Annotated[str | None, typer.Argument(help="A data set of the catalog.", show_default="all")]
Profile = Annotated[
    str | None,
    typer.Option(help="How much of the maps to keep.", show_default="the experiment's", callback=_checked_choice),
]


def is_given(context: typer.Context, name: str) -> bool:
    """Return whether the user gave the parameter, even if with its default value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_ignored(context: typer.Context, names: Sequence[str], *, when: str) -> None:
    """Raise `ConfigError` that names the given options among `names`, which have no effect in this case."""
    ignored = [f"--{name.replace('_', '-')}" for name in names if is_given(context, name)]
    if ignored:
        verb, them = ("has", "it") if len(ignored) == 1 else ("have", "them")
        raise ConfigError(f"{', '.join(ignored)} {verb} no effect {when}; leave {them} out")


def print_line(line: str) -> None:
    """Print a line unchanged, of any length."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def print_weights_entry(path: Path, settings: str) -> None:
    """Print the catalog's entry for new weights; `settings` are its keys after path and sha256."""
    from pipeline.runtime.atomic import file_sha256

    entry = f"{{path: {path}, sha256: {file_sha256(path)}, {settings}}}"
    print_line(f"for `weights:` in data_catalog.yaml:\n  {path.stem}: {entry}")

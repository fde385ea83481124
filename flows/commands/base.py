"""How commands are declared: with examples, with --verbose and --quiet, and with an answer to earlier spellings."""

from __future__ import annotations

import inspect
import logging
import shlex
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from flows.commands.names import RENAMED, check_spelling
from pipeline.errors import ConfigError, FantransError

_Function = TypeVar("_Function", bound=Callable[..., None])

logger = logging.getLogger("fantrans")

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

_RESUMED = {
    "demo",
    "predict",
    "refresh",
    "render",
    "train",
    "weights train-fan",
    "weights train-resnet",
    "weights train-retinaface",
}
"""Commands that keep their finished work when they are stopped."""

_CHANGING = {
    "cache import",
    "cache prune",
    "cache report",
    "cache rm",
    "cache verify",
    "demo",
    "refresh",
    "report",
    "runs rm",
    "train",
}
"""Commands that change what the start page shows; it is written again after them."""

_CHOICES: dict[str, Callable[[], Sequence[str]]] = {}
"""Functions that return the choices of an option, by its name; called by the commands that have it."""


def has_choices(name: str) -> Callable[[Callable[[], Sequence[str]]], Callable[[], Sequence[str]]]:
    """Return a decorator for the function that returns the choices of the option `name`."""

    def decorate(list_names: Callable[[], Sequence[str]]) -> Callable[[], Sequence[str]]:
        _CHOICES[name] = list_names
        return list_names

    return decorate


def checked_choice(param: typer.CallbackParam, value: str | None) -> str | None:
    """Return the value of an option with choices; `ConfigError` if it is none of them."""
    from pipeline.runtime.text import unknown_name

    assert param.name is not None
    names = _CHOICES[param.name]()
    if value is not None and value not in names:
        raise ConfigError(unknown_name(param.name, value, names))
    return value


def command_path(context: Any) -> str:
    """Return the words of a command after the program's name, such as "cache ls"."""
    words: list[str] = []
    while context.parent is not None:
        words.insert(0, context.info_name)
        context = context.parent
    return " ".join(words)


def options_with_value(command: Any) -> set[str]:
    """Return the options of a command that are followed by a value."""
    params = (param for param in command.params if param.param_type_name == "option" and not param.is_flag)
    return {name for param in params for name in param.opts}


class Group(TyperGroup):
    """A group that prints its help if no command is named, and names the successor of a removed one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options of the group."""
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments name; `ConfigError` for the name of an earlier version."""
        old = f"{command_path(ctx)} {args[0]}".strip()
        if old in RENAMED and args[0] not in self.commands:
            command = shlex.join(["fantrans", *RENAMED[old].split(), *args[1:]])
            raise ConfigError(f"`fantrans {old}` is now `fantrans {RENAMED[old]}`; run `{command}`")
        return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """A command whose help shows the choices of its options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; the metavar of an option with choices lists them."""
        params = super().get_params(ctx)
        for param in params:
            if param.name in _CHOICES and param.callback is not None:  # other options have the same name
                param.metavar = f"<{'|'.join(_CHOICES[param.name]())}>"
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; `ConfigError` with the right command for options of earlier versions."""
        if not ctx.resilient_parsing:
            known = {name for param in self.get_params(ctx) for name in param.opts}
            check_spelling(command_path(ctx), args, options_with_value(self), known | {"--config", "--dataset"})
        ctx.meta["fantrans.arguments"] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C ends it with one line. Afterwards the start page shows what it changed."""
        logger.debug("%s: %s", command_path(ctx), ctx.params)
        try:
            result = super().invoke(ctx)
        except KeyboardInterrupt:
            is_resumed = command_path(ctx) in _RESUMED
            typer.echo("stopped; the same command continues" if is_resumed else "stopped", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (FantransError, typer.Exit) as error:
            if getattr(error, "exit_status", 1) == 1:  # it failed, or found damage; not wrong usage
                _show_changes(ctx, creates=False)
            raise
        _show_changes(ctx)
        return result


def _show_changes(ctx: Any, *, creates: bool = True) -> None:
    """Write the start page again if the command may have changed what it shows; see `rewrite_start_page`."""
    if command_path(ctx) in _CHANGING and not ctx.params.get("dry_run"):
        from flows.pages import rewrite_start_page

        rewrite_start_page(creates=creates)


def _be_verbose(value: bool) -> bool:
    if value:
        _set_level(logging.DEBUG)
    return value


def _be_quiet(value: bool) -> bool:
    if value:
        _set_level(logging.WARNING)
    return value


def _set_level(level: int) -> None:
    if {level, logger.level} == {logging.DEBUG, logging.WARNING}:
        raise ConfigError("--verbose and --quiet exclude each other; give one of them")
    logger.setLevel(level)


Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", callback=_be_verbose, help="Also log details, and tracebacks of errors.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_be_quiet, help="Log warnings and errors only.")]


def add_command(app: typer.Typer, name: str, *examples: str) -> Callable[[_Function], _Function]:
    """Return a decorator that adds a function to `app` as a command; its help ends with the examples."""
    heading = "Example" if len(examples) == 1 else "Examples"
    epilog = f"[bold]{heading}[/]\n" + "\n".join(f"  {escape(example)}" for example in examples)

    def decorate(function: _Function) -> _Function:
        paragraphs = (inspect.getdoc(function) or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)  # it is wrapped for the terminal
        app.command(name, cls=Command, help=text, epilog=epilog)(_with_verbosity(function))
        return function

    return decorate


def _with_verbosity(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function with the options --verbose and --quiet, whose callbacks set the level of the log."""

    @wraps(function)
    def run(*, verbose: bool, quiet: bool, **arguments: Any) -> None:  # noqa: ARG001
        function(**arguments)

    signature = inspect.signature(function, eval_str=True)
    more = {"verbose": Verbose, "quiet": Quiet}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in more.items()
    ]
    parameters = [*signature.parameters.values(), *added]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run

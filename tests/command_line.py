"""The command line in this process, with its exit status and what it prints."""

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import pytest

from flows.cli import main


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def fantrans(*arguments: object) -> Ended:
    """Run `fantrans` with the arguments as its process would."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return Ended(caught.value.code, out.getvalue(), err.getvalue())


def commands(group, path=()):
    """Yield the words of every command and group, and itself."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))

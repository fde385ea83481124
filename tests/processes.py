"""Processes that tests start and kill: forked from one that has imported what they need, so each takes a blink."""

import contextlib
import multiprocessing
import multiprocessing.forkserver
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path

_PRELOADED = [
    "tests.unit.small_cache",
    "tests.unit.small_runs",
    "pipeline.refresh.stages",
    "torchvision.ops",  # the detector loads these two when it needs them
    "scipy.optimize",
]


def make_process(target, args, kwargs=None) -> BaseProcess:
    """Return a process that will call `target(*args, **kwargs)`."""
    return _server().Process(target=target, args=args, kwargs=kwargs or {})


@cache
def _server():
    """Start the process that the others are forked from, in a folder that stays: tests change theirs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with contextlib.chdir(Path(__file__).parent.parent):
        multiprocessing.forkserver.ensure_running()
    return context

"""Processes that tests start and kill: forked from one that has imported what they need, so each takes a blink."""

import multiprocessing
import multiprocessing.forkserver

_PRELOADED = ["tests.unit.small_cache", "tests.unit.small_runs", "pipeline.refresh.stages", "models.retinaface"]

PROCESSES = multiprocessing.get_context("forkserver")


def start_fork_server() -> None:
    """Start the process that the others are forked from; it stays in the present folder."""
    PROCESSES.set_forkserver_preload(_PRELOADED)
    multiprocessing.forkserver.ensure_running()

"""Processes that tests start and kill: forked from one that has imported what they need, so each takes a blink."""

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.unit.small_cache", "tests.unit.small_runs"])

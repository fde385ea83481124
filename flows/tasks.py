"""What all tasks and flows share: no Prefect cache, retries for transient I/O errors, a webhook for failures."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextvars import copy_context
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

import httpx
from prefect import Flow, Task, flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff

from flows.pages import rewrite_start_page
from pipeline.errors import is_io_failure
from pipeline.runtime.progress import progress_listener

logger = logging.getLogger("fantrans")

WEBHOOK = "FANTRANS_WEBHOOK"
"""Environment variable with a URL that accepts JSON with a `text`, as the webhooks of Slack and Mattermost do."""

_PERMANENT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)
_TIMEOUT_S = 10.0

_P = ParamSpec("_P")
_Out = TypeVar("_Out")


def is_transient(_task: Any, _task_run: Any, state: Any) -> bool:
    """Whether a retry can help: transient I/O errors, but not bad input, a full disk or a missing file."""
    error = state.result(raise_on_failure=False)
    return is_io_failure(error) and error.errno not in _PERMANENT_ERRNOS


def notify_webhook(flow: Any, flow_run: Any, state: Any) -> None:
    """Post one line to the webhook, if one is set: which run ended in which state, and why. Never fails the run."""
    address = os.environ.get(WEBHOOK)
    if not address:
        return
    message = " ".join((state.message or "").split())[:500]
    line = f"{flow.name} {flow_run.name} ({flow_run.id}): {state.name}. {message}"
    try:
        httpx.post(address, json={"text": line}, timeout=_TIMEOUT_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:  # do not log its text: it may contain the URL, a secret
        status = f" {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else ""
        logger.warning(
            "%s: the message about %s was not delivered: %s%s", WEBHOOK, flow_run.name, type(error).__name__, status
        )


def artifact_key(*words: str) -> str:
    """Join words to the key of an artifact, as Prefect accepts it: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


class ProgressArtifacts:
    """One progress artifact per stage; failed updates are ignored."""

    def __init__(self) -> None:
        self._context = copy_context()
        self._artifact_ids: dict[str, UUID] = {}

    def __call__(self, description: str, percent: float) -> None:
        """Create or update the artifact of a stage; callable from any thread, always in the context of the task."""
        try:
            self._context.copy().run(self._update, description, percent)
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            logger.debug("progress of %s was not recorded: %s", description, error)

    def _update(self, description: str, percent: float) -> None:
        if description in self._artifact_ids:
            update_progress_artifact(self._artifact_ids[description], progress=percent)
        else:
            self._artifact_ids[description] = cast(UUID, create_progress_artifact(percent, description=description))


def fantrans_task(**settings: Any) -> Callable[[Callable[_P, _Out]], Task[_P, _Out]]:
    """Return a decorator for a task that reports progress. A task computes only what is missing: retries are safe."""

    def decorate(function: Callable[_P, _Out]) -> Task[_P, _Out]:
        @wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _Out:
            if logger.level == logging.NOTSET:  # on a worker: Prefect forwards the lines of a logger, but sets no level
                logger.setLevel(logging.INFO)
            with progress_listener(ProgressArtifacts()):
                return function(*args, **kwargs)

        return task(run, **_TASK_SETTINGS | settings)

    return decorate


_TASK_SETTINGS: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(10),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
}


def fantrans_flow(
    name: str, *, verb: str, describe: Callable[[Mapping[str, Any]], str | None] = lambda _: None
) -> Callable[[Callable[_P, _Out]], Flow[_P, _Out]]:
    """Return a decorator for a flow whose runs are named by what they do.

    It reports failures to the webhook; the start page shows what it changed. describe: returns what the name says
    beside verb, data set and experiment, from the parameters of a run.
    """

    def name_run() -> str:
        return run_name(verb, flow_run.parameters, describe)

    return flow(
        name=name,
        flow_run_name=name_run,
        on_completion=[show_changes],
        on_failure=[notify_webhook, show_changes],
        on_crashed=[notify_webhook],
    )


def show_changes(flow: Any, flow_run: Any, state: Any) -> None:  # noqa: ARG001 - named by Prefect
    """Write the start page again, once for a flow and those that it calls."""
    if flow_run.parent_task_run_id is None:
        rewrite_start_page()


def run_name(
    verb: str, given: Mapping[str, Any], describe: Callable[[Mapping[str, Any]], str | None] = lambda _: None
) -> str:
    """Return the name of a flow run with the parameters `given`, such as "train bp4d fan_trans, 3 folds"."""
    experiment = given.get("experiment")
    words = [verb, given.get("dataset") or "all data sets", *([Path(experiment).stem] if experiment else [])]
    start = given.get("init_from")
    more = [describe(given), given.get("profile"), start and f"from {start}", *(given.get("overrides") or ())]
    return ", ".join([" ".join(words), *(each for each in more if each)])

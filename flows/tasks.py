"""What all tasks and flows here have in common: no Prefect cache, retries for input and output, word of a failure."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable
from contextvars import copy_context
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

import httpx
from prefect import Flow, Task, flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectHTTPStatusError
from prefect.tasks import exponential_backoff

from pipeline.errors import is_io_failure
from pipeline.runtime.progress import progress_listener

logger = logging.getLogger("fantrans")

WEBHOOK = "FANTRANS_WEBHOOK"
"""Environment variable with an address that takes JSON with a `text`, as Slack's and Mattermost's webhooks do."""

_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)
_TIMEOUT_S = 10.0

_P = ParamSpec("_P")
_Out = TypeVar("_Out")


def is_transient(_task: Any, _task_run: Any, state: Any) -> bool:
    """Whether trying again can help: input and output that failed in passing; never bad input, nor a full disk."""
    error = state.result(raise_on_failure=False)
    return is_io_failure(error) and error.errno not in _LASTING


def notify_webhook(flow: Any, flow_run: Any, state: Any) -> None:
    """One line to the webhook, if there is one: which run ended how, and why. Never fails the run."""
    address = os.environ.get(WEBHOOK)
    if not address:
        return
    message = " ".join((state.message or "").split())[:500]
    line = f"{flow.name} {flow_run.name} ({flow_run.id}): {state.name}. {message}"
    try:
        httpx.post(address, json={"text": line}, timeout=_TIMEOUT_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:  # whose text may hold the address, which is a secret
        status = f" {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else ""
        logger.warning("%s of %s was not told: %s%s", WEBHOOK, flow_run.name, type(error).__name__, status)


def artifact_key(*words: str) -> str:
    """A key as Prefect takes it, under which an artifact has its history: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


class ProgressArtifacts:
    """A progress artifact for each stage that is tracked; what the server does not take is not missed."""

    def __init__(self) -> None:
        self._context = copy_context()
        self._made: dict[str, UUID] = {}

    def __call__(self, description: str, percent: float) -> None:
        """Make or move the stage's artifact; from any thread, which then acts for the task that began all this."""
        try:
            self._context.copy().run(self._tell, description, percent)
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            logger.debug("progress of %s was not told: %s", description, error)

    def _tell(self, description: str, percent: float) -> None:
        if description in self._made:
            update_progress_artifact(self._made[description], progress=percent)
        else:
            self._made[description] = cast(UUID, create_progress_artifact(percent, description=description))


def fantrans_task(**settings: Any) -> Callable[[Callable[_P, _Out]], Task[_P, _Out]]:
    """A task that shows its progress; what is done is known from the data's own fingerprints, so it may run again."""

    def made(function: Callable[_P, _Out]) -> Task[_P, _Out]:
        @wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _Out:
            if logger.level == logging.NOTSET:  # on a worker; Prefect sends a logger's lines on, but sets no level
                logger.setLevel(logging.INFO)
            with progress_listener(ProgressArtifacts()):
                return function(*args, **kwargs)

        return task(run, **_TASK | settings)

    return made


_TASK: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(10),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
}


def fantrans_flow(name: str) -> Callable[[Callable[_P, _Out]], Flow[_P, _Out]]:
    """A flow whose failure is told."""
    return flow(name=name, on_failure=[notify_webhook], on_crashed=[notify_webhook])

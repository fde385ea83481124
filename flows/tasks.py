"""What all tasks and flows here have in common: no Prefect cache, retries for input and output, word of a failure."""

from __future__ import annotations

import errno
import logging
import os
from functools import partial
from typing import Any

import httpx
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

logger = logging.getLogger("fantrans")

WEBHOOK = "FANTRANS_WEBHOOK"
"""Environment variable with an address that takes JSON with a `text`, as Slack's and Mattermost's webhooks do."""

_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)
_TIMEOUT_S = 10.0


def may_pass(_task: Any, _task_run: Any, state: Any) -> bool:
    """Whether trying again can help: input and output that failed in passing; never bad input, nor a full disk."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and error.errno not in _LASTING


def say_so(flow: Any, flow_run: Any, state: Any) -> None:
    """One line to the webhook, if there is one: which run ended how, and why. Never fails the run."""
    address = os.environ.get(WEBHOOK)
    if not address:
        return
    message = " ".join((state.message or "").split())[:500]
    line = f"{flow.name} {flow_run.name} ({flow_run.id}): {state.name}. {message}"
    try:
        httpx.post(address, json={"text": line}, timeout=_TIMEOUT_S).raise_for_status()
    except httpx.HTTPError as error:
        logger.warning("%s of %s was not told: %s", WEBHOOK, flow_run.name, error)


fantrans_task = partial(task, cache_policy=NO_CACHE, retries=3, retry_delay_seconds=exponential_backoff(10),
                        retry_jitter_factor=0.5, retry_condition_fn=may_pass)
"""A task; what is done is known from the data's own fingerprints, so it may run again at any time."""

fantrans_flow = partial(flow, on_failure=[say_so], on_crashed=[say_so])
"""A flow."""

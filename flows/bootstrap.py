"""Create what a Prefect server needs for `prefect.yaml`: pools, queues, limits, an automation, and the deployments.

`fantrans ops deploy` creates what is missing and updates what another version created. The limits and schedules that an
operator has set are kept. Running it again changes nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple, cast
from uuid import UUID
from zoneinfo import available_timezones

import yaml
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.tasks import WEBHOOK
from pipeline.errors import ServerError, UsageError
from pipeline.project import project_file, project_folder
from pipeline.runtime.text import nearest_name

HEARTBEAT_S = 30
"""Seconds between the heartbeats of a flow run, which the automation waits for."""
RUN_ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
    "PREFECT_LOGGING_EXTRA_LOGGERS": "fantrans",
    "DASK_LOGGING__DISTRIBUTED": "error",
}
"""Environment of every flow run in the pools; it sends the log lines of the stages to the server."""
CRASH_AUTOMATION = "fantrans: a run without a heartbeat has crashed"
TIMEZONE = "FANTRANS_TIMEZONE"
"""Environment variable with the time zone of the schedules in prefect.yaml, read when they are deployed."""
_WEBHOOK_BLOCK = "fantrans"
_NO_HEARTBEAT = "no heartbeat: its process and worker are gone"


class Queue(NamedTuple):
    """A queue of a pool; the queue with the lowest priority number runs first."""

    name: str
    priority: int


QUEUES = {
    "gpu": (Queue("refresh", 1), Queue("train", 2)),
    "cpu": (Queue("default", 1), Queue("later", 2)),
}
"""Queues by pool of processes. `gpu` runs one flow per device, `cpu` runs reports, checks and rendered faces."""

DEFAULT_NUM_RUNS = {"gpu": 1, "cpu": 2}
"""Runs at a time in a new pool, if no number is given."""


def bootstrap(*, num_gpus: int | None = None, num_cpu_runs: int | None = None) -> list[tuple[str, str]]:
    """Create or update pools, queues, limits, automation and deployments; returns the name of each, and what was done.

    Without a number of runs at a time, a pool keeps the one that it has. The server is that of PREFECT_API_URL when
    this process started. Raises `ServerError` if Prefect refuses a deployment, `UsageError` for an unknown time zone.
    """
    timezone = _timezone()
    limits = {"gpu": num_gpus, "cpu": num_cpu_runs}
    with get_client(sync_client=True) as client:
        done = [each for pool, queues in QUEUES.items() for each in _ensure_pool(client, pool, limits[pool], queues)]
        done.append(_ensure_crash_automation(client))
        if not os.environ.get(WEBHOOK):
            _delete_webhook_block(client)
    return done + [(name, "deployed") for name in _deploy_all(timezone)]


def _job_template() -> dict[str, Any]:
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["env"]["default"] = RUN_ENVIRONMENT
    return template


def _ensure_pool(
    client: SyncPrefectClient, name: str, limit: int | None, queues: tuple[Queue, ...]
) -> list[tuple[str, str]]:
    try:
        pool = client.read_work_pool(name)
        limit = pool.concurrency_limit if limit is None else limit
        is_same = pool.concurrency_limit == limit and pool.base_job_template == _job_template()
        if not is_same:
            client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit, base_job_template=_job_template()))
        done = [(f"pool {name}", "unchanged" if is_same else f"updated, at most {limit} runs")]
    except ObjectNotFound:
        limit = DEFAULT_NUM_RUNS[name] if limit is None else limit
        client.create_work_pool(
            WorkPoolCreate(name=name, type="process", base_job_template=_job_template(), concurrency_limit=limit)
        )
        done = [(f"pool {name}", f"created, at most {limit} runs")]
    existing = {queue.name: queue for queue in client.read_work_queues(work_pool_name=name)}
    for queue in queues:
        found = existing.get(queue.name)
        if found is None:
            client.create_work_queue(queue.name, work_pool_name=name, priority=queue.priority)
        elif found.priority != queue.priority:
            client.update_work_queue(found.id, priority=queue.priority)
        done.append((f"queue {name}/{queue.name}", "unchanged" if found else f"created, priority {queue.priority}"))
    return done


def _ensure_crash_automation(client: SyncPrefectClient) -> tuple[str, str]:
    """Create or update the automation that marks a run without a heartbeat as crashed.

    Without it, a run whose process died with its worker would stay Running and keep its slot in the pool. The clock
    starts when the run is submitted, since a run may die before its first heartbeat. Runs outside our pools are left
    alone: they may send heartbeats at other intervals.
    """
    starts, ends = ("Submitting", "Running"), ("Completed", "Failed", "Cancelled", "Crashed")
    wanted = AutomationCore(
        name=CRASH_AUTOMATION,
        trigger=EventTrigger(
            after={f"prefect.flow-run.{event}" for event in (*starts, "heartbeat")},
            expect={f"prefect.flow-run.{event}" for event in ("Running", "heartbeat", *ends)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": ["work-pool"], "prefect.resource.name": list(QUEUES)}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=3 * HEARTBEAT_S),
        ),
        actions=[
            ChangeFlowRunState(name=None, state=StateType.CRASHED, message=_NO_HEARTBEAT, force=False),
            *_webhook_actions(),
        ],
    )
    existing = client.read_automations_by_name(CRASH_AUTOMATION)
    if not existing:
        client.create_automation(wanted)
        return ("automation for dead runs", f"created, acts after {3 * HEARTBEAT_S} s without a heartbeat")
    if AutomationCore.model_validate(existing[0].model_dump(include=set(AutomationCore.model_fields))) == wanted:
        return ("automation for dead runs", "unchanged")
    client.update_automation(existing[0].id, wanted)
    return ("automation for dead runs", "updated")


def _webhook_actions() -> list[CallWebhook]:
    """Actions by which the server reports a run whose process is gone to the webhook; none if no webhook is set."""
    address = os.environ.get(WEBHOOK)
    if not address:
        return []
    settings = {"method": "POST", "url": address, "headers": {"Content-Type": "application/json"}}
    block = cast(UUID, Webhook.model_validate(settings).save(_WEBHOOK_BLOCK, overwrite=True))
    text = "{{ flow.name }} {{ flow_run.name }} ({{ flow_run.id }}): Crashed. " + _NO_HEARTBEAT
    return [CallWebhook(block_document_id=block, payload=json.dumps({"text": text}))]


def _delete_webhook_block(client: SyncPrefectClient) -> None:
    """Delete the URL of the webhook from the server: it is a secret, and no longer used."""
    with suppress(ObjectNotFound):
        block = client.read_block_document_by_name(_WEBHOOK_BLOCK, Webhook.get_block_type_slug())
        client.delete_block_document(block.id)


def _timezone() -> str:
    """Return the time zone of the schedules that name none of their own; `UsageError` if it does not exist."""
    name = os.environ.get(TIMEZONE) or "UTC"
    known = available_timezones()
    if name not in known:
        near = nearest_name(name, known)
        meant = f"; did you mean {near}?" if near else "; expected one such as Europe/Berlin"
        raise UsageError(f"the time zone {name!r} of {TIMEZONE} does not exist{meant}")
    return name


def _deploy_all(timezone: str) -> list[str]:
    """Deploy the project's prefect.yaml, else the shipped one; returns the deployments' names.

    timezone: of the schedules whose `timezone` is the placeholder of FANTRANS_TIMEZONE.

    Each schedule stays as it is on the server, on or off.
    """
    content = yaml.safe_load(project_file("prefect.yaml").read_text())
    with get_client(sync_client=True) as client:
        are_on = {
            deployment_key(each.entrypoint, each.name): [schedule.active for schedule in each.schedules]
            for each in client.read_deployments()
        }
    for deployment in content["deployments"]:
        current = are_on.get(deployment_key(deployment["entrypoint"], deployment["name"]), [])
        for schedule, is_on in zip(deployment.get("schedules", []), current, strict=False):
            schedule["active"] = is_on
        for schedule in deployment.get("schedules", []):
            if schedule.get("timezone") == f"{{{{ ${TIMEZONE} }}}}":
                schedule["timezone"] = timezone
    project = project_folder()
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file, sort_keys=False)
        file.flush()
        result = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file.name],
            cwd=project,
            env=os.environ | {"FANTRANS_PROJECT": str(project)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        last = " ".join((result.stdout + result.stderr).split())[-300:]
        raise ServerError(f"prefect.yaml was not deployed: {last}; fix it and run `fantrans ops deploy` again")
    ours = {deployment_key(deployment["entrypoint"], deployment["name"]) for deployment in content["deployments"]}
    with get_client(sync_client=True) as client:
        return sorted(
            f"{client.read_flow(each.flow_id).name}/{each.name}"
            for each in client.read_deployments()
            if deployment_key(each.entrypoint, each.name) in ours
        )


def deployment_key(entrypoint: str | None, name: str) -> tuple[str, str]:
    """Return a deployment's flow and name; the flow is named by its module or, in older deployments, by its file."""
    return (entrypoint or "").replace(".py:", ".").replace("/", "."), name


if __name__ == "__main__":
    sys.exit("error: `python -m flows.bootstrap` is now a command; run `fantrans ops deploy` with the same options")

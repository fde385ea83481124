"""Everything that a Prefect server must hold before `prefect.yaml` works: pools, queues, limits, an automation.

`python -m flows.bootstrap` makes what is missing and brings up to date what is of another version; what an operator
sets, limits and schedules, stays. Running it again changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple, cast
from uuid import UUID

import httpx
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
from pipeline.catalog import CATALOG_FILE
from pipeline.errors import ConfigError, FantransError

CHECKOUT = CATALOG_FILE.parent
HEARTBEAT_S = 30
"""How often a flow run says that it lives; the automation goes by it."""
RUN_ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
    "PREFECT_LOGGING_EXTRA_LOGGERS": "fantrans",
    "DASK_LOGGING__DISTRIBUTED": "error",
}
"""What the pools tell every flow run; the stages' log lines are to be read on the server."""
ZOMBIE_NAME = "fantrans: a run without a heartbeat has crashed"
_WEBHOOK_BLOCK = "fantrans"
_NO_HEARTBEAT = "no heartbeat: its process and worker are gone"


class Queue(NamedTuple):
    """A queue of a pool; the lowest priority number goes first."""

    name: str
    priority: int


QUEUES = {
    "gpu": (Queue("refresh", 1), Queue("train", 2)),
    "cpu": (Queue("default", 1), Queue("later", 2)),
}
"""Pools of processes. `gpu` runs one flow a device, `cpu` one a core at most: reports, checks, rendered faces."""


NUM_RUNS = {"gpu": 1, "cpu": 2}
"""Runs that a pool has at a time where nobody says otherwise."""


def bootstrap(*, num_gpus: int | None = None, num_cpu_runs: int | None = None) -> list[tuple[str, str]]:
    """Make pools, queues, limits, automation and deployments; returns each with what was done to it.

    Without a number of runs at a time, a pool keeps its own. The server is that of PREFECT_API_URL when this process
    started. Raises `ConfigError` where a deployment is refused.
    """
    limits = {"gpu": num_gpus, "cpu": num_cpu_runs}
    with get_client(sync_client=True) as client:
        done = [made for pool, queues in QUEUES.items() for made in _pool(client, pool, limits[pool], queues)]
        done.append(_zombie_automation(client))
        if not os.environ.get(WEBHOOK):
            _forget_webhook(client)
    return done + [(name, "deployed") for name in _deploy()]


def wait_for_server(address: str, *, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Return once the server answers; `meanwhile` is called now and then. Raises `ConfigError` after so long."""
    deadline = time.monotonic() + seconds
    while True:
        meanwhile()
        try:
            if httpx.get(f"{address}/health", timeout=2).is_success:
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise ConfigError(
                f"no Prefect server answered at {address} within {seconds:.0f} s; start one as in "
                "docs/operations.md, or read its log"
            )
        time.sleep(0.5)


def _template() -> dict[str, Any]:
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["env"]["default"] = RUN_ENVIRONMENT
    return template


def _pool(client: SyncPrefectClient, name: str, limit: int | None, queues: tuple[Queue, ...]) -> list[tuple[str, str]]:
    try:
        pool = client.read_work_pool(name)
        limit = pool.concurrency_limit if limit is None else limit
        is_same = pool.concurrency_limit == limit and pool.base_job_template == _template()
        if not is_same:
            client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit, base_job_template=_template()))
        done = [(f"pool {name}", "was there" if is_same else f"brought up to date, at most {limit} runs")]
    except ObjectNotFound:
        limit = NUM_RUNS[name] if limit is None else limit
        client.create_work_pool(
            WorkPoolCreate(name=name, type="process", base_job_template=_template(), concurrency_limit=limit)
        )
        done = [(f"pool {name}", f"made, at most {limit} runs")]
    there = {queue.name: queue for queue in client.read_work_queues(work_pool_name=name)}
    for queue in queues:
        found = there.get(queue.name)
        if found is None:
            client.create_work_queue(queue.name, work_pool_name=name, priority=queue.priority)
        elif found.priority != queue.priority:
            client.update_work_queue(found.id, priority=queue.priority)
        done.append((f"queue {name}/{queue.name}", "was there" if found else f"made, priority {queue.priority}"))
    return done


def _zombie_automation(client: SyncPrefectClient) -> tuple[str, str]:
    """A run whose process died with its worker would stay Running, and keep its place in the pool, for ever.

    The clock starts before the first heartbeat, since a run may die before that. Runs outside our pools have heartbeats
    of their own kind, and are not judged.
    """
    starts, ends = ("Submitting", "Running"), ("Completed", "Failed", "Cancelled", "Crashed")
    wanted = AutomationCore(
        name=ZOMBIE_NAME,
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
            *_call_webhook(),
        ],
    )
    there = client.read_automations_by_name(ZOMBIE_NAME)
    if not there:
        client.create_automation(wanted)
        return ("automation for dead runs", f"made, after {3 * HEARTBEAT_S} s without a heartbeat")
    if AutomationCore.model_validate(there[0].model_dump(include=set(AutomationCore.model_fields))) == wanted:
        return ("automation for dead runs", "was there")
    client.update_automation(there[0].id, wanted)
    return ("automation for dead runs", "brought up to date")


def _call_webhook() -> list[CallWebhook]:
    """Word of a run whose own process can say nothing any more: the server tells it, if there is a webhook."""
    address = os.environ.get(WEBHOOK)
    if not address:
        return []
    settings = {"method": "POST", "url": address, "headers": {"Content-Type": "application/json"}}
    block = cast(UUID, Webhook.model_validate(settings).save(_WEBHOOK_BLOCK, overwrite=True))
    text = "{{ flow.name }} {{ flow_run.name }} ({{ flow_run.id }}): Crashed. " + _NO_HEARTBEAT
    return [CallWebhook(block_document_id=block, payload=json.dumps({"text": text}))]


def _forget_webhook(client: SyncPrefectClient) -> None:
    """An address that is no longer told of anything is a secret that need not lie on the server."""
    with suppress(ObjectNotFound):
        block = client.read_block_document_by_name(_WEBHOOK_BLOCK, Webhook.get_block_type_slug())
        client.delete_block_document(cast(UUID, block.id))


def _deploy() -> list[str]:
    """Deploy prefect.yaml, with schedules on or off as the server has them; returns the names of its deployments."""
    content = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())
    with get_client(sync_client=True) as client:
        are_on = {
            (each.entrypoint, each.name): [schedule.active for schedule in each.schedules]
            for each in client.read_deployments()
        }
    for deployment in content["deployments"]:
        there = are_on.get((deployment["entrypoint"], deployment["name"]), [])
        for schedule, is_on in zip(deployment.get("schedules", []), there, strict=False):
            schedule["active"] = is_on
    environment = os.environ | {"FANTRANS_CHECKOUT": str(CHECKOUT)}
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file, sort_keys=False)
        file.flush()
        result = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file.name],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        last = " ".join((result.stdout + result.stderr).split())[-300:]
        raise ConfigError(f"prefect.yaml was not deployed: {last}; mend it and run `python -m flows.bootstrap` again")
    ours = {(deployment["entrypoint"], deployment["name"]) for deployment in content["deployments"]}
    with get_client(sync_client=True) as client:
        return sorted(
            f"{client.read_flow(each.flow_id).name}/{each.name}"
            for each in client.read_deployments()
            if (each.entrypoint, each.name) in ours
        )


def main() -> None:
    """Bootstrap the server that PREFECT_API_URL names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, help="devices, one run each; default: as it is, 1 at first")
    parser.add_argument("--cpu-runs", type=int, help="runs of the pool cpu at a time; default: as it is, 2 at first")
    parser.add_argument("--wait-s", type=float, default=10, help="how long to wait for a server that is starting")
    arguments = parser.parse_args()
    try:
        if "PREFECT_API_URL" not in os.environ:
            raise ConfigError("PREFECT_API_URL names no server; start one and set it, as in docs/operations.md")
        wait_for_server(os.environ["PREFECT_API_URL"], seconds=arguments.wait_s)
        made = bootstrap(num_gpus=arguments.gpus, num_cpu_runs=arguments.cpu_runs)
    except FantransError as error:
        sys.exit(f"error: {error}")
    for name, what in made:
        sys.stdout.write(f"{name}: {what}\n")


if __name__ == "__main__":
    main()

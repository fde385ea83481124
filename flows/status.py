"""What a Prefect server and the caches are doing, what is wrong with it, and what to do next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateTypes
from prefect.client.schemas.objects import DeploymentSchedule, StateType
from prefect.client.schemas.sorting import FlowRunSort

from flows.bootstrap import QUEUES
from flows.connection import check_server
from pipeline.catalog import load_catalog
from pipeline.errors import FantransError
from pipeline.refresh.caches import CacheSummary, list_caches
from pipeline.runtime.text import age_in_words, counted

_LATE_AFTER = timedelta(seconds=60)
_SHORT_STATES = {
    "Pending": "a worker has taken it and has not started its process; see that worker's log",
    "Cancelling": "its process has not ended; see that worker's log",
}
"""States that last seconds, and what it means if they last longer."""
_AWAITS_SLOT = "AwaitingConcurrencySlot"


class Worker(NamedTuple):
    """A worker of a pool; a pool that does not exist, or has no worker, is one row without a name."""

    pool: str
    name: str | None
    state: str
    last_heartbeat_at: datetime | None


class Deployment(NamedTuple):
    """A deployment, FLOW/NAME, with its last and next runs; None where there is none.

    last_message: why the last run failed or crashed; None for other ends. schedule: cron and time zone, and "off" for
    an inactive one. A run whose start is over is late since `next_run_at`. last_run_id, last_state_at: of the last run,
    and since when it has its state. next_state: name of the state of the next run. held_by: what is paused, by the
    command that resumes it; None if nothing is.
    """

    name: str
    last_run_at: datetime | None
    last_state: str | None
    next_run_at: datetime | None
    last_message: str | None = None
    schedule: str | None = None
    pool: str | None = None
    last_run_id: str | None = None
    last_state_at: datetime | None = None
    next_state: str | None = None
    held_by: str | None = None

    def is_late(self, now: datetime) -> bool:
        """Return whether a run waits since more than a minute."""
        return self.next_run_at is not None and now - self.next_run_at > _LATE_AFTER


class Status(NamedTuple):
    """What a server and the folders of the catalog know.

    caches: of all data sets, in the folders of this process. faults: data sets whose caches could not be listed, and
    why. problems, hints: see `find_problems` and `find_hints`.
    """

    workers: list[Worker]
    deployments: list[Deployment]
    caches: list[CacheSummary]
    faults: list[str]
    problems: Sequence[str] = ()
    hints: Sequence[str] = ()


def read_status() -> Status:
    """Return workers, deployments and caches; raises `ServerError` if no server answers at PREFECT_API_URL."""
    check_server()
    with get_client(sync_client=True) as client:
        workers, deployments = _workers(client), _deployments(client)
    catalog, caches, faults = load_catalog(), [], []
    for dataset in catalog.datasets:
        try:
            caches += list_caches(catalog, dataset)
        except FantransError as error:
            faults.append(f"{dataset}: {error}")
    now = datetime.now(UTC)
    problems = find_problems(workers, deployments, now=now)
    return Status(workers, deployments, caches, faults, problems, find_hints(workers, deployments, now=now))


def find_problems(workers: list[Worker], deployments: list[Deployment], *, now: datetime) -> list[str]:
    """Return a sentence for each deployment whose run is late or stuck, or whose last run failed or crashed."""
    online = _online_pools(workers)
    found = []
    for each in deployments:
        if each.is_late(now) and each.next_run_at is not None:
            found.append(f"{each.name} is late for {_age(each.next_run_at, now)}: {_why_late(each, online)}")
        state = each.last_state
        if state in _SHORT_STATES and each.last_state_at is not None and now - each.last_state_at > _LATE_AFTER:
            since = _age(each.last_state_at, now)
            found.append(f"{each.name} is {state.lower()} for {since}: {_SHORT_STATES[state]}{_log(each, ' and ')}")
        if each.last_message is not None and state is not None:
            when = "" if each.last_run_at is None else f" {_age(each.last_run_at, now)} ago"
            found.append(f"{each.name} {state.lower()}{when}: {each.last_message}{_log(each, '; its log: ')}")
    return found


def find_hints(workers: list[Worker], deployments: list[Deployment], *, now: datetime) -> list[str]:
    """Return sentences on what will not run: scheduled runs that no worker will start, and schedules that are off."""
    online = _online_pools(workers)
    coming: dict[str, datetime] = {}
    for each in deployments:
        if each.next_run_at is not None and not each.is_late(now) and each.pool not in online:
            coming[str(each.pool)] = min(coming.get(str(each.pool), each.next_run_at), each.next_run_at)
    found = [
        f"pool {pool} has no worker online, and its next run is in {_age(now, at)}; start one with "
        f"`{_worker_hint(pool)}`"
        for pool, at in sorted(coming.items())
    ]
    off = [each.name for each in deployments if each.schedule is not None and each.schedule.endswith(", off")]
    if off:
        found.append(
            f"the schedules of {counted(len(off), 'deployment')} are off; "
            f"`prefect deployment schedule ls {off[0]}` prints the id of one, and "
            "`prefect deployment schedule resume DEPLOYMENT ID` switches it on"
        )
    return found


def _online_pools(workers: Iterable[Worker]) -> set[str]:
    return {worker.pool for worker in workers if worker.state == "online"}


def _why_late(deployment: Deployment, online: set[str]) -> str:
    """Return why a run has not started, and what to do."""
    if deployment.held_by is not None:
        return deployment.held_by
    if deployment.next_state == _AWAITS_SLOT:
        return "it waits for the end of another run of the same deployment"
    if deployment.pool not in online:
        return f"pool {deployment.pool} has no worker online; start one with `{_worker_hint(deployment.pool)}`"
    return f"all workers of pool {deployment.pool} are busy; the page of the server shows their runs"


def _log(deployment: Deployment, before: str) -> str:
    run = deployment.last_run_id
    return "" if run is None else f"{before}`prefect flow-run logs {run}`"


def _worker_hint(pool: str | None) -> str:
    return f"prefect worker start --type process --pool {pool}{' --limit 1' if pool == 'gpu' else ''}"


def _age(then: datetime, now: datetime) -> str:
    return age_in_words((now - then).total_seconds())


def _workers(client: SyncPrefectClient) -> list[Worker]:
    found = []
    existing = {pool.name for pool in client.read_work_pools()}
    for pool in QUEUES:
        if pool not in existing:
            found.append(Worker(pool, None, "no pool; run `fantrans ops deploy`", None))
            continue
        workers = client.read_workers_for_work_pool(pool)
        found += [
            Worker(pool, worker.name, worker.status.value.lower(), worker.last_heartbeat_time) for worker in workers
        ] or [Worker(pool, None, "no worker", None)]
    return found


def _deployments(client: SyncPrefectClient) -> list[Deployment]:
    found = []
    held = _held_queues(client)
    for deployment in client.read_deployments():
        its_runs = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        started = FlowRunFilter(state=FlowRunFilterState(type=StateTypes(not_any_=[StateType.SCHEDULED])))
        scheduled = FlowRunFilter(state=FlowRunFilterState(type=StateTypes(any_=[StateType.SCHEDULED])))
        last = client.read_flow_runs(
            flow_run_filter=started, deployment_filter=its_runs, limit=1, sort=FlowRunSort.EXPECTED_START_TIME_DESC
        )
        following = client.read_flow_runs(
            flow_run_filter=scheduled,
            deployment_filter=its_runs,
            limit=1,
            sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
        )
        state = last[0].state if last else None
        has_failed = state is not None and state.type in (StateType.FAILED, StateType.CRASHED)
        found.append(
            Deployment(
                f"{client.read_flow(deployment.flow_id).name}/{deployment.name}",
                last[0].start_time if last else None,
                last[0].state_name if last else None,
                following[0].next_scheduled_start_time if following else None,
                _reason(state.message) if state is not None and has_failed else None,
                ", ".join(map(_schedule, deployment.schedules)) or None,
                deployment.work_pool_name,
                str(last[0].id) if last else None,
                state.timestamp if state is not None else None,
                following[0].state_name if following else None,
                held.get((deployment.work_pool_name, None))
                or held.get((deployment.work_pool_name, deployment.work_queue_name)),
            )
        )
    return sorted(found, key=lambda deployment: deployment.name)


def _held_queues(client: SyncPrefectClient) -> Mapping[tuple[str | None, str | None], str]:
    """Return what is paused, as a sentence, by pool and queue; the queue None stands for the whole pool."""
    found: dict[tuple[str | None, str | None], str] = {}
    for pool in client.read_work_pools():
        if pool.is_paused:
            found[pool.name, None] = (
                f"pool {pool.name} is paused; resume it with `prefect work-pool resume {pool.name}`"
            )
        for queue in client.read_work_queues(work_pool_name=pool.name):
            if queue.is_paused:
                found[pool.name, queue.name] = (
                    f"queue {queue.name} of pool {pool.name} is paused; resume it with "
                    f"`prefect work-queue resume {queue.name} --pool {pool.name}`"
                )
    return found


def _reason(message: str | None) -> str:
    """Return the sentence of an error from the message of a failed state, on one line."""
    words = " ".join((message or "no message").split())
    return re.sub(r"^(Flow|Task) run encountered an exception: \w+: ", "", words)[:600]


def _schedule(schedule: DeploymentSchedule) -> str:
    """Return the rule of a schedule, with its time zone, and whether it is off."""
    rule = schedule.schedule
    words = str(
        getattr(rule, "cron", None) or getattr(rule, "rrule", None) or f"every {getattr(rule, 'interval', '?')}"
    )
    return f"{words} {getattr(rule, 'timezone', None) or 'UTC'}{'' if schedule.active else ', off'}"

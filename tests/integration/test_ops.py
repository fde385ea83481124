"""What `fantrans ops status` finds wrong, and how a deployment's schedule is shown."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

from flows import tasks
from flows.ops import Deployment, Worker, _reason, _schedule, find_problems

NOW = datetime(2026, 11, 28, 3, tzinfo=UTC)
LATE = Deployment("refresh-cache/bp4d", None, None, NOW - timedelta(hours=3), pool="gpu")


def problems(deployment, *states):
    return find_problems([Worker("gpu", "a", state, NOW) for state in states], [deployment], now=NOW)


@pytest.mark.parametrize("states", [(), ("offline",)])
def test_a_late_run_names_the_pool_and_the_command_of_its_worker(states):
    assert problems(LATE, *states) == [
        "refresh-cache/bp4d is late for 3 h: pool gpu has no worker online; start one with "
        "`prefect worker start --type process --pool gpu --limit 1`"
    ]


def test_a_late_run_with_a_worker_waits_for_it():
    (problem,) = problems(LATE, "offline", "online")
    assert problem.startswith(
        "refresh-cache/bp4d is late for 3 h: all workers of pool gpu are busy, or its queue is paused"
    )
    assert not problems(LATE._replace(next_run_at=NOW - timedelta(seconds=30)))
    assert not problems(LATE._replace(next_run_at=NOW + timedelta(hours=1)))


def test_a_failed_run_has_its_sentence_and_age():
    failed = LATE._replace(
        next_run_at=None, last_run_at=NOW - timedelta(days=2), last_state="Failed", last_message="no space left"
    )
    assert problems(failed, "online") == ["refresh-cache/bp4d failed 2 d ago: no space left"]
    assert not problems(failed._replace(last_state="Completed", last_message=None))


def test_the_sentence_of_an_error_stands_alone():
    assert _reason("Flow run encountered an exception: DataError: x is\n damaged") == "x is damaged"
    assert _reason("no heartbeat: its process and worker are gone") == "no heartbeat: its process and worker are gone"
    assert _reason(None) == "no message"


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"dataset": "bp4d", "experiment": "configs/mine.yaml"}, "bp4d, mine"),
        ({"dataset": "bp4d", "experiment": None}, "bp4d"),
        ({"dataset": None, "deep": True}, "all data sets"),
    ],
)
def test_a_flow_run_is_named_by_what_it_works_on(monkeypatch, parameters, name):
    monkeypatch.setattr(tasks, "flow_run", SimpleNamespace(parameters=parameters))
    assert tasks.run_name() == name


def test_a_schedule_has_its_time_zone():
    night = CronSchedule(cron="0 2 * * *", timezone="Europe/Berlin")
    assert _schedule(DeploymentSchedule(schedule=night, active=True)) == "0 2 * * * Europe/Berlin"
    assert _schedule(DeploymentSchedule(schedule=CronSchedule(cron="0 2 * * *"), active=False)) == "0 2 * * * UTC, off"
    often = IntervalSchedule(interval=timedelta(hours=1))
    assert _schedule(DeploymentSchedule(schedule=often, active=True)) == "every 1:00:00 UTC"

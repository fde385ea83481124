"""What `fantrans ops status` finds wrong, and how a deployment's schedule is shown."""

import subprocess
import time
from datetime import UTC, datetime, timedelta

import pytest
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

from flows.ops import _Supervisor
from flows.status import Deployment, Worker, _reason, _schedule, find_hints, find_problems
from flows.tasks import run_name
from flows.train import describe_folds

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
        "refresh-cache/bp4d is late for 3 h: all workers of pool gpu are busy; the page of the server"
    )
    assert not problems(LATE._replace(next_run_at=NOW - timedelta(seconds=30)))
    assert not problems(LATE._replace(next_run_at=NOW + timedelta(hours=1)))


def test_a_failed_run_has_its_sentence_and_age():
    failed = LATE._replace(
        next_run_at=None, last_run_at=NOW - timedelta(days=2), last_state="Failed", last_message="no space left"
    )._replace(last_run_id="1-2")
    assert problems(failed, "online") == [
        "refresh-cache/bp4d failed 2 d ago: no space left; its log: `prefect flow-run logs 1-2`"
    ]
    assert not problems(failed._replace(last_state="Completed", last_message=None))


def test_a_late_run_is_held_by_what_is_paused_or_by_another_run():
    held = LATE._replace(held_by="pool gpu is paused; resume it with `prefect work-pool resume gpu`")
    (problem,) = problems(held, "online")
    assert problem.endswith("is late for 3 h: pool gpu is paused; resume it with `prefect work-pool resume gpu`")
    (problem,) = problems(LATE._replace(next_state="AwaitingConcurrencySlot"), "online")
    assert problem.endswith("is late for 3 h: it waits for the end of another run of the same deployment")


def test_a_run_that_is_pending_for_minutes_is_named_with_its_log():
    pending = LATE._replace(next_run_at=None, last_state="Pending", last_run_id="1-2")
    assert problems(pending._replace(last_state_at=NOW - timedelta(minutes=12)), "online") == [
        "refresh-cache/bp4d is pending for 12 min: a worker has taken it and has not started its process; see that "
        "worker's log and `prefect flow-run logs 1-2`"
    ]
    assert not problems(pending._replace(last_state_at=NOW - timedelta(seconds=20)), "online")
    assert not problems(pending._replace(last_state="Running", last_state_at=NOW - timedelta(hours=3)), "online")


def test_a_coming_run_without_a_worker_is_a_hint_and_so_are_schedules_that_are_off():
    coming = LATE._replace(next_run_at=NOW + timedelta(hours=3), schedule="0 6 * * * UTC")
    off = coming._replace(name="train-folds/bp4d", next_run_at=None, schedule="0 6 * * 6 UTC, off")
    workers = [Worker("gpu", "a", "offline", NOW)]
    assert find_hints(workers, [coming, off], now=NOW) == [
        "pool gpu has no worker online, and its next run is in 3 h; start one with "
        "`prefect worker start --type process --pool gpu --limit 1`",
        "the schedules of 1 deployment are off; `prefect deployment schedule ls train-folds/bp4d` prints the id of "
        "one, and `prefect deployment schedule resume DEPLOYMENT ID` switches it on",
    ]
    assert not find_hints([Worker("gpu", "a", "online", NOW)], [coming], now=NOW)


def test_a_worker_that_hangs_is_killed_when_it_has_been_idle_for_a_while(tmp_path):
    ignores = "trap '' TERM; echo ready; "
    scripts = {"hangs": "exec sleep 60", "was busy": "sleep 1.5; read -t 0.3 x < /dev/zero; exit 3", "ends": "exit 4"}
    with _Supervisor(tmp_path, print, idle_stop_timeout_s=0.8) as workers:
        started = {
            name: subprocess.Popen(["bash", "-c", ignores + script], start_new_session=True, stdout=subprocess.PIPE)
            for name, script in scripts.items()
        }
        assert [process.stdout.readline() for process in started.values()] == [b"ready\n"] * 3
        workers._running = {name: (process, time.monotonic()) for name, process in started.items()}
    for process in started.values():
        process.stdout.close()
    assert {name: process.returncode for name, process in started.items()} == {"hangs": -9, "was busy": 3, "ends": 4}


def test_the_sentence_of_an_error_stands_alone():
    assert _reason("Flow run encountered an exception: DataError: x is\n damaged") == "x is damaged"
    assert _reason("no heartbeat: its process and worker are gone") == "no heartbeat: its process and worker are gone"
    assert _reason(None) == "no message"


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"dataset": "bp4d", "experiment": "configs/mine.yaml"}, "train bp4d mine"),
        ({"dataset": "bp4d", "experiment": None, "profile": "compact"}, "train bp4d, compact"),
        (
            {"dataset": "disfa", "init_from": "bp4d", "overrides": ["train.lr=1e-4"]},
            "train disfa, from bp4d, train.lr=1e-4",
        ),
        ({"dataset": None, "deep": True}, "train all data sets"),
    ],
)
def test_a_flow_run_is_named_by_what_it_works_on(parameters, name):
    assert run_name("train", parameters) == name


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"experiment": "fan_trans"}, "train bp4d fan_trans, 3 folds"),
        ({}, "train bp4d, 3 folds"),
        ({"parts": ["P1"]}, "train bp4d, 1 fold (P1)"),
        ({"experiment": "table1", "base": "fan_trans", "parts": ["P1", "P3"]}, "train bp4d table1, 60 folds (P1, P3)"),
        ({"experiment": "nothing"}, "train bp4d nothing"),
    ],
)
def test_a_training_is_named_with_the_number_of_its_folds(parameters, name):
    assert run_name("train", {"dataset": "bp4d"} | parameters, describe_folds) == name


def test_a_schedule_has_its_time_zone():
    night = CronSchedule(cron="0 2 * * *", timezone="Europe/Berlin")
    assert _schedule(DeploymentSchedule(schedule=night, active=True)) == "0 2 * * * Europe/Berlin"
    assert _schedule(DeploymentSchedule(schedule=CronSchedule(cron="0 2 * * *"), active=False)) == "0 2 * * * UTC, off"
    often = IntervalSchedule(interval=timedelta(hours=1))
    assert _schedule(DeploymentSchedule(schedule=often, active=True)) == "every 1:00:00 UTC"

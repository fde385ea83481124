"""The log of a flow run on a real server has the lines of its threads and of its worker processes."""

import logging
import time

import pytest

from pipeline.runtime.executors import LocalWorkers
from tests.unit import small_runs
from tests.unit.small_runs import make_run


def speak(state, number):
    logging.getLogger("fantrans").info("%s says %d", state, number)


class Kept(logging.Handler):
    """Keeps the lines that it gets."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def ours():
    """Lines of the project, which also go to the server as PREFECT_LOGGING_EXTRA_LOGGERS sends them in our pools."""
    from prefect.logging.handlers import APILogHandler

    logger, kept, sent = logging.getLogger("fantrans"), Kept(), APILogHandler()
    for handler in (kept, sent):
        logger.addHandler(handler)
    yield kept.lines
    for handler in (kept, sent):
        logger.removeHandler(handler)


def lines_of(flow_run_id, *, num_lines):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    with get_client(sync_client=True) as client:
        for _ in range(300):
            logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])))
            if len([each for each in logs if each.name == "fantrans"]) >= num_lines:
                break
            time.sleep(0.1)
    return [each.message for each in logs if each.name == "fantrans"]


def test_a_flow_run_logs_the_lines_of_its_training_threads_and_of_its_processes(tmp_path, ours):
    from prefect.runtime import flow_run

    from flows.tasks import fantrans_flow, fantrans_task
    from pipeline.training.trainer import train_heads

    small_runs.make_cache(tmp_path)
    run = make_run(tmp_path)

    @fantrans_task(task_run_name="train heads on {dataset}")
    def train(dataset):
        train_heads([(run, part) for part in ("P1", "P2")])
        with LocalWorkers(2).open(f"a process of {dataset}", num_tasks=2) as pool:
            assert [result.error for result in pool.run(speak, [1, 2])] == [None, None]

    @fantrans_flow("training", verb="train")
    def training(dataset):
        train(dataset)
        return flow_run.id, flow_run.name

    flow_run_id, name = training("small")
    assert name == "train small"
    assert sum("epoch 3 of 3: loss" in line for line in ours) == 2
    assert {"a process of small says 1", "a process of small says 2"} <= set(ours)
    assert sorted(lines_of(flow_run_id, num_lines=len(ours))) == sorted(ours)

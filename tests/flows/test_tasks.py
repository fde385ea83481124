"""When a task is tried again, and who is told of a failure."""

import errno
from types import SimpleNamespace

import pytest
from prefect import flow

from flows.tasks import WEBHOOK, fantrans_flow, fantrans_task, is_transient, notify_webhook
from pipeline.errors import DataError, WriteError
from tests.webhook import webhook


class State:
    def __init__(self, error):
        self.error = error

    def result(self, *, raise_on_failure):
        assert not raise_on_failure
        return self.error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OSError(errno.EIO, "the disk hiccuped"), True),
        (ConnectionResetError(errno.ECONNRESET, "peer"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (WriteError("a hiccup", errno.EIO), True),
        (WriteError("full", errno.ENOSPC), False),
        (DataError("bad input"), False),
        (KeyError("a defect"), False),
    ],
)
def test_only_passing_faults_of_input_and_output_are_tried_again(error, again):
    assert is_transient(None, None, State(error)) is again


def test_a_task_is_tried_again_until_it_works():
    tries = []

    @fantrans_task(retry_delay_seconds=0)
    def hiccup():
        tries.append(1)
        if len(tries) < 3:
            raise OSError(errno.EIO, "the disk hiccuped")
        return len(tries)

    @fantrans_task(retry_delay_seconds=0)
    def bad_input():
        tries.append(1)
        raise DataError("bad input")

    @flow
    def trying():
        assert hiccup() == 3
        with pytest.raises(DataError):
            bad_input()

    trying()
    assert len(tries) == 3 + 1


@pytest.fixture
def told(monkeypatch):
    with webhook() as (lines, address):
        monkeypatch.setenv(WEBHOOK, address)
        yield lines


def test_a_failed_run_tells_the_webhook_in_one_line(told):
    @fantrans_flow(name="failing")
    def failing():
        raise DataError("the index\nis gone")

    with pytest.raises(DataError):
        failing()
    (line,) = told
    assert line.startswith("failing ")
    assert line.endswith(": Failed. Flow run encountered an exception: DataError: the index is gone")
    assert "\n" not in line


def test_the_address_of_a_webhook_that_refuses_is_not_in_the_log(monkeypatch, caplog):
    with webhook(status=500) as (lines, address):
        monkeypatch.setenv(WEBHOOK, f"{address}/secret")
        run = SimpleNamespace(name="a", id="b")
        notify_webhook(SimpleNamespace(name="failing"), run, SimpleNamespace(name="Failed", message=None))
    assert len(lines) == 1
    assert [f"{WEBHOOK} of a was not told: HTTPStatusError 500"] == [
        line for line in caplog.messages if line.startswith(WEBHOOK)
    ]
    assert not any("secret" in record.getMessage() for record in caplog.records if record.name == "fantrans")


def test_a_webhook_that_is_not_there_fails_nothing_and_is_said(monkeypatch, caplog):
    run = SimpleNamespace(name="a", id="b")
    monkeypatch.setenv(WEBHOOK, "http://127.0.0.1:9")
    notify_webhook(SimpleNamespace(name="failing"), run, SimpleNamespace(name="Failed", message=None))
    assert caplog.messages[0].startswith(f"{WEBHOOK} of a was not told: ")
    monkeypatch.delenv(WEBHOOK)
    notify_webhook(SimpleNamespace(name="failing"), run, SimpleNamespace(name="Failed", message=None))
    assert len(caplog.messages) == 1

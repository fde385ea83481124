"""When a task is retried, and what the webhook gets when a run fails."""

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
    ("error", "is_retried"),
    [
        (OSError(errno.EIO, "a transient fault"), True),
        (ConnectionResetError(errno.ECONNRESET, "peer"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (WriteError("a transient fault", errno.EIO), True),
        (WriteError("full", errno.ENOSPC), False),
        (DataError("bad input"), False),
        (KeyError("a defect"), False),
    ],
)
def test_only_transient_io_errors_are_retried(error, is_retried):
    assert is_transient(None, None, State(error)) is is_retried


def test_a_task_is_retried_until_it_works():
    tries = []

    @fantrans_task(retry_delay_seconds=0)
    def fail_twice():
        tries.append(1)
        if len(tries) < 3:
            raise OSError(errno.EIO, "a transient fault")
        return len(tries)

    @fantrans_task(retry_delay_seconds=0)
    def bad_input():
        tries.append(1)
        raise DataError("bad input")

    @flow
    def trying():
        assert fail_twice() == 3
        with pytest.raises(DataError):
            bad_input()

    trying()
    assert len(tries) == 3 + 1


@pytest.fixture
def posted_lines(monkeypatch):
    with webhook() as (lines, address):
        monkeypatch.setenv(WEBHOOK, address)
        yield lines


def test_a_failed_run_posts_one_line_to_the_webhook(posted_lines):
    @fantrans_flow("failing", verb="fail")
    def failing():
        raise DataError("the index\nis gone")

    with pytest.raises(DataError):
        failing()
    (line,) = posted_lines
    assert line.startswith("failing fail all data sets (")
    assert line.endswith(": Failed. Flow run encountered an exception: DataError: the index is gone")
    assert "\n" not in line


def test_the_url_of_a_webhook_that_refuses_is_not_logged(monkeypatch, caplog):
    with webhook(status=500) as (lines, address):
        monkeypatch.setenv(WEBHOOK, f"{address}/secret")
        run = SimpleNamespace(name="a", id="b")
        notify_webhook(SimpleNamespace(name="failing"), run, SimpleNamespace(name="Failed", message=None))
    assert len(lines) == 1
    assert [f"{WEBHOOK}: the message about a was not delivered: HTTPStatusError 500"] == [
        line for line in caplog.messages if line.startswith(WEBHOOK)
    ]
    assert not any("secret" in record.getMessage() for record in caplog.records if record.name == "fantrans")


def test_an_unreachable_webhook_is_logged_and_fails_nothing(monkeypatch, caplog):
    run = SimpleNamespace(name="a", id="b")
    monkeypatch.setenv(WEBHOOK, "http://127.0.0.1:9")
    notify_webhook(SimpleNamespace(name="failing"), run, SimpleNamespace(name="Failed", message=None))
    assert caplog.messages[0].startswith(f"{WEBHOOK}: the message about a was not delivered: ")
    monkeypatch.delenv(WEBHOOK)
    notify_webhook(SimpleNamespace(name="failing"), run, SimpleNamespace(name="Failed", message=None))
    assert len(caplog.messages) == 1

"""A stand-in for a Prefect server: healthy, and 401 for all that needs its password."""

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows.commands.server import set_up_prefect
from flows.connection import check_server, wait_for_server
from pipeline.errors import ServerError

DEAD = "http://127.0.0.1:9"


class Server(BaseHTTPRequestHandler):
    protected_status = 200
    body = b'"3.9.1"'

    def do_GET(self):
        is_health = self.path.endswith("/health")
        self.send_response(200 if is_health else self.protected_status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("PREFECT_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    handler = type("Handler", (Server,), {})
    listening = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{listening.server_port}/api"
    monkeypatch.setenv("FANTRANS_WORK", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", address)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: address}):
        yield handler
    listening.shutdown()
    listening.server_close()
    os.environ.clear()
    os.environ |= before  # without what `set_up_prefect` sets


def with_proxy(monkeypatch, **variables):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, DEAD)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, variables.get(name, ""))


@pytest.mark.usefixtures("server")
def test_a_server_on_this_machine_is_reached_past_a_dead_proxy(monkeypatch):
    with_proxy(monkeypatch)
    with pytest.raises(ServerError, match=r"through the proxy of HTTP_PROXY \(add 127.0.0.1 to NO_PROXY"):
        check_server()
    with pytest.raises(ServerError, match=r"within 0 s through the proxy of HTTP_PROXY"):
        wait_for_server(os.environ["PREFECT_API_URL"], seconds=0)
    set_up_prefect()
    check_server()
    wait_for_server(os.environ["PREFECT_API_URL"], seconds=0)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("NO_PROXY", "a.org, 127.0.0.1", "a.org,127.0.0.1,localhost,::1"),
        ("no_proxy", "a.org", "a.org,localhost,127.0.0.1,::1"),
        ("NO_PROXY", "*", "*"),
    ],
)
def test_the_users_own_exceptions_from_the_proxy_stay(monkeypatch, name, before, after):
    with_proxy(monkeypatch, **{name: before})
    set_up_prefect()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == after


def test_a_password_that_is_missing_or_wrong_names_the_variable(server, monkeypatch):
    server.protected_status = 401
    sentence = r"{} \(status 401\); set PREFECT_API_AUTH_STRING to what its PREFECT_SERVER_API_AUTH_STRING is"
    with pytest.raises(ServerError, match=sentence.format("asks for a password")):
        check_server()
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:wrong")
    with pytest.raises(ServerError, match=sentence.format("refuses the password")):
        wait_for_server(os.environ["PREFECT_API_URL"], seconds=0)


def test_what_is_not_a_prefect_server_is_said(server):
    server.body = b"<html>"
    with pytest.raises(ServerError, match=r"what answers at http://127.0.0.1:\d+/api is not a Prefect server"):
        check_server()
    server.protected_status = 404
    with pytest.raises(ServerError, match=r"answers with status 404; read its log"):
        check_server()


def test_an_address_without_its_scheme_is_named_with_the_right_one(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "127.0.0.1:4200/api")
    with pytest.raises(ServerError, match=r"without http:// or https://; set it to http://127\.0\.0\.1:4200/api$"):
        check_server()

"""Reach the Prefect server of PREFECT_API_URL: past proxies on this machine, and with its password."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError

from pipeline.errors import ServerError


def check_server() -> None:
    """Raise `ServerError` if no server answers at PREFECT_API_URL, or if it refuses our password."""
    address = os.environ.get("PREFECT_API_URL", "")
    if address and not address.startswith(("http://", "https://")):
        raise ServerError(f"PREFECT_API_URL is {address}, without http:// or https://; set it to http://{address}")
    try:
        httpx.get(f"{address}/health", timeout=5).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL):
        raise ServerError(
            f"no Prefect server answers at {address or 'PREFECT_API_URL, which is not set'}{_by_proxy(address)}; "
            "start one with `fantrans ops up`, or set PREFECT_API_URL to yours"
        ) from None
    _check_access(address)


def wait_for_server(address: str, *, seconds: float, while_waiting: Callable[[], None] = lambda: None) -> None:
    """Return once the server answers, or raise `ServerError` after `seconds`, or if it refuses our password.

    Each try calls `while_waiting` first.
    """
    deadline = time.monotonic() + seconds
    while True:
        while_waiting()
        try:
            if httpx.get(f"{address}/health", timeout=2).is_success:
                break
        except (httpx.HTTPError, httpx.InvalidURL):
            pass
        if time.monotonic() > deadline:
            raise ServerError(
                f"no Prefect server answered at {address} within {seconds:.0f} s{_by_proxy(address)}; start one as in "
                "docs/operations.md, or read its log"
            )
        time.sleep(0.5)
    _check_access(address)


def _by_proxy(address: str) -> str:
    """Return words on the proxy between us and the server; nothing if there is none."""
    try:
        url = urlsplit(address)
        proxy = getproxies().get(url.scheme)
        if proxy is None or url.hostname is None or proxy_bypass(url.hostname):
            return ""
    except ValueError:
        return ""
    name = f"{url.scheme.upper()}_PROXY"
    return f" through the proxy of {name} (add {url.hostname} to NO_PROXY if the server must be reached past it)"


def _check_access(address: str) -> None:
    """Raise `ServerError` if the server answers our requests with an error: health checks need no password."""
    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status not in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise ServerError(f"the server at {address} answers with status {status}; read its log") from None
        known = os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get("PREFECT_API_KEY")
        raise ServerError(
            f"the Prefect server at {address} {'refuses the password' if known else 'asks for a password'} (status "
            f"{status}); set PREFECT_API_AUTH_STRING to what its PREFECT_SERVER_API_AUTH_STRING is, as USER:PASSWORD"
        ) from None
    except (httpx.HTTPError, ValueError) as error:
        raise ServerError(
            f"what answers at {address} is not a Prefect server ({type(error).__name__}); check PREFECT_API_URL"
        ) from None

"""Prefect's settings, and whether a server records what a command does."""

from __future__ import annotations

import os
from pathlib import Path


def is_server_named() -> bool:
    """Return whether PREFECT_API_URL names a server to record runs, and set up Prefect if so.

    Raises `ServerError` if the server does not answer.
    """
    if "PREFECT_API_URL" not in os.environ:
        return False
    set_up_prefect()
    from flows.connection import check_server

    check_server()
    return True


def prefect_home() -> Path:
    """Return the default folder of Prefect's state, for when PREFECT_HOME is not set."""
    from pipeline.catalog import load_catalog

    return load_catalog().roots.work / "prefect"


def set_up_prefect(**overrides: str) -> None:
    """Set Prefect's environment variables that the user has not set: patient start-up, no telemetry, few log lines.

    Call it before Prefect is first imported, because Prefect reads them then. `overrides` replace the user's values.
    This process and those that it starts reach a server on this machine past a proxy.
    """
    os.environ |= overrides
    _pass_proxy_on_this_machine()
    home = prefect_home()
    home.mkdir(parents=True, exist_ok=True)  # Prefect creates only the last folder of the path, and its server needs it
    for name, value in {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # errors end as one sentence, or as the traceback of a defect
        "PREFECT_LOGGING_EXTRA_LOGGERS": "fantrans",  # a recorded command sends its lines to its flow run
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # and those before and after it to the terminal alone
        "DO_NOT_TRACK": "1",
    }.items():
        os.environ.setdefault(name, value)


def _pass_proxy_on_this_machine() -> None:
    """Add the addresses of this machine to NO_PROXY, and to no_proxy, which some programs prefer."""
    value = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in value.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in ("localhost", "127.0.0.1", "::1") if host not in hosts]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(hosts)

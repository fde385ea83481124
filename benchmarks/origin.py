"""What a result records of its origin."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline.runtime.machine import machine_name


def origin(device: str = "cpu") -> dict[str, str]:
    """Return the machine and the commit; the commit ends with "+" if files of the project differ from it."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    return {"machine": machine_name(device), "commit": found.stdout.strip()}

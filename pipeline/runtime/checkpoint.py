"""Where a network's training is, so that a killed one goes on and ends with the weights of an undisturbed one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.errors import WeightsError
from pipeline.runtime.atomic import write_atomically

EVERY_S = 60.0


class Stateful(Protocol):
    """A network, an optimiser or a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """All that it needs in order to go on."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Go on from there."""


class Checkpoint:
    """A file beside the weights that are trained, `out`.checkpoint, written about once a minute and gone at the end."""

    def __init__(self, out: Path, settings: Mapping[str, Any], **parts: Stateful) -> None:
        self._path, self._settings, self._parts = out.with_name(out.name + ".checkpoint"), dict(settings), parts
        self._saved_at = time.monotonic()

    def resume(self, device: torch.device) -> int:
        """Bring all parts to where the checkpoint is, if there is one; returns how many steps are done.

        Raises `WeightsError` where it was written under other settings.
        """
        if not self._path.is_file():
            return 0
        state = torch.load(self._path, map_location=device, weights_only=True)
        then = state["settings"]
        changed = [
            f"{name} {then.get(name)}, now {value}" for name, value in self._settings.items() if then.get(name) != value
        ]
        if changed:
            raise WeightsError(
                f"{self._path} has other settings ({'; '.join(changed)}); delete it to start anew, or "
                "go on with its own"
            )
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        return int(state["num_steps"])

    def save_at_times(self, num_steps: int) -> None:
        """Write it, so many steps being done, if the last time was a while ago."""
        if time.monotonic() - self._saved_at > EVERY_S:
            parts = {name: part.state_dict() for name, part in self._parts.items()}
            state = {"settings": self._settings, "num_steps": num_steps, "parts": parts}
            write_atomically(self._path, partial(torch.save, state))
            self._saved_at = time.monotonic()

    def remove(self) -> None:
        """The weights are written."""
        self._path.unlink(missing_ok=True)

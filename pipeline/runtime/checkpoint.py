"""Checkpoints of a training, so that a killed one resumes and ends with the weights of an undisturbed one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import WeightsError
from pipeline.runtime.atomic import write_atomically

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful  # takes 0.7 s, and is only a protocol

EVERY_S = 60.0
"""Least time between two writes of `Checkpoint.save_if_due`, in seconds."""


class Checkpoint:
    """A file with the state of everything that changes during a training; it is removed when the training ends.

    path: the file. settings: what decides the result, as JSON values; a checkpoint of other settings is refused. parts:
    by name, network, optimiser, schedule and whatever else has `state_dict` and `load_state_dict`. The file is read
    with `weights_only=True`, so states hold tensors, numbers, strings, lists and dicts.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], **parts: Stateful) -> None:
        self._path, self._settings, self._parts = path, dict(settings), parts
        self._saved_at = time.monotonic()

    def resume(self, device: torch.device) -> int:
        """Load the state of all parts if the file exists; return the number of steps done, else 0.

        Raises `WeightsError` if it was written with other settings or by another version.
        """
        if not self._path.is_file():
            return 0
        state = torch.load(self._path, map_location=device, weights_only=True)
        if not {"settings", "num_steps", "parts"} <= state.keys() or state["parts"].keys() != self._parts.keys():
            raise WeightsError(f"{self._path} was written by another version; delete it to start from the beginning")
        then = state["settings"]
        changed = [
            f"{name} {then.get(name)}, now {value}" for name, value in self._settings.items() if then.get(name) != value
        ]
        if changed:
            raise WeightsError(
                f"{self._path} has other settings ({'; '.join(changed)}); delete it to start from the beginning, or "
                "resume with its own settings"
            )
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        return int(state["num_steps"])

    def save(self, num_steps: int) -> None:
        """Write the state of all parts after `num_steps` steps; raises `WriteError` if that fails."""
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        state = {"settings": self._settings, "num_steps": num_steps, "parts": parts}
        write_atomically(self._path, partial(torch.save, state))
        self._saved_at = time.monotonic()

    def save_if_due(self, num_steps: int) -> None:
        """`save` if the last time was more than `EVERY_S` seconds ago."""
        if time.monotonic() - self._saved_at > EVERY_S:
            self.save(num_steps)

    def remove(self) -> None:
        """Remove the file if it exists, once the result is written."""
        self._path.unlink(missing_ok=True)


def checkpoint_beside(out: Path) -> Path:
    """Return the path of the checkpoint for weights that are trained into the file `out`."""
    return out.with_name(out.name + ".checkpoint")

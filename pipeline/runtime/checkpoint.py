"""Checkpoints of a training, so that a killed one resumes and ends with the weights of an undisturbed one."""

from __future__ import annotations

import logging
import struct
import time
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import WeightsError
from pipeline.runtime.atomic import write_atomically

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful  # takes 0.7 s, and is only a protocol

logger = logging.getLogger("fantrans")

EVERY_S = 60.0
"""Least time between two writes of `Checkpoint.save_if_due`, in seconds."""


class Checkpoint:
    """A file with the state of everything that changes during a training; it is removed when the training ends.

    The checkpoint before the last one stays beside it, for a last one that a power cut or a bad disk has damaged.

    path: the file. settings: what decides the result, as JSON values; a checkpoint of other settings is refused. parts:
    by name, network, optimiser, schedule and whatever else has `state_dict` and `load_state_dict`. The file is read
    with `weights_only=True`, so states hold tensors, numbers, strings, lists and dicts.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], **parts: Stateful) -> None:
        self._path, self._settings, self._parts = path, dict(settings), parts
        self._before = path.with_name(f"{path.name}.before")
        self._saved_at = time.monotonic()

    def resume(self, device: torch.device) -> int:
        """Load the state of all parts if the file exists; return the number of steps done, else 0.

        A damaged file is renamed to `*.damaged`, with a warning; then the checkpoint before it is loaded, if there is
        one. Raises `WeightsError` if the file was written with other settings or by another version.
        """
        for path in (self._path, self._before):
            if path.is_file() and _is_whole(path):
                return self._load(path, device)
            if path.is_file():
                damaged = path.replace(path.with_name(f"{path.name}.damaged"))
                is_last = path == self._before or not self._before.is_file()
                start = "at the beginning" if is_last else "at the checkpoint before it"
                logger.warning("%s is damaged and now named %s; the training starts %s", path, damaged.name, start)
        return 0

    def _load(self, path: Path, device: torch.device) -> int:
        state = torch.load(path, map_location=device, weights_only=True)
        other_version = f"{path} was written by another version; delete it to start from the beginning"
        if not {"settings", "num_steps", "parts"} <= state.keys() or state["parts"].keys() != self._parts.keys():
            raise WeightsError(other_version)
        then = state["settings"]
        changed = [
            f"{name} {then.get(name)}, now {value}" for name, value in self._settings.items() if then.get(name) != value
        ]
        if changed:
            raise WeightsError(
                f"{path} has other settings ({'; '.join(changed)}); delete it to start from the beginning, or "
                "resume with its own settings"
            )
        try:
            for name, part in self._parts.items():
                part.load_state_dict(state["parts"][name])
        except (KeyError, ValueError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise WeightsError(other_version) from None
        return int(state["num_steps"])

    def save(self, num_steps: int) -> None:
        """Write the state of all parts after `num_steps` steps; raises `WriteError` if that fails."""
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        state = {"settings": self._settings, "num_steps": num_steps, "parts": parts}
        if self._path.is_file():
            self._path.replace(self._before)
        write_atomically(self._path, partial(torch.save, state))
        self._saved_at = time.monotonic()

    def save_if_due(self, num_steps: int) -> None:
        """`save` if the last time was more than `EVERY_S` seconds ago."""
        if time.monotonic() - self._saved_at > EVERY_S:
            self.save(num_steps)

    def remove(self) -> None:
        """Remove the file and what stands beside it, once the result is written."""
        for path in (self._path, self._before):
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.damaged").unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    """Return whether all checksums of a file of `torch.save` are right; torch itself does not check them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error):
        return False


def checkpoint_beside(out: Path) -> Path:
    """Return the path of the checkpoint for weights that are trained into the file `out`."""
    return out.with_name(out.name + ".checkpoint")

"""Torch's random numbers for one of several trainings in a process."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import torch

_LOCK = threading.Lock()


class OwnRandomNumbers:
    """A context in which torch draws the random numbers of one training, such as those of its dropout.

    Torch has one state per device for all threads: inside, it is this training's own, so that what it draws depends on
    the seed only. One training is inside at a time. The state is part of a checkpoint.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.Generator().manual_seed(seed).get_state()
        self._cuda: torch.Tensor | None = None
        if device.type == "cuda":
            self._cuda = torch.Generator(device).manual_seed(seed).get_state()

    def __enter__(self) -> None:
        _LOCK.acquire()
        torch.random.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._cpu = torch.random.get_rng_state()
        if self._cuda is not None:
            self._cuda = torch.cuda.get_rng_state(self._device)
        _LOCK.release()

    def state_dict(self) -> dict[str, Any]:
        """Return the states, for a checkpoint."""
        return {"cpu": self._cpu} if self._cuda is None else {"cpu": self._cpu, "cuda": self._cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; a checkpoint of a CPU may go on on a GPU, with other numbers there."""
        self._cpu = state_dict["cpu"].cpu()
        if self._cuda is not None and "cuda" in state_dict:
            self._cuda = state_dict["cuda"].cpu()

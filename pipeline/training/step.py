"""One optimiser step of a head; on CUDA its hundreds of small kernels are launched together, as one graph."""

# B frames, A action units
from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from models.head import Maps, run_head
from models.losses import total_loss
from pipeline.config import TrainConfig

logger = logging.getLogger("fantrans")

NUM_ORDINARY_STEPS = 3
"""Steps before one is recorded: they allocate the optimiser's state and choose cuDNN's kernels."""

_LABELS = "labels"


class StepResult(NamedTuple):
    """losses (3,): total, classification, distillation. counts int64 (3, A): see `confusion`. Both on the device."""

    losses: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Step:
    """Forward pass, losses, backward pass and update. random: the context in which the head draws random numbers."""

    head: nn.Module
    optimiser: torch.optim.Optimizer
    weights_A: Tensor
    settings: TrainConfig
    random: AbstractContextManager[None]

    def __call__(self, maps: Maps, labels_BA: Tensor) -> StepResult:
        """Learn from a batch; labels_BA: int8 in {0, 1, -1 unknown}."""
        kind, settings = self.weights_A.device.type, self.settings
        is_captured = kind == "cuda" and torch.cuda.is_current_stream_capturing()
        with (
            self.random,
            torch.autocast(kind, torch.bfloat16, enabled=settings.precision == "bf16", cache_enabled=not is_captured),
        ):
            output = run_head(self.head, maps)
        terms = total_loss(
            output,
            labels_BA,
            self.weights_A,
            kd_weight=settings.kd_weight,
            kd_form=settings.kd_form,
            kd_temperature=settings.kd_temperature,
        )
        self.optimiser.zero_grad(set_to_none=True)
        terms.total.backward()
        self.optimiser.step()
        return StepResult(torch.stack(terms).detach(), confusion(output.deployed.detach(), labels_BA))


def confusion(logits_BA: Tensor, labels_BA: Tensor) -> Tensor:
    """Return the true positives, false positives and false negatives (3, A) of a batch; unknown labels do not count."""
    is_present_BA, is_positive_BA = logits_BA >= 0, labels_BA == 1
    false_BA = is_present_BA & (labels_BA == 0)
    return torch.stack([is_present_BA & is_positive_BA, false_BA, ~is_present_BA & is_positive_BA]).sum(1)


class Graphs(Protocol):
    """What records work and repeats it."""

    def run(self, work: Callable[[], StepResult]) -> StepResult:
        """Do the work where it will be recorded."""

    def record(self, work: Callable[[], StepResult]) -> tuple[Callable[[], None], StepResult]:
        """Record the work without doing it; return what does it, and the tensors that it then writes.

        Raises `RuntimeError` for work that cannot be recorded.
        """

    def buffers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors like those of the batch, from which recorded work reads."""


class GraphedStep:
    """A step that is recorded once and then replayed; learns what `Step` learns.

    All batches must have the shapes of the first one. The head may draw no random numbers, and its forward pass must do
    the same for every batch: a graph repeats the kernels, and no line of Python. If the step cannot be recorded, a
    warning gives the reason, and ordinary steps continue.
    """

    def __init__(self, step: Step, graphs: Graphs) -> None:
        self._step, self._graphs = step, graphs
        self._lr = torch.zeros((), device=step.weights_A.device)
        self._num_steps = 0
        self._replay: Callable[[], None] | None = None

    def __call__(self, maps: Maps, labels_BA: Tensor) -> StepResult:
        """Learn from a batch, at the learning rate that the optimiser has now."""
        batch = {**maps, _LABELS: labels_BA}
        self._lr.fill_(self._step.optimiser.param_groups[0]["lr"])
        self._num_steps += 1
        if self._num_steps == NUM_ORDINARY_STEPS + 1:
            self._record(batch)
        if self._replay is None:
            return self._graphs.run(partial(self._learn, batch))
        for name, values in self._batch.items():
            values.copy_(batch[name])
        self._replay()
        return StepResult(*(values.clone() for values in self._result))  # the next replay writes over them

    def _record(self, batch: Mapping[str, Tensor]) -> None:
        self._batch = self._graphs.buffers(batch)
        try:
            self._replay, self._result = self._graphs.record(partial(self._learn, self._batch))
        except RuntimeError as error:
            reason = str(_first_cause(error)).partition("\n")[0]
            logger.warning("training continues with slower steps: one cannot be recorded as a CUDA graph (%s)", reason)

    def _learn(self, batch: Mapping[str, Tensor]) -> StepResult:
        """Take the step with a learning rate that is on the device, where a replay reads it.

        Ordinary steps read it there, too, so that a resumed training learns the same, bit for bit.
        """
        maps = {name: values for name, values in batch.items() if name != _LABELS}
        (group,) = self._step.optimiser.param_groups
        own = {name: group[name] for name in ("lr", "capturable")}
        group |= {"lr": self._lr, "capturable": True}
        try:
            return self._step(maps, batch[_LABELS])
        finally:
            group |= own


def _first_cause(error: BaseException) -> BaseException:
    """Return the error that came first: one that ends a recording is followed by that of the recording's own end."""
    return error if error.__context__ is None else _first_cause(error.__context__)


class CudaGraphs:
    """CUDA graphs of one device and thread. Their work shares memory: they are replayed one after the other."""

    _shared: ClassVar[WeakValueDictionary[tuple[torch.device, int], CudaGraphs]] = WeakValueDictionary()
    """By device and thread, while a head uses them: trainings in other threads have others."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._buffers: dict[tuple[tuple[object, ...], ...], dict[str, Tensor]] = {}

    @classmethod
    def of(cls, device: torch.device) -> CudaGraphs:
        """Return those that the heads of a training on this thread share."""
        key = device, threading.get_ident()
        graphs = cls._shared.get(key)
        if graphs is None:
            graphs = cls._shared[key] = cls(device)
        return graphs

    def run(self, work: Callable[[], StepResult]) -> StepResult:
        """Do the work on the stream of the recordings, between what came before it and what comes after."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], StepResult]) -> tuple[Callable[[], None], StepResult]:
        """Record the work as a graph, while other threads may copy to the device."""
        graph = torch.cuda.CUDAGraph()
        pool, self._pool = self._pool, torch.cuda.graph_pool_handle()  # a new one if the recording fails
        with (
            torch.cuda.device(self._device),
            torch.cuda.stream(torch.cuda.current_stream(self._device)),  # restores it where a recording fails
            torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            result = work()
        self._pool = pool
        return graph.replay, result

    def buffers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors like those of the batch, shared by the heads whose batches are alike."""
        key = tuple((name, values.shape, values.stride(), values.dtype) for name, values in batch.items())
        if key not in self._buffers:
            self._buffers[key] = {name: torch.empty_like(values) for name, values in batch.items()}
        return self._buffers[key]

"""A step that is recorded and replayed learns what ordinary steps learn.

A stand-in for CUDA graphs does the recorded work again at each replay, from the recording's buffers and into its
results; `tests/integration/test_cuda.py` has the real ones.
"""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from models.fan_trans import FanTransHead
from models.head import HeadInputs
from pipeline.config import HeadConfig, OwnHeadConfig, TrainConfig
from pipeline.errors import TrainingError
from pipeline.training.head_training import HeadTraining
from pipeline.training.step import NUM_ORDINARY_STEPS, CudaGraphs, GraphedStep, Step, StepResult
from tests.unit import small_runs
from tests.unit.small_runs import make_run, train_fold

NUM_STEPS = NUM_ORDINARY_STEPS + 4
INPUTS = HeadInputs(num_channels=4, map_size=16, num_aus=2)


class Repeated:
    """Records work as a function to call again."""

    def __init__(self):
        self.num_replays = 0

    def run(self, work):
        return work()

    def record(self, work):
        result = StepResult(torch.full((3,), torch.nan), torch.zeros(3, 2, dtype=torch.long))

        def replay():
            self.num_replays += 1
            for kept, new in zip(result, work(), strict=True):
                kept.copy_(new)

        return replay, result

    def buffers(self, batch):
        return {name: torch.zeros_like(values) for name, values in batch.items()}


class Refusing(Repeated):
    def record(self, work):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("the recording's own end")


def make_step():
    torch.manual_seed(0)
    head = FanTransHead.from_inputs(INPUTS, dim=8, num_blocks=1).train()
    optimiser = torch.optim.AdamW(head.parameters(), lr=1.0, fused=True)
    return Step(head, optimiser, torch.ones(2), TrainConfig(), nullcontext())


def take_steps(step, take):
    """Losses and counts of steps at learning rates that fp32 holds exactly."""
    numbers = torch.Generator().manual_seed(1)
    results = []
    for i in range(NUM_STEPS):
        maps = {name: torch.rand(values.shape, generator=numbers) for name, values in INPUTS.random_maps(4).items()}
        labels_BA = torch.randint(-1, 2, (4, 2), generator=numbers, dtype=torch.int8)
        step.optimiser.param_groups[0]["lr"] = 2.0 ** -(7 + i)
        results.append(take(maps, labels_BA))
        assert step.optimiser.param_groups[0]["lr"] == 2.0 ** -(7 + i), "checkpoints hold numbers"
    return results


@pytest.mark.parametrize("graphs", [Repeated(), Refusing()])
def test_it_learns_what_ordinary_steps_learn(graphs):
    ordinary, inner = make_step(), make_step()
    expected = take_steps(ordinary, ordinary)
    found = take_steps(inner, GraphedStep(inner, graphs))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.losses, theirs.losses)
        assert torch.equal(ours.counts, theirs.counts)
    for name, values in ordinary.head.state_dict().items():
        assert torch.equal(inner.head.state_dict()[name], values), name
    assert graphs.num_replays == (0 if isinstance(graphs, Refusing) else NUM_STEPS - NUM_ORDINARY_STEPS)
    assert not inner.optimiser.param_groups[0]["capturable"]


def test_a_step_that_cannot_be_recorded_is_one_warning(caplog):
    caplog.set_level(logging.WARNING, logger="fantrans")
    inner = make_step()
    take_steps(inner, GraphedStep(inner, Refusing()))
    assert [record.getMessage() for record in caplog.records] == [
        "training continues with slower steps: one cannot be recorded as a CUDA graph (operation not permitted when "
        "stream is capturing)"
    ]


@pytest.mark.parametrize(
    ("is_cuda", "head", "draws", "expected"),
    [
        (True, HeadConfig(), False, True),
        (False, HeadConfig(), False, False),
        (True, HeadConfig(), True, False),
        (True, OwnHeadConfig(**{"class": "torch.nn:Linear", "out_features": 1}), False, False),
    ],
)
def test_built_in_heads_are_recorded_on_cuda_if_they_draw_no_random_numbers(is_cuda, head, draws, expected):
    training = SimpleNamespace(
        run=SimpleNamespace(experiment=SimpleNamespace(head=head)),
        weights_A=SimpleNamespace(is_cuda=is_cuda),
        built=SimpleNamespace(draws_random_numbers=draws),
    )
    assert HeadTraining._can_be_recorded.fget(training) is expected


@pytest.fixture
def recorded(monkeypatch):
    """Trainings record their steps."""
    graphs = Repeated()
    monkeypatch.setattr(HeadTraining, "_can_be_recorded", True)
    monkeypatch.setattr(CudaGraphs, "of", lambda _: graphs)
    return graphs


def test_a_training_with_recorded_steps_resumes_to_the_same_weights(tmp_path, recorded, monkeypatch):
    small_runs.make_cache(tmp_path)
    whole = train_fold(make_run(tmp_path, name="whole"), "P1")
    num_replays = recorded.num_replays
    assert num_replays > 0
    stopped, end_epoch = make_run(tmp_path, name="stopped"), HeadTraining._end_epoch

    def stop(self, *losses):
        end_epoch(self, *losses)
        raise TrainingError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(HeadTraining, "_end_epoch", stop)
        with pytest.raises(TrainingError):
            train_fold(stopped, "P1")
    resumed = train_fold(stopped, "P1")
    assert num_replays < recorded.num_replays < 2 * num_replays, "it began again with ordinary steps"
    for name, values in load_file(whole / "head.safetensors").items():
        assert torch.equal(load_file(resumed / "head.safetensors")[name], values), name

import logging

import pytest
import torch
from torch import nn

from pipeline.errors import WeightsError
from pipeline.runtime.checkpoint import Checkpoint

CPU = torch.device("cpu")


class State:
    """One number, as a part of a checkpoint."""

    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


def save(path, *steps):
    head, state = nn.Linear(50, 50), State()
    checkpoint = Checkpoint(path, {"lr": 1}, head=head, state=state)
    for state.value in steps:
        checkpoint.save(state.value)
    return head


def resume(path, settings=None, size=50):
    head, state = nn.Linear(size, size), State()
    num_steps = Checkpoint(path, settings or {"lr": 1}, head=head, state=state).resume(CPU)
    assert num_steps == state.value
    return num_steps, head


def flipped(data):
    at = data.rindex(bytes(60)) if bytes(60) in data else len(data) // 2
    return data[: at - 200] + bytes([data[at - 200] ^ 1]) + data[at - 199 :]


DAMAGES = {
    "empty": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "of another kind": lambda _: b"hello " * 100,
    "zeros": lambda data: bytes(len(data)),
    "one bit": flipped,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_taken(path, caplog, damage):
    head = save(path, 3, 6)
    data = DAMAGES[damage](path.read_bytes())
    path.write_bytes(data)
    num_steps, resumed = resume(path)
    assert num_steps == 3
    assert torch.equal(resumed.weight, head.weight)
    aside = path.with_name("checkpoint.pt.damaged")
    assert aside.read_bytes() == data
    assert caplog.messages == [
        f"{path} is damaged and now named {aside.name}; the training starts at the checkpoint before it"
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_without_a_whole_checkpoint_the_training_starts_at_the_beginning(path, caplog):
    save(path, 3)
    path.write_bytes(b"")
    assert resume(path)[0] == 0
    assert caplog.messages[0].endswith("the training starts at the beginning")
    save(path, 3, 6)
    for each in path.parent.glob("*[!d]"):  # both, and not the one that is set aside
        each.write_bytes(b"")
    caplog.clear()
    assert resume(path)[0] == 0
    assert [line.rpartition("starts ")[2] for line in caplog.messages] == [
        "at the checkpoint before it",
        "at the beginning",
    ]


def test_a_kill_between_the_two_renames_loses_no_step(path, monkeypatch):
    save(path, 3)
    monkeypatch.setattr("pipeline.runtime.checkpoint.write_atomically", lambda *_: 1 / 0)
    checkpoint = Checkpoint(path, {"lr": 1}, head=nn.Linear(50, 50), state=State(6))
    with pytest.raises(ZeroDivisionError):
        checkpoint.save(6)
    assert not path.exists()
    assert resume(path)[0] == 3


def test_nothing_is_left_when_the_training_ends(path):
    save(path, 3, 6)
    path.write_bytes(b"")
    head, state = nn.Linear(50, 50), State()
    checkpoint = Checkpoint(path, {"lr": 1}, head=head, state=state)
    assert checkpoint.resume(CPU) == 3
    checkpoint.save(6)
    assert len(list(path.parent.iterdir())) == 3
    checkpoint.remove()
    assert not list(path.parent.iterdir())


def test_a_checkpoint_of_other_settings_or_of_another_head_is_refused_and_kept(path):
    save(path, 3)
    with pytest.raises(WeightsError, match=r"has other settings \(lr 1, now 2\)"):
        resume(path, {"lr": 2})
    with pytest.raises(WeightsError, match="was written by another version; delete it"):
        resume(path, size=51)
    assert path.is_file()

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.catalog import WeightsEntry
from pipeline.errors import WeightsError
from pipeline.faces.features import load_network
from pipeline.pretraining import resnet as train_resnet
from pipeline.pretraining.resnet import ResNetTraining, exemplar_batch
from pipeline.runtime import checkpoint
from pipeline.runtime.atomic import file_sha256
from tests.unit.pretraining.dotted_faces import make_pool

SETTINGS = ResNetTraining(num_steps=30, batch_size=6, size_px=32)


class StoppedError(Exception):
    pass


def coloured(pool, index, rng, *, size_px):
    """A colour a face, so that few steps tell them apart, on any number of threads."""
    colour = np.array([40, 215], np.uint8)[[index >> i & 1 for i in range(3)]]
    return np.full((size_px, size_px, 3), colour), pool.landmarks[index]


def test_faces_are_told_apart_and_the_first_stages_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(train_resnet, "augmented", coloured)
    out = tmp_path / "resnet18.safetensors"
    accuracy = train_resnet.train_resnet(out, SETTINGS, make_pool())
    assert accuracy > 0.9  # chance is one sixth
    assert {name.split(".")[0] for name in load_file(out)} == {"conv1", "bn1", "layer1"}
    entry = WeightsEntry(path=out, sha256=file_sha256(out), family="resnet18")
    (lf,) = load_network(entry, "cpu").taps(torch.rand(1, 3, 256, 256)).values()
    assert lf.shape == (1, 64, 64, 64)


def test_a_stopped_training_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(train_resnet, "exemplar_accuracy", lambda *_: 0.0)  # which writes nothing
    settings, pool = SETTINGS.model_copy(update={"num_steps": 4}), make_pool()
    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    train_resnet.train_resnet(whole, settings, pool)

    def stop_before_third(pool, settings, step):
        if step == 2:
            raise StoppedError
        return exemplar_batch(pool, settings, step)

    monkeypatch.setattr(checkpoint, "EVERY_S", -1.0)
    with monkeypatch.context() as stopped:
        stopped.setattr(train_resnet, "exemplar_batch", stop_before_third)
        with pytest.raises(StoppedError):
            train_resnet.train_resnet(resumed, settings, pool)
    assert not resumed.exists()
    with pytest.raises(
        WeightsError, match=r"other settings \(num_steps 4, now \d+\); delete it to start from the beginning"
    ):
        train_resnet.train_resnet(resumed, SETTINGS, pool)
    train_resnet.train_resnet(resumed, settings, pool)
    assert resumed.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.checkpoint"))

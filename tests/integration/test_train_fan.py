from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.fan import FAN
from pipeline.errors import WeightsError
from pipeline.pretraining import fan as fan_module
from pipeline.pretraining.augmentation import random_crop
from pipeline.pretraining.fan import (
    FanTraining,
    gaussian_heatmaps,
    heatmap_loss,
    train_fan,
    train_on_pool,
    training_batch,
)
from pipeline.runtime import checkpoint
from tests.unit.pretraining.dotted_faces import SIZE_PX, DottedRenderer, make_pool

# B faces, P landmarks

TINY = {"width": 16, "num_steps": 3, "batch_size": 2, "num_faces": 6, "face_size_px": SIZE_PX, "precision": "fp32"}


def test_heatmaps_peak_at_the_landmark():
    maps = gaussian_heatmaps(torch.tensor([[[4 * 5 + 1.5, 4 * 9 + 1.5]]]), size_px=64, sigma_cells=1.2)
    assert maps.shape == (1, 1, 16, 16)
    assert maps[0, 0, 9, 5] == 1
    assert maps[0, 0, 9, 6].item() == pytest.approx(np.exp(-1 / (2 * 1.44)))
    assert maps[0, 0, 8, 6].item() == pytest.approx(np.exp(-2 / (2 * 1.44)))


def test_loss_weighs_peaks_and_leaves_out_points_outside():
    target = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])  # (1, 2, 1, 2)
    found = torch.tensor([[[[0.5, 0.1]], [[9.0, 9.0]]]])
    is_inside = torch.tensor([[True, False]])
    loss = heatmap_loss([found, target], target, is_inside, peak_weight=20)
    assert loss.item() == pytest.approx((21 * 0.25 + 0.01) / 2)


def test_batches_are_a_function_of_seed_and_step_and_grow():
    pool, settings = make_pool(), FanTraining(**{**TINY, "num_steps": 10, "small_frac": 0.6})
    images, landmarks, size_px = training_batch(pool, settings, 5)
    again, *_ = training_batch(pool, settings, 5)
    assert torch.equal(images, again)
    assert (images.shape, landmarks.shape, size_px) == ((2, 3, 128, 128), (2, 68, 2), 128)
    assert 0 <= images.min() <= images.max() <= 1
    assert training_batch(pool, settings, 6)[0].shape == (2, 3, 256, 256)
    going_on = FanTraining(**{**TINY, "num_steps": 10, "start_sha256": "0" * 64})
    assert training_batch(pool, going_on, 0)[0].shape == (2, 3, 256, 256)
    other, *_ = training_batch(pool, FanTraining(**{**TINY, "num_steps": 10, "seed": 1}), 5)
    assert not torch.equal(images, other)


class _StoppedError(Exception):
    pass


def _train(tmp_path, name, start=None, **changed):
    return train_on_pool(tmp_path / name, FanTraining(**{**TINY, **changed}), make_pool(), start=start)


def test_stopped_training_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    whole = _train(tmp_path, "whole.safetensors").read_bytes()
    monkeypatch.setattr(checkpoint, "EVERY_S", -1.0)

    def stop_before_third(pool, settings, step):
        if step == 2:
            raise _StoppedError
        return training_batch(pool, settings, step)

    with monkeypatch.context() as stopped:
        stopped.setattr(fan_module, "training_batch", stop_before_third)
        with pytest.raises(_StoppedError):
            _train(tmp_path, "resumed.safetensors")
    assert not (tmp_path / "resumed.safetensors").exists()
    with pytest.raises(WeightsError, match="num_steps"):
        _train(tmp_path, "resumed.safetensors", num_steps=5)
    assert _train(tmp_path, "resumed.safetensors").read_bytes() == whole
    assert not list(tmp_path.glob("*.checkpoint"))


def test_weights_load_as_a_fan_and_depend_on_the_seed(tmp_path):
    state = load_file(_train(tmp_path, "a.safetensors"))
    FAN(16).load_state_dict(state)
    assert {v.dtype for v in state.values()} == {torch.float16, torch.int64}
    other = load_file(_train(tmp_path, "b.safetensors", seed=1))
    assert not torch.equal(state["conv1.weight"], other["conv1.weight"])


def test_a_training_renders_its_pool_first(tmp_path, monkeypatch):
    renderer = DottedRenderer(monkeypatch)
    settings = FanTraining(**{**TINY, "num_steps": 1})
    folders = {"pool_path": tmp_path / "pool", "bank_path": tmp_path / "bank.npz"}
    first, again = (train_fan(tmp_path / name, settings, num_workers=1, **folders).read_bytes() for name in "ab")
    assert first == again
    assert len(renderer.cameras) == 6


def _loaded(path, width=16):
    fan = FAN(width)
    fan.load_state_dict(load_file(path))
    return fan.eval()


def test_training_goes_on_from_weights_of_the_same_or_half_the_width(tmp_path):
    start = _train(tmp_path, "start.safetensors", num_steps=1)
    almost_still = {"start": start, "num_steps": 1, "max_lr": 1e-9}
    same, wide = (
        _loaded(_train(tmp_path, f"{width}.safetensors", width=width, **almost_still), width) for width in (16, 32)
    )
    torch.testing.assert_close(same.conv1.weight, _loaded(start).conv1.weight, rtol=1e-3, atol=1e-4)
    assert wide.conv4.conv1.weight.shape == (16, 16, 3, 3)
    torch.testing.assert_close(wide.conv1.weight[::2], same.conv1.weight, rtol=1e-3, atol=1e-4)
    with pytest.raises(WeightsError, match=r"start.safetensors has width 16; expected 48 or half of it"):
        _train(tmp_path, "other.safetensors", start=start, width=48)


def test_training_learns_the_dots(tmp_path):
    pool, rng = make_pool(), np.random.default_rng(1)
    crops, landmarks = zip(*(random_crop(pool, i, rng, size_px=128) for i in range(6)), strict=True)
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    target = gaussian_heatmaps(torch.from_numpy(np.stack(landmarks)).float(), size_px=128, sigma_cells=1.2)
    is_inside = torch.ones(6, 68, dtype=torch.bool)
    losses = []
    for num_steps in (1, 14):
        fan = _loaded(_train(tmp_path, f"{num_steps}.safetensors", num_steps=num_steps, small_frac=1.0))
        with torch.inference_mode():
            losses.append(heatmap_loss(fan.train()(images), target, is_inside, peak_weight=20).item())
    assert losses[1] < 0.6 * losses[0]

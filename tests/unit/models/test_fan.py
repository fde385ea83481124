from __future__ import annotations

import numpy as np
import pytest
import torch
from face_alignment import models as face_alignment_models
from face_alignment.utils import _get_preds_fromhm

from models.fan import FAN, decode_landmarks, widened
from models.maps import TAPS

# B frames, P landmarks, H rows, W columns


def _with_lively_norms(fan: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fresh batch norms are the identity, which would hide a swapped one."""
    torch.manual_seed(seed)
    for module in fan.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return fan.eval()


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    torch.manual_seed(1)
    return _with_lively_norms(face_alignment_models.FAN(2))


@pytest.fixture(scope="module")
def fan(reference: torch.nn.Module) -> FAN:
    fan = FAN()
    fan.load_state_dict(reference.state_dict(), strict=True)
    return fan.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def test_heatmaps_equal_face_alignments_bit_for_bit(fan, reference, images):
    ours, theirs = fan(images), reference(images)
    assert len(ours) == len(theirs) == 2
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@torch.inference_mode()
def test_taps_equal_hooks_on_face_alignment(fan, reference, images):
    seen = {}
    hooks = [
        reference.conv4.register_forward_hook(lambda m, i, out: seen.update(lf=out.clone())),
        reference.bl0.register_forward_hook(lambda m, i, out: seen.update(h1=out.clone())),
        reference.bn_end1.register_forward_hook(lambda m, i, out: seen.update(h2=out.clone().relu())),
        reference.l1.register_forward_hook(lambda m, i, out: seen.update(hm=out.clone())),
    ]
    reference(images)
    for hook in hooks:
        hook.remove()
    taps = fan.taps(images)
    assert list(taps) == [tap.name for tap in TAPS]
    assert all(torch.equal(taps[name], seen[name]) for name in taps)
    assert taps["h2"].min() >= 0 > min(taps["lf"].min(), taps["h1"].min())


@torch.inference_mode()
def test_four_stacks_tap_the_last_two(images):
    torch.manual_seed(3)
    reference = _with_lively_norms(face_alignment_models.FAN(4))
    fan = FAN(num_stacks=4).eval()
    fan.load_state_dict(reference.state_dict(), strict=True)
    seen = {}
    hooks = [
        reference.bl2.register_forward_hook(lambda m, i, out: seen.update(h1=out.clone())),
        reference.bn_end3.register_forward_hook(lambda m, i, out: seen.update(h2=out.clone().relu())),
    ]
    theirs = reference(images)
    for hook in hooks:
        hook.remove()
    taps = fan.taps(images)
    assert torch.equal(taps["h1"], seen["h1"])
    assert torch.equal(taps["h2"], seen["h2"])
    assert torch.equal(taps["hm"], theirs[-1])


@torch.inference_mode()
def test_max_pooling_replaces_every_average(reference, images, monkeypatch):
    fan = FAN(pooling="max").eval()
    fan.load_state_dict(reference.state_dict())
    monkeypatch.setattr(
        "face_alignment.models.fan.F.avg_pool2d", lambda x, k, stride=None: torch.nn.functional.max_pool2d(x, k, stride)
    )
    theirs = reference(images)  # five pools: the stem's and one a level, as in ibug's 2dfan2
    assert all(torch.equal(a, b) for a, b in zip(fan(images), theirs, strict=True))


@pytest.mark.parametrize("width", [16, 64])
def test_taps_have_the_shapes_of_the_table(width):
    fan = FAN(width).eval()
    with torch.inference_mode():
        taps = fan.taps(torch.zeros(1, 3, 64, 64))
    assert {n: tuple(t.shape[1:]) for n, t in taps.items()} == {
        t.name: (t.channels(width), t.size(64), t.size(64)) for t in TAPS
    }
    assert [(t.name, t.channels(256), t.size()) for t in TAPS] == [
        ("lf", 256, 64),
        ("h1", 256, 64),
        ("h2", 256, 64),
        ("hm", 68, 64),
    ]


def test_stem_narrows_with_the_width():
    fan = FAN(64)
    assert (fan.conv1.out_channels, fan.conv2.conv1.out_channels * 2, fan.conv4.conv1.in_channels) == (16, 32, 32)


@torch.inference_mode()
@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_widened_fan_gives_the_same_heatmaps_with_twice_the_channels(pooling, images):
    torch.manual_seed(4)
    narrow = _with_lively_norms(FAN(16, pooling=pooling))
    wide = widened(narrow, seed=0).eval()
    assert (wide.width, wide.conv4.conv3.in_channels) == (32, 8)
    before, after = narrow.taps(images), wide.taps(images)
    torch.testing.assert_close(after["hm"], before["hm"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after["h1"], before["h1"].repeat_interleave(2, 1), rtol=1e-4, atol=1e-5)
    weights = wide.conv3.conv1.weight
    assert not torch.equal(weights[:, 0::2], weights[:, 1::2])
    assert not torch.equal(weights[0::2], weights[1::2])


def test_gradients_reach_every_parameter():
    fan = FAN(16)
    sum(maps.square().sum() for maps in fan(torch.rand(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fan.parameters())


@pytest.mark.parametrize(
    ("wrong", "says"), [({"width": 40}, "16"), ({"num_stacks": 1}, "2 stacks"), ({"pooling": "mean"}, "avg")]
)
def test_wrong_sizes_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        FAN(**wrong)


def _gaussians(cells_BP2: np.ndarray, size: int = 64) -> torch.Tensor:
    grid = np.arange(size)
    fall = np.exp(-((grid - cells_BP2[..., None]) ** 2) / (2 * 1.3**2))
    return torch.from_numpy((fall[:, :, 1, :, None] * fall[:, :, 0, None, :]).astype(np.float32))


def test_decoding_finds_gaussians_between_cells():
    cells = np.random.default_rng(0).uniform(5, 58, (2, 68, 2))
    found = decode_landmarks(_gaussians(cells)).numpy()
    np.testing.assert_allclose(found, (cells + 0.5) * 4 - 0.5, atol=0.02)


def test_decoding_agrees_with_face_alignment_to_its_quarter_cell():
    maps = _gaussians(np.random.default_rng(1).uniform(5, 58, (1, 68, 2)))
    in_python = _get_preds_fromhm.py_func  # its compilation takes longer than all tests here
    theirs, _ = in_python(maps.numpy(), maps.flatten(2).argmax(2).numpy())  # cell edges at whole numbers
    assert np.abs(decode_landmarks(maps).numpy() - (theirs * 4 - 0.5)).max() <= 1.01


def test_decoding_is_the_centre_of_squared_mass_near_the_peak():
    maps = torch.zeros(1, 68, 16, 16)
    maps[0, 0, 5, 5], maps[0, 0, 5, 6], maps[0, 0, 7, 5] = 2.0, 1.0, -3.0  # negative values have no mass
    maps[0, 0, 5, 9] = 1.0  # farther than 16 / 8 cells
    assert decode_landmarks(maps)[0, 0].tolist() == pytest.approx([(5 + 1 / 5 + 0.5) * 4 - 0.5, 5.5 * 4 - 0.5])


def test_decoding_on_the_border_and_of_flat_maps_stays_on_the_cell():
    maps = torch.zeros(1, 68, 8, 8)
    maps[0, 0, 0, 7] = 1.0
    maps[0, 1, 3, 4] = 1.0
    found = decode_landmarks(maps)[0]
    assert found[0].tolist() == [7.5 * 4 - 0.5, 0.5 * 4 - 0.5]
    assert found[1].tolist() == [4.5 * 4 - 0.5, 3.5 * 4 - 0.5]
    assert found[2:].eq(1.5).all()

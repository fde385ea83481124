from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from models.fan import FAN
from models.maps import map_shapes
from pipeline.cache.codecs import encode_rows, make_codec
from pipeline.catalog import WeightsEntry
from pipeline.errors import DataError, WeightsError
from pipeline.faces.features import extract_features, freeze, load_fan, load_network
from pipeline.runtime.atomic import file_sha256
from tests.devices import DEVICES
from tests.unit.cache.test_codecs import random_basis

WIDTH = 16


def _fan(seed: int = 0) -> FAN:
    torch.manual_seed(seed)
    return FAN(WIDTH)


@pytest.fixture(scope="module", params=DEVICES)
def fan(request) -> FAN:
    return freeze(_fan(), request.param)


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, 256, 256, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def features(fan: FAN, crops: np.ndarray) -> dict[str, np.ndarray]:
    return extract_features(fan, crops)


def _entry(folder: Path, fan: FAN, **changed: object) -> WeightsEntry:
    path = folder / "fan.safetensors"
    save_file({name: v.half() if v.is_floating_point() else v for name, v in fan.state_dict().items()}, path)
    known = {
        "path": path,
        "sha256": file_sha256(path),
        "family": "fan",
        "width": WIDTH,
        "num_stacks": 2,
        "pooling": "avg",
    }
    return WeightsEntry(**(known | changed))


def test_features_are_the_taps_of_the_normalised_rgb_crop(fan, crops, features):
    images = torch.from_numpy(crops[:2].astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.inference_mode():
        taps = fan.taps(images.to(next(fan.parameters()).device))
    assert list(features) == ["lf", "h1", "h2", "hm"]
    for name, values in features.items():
        assert values.dtype == np.float16
        assert values.shape == (11, *map_shapes(WIDTH)[name])
        np.testing.assert_allclose(values[:2], taps[name].cpu().numpy(), rtol=2e-3, atol=2e-3)


def test_bytes_do_not_depend_on_the_batch(fan, crops, features):
    backwards = extract_features(fan, crops[::-1])
    alone = [extract_features(fan, crops[i : i + 1]) for i in (0, 10)]
    few = extract_features(fan, crops[3:6])
    for name, values in features.items():
        np.testing.assert_array_equal(backwards[name][::-1], values)
        np.testing.assert_array_equal(np.concatenate([a[name] for a in alone]), values[[0, 10]])
        np.testing.assert_array_equal(few[name], values[3:6])


def test_float_crops_are_taken_as_they_are(fan, crops, features):
    device = next(fan.parameters()).device
    floats = torch.from_numpy(crops[:8]).to(device).float().div(255)  # a GPU divides with other last bits
    as_floats = extract_features(fan, floats.cpu().numpy())
    assert all(np.array_equal(as_floats[name], features[name][:8]) for name in features)


@pytest.mark.parametrize("fan", ["cpu"], indirect=True)  # rows are encoded there, and last bits go by the device
@pytest.mark.parametrize("profile", ["exact", "standard", "compact"])
def test_a_codec_encodes_on_the_way_what_it_would_encode_from_the_maps(fan, crops, features, profile):
    codec = make_codec(profile, map_shapes(WIDTH), basis=random_basis(WIDTH) if profile == "compact" else None)
    encoded = extract_features(fan, crops, encode=codec.encode)
    later = encode_rows(codec, features)
    assert set(encoded) == {spec.name for spec in codec.arrays}
    for spec in codec.arrays:
        assert encoded[spec.name].dtype == spec.dtype
        assert encoded[spec.name].shape == (len(crops), *spec.row_shape)
        np.testing.assert_array_equal(encoded[spec.name], later[spec.name])
    few = encode_rows(codec, {name: values[3:6] for name, values in features.items()})
    assert all(np.array_equal(few[name], values[3:6]) for name, values in later.items())


def test_precision_changes_the_arithmetic_only_on_request(fan, crops, features):
    rounded = extract_features(fan, crops[:2], precision="bf16")
    gap = np.abs(rounded["h2"].astype(np.float32) - features["h2"][:2].astype(np.float32)).max()
    assert 0 < gap < 0.1 * np.abs(features["h2"]).max()


def test_no_crops_give_empty_arrays(fan):
    empty = extract_features(fan, np.empty((0, 256, 256, 3), np.uint8))
    assert {n: v.shape for n, v in empty.items()} == {n: (0, *s) for n, s in map_shapes(WIDTH).items()}


@pytest.mark.parametrize("wrong", [np.zeros((1, 128, 128, 3), np.uint8), np.zeros((1, 256, 256, 3), np.float64)])
def test_wrong_crops_are_refused(fan, wrong):
    with pytest.raises(DataError, match=r"256, 256, 3"):
        extract_features(fan, wrong)


def test_values_beyond_half_precision_are_refused(crops):
    fan = _fan()
    torch.nn.init.constant_(fan.bl0.bias, 1e6)
    with pytest.raises(DataError, match="h1 has values beyond fp16"):
        extract_features(freeze(fan, "cpu"), crops[:1])


def test_loaded_weights_are_frozen_and_those_of_the_file(tmp_path, crops):
    fan = _fan()
    loaded = load_fan(_entry(tmp_path, fan), "cpu")
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert all(
        torch.equal(loaded.state_dict()[name], v.half().float()) for name, v in fan.state_dict().items() if v.dim()
    )


def test_pooling_comes_from_the_entry(tmp_path, crops):
    fan = _fan()
    average, maximum = (
        extract_features(load_fan(_entry(tmp_path, fan, pooling=p), "cpu"), crops[:1]) for p in ("avg", "max")
    )
    assert not np.array_equal(average["lf"], maximum["lf"])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"family": "retinaface-mobilenet"}, "family 'fan'"),
        ({"width": 32}, "not those of a FAN of width 32"),
        ({"num_stacks": 4}, "4 stacks"),
        ({"sha256": "0" * 64}, "sha256"),
    ],
)
def test_other_weights_are_refused_in_a_sentence(tmp_path, changed, says):
    with pytest.raises(WeightsError, match=says):
        load_fan(_entry(tmp_path, _fan(), **changed), "cpu")


def _resnet_entry(folder: Path, net: torch.nn.Module) -> WeightsEntry:
    path = folder / "resnet18.safetensors"
    save_file({name: values.contiguous() for name, values in net.state_dict().items()}, path)
    return WeightsEntry(path=path, sha256=file_sha256(path), family="resnet18")


def _random_resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    net = timm.create_model("resnet18").eval()
    for name, buffer in net.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return net


def test_a_resnets_map_is_timms_second_stage_of_the_normalised_crop(tmp_path, crops):
    net = _random_resnet()
    network = load_network(_resnet_entry(tmp_path, net), "cpu")
    assert not any(p.requires_grad for p in network.parameters())
    features = extract_features(network, crops)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = torch.from_numpy((crops[:2] / 255 - mean) / deviation).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        expected = net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(images))))).numpy()
    assert list(features) == ["lf"]
    assert features["lf"].shape == (11, 64, 64, 64)
    np.testing.assert_allclose(features["lf"][:2], expected, rtol=2e-3, atol=2e-3)
    backwards = extract_features(network, crops[::-1])
    np.testing.assert_array_equal(backwards["lf"][::-1], features["lf"])
    assert extract_features(network, crops[:0])["lf"].shape == (0, 64, 64, 64)


def test_weights_of_another_network_are_no_resnet(tmp_path):
    with pytest.raises(WeightsError, match=r"not those of timm's resnet18: they are those of a FAN of width 16"):
        load_network(_resnet_entry(tmp_path, _fan()), "cpu")

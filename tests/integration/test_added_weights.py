"""Weights are added once, under one name, and give the numbers of the packages that they come from."""

from __future__ import annotations

import json
from pathlib import Path

import face_alignment.detection.retinaface.net_retinaface as mobilenet_package
import numpy as np
import pytest
import timm
import torch
from face_alignment import models as face_alignment_models
from retinaface.network import RetinaFace as ResNetPackage
from safetensors.torch import save_file

from models.fan import FAN
from pipeline.catalog import CATALOG_FILE, WeightsEntry, added_weights, load_catalog
from pipeline.config import CacheConfig
from pipeline.errors import UsageError, WeightsError
from pipeline.faces.detect import load_detector
from pipeline.faces.features import load_network
from pipeline.faces.weights import check_weights, find_weights_faults, load_weights
from pipeline.fingerprint import cache_document, cache_fingerprint, find_weights
from pipeline.runtime.atomic import file_sha256
from pipeline.weights import add, published
from pipeline.weights.add import add_weights
from pipeline.weights.folder import add_codec, is_added, remove_weights
from pipeline.weights.published import PUBLISHED, PublishedWeights, find_published
from tests.integration.test_weight_files import as_jit, parallel, write

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "weights"


def small_fan(seed: int = 0, **shape) -> FAN:
    torch.manual_seed(seed)
    return FAN(16, **shape).eval()


def lively(network: torch.nn.Module) -> torch.nn.Module:
    """Statistics of normalisation layers that differ from their defaults, so that a lost one changes the result."""
    torch.manual_seed(7)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
            layer.num_batches_tracked.fill_(9)
    return network.eval()


def saved(network: torch.nn.Module, path: Path) -> Path:
    torch.save({"state_dict": parallel(network.state_dict())}, path)
    return path


@torch.inference_mode()
def test_an_added_fan_gives_face_alignments_heatmaps(tmp_path, folder):
    torch.manual_seed(0)
    package = lively(face_alignment_models.FAN(2))
    name, is_new = add_weights(saved(package, tmp_path / "mine.pth"), folder, pooling="avg")
    assert (name, is_new) == ("mine", True)
    entry = added_weights(folder)["mine"]
    assert (entry.width, entry.num_stacks, entry.pooling) == (256, 2, "avg")
    images = torch.rand(1, 3, 256, 256)
    ours = load_network(entry, "cpu").taps(images)["hm"]  # channels last, so the last bits differ
    torch.testing.assert_close(ours, package(images)[-1], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_added_detectors_give_the_outputs_of_their_packages(tmp_path, folder):
    torch.manual_seed(0)
    resnet = ResNetPackage(
        name="Resnet50",
        pretrained=False,
        return_layers={"layer2": 1, "layer3": 2, "layer4": 3},
        in_channels=256,
        out_channels=256,
    )
    pixels = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8)
    bgr = (pixels.float() - torch.tensor([123.0, 117.0, 104.0])[:, None, None]).flip(1)
    rgb = (pixels / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    for name, package, images in (("mobile", mobilenet_package.RetinaFace(), bgr), ("resnet", resnet, rgb)):
        add_weights(saved(lively(package), tmp_path / f"{name}.pth"), folder)
        ours = load_detector(added_weights(folder)[name], CPU).raw(pixels)
        boxes, _, points = package(images)
        np.testing.assert_allclose(ours.boxes, boxes, atol=1e-4)
        np.testing.assert_allclose(ours.points, points, atol=1e-4)


@torch.inference_mode()
def test_an_added_resnet_gives_timms_second_stage(tmp_path, folder):
    torch.manual_seed(0)
    package = lively(timm.create_model("resnet18"))
    add_weights(saved(package, tmp_path / "resnet.pth"), folder)
    network = load_network(added_weights(folder)["resnet"], "cpu")
    images = torch.rand(1, 3, 256, 256)
    normal = (images - network.mean) / network.std
    expected = package.layer1(package.maxpool(package.act1(package.bn1(package.conv1(normal)))))
    torch.testing.assert_close(network.taps(images)["lf"], expected)


def test_equal_weights_give_equal_files_whatever_their_container(tmp_path, folder):
    fan = lively(small_fan())
    digests = set()
    for form in ("safetensors", "legacy", "parallel", "zipped", "traced"):
        path = write(fan.state_dict(), tmp_path / form, form, fan)
        add_weights(path, folder, pooling="avg")
        digests.add(added_weights(folder)[form].sha256)
    without_counters = {n: v for n, v in fan.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(without_counters, tmp_path / "old.pth")
    torch.save({n: v.double() for n, v in fan.state_dict().items()}, tmp_path / "double.pth")
    for name in ("old", "double"):
        add_weights(tmp_path / f"{name}.pth", folder, pooling="avg")
        digests.add(added_weights(folder)[name].sha256)
    assert len(digests) == 1
    assert all(check_weights(entry) == [] for entry in added_weights(folder).values())


def test_an_entry_records_its_source_and_is_added_once(tmp_path, folder):
    path = saved(small_fan(), tmp_path / "fan.pth.tar")
    with pytest.raises(UsageError, match=r"does not contain its pooling; state it with --pooling max \(ibug's 2dfan2"):
        add_weights(path, folder)
    assert not folder.exists()
    assert add_weights(path, folder, pooling="max") == ("fan", True)
    assert add_weights(path, folder, pooling="max") == ("fan", False)
    entry = json.loads((folder / "fan.json").read_text())
    assert entry["source"] == {"file": "fan.pth.tar", "sha256": file_sha256(path), "url": None}
    with pytest.raises(
        UsageError, match=r"already has other weights 'fan'; choose another .*`fantrans weights rm fan`"
    ):
        add_weights(path, folder, pooling="avg")
    with pytest.raises(UsageError, match="already has other weights 'fan'"):
        add_weights(saved(small_fan(1), tmp_path / "other.pth"), folder, name="fan", pooling="max")
    with pytest.raises(UsageError, match="the catalog already has weights 'fan-64'"):
        add_weights(path, folder, name="fan-64", pooling="max", taken={"fan-64"})
    for name in ("../x", "a b", ".hidden", ""):
        with pytest.raises(UsageError, match="is not a name of weights"):
            add_weights(path, folder, name=name or "-", pooling="max")
    assert sorted(path.name for path in folder.iterdir()) == ["fan.json", "fan.safetensors"]
    del entry["source"]
    (folder / "fan.json").write_text(json.dumps(entry | {"sha256": entry["sha256"][:8].upper()}))
    assert is_added(folder, "fan")
    with pytest.raises(UsageError, match="already has other weights 'fan'"):
        add_weights(path, folder, pooling="max")


def test_a_damaged_file_is_written_again_with_its_codec_and_rm_removes_all(tmp_path, folder):
    path = saved(small_fan(), tmp_path / "fan.pth")
    add_weights(path, folder, pooling="max")
    basis = tmp_path / "basis.safetensors"
    save_file({"a": torch.zeros(1)}, basis)
    assert add_codec(folder, "fan", basis) == folder / "fan-codec.safetensors"
    whole = added_weights(folder)["fan"]
    assert whole.codec.checked_path() == folder / "fan-codec.safetensors"
    (folder / "fan.safetensors").write_bytes(b"")
    assert "is empty" in check_weights(whole)[0]
    assert add_weights(path, folder, pooling="max") == ("fan", True)
    assert added_weights(folder)["fan"] == whole
    basis = whole.codec.path.read_bytes()
    whole.codec.path.write_bytes(basis[:-1])
    assert [fault for fault in check_weights(whole) if "have sha256" in fault]
    assert len(remove_weights(folder, "fan")) == 3
    assert list(folder.iterdir()) == []
    with pytest.raises(UsageError, match=r"has no weights 'fan'; list them"):
        remove_weights(folder, "fan")


def test_a_kill_before_the_entry_leaves_nothing_that_counts(tmp_path, folder, monkeypatch):
    path = saved(small_fan(), tmp_path / "fan.pth")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(add, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            add_weights(path, folder, pooling="max")
    assert added_weights(folder) == {}
    assert add_weights(path, folder, pooling="max") == ("fan", True)


def test_pooling_is_known_for_published_weights_and_torchscript(tmp_path, folder, monkeypatch):
    fan = small_fan(pooling="max")
    path = saved(fan, tmp_path / "tiny_fan.pth")
    digits = file_sha256(path)[:10]
    shape = {"family": "fan", "width": 16, "num_stacks": 2, "pooling": "max"}
    known = PublishedWeights(url="http://host/a/tiny_fan.pth", sha256=(digits,), publisher="a", licence="b", **shape)
    monkeypatch.setitem(published.PUBLISHED, "tiny", known)
    with pytest.raises(UsageError, match="with --pooling max, not avg"):
        add_weights(path, folder, pooling="avg")
    renamed = path.rename(tmp_path / "renamed.pth")
    assert add_weights(renamed, folder) == ("tiny", True)
    entry = added_weights(folder)["tiny"]
    assert (entry.pooling, entry.source.url) == ("max", "http://host/a/tiny_fan.pth")
    other = saved(small_fan(1), tmp_path / "tiny_fan.pth")
    with pytest.raises(WeightsError, match=rf"has sha256 .*, the published tiny begins with {digits}; download"):
        add_weights(other, folder)
    monkeypatch.setitem(
        published.PUBLISHED, "wide", PublishedWeights(url="x", publisher="a", licence="b", **shape | {"width": 32})
    )
    with pytest.raises(WeightsError, match="is a FAN of width 16 with 2 stacks, not the published wide"):
        add_weights(other, folder, name="wide")
    as_jit(fan, tmp_path / "traced.zip")
    add_weights(tmp_path / "traced.zip", folder)
    assert added_weights(folder)["traced"].pooling == "max"
    with pytest.raises(UsageError, match="which has no --pooling"):
        add_weights(saved(mobilenet_package.RetinaFace(), tmp_path / "mobile.pth"), folder, pooling="avg")


def test_values_that_are_not_finite_and_other_shapes_are_refused(tmp_path, folder):
    for value, kind in ((float("nan"), "NaN"), (float("inf"), "infinite values")):
        state = small_fan().state_dict()
        state["conv1.weight"].view(-1)[3] = value
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(WeightsError, match=rf"contain {kind}: 1 of 588 values of conv1.weight"):
            add_weights(tmp_path / "bad.pth", folder, pooling="avg")
    for change, fault in (
        (
            {"l0.weight": torch.zeros(98, 16, 1, 1)},
            r"l0.weight has the shape \(98, 16, 1, 1\), expected \(68, 16, 1",
        ),
        ({"extra.weight": torch.zeros(1)}, "unexpected key extra.weight; name another file"),
    ):
        torch.save({**small_fan().state_dict(), **change}, tmp_path / "bad.pth")
        with pytest.raises(WeightsError, match=fault):
            add_weights(tmp_path / "bad.pth", folder, pooling="avg")
    state = small_fan().state_dict()
    del state["conv4.bn1.bias"], state["conv4.bn1.weight"]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"missing key conv4.bn1.weight and 1 more"):
        add_weights(tmp_path / "bad.pth", folder, pooling="avg")
    with pytest.raises(WeightsError, match=r"a FAN needs 2 stacks or more.*found 1; name weights of another FAN"):
        add_weights(saved(face_alignment_models.FAN(1), tmp_path / "one.pth"), folder, pooling="avg")
    assert not folder.exists()


def entry(path: Path, **shape) -> WeightsEntry:
    known = {"family": "fan", "width": 16, "num_stacks": 2, "pooling": "avg"} | shape
    return WeightsEntry(path=path, sha256=file_sha256(path), **known)


def test_a_catalogs_entry_is_checked_by_loading_it(tmp_path):
    path = tmp_path / "fan.safetensors"
    save_file(small_fan().state_dict(), path)
    assert check_weights(entry(path)) == []
    assert load_weights(entry(path)).pooling == "avg"
    (fault,) = check_weights(entry(path, width=32))
    assert "are not those of a FAN of width 32 with 2 stacks: they are those of a FAN of width 16 with" in fault
    assert "fix `family`, `width`, `num_stacks` or `path` in the catalog" in fault
    assert "num_stacks" in check_weights(entry(path, num_stacks=4))[0]
    assert "multiple of 16, found 17" in check_weights(entry(path, width=17))[0]
    save_file(parallel(small_fan().state_dict()), path)
    (fault,) = check_weights(entry(path))
    assert "all names begin with 'module'" in fault
    assert f"`fantrans weights add {path}`" in fault
    torch.save(small_fan().state_dict(), path)
    assert "is a pickled PyTorch file" in check_weights(entry(path))[0]
    catalog = load_catalog(CATALOG_FILE)
    assert find_weights_faults(catalog) == []
    bad = catalog.model_copy(update={"weights": {"mine": entry(path)}})
    assert find_weights_faults(bad)[0].startswith("weights 'mine': ")


def test_a_checksum_of_few_digits_gives_the_fingerprint_of_the_whole_one():
    catalog = load_catalog(CATALOG_FILE)

    def short(part):
        return part.model_copy(update={"sha256": part.sha256[:8]})

    weights = {
        name: short(each).model_copy(update={"codec": each.codec and short(each.codec)})
        for name, each in catalog.weights.items()
    }
    few = catalog.model_copy(update={"weights": weights})
    for profile in ("standard", "compact"):
        settings = CacheConfig.model_validate({"features": {"weights": "fan-64", "profile": profile}})
        assert cache_fingerprint(settings, few) == cache_fingerprint(settings, catalog)
    features = cache_document(settings, catalog)["features"]
    assert find_weights(features, few) == weights["fan-64"]
    assert find_weights({**features, "pooling": "max"}, few) is None
    assert find_weights({**features, "sha256": "0" * 64}, few) is None


def test_the_table_of_published_weights_is_complete():
    for name, each in PUBLISHED.items():
        is_fan = each.family == "fan"
        assert [value is not None for value in (each.width, each.num_stacks, each.pooling)] == [is_fan] * 3, name
        assert each.url.startswith("https://")
        assert all(len(digits) >= 8 and set(digits) <= set("0123456789abcdef") for digits in each.sha256)
        assert find_published(each.file_name, "-") == name
        if each.sha256:
            assert each.sha256[0] in each.file_name
            assert find_published("other.pth", each.sha256[0] + "0" * 54) == name
    assert find_published("other.pth", "f" * 64) is None
    assert not set(PUBLISHED) & set(load_catalog(CATALOG_FILE).weights)
    assert {n: (each.width, each.num_stacks, each.pooling) for n, each in PUBLISHED.items() if each.width} == {
        "2dfan2": (256, 2, "max"),
        "2dfan2_alt": (256, 2, "max"),
        "2dfan4": (256, 4, "avg"),
    }


def test_a_detector_of_another_normalisation_is_refused(tmp_path, folder):
    path = saved(mobilenet_package.RetinaFace(), tmp_path / "Resnet50_Final.pth")
    with pytest.raises(WeightsError, match="reads BGR minus its mean, and retinaface-resnet50 reads normalised RGB"):
        add_weights(path, folder)
    digits = "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d"
    assert published.find_misfit("renamed.pth", digits)
    assert published.find_misfit("renamed.pth", "0" * 64) is None


def test_the_addresses_are_those_of_the_packages():
    from face_alignment.api import models_urls as fan_urls
    from face_alignment.detection.retinaface.retinaface_detector import models_urls as retinaface_urls

    assert PUBLISHED["2dfan4"].url == fan_urls["2DFAN-4"]
    assert PUBLISHED["retinaface_mobilenet0.25"].url == retinaface_urls["retinaface_mobilenet0.25"]
    assert PUBLISHED["resnet18.a1_in1k"].url == timm.models.get_pretrained_cfg("resnet18.a1_in1k").url

"""Weights as their authors publish them: every container gives the same state dict; every fault has its sentence."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from face_alignment import models as face_alignment_models
from face_alignment.detection.retinaface.net_retinaface import RetinaFace as MobileNetPackage
from retinaface.network import RetinaFace as ResNetPackage
from safetensors.torch import save_file

from models.fan import FAN
from pipeline.errors import WeightsError, WeightsNotFoundError
from pipeline.weights.files import read_safetensors, read_weights
from pipeline.weights.networks import Architecture
from pipeline.weights.torchscript import read_torchscript

FAN_16 = Architecture("fan", 16, 2)


@pytest.fixture(scope="module")
def fan() -> FAN:
    torch.manual_seed(3)
    return FAN(16).eval()


def as_jit(network: torch.nn.Module, path: Path, *, script: bool = False) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript itself is deprecated
        made = torch.jit.script(network) if script else torch.jit.trace(network, torch.rand(1, 3, 256, 256))
        torch.jit.save(made, str(path))


def parallel(state):
    return {f"module.{name}": values for name, values in state.items()}


def write(state, path: Path, form: str, network) -> Path:
    if form == "safetensors":
        save_file({name: v.clone() for name, v in state.items()}, path)
    elif form == "pth":
        torch.save(state, path)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form == "parallel":
        torch.save(parallel(state), path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "optimizer": {"state": {0: state}}, "state_dict": parallel(parallel(state))}, path)
    elif form == "model of model":
        torch.save({"model": {"network": {f"_orig_mod.{name}": v for name, v in state.items()}}}, path)
    elif form == "parameters":
        torch.save({name: torch.nn.Parameter(v) if v.is_floating_point() else v for name, v in state.items()}, path)
    elif form == "zipped":
        inner = path.with_suffix(".inner.pth")
        torch.save(state, inner, _use_new_zipfile_serialization=False)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(inner, "a/weights.pth")
    elif form == "traced":
        as_jit(network, path)
    else:
        raise ValueError(form)
    return path


@pytest.fixture(scope="module")
def written(fan, tmp_path_factory):
    """Write the FAN in a container, once each: tracing takes seconds."""
    folder = tmp_path_factory.mktemp("containers")

    @cache
    def content(form: str) -> bytes:
        return write(fan.state_dict(), folder / form, form, fan).read_bytes()

    return content


FORMS = ["safetensors", "pth", "legacy", "parallel", "model of model", "parameters", "zipped", "traced"]


@pytest.mark.parametrize("form", FORMS)
def test_every_container_gives_the_same_weights(tmp_path, fan, written, form):
    (tmp_path / "file").write_bytes(written(form))
    found = read_weights(tmp_path / "file")
    assert found.architecture == FAN_16
    assert found.pooling == ("avg" if form == "traced" else None)
    assert found.state.keys() == fan.state_dict().keys()
    assert all(torch.equal(found.state[name], values) for name, values in fan.state_dict().items())


def test_a_checkpoint_with_one_network_gives_it_and_one_with_two_is_refused(tmp_path, fan):
    torch.save({"epoch": 3, "args": {"lr": 0.1}, "state_dict": parallel(fan.state_dict())}, tmp_path / "one.pth.tar")
    assert read_weights(tmp_path / "one.pth.tar").architecture == FAN_16
    write(fan.state_dict(), tmp_path / "two.pth", "wrapped", fan)
    with pytest.raises(
        WeightsError, match=r"two.pth holds the weights of 2 networks \(optimizer.state.0, state_dict\)"
    ):
        read_weights(tmp_path / "two.pth")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: face_alignment_models.FAN(2), Architecture("fan", 256, 2)),
        (lambda: FAN(32, 4), Architecture("fan", 32, 4)),
        (MobileNetPackage, Architecture("retinaface-mobilenet")),
        (
            lambda: ResNetPackage(
                name="Resnet50",
                pretrained=False,
                return_layers={"layer2": 1, "layer3": 2, "layer4": 3},
                in_channels=256,
                out_channels=256,
            ),
            Architecture("retinaface-resnet50"),
        ),
        (lambda: timm.create_model("resnet18"), Architecture("resnet18")),
    ],
)
def test_families_and_shapes_are_those_of_the_packages(tmp_path, make, expected):
    torch.save(make().state_dict(), tmp_path / "file.pth")
    assert read_weights(tmp_path / "file.pth").architecture == expected


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_a_larger_resnet_is_not_a_resnet18(tmp_path, name):
    torch.save(timm.create_model(name).state_dict(), tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=r"holds no weights of a FAN.*it has \d+ entries: conv1.weight, bn1.weight"):
        read_weights(tmp_path / "file.pth")


def test_torchscript_names_its_pooling_and_no_code_of_it_runs(tmp_path, fan, monkeypatch):
    torch.manual_seed(3)
    as_jit(FAN(16, pooling="max").eval(), tmp_path / "max.zip")
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: pytest.fail("the archive's code was loaded"))
    found = read_weights(tmp_path / "max.zip")
    assert (found.architecture, found.pooling) == (FAN_16, "max")

    class Pools(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.avg_pool2d(torch.nn.functional.max_pool2d(x, 2), 2)

    as_jit(Pools(), tmp_path / "both.zip", script=True)
    assert read_torchscript(tmp_path / "both.zip") == ({}, None)


class Harmful:
    def __reduce__(self):
        return exec, ("raise ZeroDivisionError('code of a file was run')",)


def _of_archive(path: Path, out: Path, change) -> None:
    """Copy a zip, with `change(name, data)` as the content of each file."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))


def test_forbidden_content_is_named_and_never_run(tmp_path, fan, written):
    torch.save({"state_dict": fan.state_dict(), "hook": Harmful()}, tmp_path / "harmful.pth")
    torch.save(fan, tmp_path / "module.pth")
    (tmp_path / "good.zip").write_bytes(written("traced"))
    harmful = pickle.dumps(Harmful(), protocol=2)
    _of_archive(
        tmp_path / "good.zip", tmp_path / "jit.zip", lambda name, data: harmful if name.endswith("data.pkl") else data
    )
    for name, content in (("harmful.pth", "exec"), ("module.pth", "models.fan.FAN"), ("jit.zip", "__builtin__.exec")):
        with pytest.raises(WeightsError) as caught:
            read_weights(tmp_path / name)
        assert f"{name} contains " in str(caught.value)
        assert content in str(caught.value)
        assert str(caught.value).endswith("save the state dict alone: torch.save(network.state_dict(), 'weights.pth')")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.6, 0.999])
def test_a_cut_file_is_called_so(tmp_path, written, form, fraction):
    data = written(form)
    (tmp_path / "cut").write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(WeightsError, match=r"cut is cut.*; download the file of weights again$") as caught:
        read_weights(tmp_path / "cut")
    assert "\n" not in str(caught.value)


def test_a_zip_whose_bytes_changed_is_damaged(tmp_path, fan):
    write(fan.state_dict(), tmp_path / "file", "zipped", fan)
    data = bytearray((tmp_path / "file").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(WeightsError, match=r"file is cut or damaged"):
        read_weights(tmp_path / "file")


def test_a_zip_with_a_damaged_list_of_files_is_named(tmp_path, fan):
    write(fan.state_dict(), tmp_path / "file", "zipped", fan)
    data = bytearray((tmp_path / "file").read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 9] |= 0x08  # names are UTF-8
    data[entry + 46] = 0xFF
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(WeightsError, match="file is damaged: the zip's list of files cannot be read"):
        read_weights(tmp_path / "file")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:6d1de9c2\nsize 109497761\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty; download"),
        (b"<!DOCTYPE html><html>", "is a web page, not weights"),
        (b"\xef\xbb\xbf\n <HTML>", "is a web page, not weights"),
        (POINTER.encode(), "is a Git LFS pointer to a file of 109.5 MB, not the file; run `git lfs pull`"),
        (b"not weights at all", r"is not a file of weights: expected safetensors.*found other bytes \(6e 6f 74"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", r"is not a file of weights"),
        (b"\x00", r"is not a file of weights"),
        (pickle.dumps([1, 2]), "is cut or damaged|holds no weights"),
    ],
)
def test_other_files_are_told_apart(tmp_path, content, sentence):
    (tmp_path / "file.pth").write_bytes(content)
    for read in (read_weights, read_safetensors):
        with pytest.raises(
            WeightsError, match=sentence if read is read_weights or content[:1] != b"\x80" else "pickled"
        ):
            read(tmp_path / "file.pth")


def test_zips_of_other_things_and_folders_are_told_apart(tmp_path, fan):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for name in ("README.md", "src/a.py", "src/b.py", "src/c.py"):
            archive.writestr(name, "text")
    with pytest.raises(WeightsError, match=r"is a zip of other files \(README.md, src/a.py, src/b.py, ...\), not"):
        read_weights(tmp_path / "other.zip")
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("README.md", "text")
    with pytest.raises(WeightsError, match=r"text.zip, unpacked, is not a file of weights"):
        read_weights(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:
        archive.write(tmp_path / "text.zip", "text.zip")
    with pytest.raises(WeightsError, match=r"is a zip of a zip"):
        read_weights(tmp_path / "nested.zip")
    with pytest.raises(WeightsError, match="is a folder; name the file"):
        read_weights(tmp_path)
    with pytest.raises(WeightsNotFoundError, match="does not exist"):
        read_weights(tmp_path / "nothing.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(WeightsError, match="it has one tensor without a name"):
        read_weights(tmp_path / "tensor.pth")


def test_the_catalog_takes_safetensors_and_names_the_command_for_others(tmp_path, fan):
    path = write(fan.state_dict(), tmp_path / "fan.pth", "pth", fan)
    with pytest.raises(
        WeightsError, match=rf"is a pickled PyTorch file, and the catalog takes .*`fantrans weights add {path}`"
    ):
        read_safetensors(path)

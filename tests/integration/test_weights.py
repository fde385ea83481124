"""`fantrans weights`: published weights from a file to a cache, and faults that are found before any stage runs."""

from __future__ import annotations

import hashlib
import json
import warnings

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from models.fan import FAN
from pipeline.catalog import CATALOG_FILE, load_catalog
from tests.command_line import fantrans
from tests.small_catalog import write_small_catalog


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with one small data set, and its own weights folder."""
    monkeypatch.setenv("FANTRANS_CATALOG", str(write_small_catalog(tmp_path, dataset="small", num_tasks=4, small=2)))
    monkeypatch.setenv("FANTRANS_WEIGHTS", str(tmp_path / "added"))
    return tmp_path


def tiny_fan(path):
    torch.manual_seed(0)
    torch.save({"state_dict": {f"module.{n}": v for n, v in FAN(16).state_dict().items()}}, path)
    return path


def error(ended, status):
    assert ended.status == status, ended.err
    assert ended.err.count("error:") == 1
    return ended.err


def test_a_file_is_added_refreshed_with_given_a_basis_and_removed(project):
    file = tiny_fan(project / "tiny.pth.tar")
    assert "state it with --pooling max" in error(fantrans("weights", "add", file), 2)
    added = fantrans("weights", "add", file, "--pooling", "max")
    assert added.out.splitlines() == [
        f"tiny: a FAN of width 16 with 2 stacks, pooling max, added: {project}/added/tiny.safetensors",
        "in an experiment: cache: {features: {weights: tiny}}",
    ]
    assert "added already" in fantrans("weights", "add", file, "--pooling", "max").out
    assert "the catalog already has weights 'fan-64'" in error(fantrans("weights", "add", file, "--name", "fan-64"), 2)
    listed = json.loads(fantrans("weights", "ls", "--json").out)
    (tiny,) = (each for each in listed["weights"] if each["name"] == "tiny")
    assert (tiny["width"], tiny["pooling"], tiny["is_intact"]) == (16, "max", True)
    assert {each["name"] for each in listed["published"]} >= {"2dfan2", "2dfan4"}
    assert not any(each["is_added"] for each in listed["published"])
    assert "available" in fantrans("weights", "ls").out

    settings = ("small", "--set", "cache.features.weights=tiny")
    assert fantrans("-q", "refresh", *settings, "--limit", 24, "--device", "cpu").status == 0
    experiment = project / "tiny.yaml"
    experiment.write_text("base: demo_quick\ncache: {views: {num_views: 2}, features: {weights: tiny}}\n")
    compact = ("refresh", "small", "-e", experiment, "--limit", 24, "--profile", "compact", "--dry-run")
    assert "the catalog has no `codec` for tiny" in error(fantrans(*compact), 2)
    basis = project / "basis.safetensors"
    fitted = fantrans("-q", "weights", "fit-codec", "small", "-e", experiment, "--out", basis, "--frames", 8)
    assert fitted.out == f"tiny: added its codec {project}/added/tiny-codec.safetensors\n", fitted.err
    assert fantrans(*compact).status == 0

    removed = fantrans("weights", "rm", "tiny").out.split()
    assert removed[1::2] == [f"{project}/added/tiny{end}" for end in (".json", ".safetensors", "-codec.safetensors")]
    assert "has no weights 'tiny'" in error(fantrans("weights", "rm", "tiny"), 2)
    assert "does not exist in the catalog" in error(fantrans(*compact), 2)
    assert "run `fantrans weights fetch 2dfan2`" in error(fantrans("weights", "evaluate", "2dfan2"), 2)


def broken(kind, folder):
    """Write weights with one fault; return their path."""
    path, shipped = folder / f"{kind}.safetensors", load_file(load_catalog(CATALOG_FILE).get_weights("fan-64").path)
    if kind == "module":
        save_file({f"module.{name}": values for name, values in shipped.items()}, path)
    elif kind == "pickle":
        torch.save({"state_dict": shipped}, path)
    elif kind == "page":
        path.write_text("<!DOCTYPE html>")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "nan":
        shipped["conv1.weight"].view(-1)[0] = float("nan")
        save_file(shipped, path)
    elif kind == "zeros":
        save_file({name: torch.zeros_like(values) for name, values in shipped.items()}, path)
    elif kind == "cut":
        save_file(shipped, path)
        path.write_bytes(path.read_bytes()[:-1])
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("module", "all names begin with 'module'; fix"),
        ("pickle", "is a pickled PyTorch file, and the catalog takes safetensors; run `fantrans weights add "),
        ("page", "is a web page, not weights"),
        ("pointer", "is a Git LFS pointer to a file, not the file"),
        ("nan", "contain NaN: 1 of "),
        ("zeros", "are all 0; get the file of a trained network"),
        ("cut", "is cut or damaged"),
        ("missing", "does not exist; put the weights there"),
    ],
)
def test_a_fault_is_stated_once_before_any_stage_runs(project, kind, sentence):
    path = broken(kind, project)
    digits = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64
    catalog = yaml.safe_load((project / "data_catalog.yaml").read_text())
    shape = {"family": "fan", "width": 64, "num_stacks": 2, "pooling": "avg"}
    catalog["weights"] = {"mine": {"path": str(path), "sha256": digits, **shape}}
    (project / "data_catalog.yaml").write_text(yaml.safe_dump(catalog))
    settings = ("small", "--set", "cache.features.weights=mine")
    for command in (("refresh", *settings, "--dry-run"), ("refresh", *settings, "--device", "cpu")):
        said = error(fantrans(*command), 1)
        assert said.count(sentence) == 1
        assert "width" not in said.replace("a FAN of width 64 with", "") or kind == "module"
    assert not (project / "raw").exists()
    assert not (project / "work/small").exists()
    faults = fantrans("catalog", "check", "small")
    assert faults.status == 1
    (line,) = (line for line in faults.out.splitlines() if line.startswith("fault: weights 'mine': "))
    assert sentence in line


def test_the_prefect_flow_checks_weights_before_its_stages(project):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flows.refresh import refresh_cache

    (project / "data_catalog.yaml").write_text(
        (project / "data_catalog.yaml").read_text()
        + f"weights: {{mine: {{path: x, sha256: {'a' * 64}, family: resnet18}}}}\n"
    )
    with pytest.raises(Exception, match="x does not exist; put the weights there"):
        refresh_cache.fn("small", overrides=["cache.features.weights=mine"], device="cpu")
    assert not (project / "raw").exists()

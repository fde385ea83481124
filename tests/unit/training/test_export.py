import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.fan_trans import FanTransHead
from models.head_shape import HeadShape
from models.variants import VARIANTS
from pipeline.errors import DataError
from pipeline.runtime.atomic import write_safetensors
from pipeline.training.export import load_deployed, load_trained, write_deployed
from pipeline.training.heads import describe_shape

SHAPE = {"fan_width": 4, "num_aus": 3, "map_size": 16, "dim": 8, "num_blocks": 2}


def trained_head(**changes):
    torch.manual_seed(3)
    head = FanTransHead(HeadShape.resolved(**SHAPE | changes)).eval()
    for parameter in head.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return head


def make_maps(num=5):
    torch.manual_seed(4)
    maps = {name: torch.randn(num, 4, 16, 16) for name in ("lf", "h1", "h2")}
    return {**maps, "hm": torch.rand(num, 1, 16, 16)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_read_back_gives_p_m_bit_for_bit(tmp_path, variant):
    head, maps = trained_head(variant=variant), make_maps()
    write_deployed(
        tmp_path,
        head.deployed(),
        describe_shape(head.shape),
        aus=(1, 2, 4),
        features={"sha256": "ab"},
        averages_flip=False,
    )
    model = load_deployed(tmp_path)
    with torch.inference_mode():
        expected = head(maps).deployed
    assert np.array_equal(model.probabilities(maps), expected.sigmoid().numpy())
    assert model.aus == (1, 2, 4)
    assert model.description["features"] == {"sha256": "ab"}


def test_no_tensor_of_the_dropped_parts_is_inside(tmp_path):
    head = trained_head()
    write_deployed(
        tmp_path, head.deployed(), describe_shape(head.shape), aus=(1, 2, 4), features={}, averages_flip=False
    )
    kept = load_file(tmp_path / "head.safetensors")
    whole = head.state_dict()
    dropped = [value for name, value in whole.items() if name.startswith(("trunks.0.", "classifiers.0.", "gate."))]
    assert len(kept) == len(whole) - len(dropped)
    assert {name.split(".")[0] for name in kept} == {"conv", "embedding", "trunk", "classifier"}
    for value in dropped:
        is_there = any(value.shape == other.shape and torch.equal(value, other) for other in kept.values())
        assert not is_there or value.unique().numel() == 1  # a norm's ones look alike everywhere


def test_a_missing_model_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist; train that fold first"):
        load_deployed(tmp_path)


DAMAGES = {
    "empty": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "of another kind": lambda _: b"<html>",
    "of another head": lambda data: data.replace(b"classifier", b"classifies").replace(b'"shape"', b'"shapf"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["head.safetensors", "head.json"])
def test_a_damaged_model_is_one_sentence_with_what_to_do(tmp_path, name, damage):
    head = trained_head()
    deployed, trained = tmp_path / "fold-P1/deployed", tmp_path / "fold-P1/head.safetensors"
    for folder in (deployed, tmp_path / "exported"):
        write_deployed(
            folder, head.deployed(), describe_shape(head.shape), aus=(1, 2, 4), features={}, averages_flip=False
        )
        file = folder / name
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    write_safetensors(trained, head.state_dict())
    (tmp_path / "fold-P1/result.json").write_text("{}")
    for path in (deployed / name, trained):
        trained.write_bytes(DAMAGES[damage](trained.read_bytes()))
        retrain = (
            r"is damaged \(.*\); delete .*/fold-P1/result.json and repeat the run's `fantrans train` to train this"
        )
        with pytest.raises(DataError, match=rf"^{path} {retrain}") as caught:
            load_deployed(deployed) if path.parent == deployed else load_trained(trained.parent)
        assert "\n" not in str(caught.value)
        write_deployed(
            deployed, head.deployed(), describe_shape(head.shape), aus=(1, 2, 4), features={}, averages_flip=False
        )
    with pytest.raises(DataError, match=r"is damaged \(.*\); write it again with `fantrans export`, or pass another"):
        load_deployed(tmp_path / "exported")


def test_a_changed_bit_of_the_weights_is_found_and_a_model_of_an_older_version_is_read(tmp_path):
    head = trained_head()
    write_deployed(
        tmp_path, head.deployed(), describe_shape(head.shape), aus=(1, 2, 4), features={}, averages_flip=False
    )
    weights, described = tmp_path / "head.safetensors", tmp_path / "head.json"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DataError, match=r"head.safetensors is damaged \(its sha256 is not that of head.json\)"):
        load_deployed(tmp_path)
    description = json.loads(described.read_bytes())
    del description["sha256"]
    described.write_text(json.dumps(description))
    assert load_deployed(tmp_path).aus == (1, 2, 4)


def test_the_papers_model_is_small(tmp_path):
    head = FanTransHead(HeadShape.resolved(fan_width=256, num_aus=12))
    write_deployed(
        tmp_path, head.deployed(), describe_shape(head.shape), aus=tuple(range(12)), features={}, averages_flip=False
    )
    assert (tmp_path / "head.safetensors").stat().st_size < 25e6

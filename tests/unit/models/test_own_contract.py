import pytest
import torch
from torch import nn

from models.fan_trans import FanTransHead
from models.head import (
    HeadInputs,
    HeadOutput,
    carry_over_by_size,
    check_contract,
    concatenate_maps,
    deployed_head,
    run_head,
    stack_maps,
)
from models.registry import HEADS
from models.variants import VARIANTS

INPUTS = HeadInputs(num_channels=8, map_size=16, num_aus=3)


def test_f_a_is_lf_and_the_gated_maps_in_every_profile():
    maps = INPUTS.random_maps(2)
    expected = torch.cat([maps["lf"], maps["hm"] * maps["h1"], maps["hm"] * maps["h2"]], 1)
    assert torch.equal(stack_maps(maps), expected)
    products = {"lf": maps["lf"], "hm_h1": maps["hm"] * maps["h1"], "hm_h2": maps["hm"] * maps["h2"]}
    assert torch.equal(stack_maps(products), expected)
    basis_CK = torch.rand(8, 4)
    components = products | {"lf": torch.rand(2, 4, 16, 16), "lf_basis": basis_CK}
    channels = torch.einsum("ck,bkhw->bchw", basis_CK, components["lf"])
    torch.testing.assert_close(stack_maps(components)[:, :8], channels)


def test_maps_can_be_chosen_and_a_resnets_cache_has_lf_alone():
    maps = INPUTS.random_maps(2)
    assert torch.equal(stack_maps(maps, plain=("h2", "lf")), torch.cat([maps["h2"], maps["lf"]], 1))
    alone = HeadInputs(8, 16, 3, names=("lf",))
    assert list(alone.random_maps(2)) == ["lf"]
    assert alone.num_stacked_channels == stack_maps(alone.random_maps(2)).shape[1] == 8


@pytest.mark.parametrize("form", ["maps", "products"])
def test_under_autocast_the_stacked_maps_are_rounded_once(form):
    maps = HeadInputs(4, 16, 2).random_maps(3)
    maps["hm"] = maps["hm"].half()
    if form == "products":
        maps = {"lf": maps["lf"], **{f"hm_{name}": maps[name] * maps["hm"] for name in ("h1", "h2")}}
    settings = {"plain": ("lf",), "gated": ("h1", "h2"), "dtype": torch.float32}
    _, expected = concatenate_maps(maps, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        _, found = concatenate_maps(maps, **settings, is_autocast=True)
        assert torch.equal(found, expected.bfloat16())
        assert stack_maps(maps).dtype == torch.float32


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_papers_heads_keep_the_contract(variant):
    head = HEADS[variant](INPUTS, dim=8, num_blocks=1)
    assert isinstance(head, FanTransHead)
    assert check_contract(head, INPUTS) is False
    output = run_head(head.eval(), INPUTS.random_maps(2))
    assert len(output.branches) == len(head.branch_names)


class Tied(nn.Module):
    """Two branches without an ensemble that share a weight."""

    def __init__(self, num_aus=3):
        super().__init__()
        self.linear = nn.Linear(8, num_aus)

    def forward(self, maps):
        logits = self.linear(maps["lf"].mean((2, 3)))
        return HeadOutput((logits, 2 * logits), None)


def test_a_deployed_head_is_a_copy_of_the_last_branch_in_eval_mode():
    head, maps = Tied().train(), INPUTS.random_maps(2)
    deployed = deployed_head(head)
    assert not deployed.training
    assert head.training
    assert torch.equal(deployed(maps), head(maps).branches[1])
    with torch.no_grad():
        head.linear.weight.zero_()
    assert not torch.equal(deployed(maps), head(maps).branches[1])


def test_a_check_changes_neither_the_head_nor_the_random_numbers():
    head = Dropping()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    torch.manual_seed(0)
    assert check_contract(head, INPUTS)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))

    def forward(self, maps):
        return self.layers(maps["lf"].mean((2, 3)))


def test_tensors_of_another_size_keep_their_initialisation():
    source, target = Tied(num_aus=3), Tied(num_aus=2)
    before = target.linear.weight.clone()
    assert carry_over_by_size(target, source.state_dict()) == ["linear.weight", "linear.bias"]
    assert torch.equal(target.linear.weight, before)
    assert carry_over_by_size(same := Tied(), source.state_dict()) == []
    assert torch.equal(same.linear.weight, source.linear.weight)
    with pytest.raises(ValueError, match=r"the source head has no tensor linear\.weight"):
        carry_over_by_size(Tied(), {})

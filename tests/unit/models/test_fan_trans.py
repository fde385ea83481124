import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from models.fan_trans import (
    CLASSIFIERS,
    AuEmbedding,
    ConvModule,
    FanTransHead,
    Flat,
    Gate,
    OneToMany,
    OneToOne,
    Pooled,
    carry_over,
)
from models.head_shape import HeadShape
from models.variants import ATTENTION_DROPS, VARIANTS


def small_shape(**changes):
    return HeadShape.resolved(**{"fan_width": 16, "num_aus": 4, "map_size": 32, "num_blocks": 2, **changes})


def random_features(shape, num_frames=3, dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = {
        name: torch.randn(num_frames, shape.fan_width, shape.map_size, shape.map_size, generator=generator)
        for name in ("lf", "h1", "h2")
    }
    maps["hm"] = torch.rand(num_frames, 1, shape.map_size, shape.map_size, generator=generator)
    return {name: values.to(dtype) for name, values in maps.items()}


def trained_a_little(shape, seed=0):
    """A head whose batch statistics, masks and classifiers are no longer those of the start, in eval mode."""
    torch.manual_seed(seed)
    head = FanTransHead(shape)
    optimiser = torch.optim.AdamW(head.parameters(), lr=0.05)
    for step in range(3):
        output = head(random_features(shape, seed=step))
        optimiser.zero_grad()
        sources = (*output.branches, output.ensemble) if head.gate else output.branches
        torch.stack(sources).square().mean().backward()
        optimiser.step()
    return head.eval()


def test_sizes_of_the_papers_head():
    shape = HeadShape.resolved(fan_width=256, num_aus=12)
    assert (shape.dim, shape.top_k, shape.num_cells, shape.input_channels) == (192, 6, 16, 768)
    head = FanTransHead(shape)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in head.named_children()}
    conv_block = 192 * 96 * 9 + 96 * 48 * 9 + 48 * 48 * 9 + 2 * (192 + 96 + 48)
    trans_block = 12 * 192**2 + (3 + 1 + 4 + 1) * 192 + 4 * 192 + 12
    assert count["conv"] == 768 * 192 + 192 + 4 * conv_block
    assert count["embedding"] == 192 * 16 + 16 * 12
    assert count["trunks"] == 2 * 5 * trans_block
    assert count["classifiers"] == 192 + 192 * 12


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["bl", "bl_no_lf", "bl_no_hm", "lf_only"])
def test_reduction_is_the_convolution_of_the_papers_f_a(name, dtype):
    shape = small_shape(input_features=name)
    features = random_features(shape, dtype=dtype)
    lf, h1, h2, hm = (features[key].float() for key in ("lf", "h1", "h2", "hm"))
    f_a = {"bl": (lf, hm * h1, hm * h2), "bl_no_lf": (hm * h1, hm * h2), "bl_no_hm": (lf, h1, h2), "lf_only": (lf,)}[
        name
    ]
    assert shape.dim == 12  # a quarter of three maps' 48, whichever are read
    conv = ConvModule(shape)
    before = {key: values.clone() for key, values in features.items()}
    expected = nn.functional.conv2d(torch.cat(f_a, 1), conv.reduce.weight, conv.reduce.bias)
    torch.testing.assert_close(conv.reduced({key: features[key] for key in shape.feature_names}), expected)
    assert all(torch.equal(features[key], before[key]) for key in features)


def test_early_pooling_takes_the_place_of_the_first_block():
    shape = small_shape(pools_early=True)
    features = random_features(shape)
    conv = ConvModule(shape).eval()
    expected = nn.functional.max_pool2d(conv.reduced(features), 2)
    assert len(conv.blocks) == 3
    for block in conv.blocks:
        expected = nn.functional.max_pool2d(block(expected), 2)
    assert torch.equal(conv(features), expected)
    assert expected.shape == (3, 16, 2, 2)
    assert small_shape(pools_early=True, dim=12).dim == 12


def test_conv_module_halves_four_times():
    for map_size, side in ((64, 4), (32, 2), (16, 1)):
        shape = small_shape(map_size=map_size)
        assert ConvModule(shape)(random_features(shape)).shape == (3, 12, side, side)


def test_equation_1_by_hand():
    """Two channels, four cells, one action unit that reads cells 0 and 3: F_au = (F_c + position) W_au."""
    embedding = AuEmbedding(HeadShape.resolved(fan_width=4, dim=4, num_aus=1, map_size=32))
    f_c = torch.arange(16.0).view(1, 4, 2, 2)
    with torch.no_grad():
        embedding.from_cells.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, -2.0]]))
        embedding.position.zero_()
        assert embedding(f_c).tolist() == [[[0 - 6, 4 - 14, 8 - 22, 12 - 30]]]
        embedding.position[1, 3] = 10
        assert embedding(f_c).tolist() == [[[-6, -10 - 20, -14, -18]]]


def test_equation_4_by_hand():
    one_to_one = OneToOne(small_shape(num_aus=2, dim=4))
    with torch.no_grad():
        one_to_one.linear.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, -1.0]]))
    tokens = torch.tensor([[[1.0, 1.0, 1.0, 1.0], [0.0, 0.5, 0.0, 4.0]]])
    assert one_to_one(tokens).tolist() == [[5, -3]]


def test_equations_5_and_6_by_hand():
    """As in Fig. 4: four action units, k = 2; evidence is rows of sources and columns of targets."""
    one_to_many = OneToMany(small_shape(num_aus=4, dim=4))
    assert one_to_many.top_k == 2
    evidence = torch.tensor([[4.0, 1, 0, -3], [3, 2, 0, -1], [2, 8, 0, -4], [1, -9, 5, -2]])
    with torch.no_grad():
        one_to_many.linear.weight.copy_(torch.eye(4))  # then F_2 W_m is F_2
    assert one_to_many(evidence[None]).tolist() == [[4 + 3, 8 + 2, 5 + 0, -1 - 2]]
    with torch.no_grad():
        one_to_many.linear.weight.copy_(torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert one_to_many(evidence[None]).tolist() == [[8 + 2, 4 + 3, 5 + 0, -1 - 2]]  # W_m[:, i] is AU i's prototype


def test_top_k_is_settable():
    one_to_many = OneToMany(small_shape(num_aus=4, dim=4, top_k=4))
    with torch.no_grad():
        one_to_many.linear.weight.copy_(torch.eye(4))
    assert one_to_many(torch.arange(16.0).view(1, 4, 4)).tolist() == [[24, 28, 32, 36]]


def test_equation_7_weighs_the_branches_by_the_gate():
    shape = small_shape()
    head = FanTransHead(shape).eval()
    with torch.no_grad():
        head.gate.linear.weight.zero_()
        head.gate.linear.bias.copy_(torch.log(torch.tensor([1.0, 1, 1, 3, 3, 1, 0.25, 1])))  # o2o's four, o2m's four
    output = head(random_features(shape))
    p_o, p_m = output.branches
    w_1, w_2 = torch.tensor([0.25, 0.5, 0.8, 0.75]), torch.tensor([0.75, 0.5, 0.2, 0.25])
    torch.testing.assert_close(output.ensemble, w_1 * p_o + w_2 * p_m)


def test_gate_reads_f_c_and_its_weights_add_up_to_one():
    torch.manual_seed(0)
    shape = small_shape()
    gate = Gate(shape)
    weights_BRA = gate(torch.randn(5, 12, 2, 2))
    assert weights_BRA.shape == (5, 2, 4)
    torch.testing.assert_close(weights_BRA.sum(1), torch.ones(5, 4))
    assert weights_BRA.std(0).min() > 0
    assert [split[0].kernel_size for split in gate.splits] == [(1, 1), (3, 3)]


def test_baseline_averages_the_cells():
    pooled = Pooled(small_shape(dim=4, num_aus=2))
    with torch.no_grad():
        pooled.linear.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 2]]))
        pooled.linear.bias.copy_(torch.tensor([0.5, 0.0]))
    assert pooled(torch.arange(16.0).view(1, 4, 2, 2)).tolist() == [[1.5 + 0.5, 2 * 13.5]]


def test_flat_weighs_each_channel_and_cell():
    flat = Flat(small_shape(dim=4, num_aus=2))
    with torch.no_grad():
        flat.linear.weight.copy_(torch.zeros(2, 16))
        flat.linear.weight[0, 5], flat.linear.weight[1, 2] = 3, -1  # channel 1 at cell 1; channel 0 at cell 2
        flat.linear.bias.copy_(torch.tensor([0.5, 0.0]))
    f_c = torch.zeros(1, 4, 2, 2)
    f_c[0, 1, 0, 1], f_c[0, 0, 1, 0] = 2, 7
    assert flat(f_c).tolist() == [[6.5, -7]]


def test_a_token_of_rank_2_by_hand():
    """Two channels, four cells: cell 0 of both channels (Eq. 1), then cell 3 of channel 1, with a weight of 10."""
    shape = HeadShape.resolved(fan_width=4, dim=4, num_aus=1, map_size=32, token_rank=2)
    embedding = AuEmbedding(shape)
    with torch.no_grad():
        embedding.position.zero_()
        embedding.from_cells.weight.copy_(torch.tensor([[1.0, 0, 0, 0]]))
        embedding.further.of_cells.copy_(torch.tensor([[[0.0, 0, 0, 1]]]))
        embedding.further.of_channels.copy_(torch.tensor([[[0.0, 10, 0, 0]]]))
        assert embedding(torch.arange(16.0).view(1, 4, 2, 2)).tolist() == [[[0, 4 + 70, 8, 12]]]


def test_a_token_of_full_rank_can_be_any_sum_over_channels_and_cells():
    """With as many terms as cells, C_o2o on tokens without transblocks is the linear layer over F_c of "flat"."""
    torch.manual_seed(0)
    shape = small_shape(dim=4, token_rank=4)
    embedding, flat = AuEmbedding(shape), Flat(shape)
    f_c = torch.randn(3, 4, 2, 2)
    with torch.no_grad():
        embedding.position.zero_()
        embedding.from_cells.weight.copy_(torch.tensor([1.0, 0, 0, 0]).expand(4, 4))
        embedding.further.of_cells.copy_(torch.eye(4)[1:].expand(4, 3, 4))
        weights_ADN = flat.linear.weight.view(4, 4, 4)
        embedding.further.of_channels.copy_(weights_ADN[..., 1:].transpose(1, 2))
        first_cell = (f_c.flatten(2)[..., 0][:, None] * (weights_ADN[..., 0] - 1)).sum(2)  # its channels weigh 1
        torch.testing.assert_close(embedding(f_c).sum(2) + first_cell + flat.linear.bias, flat(f_c))


def test_a_token_of_rank_1_is_the_papers():
    torch.manual_seed(0)
    of_rank_1 = FanTransHead(small_shape(token_rank=1)).state_dict()
    torch.manual_seed(0)
    of_rank_3 = FanTransHead(small_shape(token_rank=3)).state_dict()
    assert set(of_rank_3) - set(of_rank_1) == {"embedding.further.of_cells", "embedding.further.of_channels"}
    assert all(torch.equal(of_rank_1[name], of_rank_3[name]) for name in of_rank_1 if name.startswith("embedding"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_have_the_branches_of_their_names(variant):
    head = FanTransHead(small_shape(variant=variant))
    kinds = [type(classifier).__name__ for classifier in head.classifiers]
    named = {"o2o": "OneToOne", "o2m": "OneToMany", "baseline": "Pooled", "flat": "Flat"}
    expected = [named[word] for word in variant.split("_") if word in named]
    assert kinds == expected
    assert len(head.trunks) == max(1, len({word for word in variant.split("_") if word in ("t1", "t2", "t3")}))
    assert (head.gate is not None) == (len(expected) > 1)
    assert sum(len(trunk) for trunk in head.trunks) == (0 if variant in ("baseline", "flat") else 2 * len(head.trunks))


@pytest.mark.parametrize(
    ("variant", "drop", "rank"),
    [
        *((variant, "learned", 1) for variant in VARIANTS),
        *(("t1_o2o_t2_o2m", drop, 1) for drop in ATTENTION_DROPS),
        ("t1_o2o_t2_o2m", "learned", 3),
    ],
)
def test_gradient_reaches_every_parameter_and_export_is_equal(variant, drop, rank):
    # A start above 0, since a block that has come to drop every token gives no gradient to its values.
    shape = small_shape(variant=variant, attention_drop=drop, mask_start=0.1, token_rank=rank)
    head = trained_a_little(shape)
    features = random_features(shape, num_frames=5, seed=9)
    head.train()
    output = head(features)
    weights = torch.linspace(-1, 2, 20).view(5, 4)
    (output.ensemble if head.gate else output.deployed).mul(weights).sum().backward()
    without = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []

    head.eval()
    with torch.inference_mode():
        deployed = head.deployed()
        assert not deployed.training
        assert torch.equal(deployed(features), head(features).deployed)


def test_export_drops_what_only_training_needs():
    head = FanTransHead(small_shape())
    state = head.deployed_state()
    assert {name.split(".")[0] for name in state} == {"conv", "embedding", "trunk", "classifier"}
    assert state["classifier.linear.weight"].shape == (4, 12)  # C_o2m
    assert torch.equal(state["trunk.1.attn.qkv.weight"], head.trunks[1][1].attn.qkv.weight)
    before = head.deployed()
    with torch.no_grad():
        for parameter in (*head.gate.parameters(), *head.trunks[0].parameters(), *head.classifiers[0].parameters()):
            parameter.fill_(float("nan"))
        head.classifiers[1].linear.weight.zero_()
    assert all(value.isfinite().all() for value in head.deployed_state().values())
    assert before.classifier.linear.weight.abs().sum() > 0  # a copy, not a view


def test_eval_output_of_a_frame_does_not_depend_on_its_batch():
    shape = small_shape()
    head = trained_a_little(shape).deployed()
    features = random_features(shape, num_frames=4)
    alone = torch.cat([head({name: values[i : i + 1] for name, values in features.items()}) for i in range(4)])
    torch.testing.assert_close(head(features), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "t3"}, "variant must be one of baseline, .*found 't3'"),
        ({"attention_drop": "rows"}, "attention_drop must be one of learned, .*found 'rows'"),
        ({"input_features": "lf"}, "input_features must be one of bl, "),
        ({"map_size": 60}, "map_size must be a multiple of 16, found 60"),
        ({"dim": 0}, "dim must be a positive multiple of 4 and of its 1 attention heads, found 0"),
        ({"dim": 14}, "multiple of 4 and of its 1 attention heads, found 14"),
        ({"dim": 200}, "its 3 attention heads, found 200"),
        ({"top_k": 0}, r"top_k must be 1 to 4"),
        ({"top_k": 5}, r"top_k must be 1 to 4"),
        ({"token_rank": 0}, r"token_rank must be 1 to 4 \(the number of cells of F_c\), found 0"),
        ({"token_rank": 5}, r"token_rank must be 1 to 4"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_shape(**changes)


def test_carry_over_copies_shared_action_units_and_leaves_the_rest_fresh():
    bp4d, disfa = (1, 2, 4, 6, 7, 12), (1, 6, 9, 12)
    source = trained_a_little(small_shape(num_aus=6, token_rank=3))
    torch.manual_seed(5)
    target = FanTransHead(small_shape(num_aus=4, token_rank=3))
    fresh = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    carry_over(target, source.state_dict(), source_aus=bp4d, aus=disfa)
    theirs, ours = source.state_dict(), target.state_dict()
    rows = {
        "embedding.from_cells.weight": (theirs["embedding.from_cells.weight"], 0),
        "embedding.further.of_cells": (theirs["embedding.further.of_cells"], 0),
        "embedding.further.of_channels": (theirs["embedding.further.of_channels"], 0),
        "classifiers.1.linear.weight": (theirs["classifiers.1.linear.weight"], 0),
        "trunks.1.0.attn.drop.logit": (theirs["trunks.1.0.attn.drop.logit"], 0),
        "gate.linear.bias": (theirs["gate.linear.bias"], 0),
    }
    for name, (values, _) in rows.items():
        groups = 2 if name.startswith("gate") else 1
        old, new, start = (x.unflatten(0, (groups, -1)) for x in (values, ours[name], fresh[name]))
        for au in (1, 6, 12):
            assert torch.equal(new[:, disfa.index(au)], old[:, bp4d.index(au)]), name
        assert torch.equal(new[:, disfa.index(9)], start[:, disfa.index(9)]), name
    for name in (
        "conv.reduce.weight",
        "conv.blocks.0.bn1.running_mean",
        "embedding.position",
        "trunks.0.1.mlp.fc1.weight",
        "classifiers.0.linear.weight",
        "gate.splits.1.0.weight",
    ):
        assert torch.equal(ours[name], theirs[name]), name
        assert not torch.equal(fresh[name], theirs[name]), name


def test_carry_over_refuses_another_kind_of_head():
    target = FanTransHead(small_shape())
    with pytest.raises(ValueError, match="the source head has no tensor trunks"):
        carry_over(target, FanTransHead(small_shape(variant="c_t_o2m")).state_dict(), source_aus=(1,), aus=(1, 2, 4, 6))
    with pytest.raises(ValueError, match=r"conv.reduce.weight is \(24, 96, 1, 1\)"):
        carry_over(target, FanTransHead(small_shape(fan_width=32)).state_dict(), source_aus=(1,), aus=(1, 2, 4, 6))


def test_head_reads_only_the_maps_it_names():
    expected_maps = {
        "bl": {"lf", "h1", "h2", "hm"},
        "bl_no_lf": {"h1", "h2", "hm"},
        "bl_no_hm": {"lf", "h1", "h2"},
        "lf_only": {"lf"},
    }
    for name, expected in expected_maps.items():
        shape = small_shape(input_features=name, variant="baseline")
        assert set(shape.feature_names) == expected
        features = random_features(shape)
        logits = FanTransHead(shape)({key: features[key] for key in shape.feature_names}).deployed
        assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"fan_width": 64, "num_aus": 12, "dim": 48, "top_k": 6}, (48, 6)),
        ({"fan_width": 64, "num_aus": 12, "dim": 8, "top_k": 3}, (8, 3)),
        ({"fan_width": 64, "num_aus": 12, "dim": None, "top_k": None}, (48, 6)),
        ({"fan_width": 64, "num_aus": 1}, (48, 1)),
    ],
)
def test_sizes_that_are_given_are_kept_and_the_others_are_the_papers(described, expected):
    shape = HeadShape.resolved(**described)
    assert (shape.dim, shape.top_k) == expected
    assert HeadShape.resolved(**asdict(shape)) == HeadShape(**asdict(shape)) == shape


def test_the_names_of_choices_load_without_torch():
    check = "import sys; import models.variants; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False, cwd=Path(__file__).parents[3]).returncode == 0
    assert set(CLASSIFIERS) == {branch.classifier for branches in VARIANTS.values() for branch in branches}

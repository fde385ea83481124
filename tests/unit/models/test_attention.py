import math

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block

from models.attention import AttentionDrop, DropAttention, TransBlock, keep_upper_half, num_heads, straight_through


@pytest.mark.parametrize("dim", [48, 192])
def test_block_without_drop_is_timms_block(dim):
    torch.manual_seed(0)
    theirs = Block(dim, num_heads=num_heads(dim), mlp_ratio=4, qkv_bias=True).eval()
    ours = TransBlock(dim, 12, "full").eval()
    ours.load_state_dict(theirs.state_dict())
    tokens_BAD = torch.randn(3, 12, dim)
    torch.testing.assert_close(ours(tokens_BAD), theirs(tokens_BAD), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dim", "expected"), [(48, 1), (96, 1), (127, 1), (128, 2), (192, 3), (256, 4)])
def test_one_head_a_64_channels(dim, expected):
    assert num_heads(dim) == expected


def test_equations_2_and_3_written_out():
    """A = softmax(Q K^T / sqrt(D_q)), A_bar[i, j] = M[j] A[i, j], per head, then A_bar V and the projection."""
    torch.manual_seed(1)
    num_aus, dim, head_dim = 4, 128, 64
    attention = DropAttention(dim, num_aus, "learned").double()
    with torch.no_grad():
        attention.drop.logit.copy_(torch.tensor([0.3, -0.2, 0.0, -5.0]))
    tokens_AD = torch.randn(num_aus, dim, dtype=torch.double)
    qkv = (tokens_AD @ attention.qkv.weight.T + attention.qkv.bias).detach().numpy()
    query, key, value = qkv[:, :dim], qkv[:, dim : 2 * dim], qkv[:, 2 * dim :]
    mixed = np.zeros((num_aus, dim))
    for head in range(2):
        channels = slice(head * head_dim, (head + 1) * head_dim)
        for i in range(num_aus):
            exps = [math.exp(query[i, channels] @ key[j, channels] / math.sqrt(head_dim)) for j in range(num_aus)]
            for j, kept in enumerate([1, 0, 1, 0]):
                mixed[i, channels] += kept * exps[j] / sum(exps) * value[j, channels]
    expected = torch.from_numpy(mixed) @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(attention(tokens_AD[None])[0], expected, rtol=1e-10, atol=1e-10)


def test_learned_drop_zeroes_columns_and_does_not_renormalise():
    drop = AttentionDrop(8, 3, "learned")
    with torch.no_grad():
        drop.logit.copy_(torch.tensor([1.0, -1.0, 0.0]))
    attention = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])[None, None]
    expected = torch.tensor([[0.2, 0.0, 0.3], [0.6, 0.0, 0.1], [0.1, 0.0, 0.8]])
    assert torch.equal(drop(attention, torch.zeros(1, 3, 8))[0, 0], expected)


def test_a_learned_drop_keeps_all_wherever_it_starts_and_loses_at_one_step_from_zero():
    for start in (0.1, 0.0):
        block = TransBlock(8, 3, "learned", mask_start=start)
        assert torch.equal(block.attn.drop.mask, torch.ones(3))
        optimiser = torch.optim.AdamW([block.attn.drop.logit], lr=1e-3)
        (block.attn.drop.mask * torch.tensor([1.0, -1.0, 1.0])).sum().backward()
        optimiser.step()
        kept = block.attn.drop.mask.tolist()
        assert kept == ([1, 1, 1] if start == 0.1 else [0, 1, 0])


def test_row_and_column_drop_their_lower_half():
    attention = torch.tensor(
        [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.25, 0.05, 0.6, 0.1], [0.3, 0.5, 0.05, 0.15]]
    )
    row = [[0, 0, 0.3, 0.4], [0.4, 0.3, 0, 0], [0.25, 0, 0.6, 0], [0.3, 0.5, 0, 0]]
    column = [[0, 0, 0.3, 0.4], [0.4, 0.3, 0, 0], [0, 0, 0.6, 0], [0.3, 0.5, 0, 0.15]]
    tokens = torch.zeros(1, 4, 8)
    for name, expected in (("full", attention.tolist()), ("row", row), ("column", column)):
        dropped = AttentionDrop(8, 4, name)(attention[None, None], tokens)[0, 0]
        assert torch.equal(dropped, torch.tensor(expected)), name


def test_half_of_an_odd_number_is_rounded_down_and_ties_lose_as_many():
    kept = keep_upper_half(torch.full((2, 5), 0.2), dim=1)
    assert (kept > 0).sum(1).tolist() == [3, 3]


def test_straight_through_is_binary_forwards_and_a_sigmoid_backwards():
    logits = torch.linspace(-30, 30, 1001, requires_grad=True)
    mask = straight_through(logits)
    assert torch.equal(mask, (logits >= 0).float())
    mask.sum().backward()
    soft = logits.detach().sigmoid()
    torch.testing.assert_close(logits.grad, soft * (1 - soft))


@pytest.mark.parametrize("drop", ["learned", "learned_from_tokens"])
def test_masks_start_with_all_ones(drop):
    torch.manual_seed(0)
    learned, full = TransBlock(64, 12, drop), TransBlock(64, 12, "full")
    full.load_state_dict(learned.state_dict(), strict=False)
    tokens_BAD = torch.randn(2, 12, 64)
    assert torch.equal(learned(tokens_BAD), full(tokens_BAD))


def test_a_dropped_action_unit_can_come_back():
    drop = AttentionDrop(8, 2, "learned")
    with torch.no_grad():
        drop.logit.copy_(torch.tensor([0.1, -0.1]))
    optimiser = torch.optim.SGD(drop.parameters(), lr=1.0)
    (-drop(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 2, 8)).sum()).backward()
    optimiser.step()
    assert drop.mask.tolist() == [1, 1]


def test_mask_from_tokens_differs_between_frames():
    drop = AttentionDrop(2, 2, "learned_from_tokens")
    with torch.no_grad():
        drop.from_token.weight.copy_(torch.tensor([[1.0, 0.0]]))
    tokens_BAD = torch.tensor([[[0.5, 9.0], [-0.5, 9.0]], [[-0.5, 9.0], [0.0, 9.0]]])
    assert drop.mask_from_tokens(tokens_BAD).squeeze().tolist() == [[1, 0], [0, 1]]


def test_only_the_learned_drop_has_a_mask_of_its_own():
    with pytest.raises(ValueError, match="the drop 'row' has no mask of its own"):
        _ = AttentionDrop(8, 2, "row").mask
    with pytest.raises(ValueError, match=r"drop must be one of learned, .*, found 'rows'"):
        AttentionDrop(8, 2, "rows")

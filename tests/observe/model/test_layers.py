"""Our layers give what transformers' own give, and their gradients."""

import copy

import pytest
import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from observe.model.family import FAMILIES
from observe.model.layers import (
    Qwen2_5Attention,
    Qwen2_5RMSNorm,
    Qwen2_5VisionAttention,
    rotate,
)


def theirs(module):
    """A copy of a module with transformers' own class."""
    made = copy.deepcopy(module)
    (made.__class__,) = [
        theirs
        for family in FAMILIES.values()
        for theirs, ours in family.layers.items()
        if ours is type(module)
    ]
    return made


def assert_same(ours, expected, inputs, parameters, tolerance):
    results = []
    for function, weights in ((ours, parameters[0]), (expected, parameters[1])):
        out = function()
        pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out.dtype)
        results.append([out, *torch.autograd.grad((out * pull).sum(), [*inputs, *weights])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-5), (torch.bfloat16, 0.02)]
)
def test_the_norm(dtype, tolerance):
    """In double precision transformers rounds to single; ours does not."""
    norm = Qwen2_5RMSNorm(16).to(dtype)
    norm.weight.data = torch.linspace(0.5, 2, 16).to(dtype)
    hidden = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    hidden.requires_grad_()
    other = theirs(norm)
    assert type(other) is qwen.Qwen2_5_VLRMSNorm
    weights = ([norm.weight], [other.weight])
    assert_same(lambda: norm(hidden), lambda: other(hidden), [hidden], weights, tolerance)


def test_the_norm_is_exact_in_double_precision():
    hidden = torch.randn(4, 16, dtype=torch.double, requires_grad=True)
    norm = Qwen2_5RMSNorm(16).double()
    assert torch.autograd.gradcheck(norm, hidden)


def test_the_rotary_embedding():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, 8, generator=random, dtype=torch.double).requires_grad_()
    angles = torch.randn(7, 4, generator=random, dtype=torch.double).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()

    def expected():
        q, _ = qwen.apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=1)
        return q

    assert_same(
        lambda: rotate(x, cos[:, None], sin[:, None]), expected, [x], ([], []), tolerance=1e-12
    )


SEGMENTS = {"equal": [4, 4, 4], "unequal": [4, 6, 4, 2, 6], "one": [9]}


@pytest.mark.parametrize("lengths", SEGMENTS.values(), ids=SEGMENTS)
def test_vision_attention(untrained, lengths):
    module = copy.deepcopy(untrained.model.model.visual.blocks[0].attn).float()
    assert type(module) is Qwen2_5VisionAttention
    other = theirs(module)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(sum(lengths), module.dim, generator=random).requires_grad_()
    angles = torch.randn(sum(lengths), module.head_dim // 2, generator=random).repeat(1, 2)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    given = {"cu_seqlens": bounds, "position_embeddings": (angles.cos(), angles.sin())}
    assert_same(
        lambda: module(hidden, **given),
        lambda: other(hidden, **given),
        [hidden],
        (list(module.parameters()), list(other.parameters())),
        tolerance=2e-5,
    )


def test_a_loaded_model_has_them_and_keeps_its_names(untrained):
    kinds = {type(module) for module in untrained.model.modules()}
    assert {Qwen2_5RMSNorm, Qwen2_5Attention, Qwen2_5VisionAttention} <= kinds
    assert not kinds & {qwen.Qwen2_5_VLRMSNorm, qwen.Qwen2_5_VLAttention}
    fresh = qwen.Qwen2_5_VLForConditionalGeneration(untrained.model.config)
    assert untrained.model.state_dict().keys() == fresh.state_dict().keys()

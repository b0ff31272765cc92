"""Attention of packed rows against plain softmax attention with a mask, on every kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from observe.model import attention
from observe.model.attention import Layout, Segments, shared_prompt_attention

HEADS, KV_HEADS, WIDTH, SCALE = 4, 2, 8, 0.3
CPU = torch.device("cpu")


def layout_of(prompts, groups):
    return Layout(
        prompts=Segments(prompts, device=CPU),
        completions=Segments([length for group in groups for length in group], device=CPU),
        groups=Segments([sum(group) for group in groups], device=CPU),
    )


def visible(prompts, groups):
    """(S, S): True where a token may attend to another."""
    owner = [(i, None) for i, length in enumerate(prompts) for _ in range(length)]
    for i, group in enumerate(groups):
        owner += [(i, j) for j, length in enumerate(group) for _ in range(length)]
    seen = torch.zeros(len(owner), len(owner), dtype=torch.bool)
    for a, (prompt, completion) in enumerate(owner):
        for b, (other, part) in enumerate(owner[: a + 1]):
            seen[a, b] = prompt == other and part in (None, completion)
    return seen


def plain(query, key, value, seen):
    shared = HEADS // KV_HEADS
    key, value = (x.repeat_interleave(shared, 1).transpose(0, 1) for x in (key, value))
    scores = (query.transpose(0, 1) @ key.mT * SCALE).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(0, 1)


def tensors(tokens, dtype=torch.double):
    random = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(tokens, heads, WIDTH, generator=random, dtype=torch.double)
        .to(dtype)
        .requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def assert_plain(prompts, groups, tolerance=1e-11, dtype=torch.double):
    inputs = tensors(sum(prompts) + sum(map(sum, groups)), dtype)
    found = shared_prompt_attention(*inputs, layout_of(prompts, groups), scale=SCALE)
    expected = plain(*inputs, visible(prompts, groups))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradients = [torch.autograd.grad((out * pull).sum(), inputs) for out in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=["flash", "dense"])
def kernel(request, monkeypatch):
    """The fused kernel of the CPU, and the plain one for devices without one."""
    if request.param == "dense":
        monkeypatch.setattr(attention, "_fused", lambda query: False)
    return request.param


CASES = {
    "equal lengths": ([5, 5], [[3, 3], [3, 3]]),
    "unequal lengths": ([5, 2, 9], [[3, 1, 40], [2], [7, 7]]),
    "empty completions": ([3, 4], [[0, 2], [0, 0]]),
    "a prompt without completions": ([3, 4], [[], [5]]),
    "prompts alone": ([3, 70], [[], []]),
    "no completion is forwarded": ([3, 4], [[0], [0, 0]]),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_plain_attention_with_a_mask(kernel, case):
    assert_plain(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_single_precision(kernel, case):
    assert_plain(*CASES[case], tolerance=2e-5, dtype=torch.float32)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(0, 9), max_size=4)),
        min_size=1,
        max_size=4,
    )
)
def test_any_layout(groups):
    assert_plain([prompt for prompt, _ in groups], [list(lengths) for _, lengths in groups])


def test_scores_far_apart_leave_no_gaps():
    """A completion that hardly looks at itself, or hardly at its prompt, still gets its part."""
    for sign in (-1, 1):
        query, key, value = tensors(8)
        with torch.no_grad():
            key[:4] = sign * 200 * query[4:].mean((0, 1))
        layout = layout_of([4], [[4]])
        found = shared_prompt_attention(query, key, value, layout, scale=SCALE)
        torch.testing.assert_close(found, plain(query, key, value, visible([4], [[4]])))

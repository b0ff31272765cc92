"""Advantages, weights, bonus and loss: their algebra, and the replayed defects of released code."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from observe.grpo import bonus, dynamic_weights, group_advantages, kl, policy_loss

NAN = float("nan")
quick = settings(max_examples=40, deadline=None)


def tensors(low: float, high: float):
    shape = st.tuples(st.integers(1, 4), st.integers(2, 8))
    values = st.floats(low, high, width=32)
    return hnp.arrays("float64", shape, elements=values).map(torch.from_numpy)


correctness = hnp.arrays(
    bool, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=st.booleans()
).map(torch.from_numpy)


@quick
@given(tensors(-4, 4), st.sampled_from(["std", "none"]))
def test_advantages_are_centred(rewards_PG, scale):
    advantages_PG = group_advantages(rewards_PG, scale=scale)
    assert advantages_PG.shape == rewards_PG.shape
    assert advantages_PG.mean(-1).abs().max() < 1e-6


@quick
@given(tensors(-4, 4), st.floats(0.5, 8), st.floats(-3, 3))
def test_scaled_advantages_ignore_shift_and_scale_of_rewards(rewards_PG, scale, shift):
    rewards_PG = (rewards_PG * 8).round() / 8
    moved_PG = group_advantages(scale * rewards_PG + shift)
    torch.testing.assert_close(group_advantages(rewards_PG), moved_PG, atol=1e-3, rtol=1e-3)


def test_advantages_use_the_sample_deviation():
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        group_advantages(rewards_PG), torch.tensor([[0.75, -0.25, -0.25, -0.25]]) / (0.5 + 1e-6)
    )
    assert group_advantages(rewards_PG, scale="none").tolist() == [[0.75, -0.25, -0.25, -0.25]]


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.5, 0.7])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_a_constant_group_has_exactly_no_advantage(reward, scale):
    assert (group_advantages(torch.full((2, 7), reward), scale=scale) == 0).all()


def test_unjudged_rewards_are_left_out():
    rewards_PG = torch.tensor([[1.0, NAN, 0.0, 0.0], [NAN, NAN, NAN, NAN], [NAN, 1.0, NAN, NAN]])
    advantages_PG = group_advantages(rewards_PG)
    judged_P3 = group_advantages(torch.tensor([[1.0, 0.0, 0.0]]))
    assert advantages_PG[0, [0, 2, 3]].tolist() == judged_P3[0].tolist()
    assert advantages_PG[0, 1] == 0
    assert (advantages_PG[1:] == 0).all()


@quick
@given(st.integers(0, 8), st.floats(0.1, 3))
def test_dynamic_weights_follow_the_formula_and_are_symmetric(num_correct, sigma):
    correct_PG = torch.arange(8).unsqueeze(0) < num_correct
    d = num_correct / 8
    weight = dynamic_weights(correct_PG, sigma)
    torch.testing.assert_close(weight, torch.tensor([4 * sigma * d * (1 - d)]))
    torch.testing.assert_close(weight, dynamic_weights(~correct_PG, sigma))


def test_dynamic_weights_at_the_papers_sigma():
    correct_PG = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]).bool()
    torch.testing.assert_close(dynamic_weights(correct_PG, 1.8), torch.tensor([0.0, 1.8, 0.0]))
    one_of_eight = torch.arange(8).unsqueeze(0) == 3
    torch.testing.assert_close(dynamic_weights(one_of_eight, 1.8), torch.tensor([0.7875]))


def test_dynamic_weights_ignore_unjudged_completions():
    correct_PG = torch.tensor([[1.0, 0.0, NAN, NAN], [NAN, NAN, NAN, NAN]])
    torch.testing.assert_close(dynamic_weights(correct_PG, 1.8), torch.tensor([1.8, 0.0]))


@quick
@given(correctness, st.data())
def test_the_bonus_goes_to_at_most_one_correct_and_shortest_completion(correct_PG, data):
    lengths = data.draw(hnp.arrays("int64", tuple(correct_PG.shape), elements=st.integers(0, 30)))
    min_length = data.draw(st.none() | st.integers(0, 20))
    max_length = data.draw(st.none() | st.integers(10, 30))
    lengths_PG = torch.from_numpy(lengths)
    given_PG = bonus(
        correct_PG, lengths_PG, weight=0.2, min_length=min_length, max_length=max_length
    )
    for correct, length, got in zip(correct_PG, lengths_PG, given_PG, strict=True):
        winners = got.nonzero().flatten().tolist()
        right = [i for i in range(len(correct)) if correct[i]]
        shortest = min(right, key=lambda i: int(length[i]), default=None)
        passes = shortest is not None and (
            (min_length is None or length[shortest] > min_length)
            and (max_length is None or length[shortest] <= max_length)
        )
        assert winners == ([shortest] if passes else [])


def test_bonus_bounds_and_ties():
    correct_PG = torch.tensor([[True, True, False, True]])
    lengths_PG = torch.tensor([[120, 101, 50, 101]])
    won = bonus(correct_PG, lengths_PG, weight=0.2, min_length=100)
    torch.testing.assert_close(won, torch.tensor([[0.0, 0.2, 0.0, 0.0]]))
    assert (bonus(correct_PG, lengths_PG, weight=0.2, min_length=101) == 0).all()
    assert (bonus(correct_PG, lengths_PG, weight=0.2, min_length=0, max_length=100) == 0).all()
    unjudged_PG = torch.tensor([[NAN, 0.0, NAN, 0.0]])
    assert (bonus(unjudged_PG, lengths_PG, weight=0.2, min_length=None) == 0).all()


def test_an_all_wrong_group_gets_no_bonus_and_no_advantage():
    """Released code gave completion 0, wrong, +0.2: advantages [+2.47, -0.35 x 7]."""
    correct_PG = torch.zeros(1, 8, dtype=torch.bool)
    lengths_PG = torch.arange(8).unsqueeze(0) + 200
    rewards_PG = bonus(correct_PG, lengths_PG, weight=0.2, min_length=100)
    assert (rewards_PG == 0).all()
    assert (group_advantages(rewards_PG) == 0).all()


def test_bonus_and_weighting_interact_in_an_all_right_group():
    """The bonus alone makes [+2.47, -0.35 x 7] there, and the weighting multiplies it by 0."""
    correct_PG = torch.ones(1, 8, dtype=torch.bool)
    lengths_PG = torch.arange(8).unsqueeze(0) + 200
    won_PG = bonus(correct_PG, lengths_PG, weight=0.2, min_length=100)
    advantages_PG = group_advantages(correct_PG + won_PG)
    expected = torch.tensor([[2.47, *[-0.35] * 7]])
    torch.testing.assert_close(advantages_PG, expected, atol=0.01, rtol=0)
    assert dynamic_weights(correct_PG, 1.8).item() == 0


def test_weights_count_correctness_and_not_the_reward():
    """Released code counted trunc(reward), which a format reward of 1 turns into 'all right'."""
    correct_PG = torch.tensor([[True, False, False, False]])
    rewards_PG = correct_PG.float() + 1.0
    assert dynamic_weights(correct_PG, 1.0).item() == pytest.approx(0.75)
    assert dynamic_weights(rewards_PG.trunc().clamp(max=1).bool(), 1.0).item() == 0.0


def example_batch():
    generator = torch.Generator().manual_seed(0)
    logprobs_NT = torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    old_NT = logprobs_NT.detach() + 0.3 * torch.randn(6, 5, generator=generator).double()
    advantages_N = torch.randn(6, generator=generator).double()
    mask_NT = torch.arange(5) < torch.tensor([[5], [1], [3], [2], [0], [4]])
    return logprobs_NT, old_NT, advantages_N, mask_NT


@pytest.mark.parametrize(("aggregation", "normalizer"), [("token", 15.0), ("sequence", 6.0)])
@pytest.mark.parametrize("split", [[6], [1] * 6, [4, 2], [2, 3, 1]])
def test_the_gradient_does_not_depend_on_micro_batches(aggregation, normalizer, split):
    logprobs_NT, *rest = example_batch()

    def gradient(sizes):
        parts = zip(*(tensor.split(sizes) for tensor in (logprobs_NT, *rest)), strict=True)
        total = sum(
            policy_loss(*part, normalizer=normalizer, aggregation=aggregation).loss
            for part in parts
        )
        return torch.autograd.grad(total, logprobs_NT)[0]

    torch.testing.assert_close(gradient(split), gradient([6]), rtol=1e-12, atol=1e-14)


def test_padding_and_order_do_not_change_the_loss():
    logprobs_NT, old_NT, advantages_N, mask_NT = example_batch()
    whole = policy_loss(logprobs_NT, old_NT, advantages_N, mask_NT, normalizer=15.0)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    pad = torch.full((6, 2), -1e4, dtype=torch.float64)
    padded = policy_loss(
        torch.cat([pad, logprobs_NT], 1)[order],
        torch.cat([-pad, old_NT], 1)[order],
        advantages_N[order],
        torch.cat([torch.zeros(6, 2, dtype=torch.bool), mask_NT], 1)[order],
        normalizer=15.0,
    )
    torch.testing.assert_close(whole.loss, padded.loss)
    assert (whole.tokens, whole.clip_ratio) == (padded.tokens, padded.clip_ratio)


def test_on_policy_the_gradient_is_the_advantage_per_token():
    logprobs_NT = torch.zeros(2, 3, requires_grad=True)
    advantages_N = torch.tensor([1.0, -2.0])
    mask_NT = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    part = policy_loss(logprobs_NT, logprobs_NT.detach(), advantages_N, mask_NT, normalizer=3.0)
    (gradient,) = torch.autograd.grad(part.loss, logprobs_NT)
    expected = -torch.tensor([[1.0, 1.0, 0.0], [-2.0, 0.0, 0.0]]) / 3
    torch.testing.assert_close(gradient, expected)
    assert part.clip_ratio == 0.0


def test_clipping_stops_the_gradient_only_in_the_direction_of_the_advantage():
    logprobs_NT = torch.tensor([[0.5], [0.5], [-0.5], [-0.5]], requires_grad=True)
    part = policy_loss(
        logprobs_NT,
        torch.zeros(4, 1),
        torch.tensor([1.0, -1.0, 1.0, -1.0]),
        torch.ones(4, 1),
        normalizer=4.0,
    )
    (gradient,) = torch.autograd.grad(part.loss, logprobs_NT)
    assert (gradient.flatten() == 0).tolist() == [True, False, False, True]
    assert (part.clipped_low.item(), part.clipped_high.item()) == (1, 1)
    assert part.clip_ratio == 0.5


@quick
@given(tensors(-3, 0), st.sampled_from(["k1", "k2", "k3"]))
def test_kl_estimators(logprobs, estimator):
    assert (kl(logprobs, logprobs, estimator) == 0).all()
    estimate = kl(logprobs, logprobs.flip(-1), estimator)
    if estimator != "k1":
        assert (estimate >= 0).all()
    nearby = kl(logprobs, logprobs + 1e-3, estimator)
    expected = -1e-3 if estimator == "k1" else 0.5e-6
    torch.testing.assert_close(nearby, torch.full_like(nearby, expected), rtol=1e-2, atol=0)

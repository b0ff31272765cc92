"""Tokens that another engine sampled: how far its probabilities are, and what corrects for them."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import changed

from observe.config import LossConfig, RolloutConfig, TrainConfig, VllmConfig
from observe.data.sources import load_questions
from observe.errors import InputError
from observe.grpo import importance_weights, policy_loss, weight_gradient
from observe.mismatch import Mismatch, sampling_logprobs
from observe.model.logprobs import completion_logprobs
from observe.rollout.engine import Completion
from observe.run import prepare, prompt_of
from observe.update import update_policy

ragged = st.lists(
    st.lists(st.tuples(st.floats(-8, 0), st.floats(-8, 0)), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
)


def padded(rows, which):
    """Rows of pairs as (N, T), 7 where there is no token."""
    length = max(map(len, rows))
    values = [[pair[which] for pair in row] + [7.0] * (length - len(row)) for row in rows]
    return torch.tensor(values, dtype=torch.double)


def mask_of(rows):
    length = max(map(len, rows))
    return torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])


@given(ragged, st.floats(0.1, 5))
def test_the_weights_of_tokens_follow_the_formula(rows, cap):
    weights_NT = importance_weights(
        padded(rows, 0), padded(rows, 1), mask_of(rows), level="token", cap=cap
    )
    for i, row in enumerate(rows):
        for t, (trainer, sampler) in enumerate(row):
            ratio = math.exp(trainer) / math.exp(sampler)
            assert float(weights_NT[i, t]) == pytest.approx(min(ratio, cap), rel=1e-9)
    assert float((weights_NT * (1 - mask_of(rows))).abs().sum()) == 0


@given(ragged, st.floats(0.1, 5))
def test_the_weights_of_sequences_follow_the_formula(rows, cap):
    weights_NT = importance_weights(
        padded(rows, 0), padded(rows, 1), mask_of(rows), level="sequence", cap=cap
    )
    for i, row in enumerate(rows):
        ratio = math.prod(math.exp(trainer) / math.exp(sampler) for trainer, sampler in row)
        expected = [min(ratio, cap)] * len(row)
        assert weights_NT[i, : len(row)].tolist() == pytest.approx(expected, rel=1e-9)


def test_a_sampler_that_agrees_is_weighted_by_1():
    logprobs_NT = torch.randn(3, 5).double().requires_grad_()
    for level in ("token", "sequence"):
        weights_NT = importance_weights(
            logprobs_NT, logprobs_NT.detach(), torch.ones(3, 5), level=level, cap=2.0
        )
        assert torch.equal(weights_NT, torch.ones(3, 5).double())
        assert not weights_NT.requires_grad


def test_weighting_the_gradient_is_weighting_each_token_s_loss():
    generator = torch.Generator().manual_seed(0)
    logprobs_NT = -torch.rand(4, 6, generator=generator, dtype=torch.double).requires_grad_()
    old_NT = logprobs_NT.detach() + 0.4 * torch.randn(4, 6, generator=generator).double()
    weights_NT = torch.rand(4, 6, generator=generator).double() * 2
    advantages_N = torch.tensor([1.0, -1.0, 0.5, -2.0]).double()

    ratio_NT = (logprobs_NT - old_NT).exp()
    loss_NT = -torch.minimum(
        ratio_NT * advantages_N[:, None], ratio_NT.clamp(0.8, 1.2) * advantages_N[:, None]
    )
    (expected,) = torch.autograd.grad((weights_NT * loss_NT).sum(), logprobs_NT)

    weighted_NT = weight_gradient(logprobs_NT, weights_NT)
    assert torch.equal(weighted_NT, logprobs_NT)
    result = policy_loss(weighted_NT, old_NT, advantages_N, torch.ones(4, 6), normalizer=1)
    (found,) = torch.autograd.grad(result.loss, logprobs_NT)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert int((found == 0).sum()) > 0


def completion(token_ids, logprobs):
    return Completion(token_ids=token_ids, text="", truncated=False, logprobs=logprobs)


def test_the_difference_is_measured_over_tokens_and_over_micro_batches():
    meter = Mismatch("none")
    assert meter.metrics() == {}
    groups = [
        [completion([1, 2], [-1.0, -2.0]), completion([3], [-0.5])],
        [completion([4], [-3.0])],
    ]
    trainer = [torch.tensor([[-1.0, -2.5], [-0.25, 9.0]]), torch.tensor([[-3.0]])]
    masks = [torch.tensor([[1, 1], [1, 0]]), torch.tensor([[1]])]
    for group, logprobs_NT, mask_NT in zip(groups, trainer, masks, strict=True):
        sampled_NT = sampling_logprobs(group, logprobs_NT)
        meter.add(logprobs_NT, sampled_NT, mask_NT)
    ratios = [1.0, math.exp(-0.5), math.exp(0.25), 1.0]
    assert meter.metrics() == pytest.approx(
        {
            "sampling/sampling_logp_difference/mean": 0.75 / 4,
            "sampling/sampling_logp_difference/max": 0.5,
            "sampling/importance_sampling_ratio/min": min(ratios),
            "sampling/importance_sampling_ratio/mean": sum(ratios) / 4,
            "sampling/importance_sampling_ratio/max": max(ratios),
        }
    )
    ranks = [Mismatch("none"), Mismatch("none")]
    for rank, group, logprobs_NT, mask_NT in zip(ranks, groups, trainer, masks, strict=True):
        rank.add(logprobs_NT, sampling_logprobs(group, logprobs_NT), mask_NT)
    others = iter([ranks[1]._difference, ranks[1]._log_ratio])
    together = ranks[0].metrics(lambda own: [*own, *next(others)])
    assert together == pytest.approx(meter.metrics())
    whole = Mismatch("sequence")
    whole.add(trainer[0], sampling_logprobs(groups[0], trainer[0]), masks[0])
    metrics = whole.metrics()
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(math.exp(0.25))
    assert metrics["sampling/importance_sampling_ratio/min"] == pytest.approx(math.exp(-0.5))


def test_one_completion_without_log_probabilities_leaves_nothing_to_compare():
    group = [completion([1], [-1.0]), Completion(token_ids=[2], text="", truncated=False)]
    assert sampling_logprobs(group, torch.zeros(2, 1)) is None


ADVANTAGES = torch.tensor([[1.0, -0.5, -0.5, 0.0], [0.3, 0.3, -0.3, -0.3]])
SHIFTS = (0.3, -0.4, 1.5, 0.0)


@pytest.mark.parametrize("level", ["none", "token", "sequence"])
def test_the_update_weights_each_token_by_the_cut_off_ratio(base, tmp_path, level):
    cap = 2.0
    loss = LossConfig(importance_sampling=level, importance_cap=cap)
    made = prepare(changed(loss=loss), tmp_path, model=base / "checkpoint", ladder=None)
    made.policy.model.double()
    made.step = 3
    questions = load_questions("glyphs", size=2, seed=0)
    processor = made.policy.processor
    texts = ["<think>so</think><answer>1</answer>", "<answer>2</answer>", "It is 3.", "4"]
    ids = [[*processor.encode(text), processor.eos_ids[0]] for text in texts]
    samples = [prompt_of(made, question) for question in questions]
    logprobs_NT, _, mask_NT = completion_logprobs(made.policy, samples, [ids, ids])
    lengths_N = mask_NT.sum(1)

    weights_NT = mask_NT.double()
    for row in range(8):
        shift = SHIFTS[row % 4] * (int(lengths_N[row]) if level == "sequence" else 1)
        weights_NT[row] *= 1.0 if level == "none" else min(math.exp(shift), cap)
    terms_NT = -logprobs_NT * weights_NT * ADVANTAGES.flatten()[:, None] / lengths_N[:, None]
    parameters = dict(made.policy.model.named_parameters())
    expected = torch.autograd.grad(terms_NT.sum() / 8, list(parameters.values()))
    norm = torch.stack([gradient.norm() for gradient in expected]).norm()
    scale = min(1.0, made.config.optim.max_grad_norm / float(norm))

    groups = [
        [
            completion(tokens, (logprobs_NT[4 * i + j, : len(tokens)] - SHIFTS[j]).tolist())
            for j, tokens in enumerate(ids)
        ]
        for i in range(2)
    ]
    made.optimizer = torch.optim.SGD(made.policy.model.parameters(), lr=1.0)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    metrics = update_policy(made, questions, groups, ADVANTAGES)
    rate = made.optimizer.param_groups[0]["lr"]
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        found = (before[name] - parameter.detach()) / rate
        torch.testing.assert_close(found, gradient * scale, rtol=1e-4, atol=1e-6)
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(1.5, abs=1e-5)
    largest = max(SHIFTS) * (int(lengths_N[2]) if level == "sequence" else 1)
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(
        math.exp(largest), rel=1e-3
    )


def test_settings_under_which_nothing_can_be_corrected_are_refused():
    loss = LossConfig(importance_sampling="token")
    for rollout in (
        RolloutConfig(engine="vllm", top_p=0.9),
        RolloutConfig(engine="server", top_k=5),
        RolloutConfig(engine="vllm", vllm=VllmConfig(logprobs=False)),
    ):
        with pytest.raises(InputError, match="^loss.importance_sampling: token needs"):
            TrainConfig(loss=loss, rollout=rollout)
        TrainConfig(rollout=rollout)
        TrainConfig(loss=loss, rollout=dataclasses.replace(rollout, engine="native"))
    for cap in (0.0, -1.0, math.inf):
        with pytest.raises(InputError, match="^loss.importance_cap: expected"):
            TrainConfig(loss=LossConfig(importance_cap=cap))


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_temperatures_that_vllm_does_not_take_are_refused(temperature):
    with pytest.raises(InputError, match="^rollout.temperature: .* between 0.01 and 2"):
        TrainConfig(rollout=RolloutConfig(engine="vllm", temperature=temperature))
    TrainConfig(rollout=RolloutConfig(temperature=temperature))

"""From rewards to a gradient step: what each setting changes, and what changes nothing."""

import dataclasses

import pytest
import torch
from small_runs import CONFIG, changed, rows, run

from observe import grpo
from observe.config import (
    BonusConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    WeightingConfig,
)
from observe.groups import reward_groups
from observe.model.logprobs import completion_logprobs
from observe.run import prepare, prompt_of
from observe.update import divergence, set_lr, update_policy, weigh


def prepared(base, out, *, precise=False, **values):
    made = prepare(changed(**values), out, model=base / "checkpoint", ladder=None)
    if precise:
        made.policy.model.double()
    made.step = 3
    return made


def advantages(base, out, completions, **values):
    made = prepared(base, out, **values)
    rewards, _ = reward_groups(made, *completions)
    return rewards, *weigh(made, rewards)


def test_without_sigma_every_weight_is_1(base, tmp_path, completions):
    rewards, advantages_PG, weights_P = advantages(base, tmp_path, completions)
    assert weights_P.tolist() == [1.0] * 4
    assert torch.equal(advantages_PG, grpo.group_advantages(rewards.total_PG))


def test_dynamic_weights_scale_the_advantages_and_nothing_else(base, tmp_path, completions):
    plain_rewards, plain, _ = advantages(base, tmp_path, completions)
    rewards, weighted, weights_P = advantages(
        base, tmp_path, completions, weighting=WeightingConfig(sigma=1.8)
    )
    assert torch.equal(rewards.total_PG, plain_rewards.total_PG)
    share_P = rewards.correct_PG.mean(1)
    torch.testing.assert_close(weights_P, 4 * 1.8 * share_P * (1 - share_P))
    torch.testing.assert_close(weighted, plain * weights_P[:, None])
    assert set(weights_P.tolist()) > {0.0}


def test_the_bonus_adds_to_the_total_and_nothing_else(base, tmp_path, completions):
    plain, _, _ = advantages(base, tmp_path, completions)
    assert not plain.bonus_PG.any()
    paid, _, _ = advantages(
        base, tmp_path, completions, reward=RewardConfig(bonus=BonusConfig(weight=0.2))
    )
    assert torch.equal(paid.accuracy_PG, plain.accuracy_PG)
    assert torch.equal(paid.format_PG, plain.format_PG)
    torch.testing.assert_close(paid.total_PG, plain.total_PG + paid.bonus_PG)
    assert (paid.bonus_PG > 0).sum(1).tolist() == [1] * 4


def test_the_placebo_permutes_rewards_within_groups_anew_at_every_step(base, tmp_path, completions):
    plain, honest, _ = advantages(base, tmp_path, completions)
    made = prepared(base, tmp_path, reward=RewardConfig(shuffle=True))
    rewards, _ = reward_groups(made, *completions)
    assert torch.equal(rewards.total_PG, plain.total_PG)
    orders = set()
    for made.step in range(1, 6):
        placebo, weights_P = weigh(made, rewards)
        again, _ = weigh(made, rewards)
        assert torch.equal(placebo, again)
        torch.testing.assert_close(placebo.sort(1).values, honest.sort(1).values)
        assert weights_P.tolist() == [1.0] * 4
        orders.add(str(placebo.tolist()))
    assert len(orders) == 5


@pytest.mark.parametrize("form", ["none", "think", "observe"])
def test_the_form_asked_for_changes_the_format_reward_alone(base, tmp_path, completions, form):
    plain, _, _ = advantages(base, tmp_path, completions)
    rewards, _, _ = advantages(base, tmp_path, completions, reward=RewardConfig(format=form))
    assert torch.equal(rewards.accuracy_PG, plain.accuracy_PG)
    expected = {"none": [0.0] * 16, "think": plain.format_PG.flatten().tolist()}
    assert rewards.format_PG.flatten().tolist() == expected.get(form, [0.0] * 16)
    assert rewards.format_ok_PG.all() == (form == "none")


ADVANTAGES = torch.tensor(
    [[1.0, -0.5, -0.5, 0.0], [0.3, 0.3, -0.3, -0.3], [0.0] * 4, [-1.2, 0.4, 0.4, 0.4]]
)


def gradient_of(base, out, completions, **values):
    """The gradient of a step, read from what plain gradient descent does to the weights."""
    made = prepared(base, out, precise=True, **values)
    made.optimizer = torch.optim.SGD(made.policy.model.parameters(), lr=1.0)
    before = {n: p.detach().clone() for n, p in made.policy.model.named_parameters()}
    update_policy(made, *completions, ADVANTAGES)
    rate = made.optimizer.param_groups[0]["lr"]
    return {n: (before[n] - p.detach()) / rate for n, p in made.policy.model.named_parameters()}


def expected_gradient(base, out, completions, *, aggregation="sequence"):
    """Every group in one pass, the zero ones too, and the REINFORCE form of the loss."""
    made = prepared(base, out, precise=True)
    questions, groups = completions
    samples = [prompt_of(made, question) for question in questions]
    logprobs_NT, _, mask_NT = completion_logprobs(
        made.policy, samples, [[c.token_ids for c in group] for group in groups]
    )
    weighted_NT = logprobs_NT * mask_NT * ADVANTAGES.flatten()[:, None]
    if aggregation == "sequence":
        loss = -(weighted_NT.sum(1) / mask_NT.sum(1)).mean()
    else:
        loss = -weighted_NT.sum() / mask_NT.sum()
    loss.backward()
    return {n: p.grad for n, p in made.policy.model.named_parameters()}


def assert_same(found, expected):
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    assert norm > 1e-3
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-9 * (gradient.norm() + norm), name


UNCLIPPED = OptimConfig(lr=1.0, max_grad_norm=1e9)


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
@pytest.mark.parametrize("tokens", [1, 200, 500, 10**6])
def test_the_gradient_is_that_of_all_groups_at_once(
    base, tmp_path, completions, aggregation, tokens
):
    found = gradient_of(
        base,
        tmp_path,
        completions,
        micro_batch_tokens=tokens,
        optim=UNCLIPPED,
        loss=LossConfig(aggregation=aggregation),
    )
    assert_same(found, expected_gradient(base, tmp_path, completions, aggregation=aggregation))


def test_the_order_of_the_groups_changes_no_gradient(base, tmp_path, completions):
    questions, groups = completions
    made = prepared(base, tmp_path, precise=True, optim=UNCLIPPED, micro_batch_tokens=300)
    made.optimizer = torch.optim.SGD(made.policy.model.parameters(), lr=1.0)
    before = {n: p.detach().clone() for n, p in made.policy.model.named_parameters()}
    update_policy(made, questions[::-1], groups[::-1], ADVANTAGES.flip(0))
    found = {n: before[n] - p.detach() for n, p in made.policy.model.named_parameters()}
    assert_same(found, expected_gradient(base, tmp_path, completions))


def test_gradient_checkpointing_changes_no_gradient(base, tmp_path, completions):
    model = ModelConfig(gradient_checkpointing=True)
    found = gradient_of(base, tmp_path, completions, optim=UNCLIPPED, model=model)
    assert_same(found, expected_gradient(base, tmp_path, completions))


def test_large_gradients_are_clipped_to_their_norm(base, tmp_path, completions):
    clipped = gradient_of(
        base, tmp_path, completions, optim=OptimConfig(lr=1.0, max_grad_norm=0.01)
    )
    norm = float(torch.stack([g.norm() for g in clipped.values()]).norm())
    assert norm == pytest.approx(0.01, rel=1e-4)


def test_a_step_without_any_signal_leaves_the_policy_alone(base, tmp_path, completions):
    made = prepared(base, tmp_path)
    before = {n: t.clone() for n, t in made.policy.model.state_dict().items()}
    metrics = update_policy(made, *completions, torch.zeros(4, 4))
    assert all(torch.equal(before[n], t) for n, t in made.policy.model.state_dict().items())
    assert metrics["grad_norm"] == metrics["loss"] == 0
    assert "entropy" not in metrics


def snapshot(made):
    state = made.optimizer.state_dict()["state"]
    return [p.detach().clone() for p in made.policy.model.parameters()] + [
        value.clone() for slot in state.values() for value in slot.values()
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(base, tmp_path, completions, bad):
    made = prepared(base, tmp_path)
    update_policy(made, *completions, ADVANTAGES)
    before = snapshot(made)
    for count in (1, 2):
        metrics = update_policy(made, *completions, ADVANTAGES * bad)
        assert metrics["observe/bad_step"] == 1
        assert made.bad_steps == count
    after = snapshot(made)
    assert len(before) == len(after)
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    # What follows is what would have followed without them.
    metrics = update_policy(made, *completions, ADVANTAGES)
    assert (metrics["observe/bad_step"], made.bad_steps) == (0, 0)
    undisturbed = prepared(base, tmp_path)
    update_policy(undisturbed, *completions, ADVANTAGES)
    update_policy(undisturbed, *completions, ADVANTAGES)
    assert all(map(torch.equal, snapshot(made), snapshot(undisturbed)))


def test_the_kl_term_starts_at_0_and_holds_the_policy_back(base, tmp_path):
    data = dataclasses.replace(CONFIG.data, size=16)
    divergence = {}
    for coefficient in (1e-6, 3.0):
        out = tmp_path / str(coefficient)
        config = changed(data=data, eval_steps=(), loss=LossConfig(kl_coefficient=coefficient))
        run(config, out, base)
        divergence[coefficient] = [row["kl"] for row in rows(out)]
        assert divergence[coefficient][0] == pytest.approx(0, abs=1e-7)
        assert all(kl > 0 for kl in divergence[coefficient][1:])
    assert divergence[3.0][-1] < 0.7 * divergence[1e-6][-1]


def test_without_a_kl_term_no_reference_is_loaded(base, tmp_path, completions):
    made = prepared(base, tmp_path)
    assert made.reference is None
    assert "kl" not in update_policy(made, *completions, ADVANTAGES)


def test_the_divergence_in_the_reward_is_that_of_the_policy_without_dropout(
    base, tmp_path, completions
):
    made = prepared(
        base,
        tmp_path,
        model=ModelConfig(lora=LoraConfig(rank=2, dropout=0.5)),
        loss=LossConfig(kl_coefficient=0.1, kl_in="reward"),
    )
    with torch.no_grad():
        for parameter in made.policy.trained():
            parameter.add_(0.05)
    kl_PG = divergence(made, *completions)
    assert kl_PG.abs().sum() > 0
    # Chance would not be that of a run that goes on from a checkpoint.
    assert torch.equal(divergence(made, *completions), kl_PG)


def test_the_learning_rate_warms_up_and_stays(base, tmp_path):
    made = prepared(base, tmp_path, optim=OptimConfig(lr=0.1, warmup_steps=4))
    rates = []
    for made.step in range(1, 7):
        set_lr(made)
        rates.append(made.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])

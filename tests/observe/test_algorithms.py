"""The algorithms on a model: several steps per rollout, divergence, entropy, refill, training."""

import dataclasses

import pytest
import references
import torch
from small_runs import CONFIG, changed, rows, run, untimed
from test_losses import LEVELS, config_of

from observe import grpo
from observe.config import (
    DataConfig,
    LossConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    WeightingConfig,
)
from observe.groups import refill_groups, reward_groups, sample_groups
from observe.model.logprobs import completion_logprobs
from observe.model.policy import load_policy
from observe.run import prepare, prompt_of
from observe.update import divergence, split, step_optimizer, update_policy, weigh

ADVANTAGES = torch.tensor(
    [[1.0, -0.5, -0.5, 0.0], [0.3, 0.3, -0.3, -0.3], [0.0] * 4, [-1.2, 0.4, 0.4, 0.4]]
)
UNCLIPPED = OptimConfig(lr=1.0, max_grad_norm=1e9)


def prepared(base, out, *, precise=True, config=CONFIG, **values):
    """A run at its third step, in double precision, that plain gradient descent moves."""
    made = prepare(changed(config, **values), out, model=base / "checkpoint", ladder=None)
    if precise:
        for policy in filter(None, (made.policy, made.reference)):
            policy.model.double()
        made.optimizer = torch.optim.SGD(made.policy.model.parameters(), lr=1.0)
    made.step = 3
    return made


def parameters(made):
    return torch.cat([p.detach().flatten() for p in made.policy.model.parameters()])


def ragged(made, policy, completions, chosen=range(4)):
    """Log-probabilities by group, a vector per completion; each group in a pass of its own."""
    questions, groups = completions
    result = []
    for i in chosen:
        sample, ids = prompt_of(made, questions[i]), [c.token_ids for c in groups[i]]
        logprobs_NT, _, _ = completion_logprobs(policy, [sample], [ids])
        result.append([logprobs_NT[j, : len(ids[j])] for j in range(len(ids))])
    return result


def detached(groups):
    return [[tokens.detach() for tokens in group] for group in groups]


def assert_same_step(found, before, expected):
    """Equal steps from the same start, in the single precision of RMSNorm and rotary embedding."""
    length = (expected - before).norm()
    assert length > 1e-4
    assert (found - expected).norm() <= 1e-5 * length


def in_steps(config, lr, **optim):
    """The settings of an algorithm on the small run, with these optimizer steps."""
    optim = OptimConfig(lr=lr, max_grad_norm=1e9, **optim)
    return changed(loss=config.loss, rollout=CONFIG.rollout, reward=config.reward, optim=optim)


@pytest.mark.parametrize("algorithm", sorted(LEVELS))
def test_two_passes_in_two_minibatches_are_four_steps_on_the_papers_objective(
    base, tmp_path, completions, algorithm
):
    """Ratios are to the policy that was sampled from, in every one of the steps."""
    lr = {"rloo": 0.01, "gspo": 0.02}.get(algorithm, 0.2)
    config = in_steps(config_of(algorithm), lr, updates_per_rollout=2, minibatches_per_rollout=2)
    made = prepared(base, tmp_path, config=config, micro_batch_tokens=300)
    questions, groups = completions
    rewards, _ = reward_groups(made, questions, groups)
    before = parameters(made)
    metrics = update_policy(made, questions, groups, weigh(made, rewards)[0])

    plain = prepared(base, tmp_path, config=config)
    plain_rewards = (rewards.total_PG - rewards.overlong_PG).tolist()
    old = detached(ragged(plain, plain.policy, completions))
    for _ in range(2):
        for part in ([0, 1], [2, 3]):
            objective = references.ALGORITHMS[algorithm](
                ragged(plain, plain.policy, completions, part),
                [old[i] for i in part],
                [plain_rewards[i] for i in part],
                max_length=config.rollout.max_new_tokens,
            )
            (-objective).backward()
            with torch.no_grad():
                for parameter in plain.policy.model.parameters():
                    parameter -= lr * parameter.grad
                    parameter.grad = None
    assert_same_step(parameters(made), before, parameters(plain))
    if algorithm == "cispo":
        assert "clip_ratio/region_mean" not in metrics and 0 <= metrics["cispo_clip_ratio"] < 1
    else:
        assert 0 < metrics["clip_ratio/region_mean"] < 1
        assert metrics["clip_ratio/region_mean"] == pytest.approx(
            metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"]
        )
        assert metrics["clip_ratio/low_min"] <= metrics["clip_ratio/low_mean"]
        assert metrics["clip_ratio/high_max"] >= metrics["clip_ratio/high_mean"]


@pytest.mark.parametrize(("updates", "minibatches"), [(1, 1), (3, 1), (1, 4), (2, 2)])
def test_without_a_change_of_weights_every_ratio_is_exactly_1(
    base, tmp_path, completions, updates, minibatches
):
    optim = OptimConfig(lr=0.0, updates_per_rollout=updates, minibatches_per_rollout=minibatches)
    loss = LossConfig(clip_low=0.0, clip_high=0.0)
    made = prepared(base, tmp_path, precise=False, optim=optim, loss=loss, micro_batch_tokens=300)
    metrics = update_policy(made, *completions, ADVANTAGES)
    assert metrics["clip_ratio/region_mean"] == 0


def test_on_policy_each_completion_is_forwarded_once(base, tmp_path, completions, monkeypatch):
    """Once more, without gradient, only where a pass over the rollout takes several steps."""
    passes = []

    def counted(policy, samples, *args, **kwargs):
        passes.append((len(samples), torch.is_grad_enabled()))
        return completion_logprobs(policy, samples, *args, **kwargs)

    monkeypatch.setattr("observe.update.completion_logprobs", counted)
    for updates, minibatches, expected in [
        (1, 1, [(3, True)]),
        (2, 1, [(3, True)] * 2),
        (1, 2, [(1, False), (2, True), (1, True)]),
    ]:
        optim = OptimConfig(updates_per_rollout=updates, minibatches_per_rollout=minibatches)
        update_policy(
            prepared(base, tmp_path, optim=optim, loss=LossConfig(kl_in="loss")),
            *completions,
            ADVANTAGES,
        )
        assert passes == expected
        passes.clear()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_divergence_in_the_loss_is_aggregated_like_the_loss(
    base, tmp_path, completions, estimator
):
    loss = LossConfig(kl_coefficient=0.7, kl_estimator=estimator)
    made = prepared(base, tmp_path, optim=UNCLIPPED, loss=loss, micro_batch_tokens=300)
    with torch.no_grad():
        for parameter in made.reference.model.parameters():
            parameter *= 1.05
    before = parameters(made)
    metrics = update_policy(made, *completions, ADVANTAGES)

    plain = prepared(base, tmp_path, optim=UNCLIPPED)
    new = ragged(plain, plain.policy, completions)
    reference = detached(ragged(plain, made.reference, completions))
    divergence_term = references.kl_term(new, reference, estimator)
    policy_term = sum(
        tokens.mean() * ADVANTAGES[i, j] / 16
        for i, group in enumerate(new)
        for j, tokens in enumerate(group)
    )
    rate = made.optimizer.param_groups[0]["lr"]
    (0.7 * divergence_term - policy_term).backward()
    gradient = torch.cat([p.grad.flatten() for p in plain.policy.model.parameters()])
    assert_same_step(parameters(made), before, before - rate * gradient)
    flat = [
        grpo.kl(tokens, other, estimator)
        for group, others in zip(new, reference, strict=True)
        for tokens, other in zip(group, others, strict=True)
    ]
    assert metrics["kl"] == pytest.approx(float(torch.cat(flat).detach().mean()), rel=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_divergence_in_the_reward_is_taken_from_it_before_the_baseline(
    base, tmp_path, completions, estimator
):
    loss = LossConfig(kl_coefficient=0.3, kl_estimator=estimator, kl_in="reward", scale="none")
    made = prepared(base, tmp_path, loss=loss, micro_batch_tokens=300)
    with torch.no_grad():
        for parameter in made.reference.model.parameters():
            parameter *= 1.05
    rewards, _ = reward_groups(made, *completions)
    kl_PG = divergence(made, *completions)
    new = detached(ragged(made, made.policy, completions))
    reference = detached(ragged(made, made.reference, completions))
    expected_PG = torch.tensor(
        [
            [float(grpo.kl(t, r, estimator).sum()) for t, r in zip(group, others, strict=True)]
            for group, others in zip(new, reference, strict=True)
        ]
    )
    torch.testing.assert_close(kl_PG, expected_PG, rtol=1e-4, atol=1e-5)
    assert kl_PG.abs().max() > 0.01
    advantages_PG, _ = weigh(made, rewards, kl_PG)
    total_PG = rewards.total_PG - 0.3 * kl_PG
    torch.testing.assert_close(advantages_PG, total_PG - total_PG.mean(1, keepdim=True))
    metrics = update_policy(made, *completions, advantages_PG)
    assert "kl" not in metrics


def test_without_a_divergence_in_the_reward_no_pass_is_made_for_it(base, tmp_path, completions):
    for loss in (LossConfig(), LossConfig(kl_coefficient=0.1)):
        assert divergence(prepared(base, tmp_path, loss=loss), *completions) is None


def test_the_entropy_bonus_follows_the_slope_of_the_entropy(base, tmp_path, completions):
    """The step's direction against a difference quotient of the completions' mean entropy."""
    made = prepared(
        base,
        tmp_path,
        optim=UNCLIPPED,
        loss=LossConfig(entropy_coefficient=0.5),
        micro_batch_tokens=300,
    )
    made.step = made.config.optim.warmup_steps or 1
    questions, groups = completions

    def entropy():
        total = 0.0
        for question, group in zip(questions, groups, strict=True):
            ids = [[c.token_ids for c in group]]
            _, entropy_NT, mask_NT = completion_logprobs(
                made.policy, [prompt_of(made, question)], ids
            )
            total += float((entropy_NT.sum(1) / mask_NT.sum(1)).sum()) / 16
        return total

    before = parameters(made)
    metrics = update_policy(made, questions, groups, torch.zeros(4, 4))
    step = parameters(made) - before
    slopes = []
    for size in (1e-3, -1e-3):
        moved = before + size * step / step.norm()
        torch.nn.utils.vector_to_parameters(moved, made.policy.model.parameters())
        slopes.append(entropy())
    slope = (slopes[0] - slopes[1]) / 2e-3
    assert slope * 0.5 == pytest.approx(float(step.norm()), rel=1e-2)
    assert metrics["loss"] == pytest.approx(-0.5 * sum(slopes) / 2, rel=1e-3)


def test_truncated_completions_are_left_out_of_loss_and_counts(base, tmp_path, completions):
    questions, groups = completions
    cut = [
        [dataclasses.replace(c, truncated=(i + j) % 3 == 0) for j, c in enumerate(group)]
        for i, group in enumerate(groups)
    ]
    loss = LossConfig(mask_truncated=True)
    made = prepared(base, tmp_path, optim=UNCLIPPED, loss=loss, micro_batch_tokens=300)
    before = parameters(made)
    update_policy(made, questions, cut, ADVANTAGES)

    plain = prepared(base, tmp_path, optim=UNCLIPPED)
    kept = [(i, j) for i in range(4) for j in range(4) if (i + j) % 3]
    new = ragged(plain, plain.policy, completions)
    objective = sum(new[i][j].mean() * ADVANTAGES[i, j] for i, j in kept) / len(kept)
    objective.backward()
    gradient = torch.cat([p.grad.flatten() for p in plain.policy.model.parameters()])
    rate = made.optimizer.param_groups[0]["lr"]
    assert_same_step(parameters(made), before, before + rate * gradient)
    (part,) = split(made, questions, cut, ADVANTAGES)
    assert part.normalizer == len(kept)


@pytest.mark.parametrize(("minibatches", "sizes"), [(1, [4]), (2, [2, 2]), (3, [1, 1, 2])])
def test_a_rollout_is_split_in_the_order_of_its_questions(
    base, tmp_path, completions, minibatches, sizes
):
    """Also one with fewer questions than planned, which may not be divisible."""
    made = prepared(base, tmp_path, precise=False)
    optim = dataclasses.replace(UNCLIPPED, minibatches_per_rollout=minibatches)
    # As if a question of a larger rollout had been skipped.
    made.config = changed(optim=optim, prompts_per_step=6, data=DataConfig(size=6))
    parts = split(made, *completions, torch.ones(4, 4))
    assert [part.normalizer for part in parts] == [4 * size for size in sizes]
    assert sum(len(b.samples) for part in parts for b in part.batches) == 4


def test_a_part_without_signal_takes_no_step(base, tmp_path, completions):
    optim = OptimConfig(minibatches_per_rollout=4)
    made = prepared(base, tmp_path, precise=False, optim=optim)
    parts = split(made, *completions, ADVANTAGES)
    assert [len(part.batches) for part in parts] == [1, 1, 0, 1]
    before = parameters(made)
    assert step_optimizer(made, 0.0, empty=True) == 0
    assert torch.equal(parameters(made), before)


STEPS = changed(
    data=DataConfig(size=8, selection="raw"),
    optim=OptimConfig(lr=1e-3, updates_per_rollout=2, minibatches_per_rollout=2),
    eval_steps=(),
)


@pytest.mark.parametrize("algorithm", sorted(LEVELS))
def test_each_algorithm_trains_with_all_parts_of_observe_r1(base, tmp_path, algorithm):
    config = config_of(algorithm)
    reward = dataclasses.replace(
        config.reward, bonus=dataclasses.replace(config.reward.bonus, weight=0.2)
    )
    rollout = dataclasses.replace(STEPS.rollout, refill_rounds=config.rollout.refill_rounds)
    run(
        changed(
            STEPS,
            loss=config.loss,
            reward=reward,
            rollout=rollout,
            weighting=WeightingConfig(sigma=1.8),
        ),
        tmp_path,
        base,
    )
    logged = rows(tmp_path)
    assert len(logged) == 2 and any(row["grad_norm"] > 0 for row in logged)
    assert ("observe/refill_groups_drawn" in logged[0]) == (algorithm == "dapo")
    assert any(row["rewards/overlong/mean"] < 0 for row in logged) == (algorithm == "dapo")
    before = load_policy(base / "checkpoint").model.state_dict()
    after = load_policy(tmp_path / "checkpoint").model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_divergence_entropy_and_masking_train_together(base, tmp_path, kl_in):
    loss = LossConfig(
        kl_coefficient=0.05,
        kl_in=kl_in,
        kl_estimator="k2",
        entropy_coefficient=0.01,
        mask_truncated=True,
        scale="none",
    )
    run(changed(STEPS, loss=loss), tmp_path, base)
    logged = rows(tmp_path)
    assert logged[-1]["kl"] > 0
    assert all(row["entropy"] > 0 for row in logged)


def refilling(rounds, **reward):
    return {
        "rollout": dataclasses.replace(CONFIG.rollout, refill_rounds=rounds),
        "reward": RewardConfig(**reward),
    }


def test_refill_draws_groups_without_signal_again_and_no_others(base, tmp_path):
    """Correct answers are rare here, so that many groups are all wrong."""
    drawn = {}
    for rounds in (0, 1, 3):
        made = prepared(base, tmp_path, precise=False, **refilling(rounds, format="none"))
        questions = list(made.questions.values())[:8]
        first = sample_groups(made, questions)
        rewards, _ = reward_groups(made, questions, first)
        empty = (weigh(made, rewards)[0] == 0).all(1)
        groups, refilled, refill = refill_groups(made, questions, first, rewards)
        drawn[rounds] = groups
        for i in range(8):
            assert (groups[i] == first[i]) == (not empty[i] or rounds == 0)
        fresh, _ = reward_groups(made, questions, groups)
        assert torch.equal(fresh.total_PG, refilled.total_PG)
        assert fresh.answers == refilled.answers
        if rounds:
            still = (weigh(made, fresh)[0] == 0).all(1)
            assert refill.metrics["observe/refill_groups_empty"] == still.sum()
            assert refill.metrics["observe/refill_groups_gained"] == empty.sum() - still.sum()
            assert empty.sum() <= refill.metrics["observe/refill_groups_drawn"]
            assert refill.metrics["observe/refill_groups_drawn"] <= rounds * empty.sum()
            assert refill.tokens > 0
        else:
            assert (refill.tokens, refill.metrics) == (0, {})
    assert empty.any() and not empty.all()
    for i in range(8):
        got = (weigh(made, reward_groups(made, questions, drawn[1])[0])[0][i] != 0).any()
        if got:
            assert drawn[3][i] == drawn[1][i]


class Stopped(Exception):
    pass


def test_a_run_with_refill_asks_the_same_questions_and_goes_on_exactly(base, tmp_path):
    config = changed(
        STEPS, data=DataConfig(size=16, selection="raw"), **refilling(2, format="none")
    )

    def stop(done, total, message):
        if done == 3:
            raise Stopped

    for name in ("whole", "stopped", "plain"):
        (tmp_path / name).mkdir()
    run(config, tmp_path / "whole", base)
    with pytest.raises(Stopped):
        run(config, tmp_path / "stopped", base, progress=stop)
    run(config, tmp_path / "stopped", base)
    assert untimed(tmp_path / "stopped") == untimed(tmp_path / "whole")
    plain = changed(config, rollout=dataclasses.replace(config.rollout, refill_rounds=0))
    run(plain, tmp_path / "plain", base)
    logged, unfilled = rows(tmp_path / "whole"), rows(tmp_path / "plain")
    assert [row["samples"] for row in logged] == [row["samples"] for row in unfilled]
    assert logged[0]["observe/refill_first_reward"] == pytest.approx(unfilled[0]["reward"])
    assert sum(row["observe/refill_groups_drawn"] for row in logged) > 0
    assert logged[-1]["num_tokens"] > unfilled[-1]["num_tokens"]
    gained = logged[0]["observe/refill_groups_gained"] / config.prompts_per_step
    empty = [part[0]["observe/zero_advantage_share"] for part in (logged, unfilled)]
    assert empty[0] == pytest.approx(empty[1] - gained)


def test_the_length_of_a_rollout_bounds_the_punishment(base, tmp_path):
    config = config_of("dapo")
    rollout = RolloutConfig(group_size=4, max_new_tokens=40)
    made = prepared(base, tmp_path, precise=False, rollout=rollout, reward=config.reward)
    assert made.reward.overlong.max_length == 40
    questions = list(made.questions.values())[:4]
    rewards, lengths_PG = reward_groups(made, questions, sample_groups(made, questions))
    expected_PG = ((32 - lengths_PG) / 8).clamp(-1, 0)
    torch.testing.assert_close(rewards.overlong_PG, expected_PG)
    assert (rewards.overlong_PG < 0).any()

"""Every loss against its paper's formula in loops, and the identities that hold between them."""

from pathlib import Path

import pytest
import references
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from observe.config import LossConfig, TrainConfig
from observe.grpo import (
    aggregate,
    bonus,
    difficulty_weights,
    dynamic_weights,
    group_advantages,
    kl,
    loss_normalizer,
    overlong_penalty,
    policy_loss,
)
from observe.mapping import from_mapping, load_yaml, with_overrides

ABLATION = Path(__file__).parents[2] / "ablations" / "algorithms.yaml"
LEVELS = load_yaml(ABLATION)["factors"]["algorithm"]["levels"]
MAX_LENGTH = 10
quick = settings(max_examples=25, deadline=None)


def config_of(algorithm):
    """The settings of a level of ablations/algorithms.yaml."""
    return from_mapping(TrainConfig, with_overrides({}, LEVELS[algorithm]), source=str(ABLATION))


class Toy:
    """A bigram policy in fp64, a rollout of it, and where it has moved since."""

    def __init__(self, seed, groups=3, size=4, moved=0.5):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.old = normal(6, 6)
        self.logits = (self.old + moved * normal(6, 6)).requires_grad_()
        self.reference = normal(6, 6)
        lengths = torch.randint(1, MAX_LENGTH + 1, (groups, size), generator=generator)
        self.tokens = [
            [torch.randint(6, (int(n),), generator=generator) for n in row] for row in lengths
        ]
        self.rewards = torch.randint(0, 3, (groups, size), generator=generator).double() / 2
        self.lengths_N = lengths.flatten()
        self.mask_NT = torch.arange(MAX_LENGTH) < self.lengths_N[:, None]

    def ragged(self, logits):
        """Log-probabilities of the tokens, a vector per completion, by groups."""
        table = logits - logits.exp().sum(1, keepdim=True).log()
        return [
            [
                torch.stack(
                    [table[0 if t == 0 else int(c[t - 1]), int(c[t])] for t in range(len(c))]
                )
                for c in group
            ]
            for group in self.tokens
        ]

    def padded(self, logits, fill=0.0):
        flat = [tokens for group in self.ragged(logits) for tokens in group]
        return torch.nn.utils.rnn.pad_sequence(
            [*flat, torch.zeros(MAX_LENGTH).double()], batch_first=True, padding_value=fill
        )[:-1]

    def loss(self, config, weights_P=None):
        """Our loss, composed as the trainer composes it; ``weights_P`` weighs the groups."""
        loss, overlong = config.loss, config.reward.overlong
        rewards_PG = self.rewards
        if overlong.weight:
            lengths_PG = self.lengths_N.reshape(rewards_PG.shape)
            buffer = round(overlong.buffer_share * MAX_LENGTH)
            rewards_PG = rewards_PG + overlong.weight * overlong_penalty(
                lengths_PG, max_length=MAX_LENGTH, buffer=buffer
            )
        advantages_PG = group_advantages(rewards_PG, scale=loss.scale, baseline=loss.baseline)
        if weights_P is not None:
            advantages_PG = advantages_PG * weights_P[:, None]
        return policy_loss(
            self.padded(self.logits),
            self.padded(self.old, fill=7.0),
            advantages_PG.flatten(),
            self.mask_NT,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            ratio=loss.ratio,
            surrogate=loss.surrogate,
            aggregation=loss.aggregation,
            normalizer=loss_normalizer(
                self.lengths_N, aggregation=loss.aggregation, max_length=MAX_LENGTH
            ),
        )

    def objective(self, algorithm, rows=slice(None)):
        """The paper's J, of all groups or some."""
        new, old = self.ragged(self.logits)[rows], self.ragged(self.old)[rows]
        rewards = self.rewards[rows].tolist()
        return references.ALGORITHMS[algorithm](new, old, rewards, max_length=MAX_LENGTH)

    def gradient(self, value):
        return torch.autograd.grad(value, self.logits)[0]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@quick
@given(st.sampled_from(sorted(LEVELS)), st.integers(0, 10**6), st.sampled_from([0.0, 0.02, 0.7]))
def test_each_algorithm_has_the_gradient_of_its_papers_formula(algorithm, seed, moved):
    toy = Toy(seed, moved=moved)
    objective = toy.objective(algorithm)
    result = toy.loss(config_of(algorithm))
    assert_close(result.loss, -torch.as_tensor(objective, dtype=torch.float64))
    if toy.rewards.std(1).any():
        assert_close(toy.gradient(result.loss), -toy.gradient(objective))


@pytest.mark.parametrize("algorithm", sorted(LEVELS))
def test_every_level_of_the_ablation_has_its_formula_and_clips_when_the_policy_has_moved(algorithm):
    assert set(LEVELS) == set(references.ALGORITHMS)
    config = config_of(algorithm)
    clipped = sum(
        float(result.clipped_low + result.clipped_high)
        for result in (Toy(seed, moved=2.0).loss(config) for seed in range(5))
    )
    assert clipped > 0


@quick
@given(st.integers(0, 10**6), st.sampled_from(["k1", "k2", "k3"]))
def test_the_divergence_in_the_loss_has_the_gradient_of_the_formula(seed, estimator):
    toy = Toy(seed)
    kl_NT = kl(toy.padded(toy.logits), toy.padded(toy.reference, fill=3.0), estimator)
    normalizer = loss_normalizer(toy.lengths_N, aggregation="sequence", max_length=MAX_LENGTH)
    found = aggregate(kl_NT, toy.mask_NT, aggregation="sequence", normalizer=normalizer)
    expected = references.kl_term(toy.ragged(toy.logits), toy.ragged(toy.reference), estimator)
    assert_close(found, expected)
    assert_close(toy.gradient(found), toy.gradient(expected))


@quick
@given(st.integers(0, 10**6))
def test_what_the_estimators_of_the_divergence_estimate_and_what_they_push_towards(seed):
    """arXiv 2506.09477: k1 and k3 have the value, k2 has the gradient, k1 in a loss has none."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    logprobs = logits.log_softmax(0)
    reference = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    divergence = (logprobs.exp() * (logprobs - reference)).sum()
    gradient = torch.autograd.grad(divergence, logits, retain_graph=True)[0]
    sampled = logprobs.exp().detach()
    mean = {e: (sampled * kl(logprobs, reference, e)).sum() for e in ("k1", "k2", "k3")}
    assert_close(mean["k1"], divergence)
    assert_close(mean["k3"], divergence)
    pull = {e: torch.autograd.grad(mean[e], logits, retain_graph=True)[0] for e in mean}
    assert_close(pull["k1"], torch.zeros_like(gradient))
    assert_close(pull["k2"], gradient)
    # In the reward: minus k1 as the reward of log-probability.
    score = (sampled * kl(logprobs, reference, "k1").detach() * logprobs).sum()
    assert_close(torch.autograd.grad(score, logits)[0], gradient)


rewards = st.lists(
    st.lists(st.integers(0, 4).map(float), min_size=5, max_size=5), min_size=1, max_size=4
).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


@quick
@given(rewards, st.sampled_from(["std", "none"]))
def test_leaving_one_out_is_the_centred_reward_times_n_over_n_minus_1(rewards_PG, scale):
    plain_PG = group_advantages(rewards_PG, scale=scale)
    found_PG = group_advantages(rewards_PG, scale=scale, baseline="leave_one_out")
    assert_close(found_PG, plain_PG * 5 / 4)
    assert_close(found_PG.sum(1), torch.zeros(len(rewards_PG), dtype=torch.float64))


def test_leaving_one_out_leaves_the_unjudged_out():
    nan = float("nan")
    rewards_PG = torch.tensor([[1.0, 0.0, nan, 0.5], [nan, 1.0, nan, nan]])
    found_PG = group_advantages(rewards_PG, scale="none", baseline="leave_one_out")
    torch.testing.assert_close(found_PG, torch.tensor([[0.75, -0.75, 0.0, 0.0], [0.0] * 4]))


def loss_with(toy, **keys):
    return toy.loss(TrainConfig(loss=LossConfig(**keys))).loss


@quick
@given(st.integers(0, 10**6))
def test_aggregations_agree_where_completions_are_equally_long(seed):
    toy = Toy(seed)
    toy.tokens = [[c.repeat(7)[:7] for c in group] for group in toy.tokens]
    toy.lengths_N = torch.full_like(toy.lengths_N, 7)
    toy.mask_NT = torch.arange(MAX_LENGTH) < toy.lengths_N[:, None]
    token = loss_with(toy, aggregation="token")
    assert_close(token, loss_with(toy, aggregation="sequence"))
    assert_close(token * 7, loss_with(toy, aggregation="sequence_sum"))
    assert_close(token * 7 / MAX_LENGTH, loss_with(toy, aggregation="constant"))


@quick
@given(st.integers(0, 10**6))
def test_ratios_agree_where_completions_have_one_token(seed):
    toy = Toy(seed, moved=0.05)
    toy.tokens = [[c[:1] for c in group] for group in toy.tokens]
    toy.lengths_N = torch.ones_like(toy.lengths_N)
    toy.mask_NT = torch.arange(MAX_LENGTH) < toy.lengths_N[:, None]
    assert_close(loss_with(toy, ratio="sequence"), loss_with(toy, ratio="token"))


@quick
@given(st.integers(0, 10**6), st.sampled_from(["token", "sequence", "sequence_sum", "constant"]))
def test_on_policy_ratio_and_surrogate_make_no_difference(seed, aggregation):
    """But for the split of a completion's signal among its tokens, which a mean does not see."""
    toy = Toy(seed, moved=0.0)
    plain = toy.gradient(loss_with(toy, aggregation=aggregation))
    cispo = toy.gradient(loss_with(toy, aggregation=aggregation, surrogate="cispo"))
    sequence = toy.gradient(loss_with(toy, aggregation=aggregation, ratio="sequence"))
    assert_close(cispo, plain)
    assert_close(sequence, plain)


@quick
@given(st.integers(0, 10**6))
def test_cispo_keeps_the_gradient_of_tokens_that_clipping_silences(seed):
    toy = Toy(seed, moved=2.0)
    new_NT = toy.padded(toy.logits).detach().requires_grad_()
    old_NT = toy.padded(toy.old)
    advantages_N = torch.where(torch.arange(len(new_NT)) % 2 == 0, 1.0, -1.0).double()
    keys = {"normalizer": 1.0, "clip_low": 0.2, "clip_high": 0.2}
    by_surrogate = {}
    for surrogate in ("clipped", "cispo"):
        result = policy_loss(new_NT, old_NT, advantages_N, toy.mask_NT, surrogate=surrogate, **keys)
        by_surrogate[surrogate] = torch.autograd.grad(result.loss, new_NT)[0]
    ratio_NT = (new_NT - old_NT).exp().detach()
    weights_NT = ratio_NT.clamp(0.8, 1.2) * toy.mask_NT
    assert_close(by_surrogate["cispo"], -weights_NT * advantages_N[:, None])
    inside_NT = (ratio_NT > 0.8) & (ratio_NT < 1.2)
    assert_close(by_surrogate["clipped"][inside_NT], by_surrogate["cispo"][inside_NT])
    silenced_NT = ((ratio_NT > 1.2) & (advantages_N[:, None] > 0)) | (
        (ratio_NT < 0.8) & (advantages_N[:, None] < 0)
    )
    assert (by_surrogate["clipped"][silenced_NT] == 0).all()


@pytest.mark.parametrize("aggregation", ["token", "sequence", "sequence_sum", "constant"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_micro_batches_change_no_gradient_of_any_variant(aggregation, ratio):
    toy = Toy(3)
    normalizer = loss_normalizer(toy.lengths_N, aggregation=aggregation, max_length=MAX_LENGTH)
    advantages_N = group_advantages(toy.rewards).flatten()
    keys = {"aggregation": aggregation, "ratio": ratio, "normalizer": normalizer}

    def gradient(sizes):
        tensors = (toy.padded(toy.logits), toy.padded(toy.old), advantages_N, toy.mask_NT)
        parts = zip(*(tensor.split(sizes) for tensor in tensors), strict=True)
        return toy.gradient(sum(policy_loss(*part, **keys).loss for part in parts))

    for sizes in ([1] * 12, [5, 7], [2, 9, 1]):
        assert_close(gradient(sizes), gradient([12]))


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("token", 12), ("sequence", 3), ("sequence_sum", 3), ("constant", 60)],
)
def test_what_each_aggregation_divides_by(aggregation, expected):
    lengths_N = torch.tensor([3, 5, 4])
    assert loss_normalizer(lengths_N, aggregation=aggregation, max_length=20) == expected
    assert loss_normalizer(lengths_N[:0], aggregation=aggregation, max_length=20) >= 1


def test_the_punishment_of_length_is_equation_13_of_dapo():
    lengths = torch.tensor([[1, 80, 81, 90, 99, 100, 130]])
    found = overlong_penalty(lengths, max_length=100, buffer=20)
    expected = torch.tensor([[0.0, 0.0, -0.05, -0.5, -0.95, -1.0, -1.0]])
    torch.testing.assert_close(found, expected)


@quick
@given(st.integers(2, 9), st.floats(0.1, 3), st.floats(0.05, 1.0))
def test_vcrl_keeps_the_groups_whose_variance_is_large_enough(size, sigma, threshold):
    """arXiv 2509.19803: the unbiased variance of the rewards over the largest possible one."""
    groups = [[1.0] * k + [0.0] * (size - k) for k in range(size + 1)]
    correct_PG = torch.tensor(groups, dtype=torch.float64)
    variance_P = correct_PG.var(1)
    share_P = variance_P / variance_P.max()
    weights_P = difficulty_weights(correct_PG, sigma, form="vcrl", threshold=threshold)
    clear_P = (share_P - threshold).abs() > 1e-9
    expected_P = sigma * (share_P > threshold).double()
    assert_close(weights_P[clear_P], expected_P[clear_P])


@quick
@given(st.integers(0, 8), st.floats(0.1, 3))
def test_the_other_forms_of_weights(num_correct, sigma):
    correct_PG = (torch.arange(8) < num_correct).unsqueeze(0)
    d = num_correct / 8

    def weight(form):
        return float(difficulty_weights(correct_PG, sigma, form=form))

    assert weight("linear") == pytest.approx(sigma * (1 - d), rel=1e-5)
    assert weight("triangular") == pytest.approx(sigma * (1 - abs(2 * d - 1)), rel=1e-5, abs=1e-7)
    assert weight("observe_r1") == float(dynamic_weights(correct_PG, sigma))
    assert weight("triangular") <= weight("observe_r1") + 1e-6


@pytest.mark.parametrize("form", ["observe_r1", "vcrl", "linear", "triangular"])
def test_what_could_not_be_judged_has_no_say_in_any_weight(form):
    nan = float("nan")
    some = torch.tensor([[1.0, 0.0, nan, nan], [nan] * 4])
    judged = torch.tensor([[1.0, 0.0]])
    weights_P = difficulty_weights(some, 1.8, form=form)
    assert weights_P.tolist() == [float(difficulty_weights(judged, 1.8, form=form)), 0.0]


@pytest.mark.parametrize("algorithm", sorted(LEVELS))
def test_bonus_and_weights_enter_every_algorithm_through_the_advantages(algorithm):
    """The papers' objectives are sums over groups, which the weights of Observe-R1 multiply."""
    config, toy = config_of(algorithm), Toy(11)
    correct_PG = (toy.rewards == 1.0).double()
    lengths_PG = toy.lengths_N.reshape(correct_PG.shape)
    toy.rewards = toy.rewards + bonus(correct_PG, lengths_PG, weight=0.2, min_length=1)
    weights_P = dynamic_weights(correct_PG, 1.8)
    shares_P = torch.full_like(weights_P, 1 / len(weights_P))
    if config.loss.aggregation == "token":
        shares_P = lengths_PG.sum(1) / lengths_PG.sum()
    with torch.no_grad():
        objectives = [toy.objective(algorithm, slice(i, i + 1)) for i in range(len(weights_P))]
        found = float(toy.loss(config, weights_P).loss)
    expected = -sum(
        float(w) * float(s) * float(j)
        for w, s, j in zip(weights_P, shares_P, objectives, strict=True)
    )
    assert found == pytest.approx(expected, rel=1e-6)
    assert abs(found) > 1e-3

"""Group-relative policy optimisation as pure functions on tensors.

GRPO is from DeepSeekMath (arXiv 2402.03300, section 4.1); the bonus reward and the dynamic
weights are from Observe-R1 (arXiv 2505.12432). Nothing here knows of models, text or devices.

Shape suffixes: P prompts (groups), G completions per group, N = P * G completions, T tokens.
A reward or a correctness of NaN means "could not be judged".
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ADVANTAGE_EPS = 1e-6


def group_advantages(rewards_PG: Tensor, *, scale: Literal["std", "none"] = "std") -> Tensor:
    """Centre the rewards of each group and, with `scale="std"`, divide by its spread.

    The standard deviation is the sample's (n - 1) plus 1e-6. NaN rewards are left out of mean and
    deviation and get advantage 0. A group whose judged rewards are all equal (or that has fewer
    than two) gets exactly 0. Returns (P, G). Source: arXiv 2402.03300, section 4.1.2;
    `scale="none"` is the unscaled form of Dr. GRPO (arXiv 2503.20783).
    """
    judged_PG = ~rewards_PG.isnan()
    values_PG = rewards_PG.masked_fill(~judged_PG, 0.0)
    count_P1 = judged_PG.sum(-1, keepdim=True)
    mean_P1 = values_PG.sum(-1, keepdim=True) / count_P1.clamp(min=1)
    centred_PG = (values_PG - mean_P1).masked_fill(~judged_PG, 0.0)

    # Equality is tested on the rewards: the mean of equal floats need not equal them, and dividing
    # that rounding error by a deviation of about 0 would make advantages out of nothing.
    highest_P1 = rewards_PG.masked_fill(~judged_PG, -torch.inf).amax(-1, keepdim=True)
    lowest_P1 = rewards_PG.masked_fill(~judged_PG, torch.inf).amin(-1, keepdim=True)
    advantages_PG = centred_PG.masked_fill(highest_P1 <= lowest_P1, 0.0)
    if scale == "none":
        return advantages_PG
    variance_P1 = centred_PG.square().sum(-1, keepdim=True) / (count_P1 - 1).clamp(min=1)
    return advantages_PG / (variance_P1.sqrt() + ADVANTAGE_EPS)


def dynamic_weights(correct_PG: Tensor, sigma: float) -> Tensor:
    """Weight of each group's advantages: w(d) = 4 sigma d (1 - d), d = fraction correct.

    `correct_PG` is bool, or float with NaN for completions that could not be judged (they do not
    count). d is measured from correctness alone, never from the reward. All-right, all-wrong and
    unjudged groups get 0; the largest weight, at d = 0.5, is sigma. Returns (P,), float.
    Source: Observe-R1 (arXiv 2505.12432), dynamic weighting and sampling.
    """
    fraction_P = _as_float(correct_PG).nanmean(-1).nan_to_num(0.0)
    return 4.0 * sigma * fraction_P * (1.0 - fraction_P)


def bonus(
    correct_PG: Tensor,
    lengths_PG: Tensor,
    *,
    weight: float,
    min_length: int | None,
    max_length: int | None = None,
) -> Tensor:
    """Reward the shortest correct completion of each group, if its length passes the bounds.

    The shortest correct completion (ties: the lowest index) is chosen first and then tested:
    `min_length < length <= max_length`, in tokens (None: no bound). If it fails, nobody in
    the group gets the bonus; no wrong or unjudged (NaN) completion ever does. Returns (P, G).
    Source: Observe-R1 (arXiv 2505.12432), bonus reward; the released code gave it to wrong
    completion 0 in groups without a correct one, which this does not.
    """
    correct_float_PG = _as_float(correct_PG)
    correct_PG = correct_float_PG == 1.0
    candidate_PG = lengths_PG.to(torch.float64).masked_fill(~correct_PG, torch.inf)
    # argmin promises no order among ties, so the first position of the minimum is looked up.
    shortest_P1 = candidate_PG.amin(-1, keepdim=True)
    is_shortest_PG = (candidate_PG == shortest_P1) & correct_PG
    winner_PG = is_shortest_PG & (is_shortest_PG.cumsum(-1) == 1)
    passes_PG = torch.ones_like(winner_PG)
    if min_length is not None:
        passes_PG = passes_PG & (lengths_PG > min_length)
    if max_length is not None:
        passes_PG = passes_PG & (lengths_PG <= max_length)
    return weight * (winner_PG & passes_PG).to(correct_float_PG.dtype)


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """One micro-batch's share of the policy loss; every field may be summed over micro-batches."""

    loss: Tensor
    """Scalar with gradient: this micro-batch's partial sum, already divided by `normalizer`."""
    clipped_low: Tensor
    """Number of tokens held back by the lower clip (ratio too small, advantage negative)."""
    clipped_high: Tensor
    """Number of tokens held back by the upper clip (ratio too large, advantage positive)."""
    tokens: Tensor
    """Number of tokens that the mask lets count."""

    @property
    def clip_ratio(self) -> float:
        """Share of this micro-batch's tokens that were clipped, either way."""
        return float((self.clipped_low + self.clipped_high) / self.tokens.clamp(min=1))


def policy_loss(
    logprobs_NT: Tensor,
    old_logprobs_NT: Tensor,
    advantages_N: Tensor,
    mask_NT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    normalizer: float,
    aggregation: Literal["token", "sequence"] = "token",
) -> PolicyLoss:
    """The clipped surrogate loss, as a partial sum over a micro-batch.

    `normalizer` is a count over the whole optimizer step: of its tokens for `aggregation="token"`
    (each token weighs the same), of its sequences for `"sequence"` (a mean within each sequence
    first, as in the GRPO paper). Because it is global, splitting the step into micro-batches,
    padding or reordering leaves the summed gradient as it is. Masked positions may hold anything
    finite. Source: arXiv 2402.03300, equation 3; separate bounds: DAPO (arXiv 2503.14476).
    """
    mask_NT = mask_NT.to(torch.bool)
    advantages_N1 = advantages_N.to(logprobs_NT.dtype).unsqueeze(-1)
    ratio_NT = (logprobs_NT - old_logprobs_NT).masked_fill(~mask_NT, 0.0).exp()
    clipped_NT = ratio_NT.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss_NT = -torch.minimum(ratio_NT * advantages_N1, clipped_NT * advantages_N1)
    loss_NT = loss_NT.masked_fill(~mask_NT, 0.0)
    if aggregation == "token":
        total = loss_NT.sum()
    else:
        total = (loss_NT.sum(-1) / mask_NT.sum(-1).clamp(min=1)).sum()
    low_NT = (ratio_NT < 1.0 - clip_low) & (advantages_N1 < 0) & mask_NT
    high_NT = (ratio_NT > 1.0 + clip_high) & (advantages_N1 > 0) & mask_NT
    return PolicyLoss(
        loss=total / normalizer,
        clipped_low=low_NT.sum(),
        clipped_high=high_NT.sum(),
        tokens=mask_NT.sum(),
    )


def kl(
    logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"] = "k3"
) -> Tensor:
    """Per-token estimate of KL(policy || reference) from the sampled tokens' log-probabilities.

    k1 is unbiased and may be negative, k2 = half the squared log-ratio is biased with a useful
    gradient, k3 is unbiased and never negative (the one in arXiv 2402.03300, equation 4). Same
    shape as the arguments. Source of the names: J. Schulman, "Approximating KL divergence", 2020.
    """
    log_ratio = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    return log_ratio.exp() - log_ratio - 1.0


def _as_float(correct_PG: Tensor) -> Tensor:
    return correct_PG if correct_PG.is_floating_point() else correct_PG.to(torch.float32)


def importance_weights(
    logprobs_NT: Tensor,
    sampling_logprobs_NT: Tensor,
    mask_NT: Tensor,
    *,
    level: Literal["token", "sequence"],
    cap: float,
) -> Tensor:
    """Truncated importance weights (N, T) of tokens that another engine sampled.

    min(ratio, cap), where ratio is pi(y) / q(y): pi are the trainer's probabilities under the
    weights that were sampled from, q the sampler's own for the same weights, which differ by its
    kernels and precision. For `level="token"` each token has its own ratio; for `"sequence"` all
    tokens of a completion have the product of its tokens' ratios. Masked positions get 0 and may
    hold anything finite. Without gradient. Source: truncated importance sampling (Ionides 2008,
    doi 10.1198/106186008X320456, equation 3), applied to rollouts as in TRL and verl.
    """
    mask_NT = mask_NT.to(torch.bool)
    log_ratio_NT = (logprobs_NT.detach() - sampling_logprobs_NT).masked_fill(~mask_NT, 0.0)
    if level == "sequence":
        log_ratio_NT = log_ratio_NT.sum(-1, keepdim=True).expand_as(log_ratio_NT)
    return log_ratio_NT.exp().clamp(max=cap).masked_fill(~mask_NT, 0.0)


def weight_gradient(logprobs_NT: Tensor, weights_NT: Tensor) -> Tensor:
    """The same log-probabilities, with their gradient multiplied by constant weights (N, T).

    A loss that is a sum of terms, each a function of one token's log-probability, gets the
    gradient of the weighted sum of these terms; its value stays unweighted.
    """
    return logprobs_NT.detach() + weights_NT * (logprobs_NT - logprobs_NT.detach())

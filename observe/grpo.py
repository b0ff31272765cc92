"""Group-relative policy optimisation as pure functions on tensors.

GRPO is from DeepSeekMath (arXiv 2402.03300, section 4.1); the bonus reward and the dynamic
weights are from Observe-R1 (arXiv 2505.12432); the sources of its other forms stand beside them.
Nothing here knows of models, text or devices.

Shape suffixes: P prompts (groups), G completions per group, N = P * G completions, T tokens.
A reward or a correctness of NaN means "could not be judged".
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from observe.config import Aggregation, KlEstimator

ADVANTAGE_EPS = 1e-6


def group_advantages(
    rewards_PG: Tensor,
    *,
    scale: Literal["std", "none"] = "std",
    baseline: Literal["mean", "leave_one_out"] = "mean",
) -> Tensor:
    """Subtract a baseline from the rewards of each group and, with `scale="std"`, divide by the
    group's spread.

    The standard deviation is the sample's (n - 1) plus 1e-6. NaN rewards are left out of mean and
    deviation and get advantage 0. A group whose judged rewards are all equal (or that has fewer
    than two) gets exactly 0. `baseline="leave_one_out"` subtracts the mean of the other rewards of
    the group, which is n / (n - 1) times the centred reward. Returns (P, G). Source: arXiv
    2402.03300, section 4.1.2; `scale="none"` is the unscaled form of Dr. GRPO (arXiv 2503.20783);
    `leave_one_out` is RLOO (arXiv 2402.14740).
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
    if baseline == "leave_one_out":
        advantages_PG = advantages_PG * count_P1 / (count_P1 - 1).clamp(min=1)
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


def difficulty_weights(
    correct_PG: Tensor,
    sigma: float,
    *,
    form: Literal["observe_r1", "vcrl", "linear", "triangular"] = "observe_r1",
    threshold: float = 0.3,
) -> Tensor:
    """Weight of each group's advantages as a function of its fraction correct d = k / n.

    `observe_r1` is dynamic_weights. `vcrl`: sigma where p >= threshold and else 0, p being the
    variance of correctness k (n - k) / (n (n - 1)) relative to the largest one possible with n
    completions, n / (4 (n - 1)) for even n and (n + 1) / (4 n) for odd n: the selection of VCRL
    (arXiv 2509.19803) without its replay, which would break the one pass over the questions.
    `linear`: sigma (1 - d). `triangular`: sigma (1 - |2 d - 1|). Groups of which nothing could be
    judged get 0. `correct_PG` as in dynamic_weights. Returns (P,), float.
    """
    if form == "observe_r1":
        return dynamic_weights(correct_PG, sigma)
    correct_PG = _as_float(correct_PG)
    judged_P = (~correct_PG.isnan()).sum(-1)
    right_P = correct_PG.nansum(-1)
    fraction_P = right_P / judged_P.clamp(min=1)
    if form == "linear":
        weights_P = sigma * (1.0 - fraction_P)
    elif form == "triangular":
        weights_P = sigma * (1.0 - (2.0 * fraction_P - 1.0).abs())
    else:
        # The factor 1 / (n (n - 1)) of both variances cancels; the best split is n // 2 to the
        # rest.
        half_P = judged_P // 2
        most_P = half_P * (judged_P - half_P)
        share_P = right_P * (judged_P - right_P) / most_P.clamp(min=1)
        weights_P = sigma * (share_P >= threshold).to(correct_PG.dtype)
    return weights_P.masked_fill(judged_P == 0, 0.0)


def overlong_penalty(lengths_PG: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """The soft punishment of length, from -1 to 0, same shape.

    0 up to `max_length - buffer` tokens, then linear, -1 from `max_length` on. Source: DAPO (arXiv
    2503.14476, equation 13).
    """
    return ((max_length - buffer - lengths_PG) / buffer).clamp(-1.0, 0.0)


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
    """Number of tokens whose ratio the lower bound clipped, with effect: for the clipped surrogate,
    those with a negative advantage, which have no gradient; for CISPO, with any but 0."""
    clipped_high: Tensor
    """Number of tokens that the upper bound clipped; for the clipped surrogate, those with a
    positive advantage."""
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
    aggregation: Aggregation = "token",
    ratio: Literal["token", "sequence"] = "token",
    surrogate: Literal["clipped", "cispo"] = "clipped",
) -> PolicyLoss:
    """The surrogate loss, as a partial sum over a micro-batch (see aggregate for `normalizer`).

    With the ratio r of new to old probability, the loss of a token is -min(r A, clip(r) A), clip
    being to [1 - clip_low, 1 + clip_high] (arXiv 2402.03300, equation 3; separate bounds: DAPO,
    arXiv 2503.14476, equation 8). `ratio="sequence"` replaces r by its geometric mean over the
    completion's tokens (GSPO, arXiv 2507.18071, equation 7). `surrogate="cispo"` makes the loss
    -sg(clip(r)) A log p, sg being no gradient (CISPO, arXiv 2506.13585, equation 4). Masked
    positions may hold anything finite.
    """
    mask_NT = mask_NT.to(torch.bool)
    advantages_N1 = advantages_N.to(logprobs_NT).unsqueeze(-1)
    log_ratio_NT = (logprobs_NT - old_logprobs_NT).masked_fill(~mask_NT, 0.0)
    if ratio == "sequence":
        lengths_N1 = mask_NT.sum(-1, keepdim=True).clamp(min=1)
        log_ratio_NT = (log_ratio_NT.sum(-1, keepdim=True) / lengths_N1).expand_as(log_ratio_NT)
    ratio_NT = log_ratio_NT.exp()
    clipped_NT = ratio_NT.clamp(1.0 - clip_low, 1.0 + clip_high)
    if surrogate == "cispo":
        loss_NT = -clipped_NT.detach() * advantages_N1 * logprobs_NT
        low_N1 = high_N1 = advantages_N1 != 0
    else:
        loss_NT = -torch.minimum(ratio_NT * advantages_N1, clipped_NT * advantages_N1)
        low_N1, high_N1 = advantages_N1 < 0, advantages_N1 > 0
    low_NT = (ratio_NT < 1.0 - clip_low) & low_N1 & mask_NT
    high_NT = (ratio_NT > 1.0 + clip_high) & high_N1 & mask_NT
    return PolicyLoss(
        loss=aggregate(loss_NT, mask_NT, aggregation=aggregation, normalizer=normalizer),
        clipped_low=low_NT.sum(),
        clipped_high=high_NT.sum(),
        tokens=mask_NT.sum(),
    )


def aggregate(
    terms_NT: Tensor, mask_NT: Tensor, *, aggregation: Aggregation, normalizer: float
) -> Tensor:
    """Add up a term per token (loss, divergence, entropy) to a micro-batch's share of a step.

    `normalizer` is loss_normalizer of the whole optimizer step. Because it is global, splitting the
    step into micro-batches, padding or reordering leaves the summed gradient as it is. Masked
    positions may hold anything finite. Returns a scalar.
    """
    mask_NT = mask_NT.to(torch.bool)
    terms_NT = terms_NT.masked_fill(~mask_NT, 0.0)
    if aggregation == "sequence":
        return (terms_NT.sum(-1) / mask_NT.sum(-1).clamp(min=1)).sum() / normalizer
    return terms_NT.sum() / normalizer


def loss_normalizer(lengths_N: Tensor, *, aggregation: Aggregation, max_length: int) -> int:
    """What the sum over an optimizer step's completions is divided by; at least 1.

    `lengths_N` are the lengths in tokens of those that the loss counts. `token`: their sum (DAPO,
    arXiv 2503.14476). `sequence` (with a mean within each; GRPO, arXiv 2402.03300) and
    `sequence_sum` (RLOO, arXiv 2402.14740): their number. `constant`: that times `max_length`, so
    that no completion's weight depends on any length (Dr. GRPO, arXiv 2503.20783).
    """
    if aggregation == "token":
        return max(1, int(lengths_N.sum()))
    sequences = max(1, len(lengths_N))
    return sequences * max_length if aggregation == "constant" else sequences


def kl(logprobs: Tensor, ref_logprobs: Tensor, estimator: KlEstimator = "k3") -> Tensor:
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

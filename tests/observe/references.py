"""The published objectives written out in loops over groups, completions and tokens.

Each returns the J that its paper maximises; ``new`` and ``old`` hold, per group, one vector of
token log-probabilities per completion, ``rewards`` one number per completion. Nothing is shared
with the trainer. An expectation over questions is the mean over groups; where a paper divides by a
number of tokens, it is that of all groups, as its authors' trainers do.
"""

import statistics

import torch


def standardised(rewards):
    """(r - mean) / std of a group, std with n - 1; 0 where all rewards are equal."""
    if len(set(rewards)) == 1:
        return [0.0 for _ in rewards]
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    return [(reward - mean) / (std + 1e-6) for reward in rewards]


def centred(rewards):
    mean = statistics.fmean(rewards)
    return [reward - mean for reward in rewards]


def clip(ratio, low, high):
    return min(max(ratio, 1 - low), 1 + high)


def surrogate(ratio, advantage, low, high):
    """min(r A, clip(r) A), one number at a time; the ratio has a gradient unless it is clipped."""
    value = float(ratio.detach())
    clipped = clip(value, low, high)
    if value * advantage <= clipped * advantage:
        return ratio * advantage
    return torch.tensor(clipped * advantage, dtype=ratio.dtype)


def grpo(new, old, rewards, *, max_length):
    """DeepSeekMath, arXiv 2402.03300, equation 3, without the divergence."""
    total = 0.0
    for group, old_group, group_rewards in zip(new, old, rewards, strict=True):
        advantages = standardised(group_rewards)
        for tokens, old_tokens, advantage in zip(group, old_group, advantages, strict=True):
            inner = 0.0
            for t in range(len(tokens)):
                ratio = (tokens[t] - old_tokens[t]).exp()
                inner = inner + surrogate(ratio, advantage, 0.2, 0.2)
            total = total + inner / len(tokens) / len(group)
    return total / len(new)


def dr_grpo(new, old, rewards, *, max_length):
    """Dr. GRPO, arXiv 2503.20783, section 3.2: no 1 / |o|, no std; a constant instead."""
    total = 0.0
    for group, old_group, group_rewards in zip(new, old, rewards, strict=True):
        advantages = centred(group_rewards)
        for tokens, old_tokens, advantage in zip(group, old_group, advantages, strict=True):
            for t in range(len(tokens)):
                ratio = (tokens[t] - old_tokens[t]).exp()
                total = total + surrogate(ratio, advantage, 0.2, 0.2) / max_length / len(group)
    return total / len(new)


def dapo(new, old, rewards, *, max_length):
    """DAPO, arXiv 2503.14476, equation 8 with the bounds of section 4.1.

    The rewards are punished for length by equation 13.
    """
    total, num_tokens = 0.0, 0
    buffer = max_length // 5
    for group, old_group, group_rewards in zip(new, old, rewards, strict=True):
        punished = []
        for tokens, reward in zip(group, group_rewards, strict=True):
            length, punishment = len(tokens), 0.0
            if length >= max_length:
                punishment = -1.0
            elif length > max_length - buffer:
                punishment = (max_length - buffer - length) / buffer
            punished.append(reward + punishment)
        advantages = standardised(punished)
        for tokens, old_tokens, advantage in zip(group, old_group, advantages, strict=True):
            for t in range(len(tokens)):
                ratio = (tokens[t] - old_tokens[t]).exp()
                total = total + surrogate(ratio, advantage, 0.2, 0.28)
                num_tokens += 1
    return total / num_tokens


def rloo(new, old, rewards, *, max_length):
    """RLOO, arXiv 2402.14740: a completion is one action, its baseline the others' mean reward.

    The paper's REINFORCE has no ratio; where the policy has moved on, each token gets PPO's.
    """
    total = 0.0
    for group, old_group, group_rewards in zip(new, old, rewards, strict=True):
        for i in range(len(group)):
            others = [group_rewards[j] for j in range(len(group)) if j != i]
            advantage = group_rewards[i] - sum(others) / len(others)
            for t in range(len(group[i])):
                ratio = (group[i][t] - old_group[i][t]).exp()
                total = total + surrogate(ratio, advantage, 0.2, 0.2) / len(group)
    return total / len(new)


def gspo(new, old, rewards, *, max_length):
    """GSPO, arXiv 2507.18071, equations 5 and 7 with the bounds of section 5.1."""
    total = 0.0
    for group, old_group, group_rewards in zip(new, old, rewards, strict=True):
        advantages = standardised(group_rewards)
        for tokens, old_tokens, advantage in zip(group, old_group, advantages, strict=True):
            likelihood = 0.0
            for t in range(len(tokens)):
                likelihood = likelihood + tokens[t] - old_tokens[t]
            ratio = (likelihood / len(tokens)).exp()
            total = total + surrogate(ratio, advantage, 3e-4, 4e-4) / len(group)
    return total / len(new)


def cispo(new, old, rewards, *, max_length):
    """CISPO, arXiv 2506.13585, equations 4 and 5, without a lower bound; weights up to 5."""
    total, num_tokens = 0.0, 0
    for group, old_group, group_rewards in zip(new, old, rewards, strict=True):
        advantages = standardised(group_rewards)
        for tokens, old_tokens, advantage in zip(group, old_group, advantages, strict=True):
            for t in range(len(tokens)):
                weight = min(float((tokens[t] - old_tokens[t]).detach().exp()), 5.0)
                total = total + weight * advantage * tokens[t]
                num_tokens += 1
    return total / num_tokens


def kl_term(new, reference, estimator):
    """The mean over completions of their tokens' mean divergence (arXiv 2402.03300, eq. 3, 4)."""
    total, count = 0.0, 0
    for group, reference_group in zip(new, reference, strict=True):
        for tokens, reference_tokens in zip(group, reference_group, strict=True):
            inner = 0.0
            for t in range(len(tokens)):
                r = (reference_tokens[t] - tokens[t]).exp()
                inner = (
                    inner
                    + {
                        "k1": -r.log(),
                        "k2": r.log() ** 2 / 2,
                        "k3": r - 1 - r.log(),
                    }[estimator]
                )
            total = total + inner / len(tokens)
            count += 1
    return total / count


ALGORITHMS = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "rloo": rloo,
    "gspo": gspo,
    "cispo": cispo,
}

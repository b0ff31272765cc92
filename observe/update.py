"""From rewards to a gradient step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from observe import grpo
from observe.data.question import Question
from observe.mismatch import Mismatch, sampling_logprobs
from observe.model.batch import micro_batches
from observe.model.logprobs import completion_logprobs
from observe.rewards import RewardBreakdown, shuffle_within_groups
from observe.rollout.engine import Completion
from observe.run import Run, prompt_of, stable_seed


def weigh(run: Run, rewards: RewardBreakdown) -> tuple[Tensor, Tensor]:
    """Advantages (P, G), weighted by the groups' difficulty, and the weights (P,)."""
    total_PG = rewards.total_PG
    if run.reward.shuffle:
        generator = torch.Generator().manual_seed(stable_seed(run.config.seed, run.step, "placebo"))
        total_PG = shuffle_within_groups(total_PG, generator)
    advantages_PG = grpo.group_advantages(total_PG, scale=run.config.loss.scale)
    weights_P = torch.ones(total_PG.shape[0])
    if run.config.weighting.sigma is not None:
        weights_P = grpo.dynamic_weights(rewards.correct_PG, run.config.weighting.sigma)
    return advantages_PG * weights_P[:, None], weights_P


def update_policy(
    run: Run,
    questions: Sequence[Question],
    groups: Sequence[Sequence[Completion]],
    advantages_PG: Tensor,
) -> dict[str, float]:
    """One gradient step on the policy.

    The rollout comes from the very weights that are updated, so the old log-probabilities are the
    current ones. Groups whose advantages are all zero add nothing to the gradient without a KL
    term, and are left out of the forward pass; the loss is normalised by the whole step's count.
    """
    config, loss_config = run.config, run.config.loss
    set_lr(run)
    kept = [i for i in range(len(groups)) if run.reference or advantages_PG[i].any()]
    num_tokens = sum(len(c.token_ids) for group in groups for c in group)
    normalizer = advantages_PG.numel() if loss_config.aggregation == "sequence" else num_tokens
    batches = micro_batches(
        [prompt_of(run, questions[i]).length for i in kept],
        [[len(c.token_ids) for c in groups[i]] for i in kept],
        tokens=config.micro_batch_tokens,
    )
    totals = {"loss": 0.0, "entropy": 0.0, "kl": 0.0, "clipped": 0.0, "tokens": 0.0}
    mismatch = Mismatch(loss_config.importance_sampling)
    run.policy.model.train()
    for batch in batches:
        chunk = [(kept[k], members) for k, members in batch]
        samples = [prompt_of(run, questions[i]) for i, _ in chunk]
        token_ids = [[groups[i][j].token_ids for j in members] for i, members in chunk]
        logprobs_NT, entropy_NT, mask_NT = completion_logprobs(
            run.policy, samples, token_ids, temperature=config.rollout.temperature
        )
        weighted_NT = logprobs_NT
        drawn = [groups[i][j] for i, members in chunk for j in members]
        sampling_NT = sampling_logprobs(drawn, logprobs_NT)
        if sampling_NT is not None:
            mismatch.add(logprobs_NT, sampling_NT, mask_NT)
            weighted_NT = correct_for_sampler(run, logprobs_NT, sampling_NT, mask_NT)
        result = grpo.policy_loss(
            weighted_NT,
            logprobs_NT.detach(),
            torch.cat([advantages_PG[i, members] for i, members in chunk]),
            mask_NT,
            clip_low=loss_config.clip_low,
            clip_high=loss_config.clip_high,
            normalizer=normalizer,
            aggregation=loss_config.aggregation,
        )
        loss = result.loss
        if run.reference:
            with torch.no_grad():
                reference_NT, _, _ = completion_logprobs(
                    run.reference, samples, token_ids, temperature=config.rollout.temperature
                )
            kl_NT = grpo.kl(logprobs_NT, reference_NT, "k3") * mask_NT
            loss = loss + loss_config.kl_coefficient * kl_NT.sum() / num_tokens
            totals["kl"] += float(kl_NT.sum().detach())
        loss.backward()
        totals["loss"] += float(loss.detach())
        totals["entropy"] += float((entropy_NT * mask_NT).sum())
        totals["clipped"] += float(result.clipped_low + result.clipped_high)
        totals["tokens"] += float(result.tokens)
    parameters = [p for p in run.policy.model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.optim.max_grad_norm)
    if kept:
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    trained_tokens = max(1.0, totals["tokens"])
    metrics = {
        "loss": totals["loss"],
        "entropy": totals["entropy"] / trained_tokens,
        "clip_ratio/region_mean": totals["clipped"] / trained_tokens,
        "grad_norm": float(grad_norm),
        "learning_rate": run.optimizer.param_groups[0]["lr"],
    }
    metrics.update(mismatch.metrics())
    if run.reference:
        metrics["kl"] = totals["kl"] / trained_tokens
    return metrics


def correct_for_sampler(
    run: Run, logprobs_NT: Tensor, sampling_NT: Tensor, mask_NT: Tensor
) -> Tensor:
    """The log-probabilities with their gradient weighted for tokens drawn by another engine."""
    config = run.config.loss
    if config.importance_sampling == "none":
        return logprobs_NT
    weights_NT = grpo.importance_weights(
        logprobs_NT,
        sampling_NT,
        mask_NT,
        level=config.importance_sampling,
        cap=config.importance_cap,
    )
    return grpo.weight_gradient(logprobs_NT, weights_NT)


def set_lr(run: Run) -> None:
    """Linear warm-up, then constant."""
    warmup = run.config.optim.warmup_steps
    for group in run.optimizer.param_groups:
        group["lr"] = run.config.optim.lr * min(1.0, run.step / warmup if warmup else 1.0)

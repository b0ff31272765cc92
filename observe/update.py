"""From rewards to gradient steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from observe import grpo
from observe.data.question import Question
from observe.mismatch import Mismatch, sampling_logprobs
from observe.model.batch import MicroBatch, micro_batches
from observe.model.logprobs import completion_logprobs
from observe.model.policy import Policy
from observe.model.processor import Sample
from observe.rewards import RewardBreakdown, shuffle_within_groups
from observe.rollout.engine import Completion
from observe.run import Run, prompt_of, stable_seed
from observe.sharding import give_up


@dataclass(kw_only=True)
class PolicyBatch:
    """Completions that share a forward pass, and what their log-probabilities are compared with.

    The latter do not change while a rollout is trained on, and are kept from its first pass.
    """

    members: MicroBatch
    """Which of the rollout's completions, by group."""
    samples: list[Sample]
    """The prompt of each group."""
    token_ids: list[list[list[int]]]
    """The completions of each."""
    drawn: list[Completion]
    """The same in one list."""
    advantages_N: Tensor
    old_NT: Tensor | None = None
    """Log-probabilities under the policy that was sampled from."""
    reference_NT: Tensor | None = None
    """Log-probabilities under the policy that the run started from."""
    weights_NT: Tensor | None = None
    """What corrects for a sampler with other probabilities, where that is asked for."""
    idle: bool = False
    """It has no effect, and is passed because another rank has one more."""


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """The part of a rollout that one optimizer step is taken on."""

    batches: list[PolicyBatch]
    """Without the groups that add nothing to the gradient."""
    normalizer: int
    """Of the loss, over all of the part's groups."""


def weigh(run: Run, rewards: RewardBreakdown, kl_PG: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Advantages (P, G), weighted by the groups' difficulty, and the weights (P,).

    ``kl_PG`` is the completions' divergence, when it is part of the reward.
    """
    loss, weighting = run.config.loss, run.config.weighting
    total_PG = rewards.total_PG
    if run.reward.shuffle:
        generator = torch.Generator().manual_seed(stable_seed(run.config.seed, run.step, "placebo"))
        total_PG = shuffle_within_groups(total_PG, generator)
    if kl_PG is not None:
        total_PG = total_PG - loss.kl_coefficient * kl_PG
    advantages_PG = grpo.group_advantages(total_PG, scale=loss.scale, baseline=loss.baseline)
    weights_P = torch.ones(total_PG.shape[0])
    if weighting.sigma is not None:
        weights_P = grpo.difficulty_weights(
            rewards.correct_PG,
            weighting.sigma,
            form=weighting.form,
            threshold=weighting.threshold,
        )
    return advantages_PG * weights_P[:, None], weights_P


def divergence(
    run: Run, questions: Sequence[Question], groups: Sequence[Sequence[Completion]]
) -> Tensor | None:
    """Estimated divergence from the starting policy, summed over each completion (P, G).

    None when it is no part of the reward, which spares its forward passes.
    """
    if not run.reference or run.config.loss.kl_in != "reward":
        return None
    run.policy.model.eval()  # Sampling knows no dropout.
    kl_PG = torch.zeros(len(groups), len(groups[0]))
    own = run.parallel.share(range(len(groups)))
    everything = [list(range(len(group))) if i in own else [] for i, group in enumerate(groups)]
    with torch.no_grad():
        for batch in policy_batches(run, questions, groups, kl_PG, everything):
            logprobs_NT, _, mask_NT = forward(run, run.policy, batch)
            with run.reference.untrained():
                reference_NT, _, _ = forward(run, run.reference, batch)
            kl_NT = grpo.kl(logprobs_NT, reference_NT, run.config.loss.kl_estimator)
            kl_N = (kl_NT * mask_NT).sum(1).to(kl_PG)
            if batch.idle:
                continue
            by_group = kl_N.split([len(members) for _, members in batch.members])
            for (i, members), values in zip(batch.members, by_group, strict=True):
                kl_PG[i, members] = values
    give_up(run.policy)
    give_up(run.reference)
    return torch.stack(run.parallel.gather([kl_PG[i] for i in own]))


def update_policy(
    run: Run,
    questions: Sequence[Question],
    groups: Sequence[Sequence[Completion]],
    advantages_PG: Tensor,
) -> dict[str, float]:
    """Train the policy on one rollout: a gradient step, or several with clipped ratios.

    The first step starts from the very weights that were sampled from, so the old log-probabilities
    are those of its own forward pass; only when a pass over the rollout takes several steps are
    those of the later parts computed beforehand. The loss is normalised by its whole step's count.
    A loss or gradient that is NaN or infinite changes neither the policy nor the optimizer's state:
    the step is left out and counted (``run.bad_steps``).
    """
    optim = run.config.optim
    set_lr(run)
    run.policy.model.train()
    if run.config.model.lora.dropout:
        seed = stable_seed(run.config.seed, run.step, "dropout", run.parallel.rank)
        torch.manual_seed(seed)
    minibatches = split(run, questions, groups, advantages_PG)
    mismatch = Mismatch(run.config.loss.importance_sampling)
    with torch.no_grad():
        for minibatch in minibatches[1:]:
            for batch in minibatch.batches:
                logprobs_NT, _, mask_NT = forward(run, run.policy, batch)
                keep_old(run, batch, logprobs_NT, mask_NT, mismatch)
    figures: list[dict[str, float]] = []
    grad_norms, bad_steps = [], 0
    for _ in range(optim.updates_per_rollout):
        for minibatch in minibatches:
            loss_value = 0.0
            for batch in minibatch.batches:
                loss, figure = loss_of(run, batch, minibatch.normalizer, mismatch)
                (0.0 * loss if batch.idle else loss).backward()
                if not batch.idle:
                    figures.append(figure)
                    loss_value += figure["loss"]
            run.clock.lap("forward_backward")
            empty = run.parallel.most(len(minibatch.batches)) == 0
            grad_norms.append(step_optimizer(run, loss_value, empty=empty))
            bad_steps += run.bad_steps > 0
            run.clock.lap("optimizer")
    figures = run.parallel.gather(figures)
    return {
        **summed_up(run, figures, steps=len(grad_norms)),
        **mismatch.metrics(run.parallel.gather),
        "grad_norm": sum(grad_norms) / len(grad_norms),
        "observe/bad_step": bad_steps / len(grad_norms),
        "learning_rate": run.optimizer.param_groups[0]["lr"],
    }


def split(
    run: Run,
    questions: Sequence[Question],
    groups: Sequence[Sequence[Completion]],
    advantages_PG: Tensor,
) -> list[Minibatch]:
    """The rollout in parts of consecutive questions, as equal as they can be, a step on each.

    Of each part this rank forwards its share; the normaliser counts the whole part.

    Without a divergence or an entropy in the loss, groups whose advantages are all zero add nothing
    to the gradient, and are left out of the forward pass; they are counted all the same.
    """
    loss = run.config.loss
    every_group = loss.entropy_coefficient or (run.reference and loss.kl_in == "loss")
    counted = [
        [j for j, c in enumerate(group) if not (loss.mask_truncated and c.truncated)]
        for group in groups
    ]
    count = run.config.optim.minibatches_per_rollout
    parts = []
    for k in range(count):
        part = range(len(groups) * k // count, len(groups) * (k + 1) // count)
        lengths = [len(groups[i][j].token_ids) for i in part for j in counted[i]]
        forwarded: list[list[int]] = [[] for _ in groups]
        for i in run.parallel.share(part):
            if every_group or advantages_PG[i, counted[i]].any():
                forwarded[i] = counted[i]
        parts.append(
            Minibatch(
                batches=policy_batches(run, questions, groups, advantages_PG, forwarded),
                normalizer=grpo.loss_normalizer(
                    torch.tensor(lengths),
                    aggregation=loss.aggregation,
                    max_length=run.config.rollout.max_new_tokens,
                ),
            )
        )
    return parts


def policy_batches(
    run: Run,
    questions: Sequence[Question],
    groups: Sequence[Sequence[Completion]],
    advantages_PG: Tensor,
    members: Sequence[list[int]],
) -> list[PolicyBatch]:
    """The ``members`` of each group (none leaves it out) as forward passes."""
    chosen = [i for i in range(len(groups)) if members[i]]
    passes = micro_batches(
        [prompt_of(run, questions[i]).length for i in chosen],
        [[len(groups[i][j].token_ids) for j in members[i]] for i in chosen],
        tokens=run.config.micro_batch_tokens,
    )
    batches = []
    for one in passes:
        chunk = [(chosen[k], [members[chosen[k]][n] for n in part]) for k, part in one]
        batches.append(
            PolicyBatch(
                members=chunk,
                samples=[prompt_of(run, questions[i]) for i, _ in chunk],
                token_ids=[[groups[i][j].token_ids for j in part] for i, part in chunk],
                drawn=[groups[i][j] for i, part in chunk for j in part],
                advantages_N=torch.cat([advantages_PG[i, part] for i, part in chunk]),
            )
        )
    if run.policy.root is not None:
        idle = run.parallel.most(len(batches)) - len(batches)
        batches.extend(idle_batch(run, questions[0]) for _ in range(idle))
    return batches


def idle_batch(run: Run, question: Question) -> PolicyBatch:
    """A pass without effect: spread weights are gathered in every pass, by all ranks together."""
    end = [run.policy.processor.eos_ids[0]]
    return PolicyBatch(
        members=[],
        samples=[prompt_of(run, question)],
        token_ids=[[end]],
        drawn=[Completion(token_ids=end, text="", truncated=False)],
        advantages_N=torch.zeros(1),
        idle=True,
    )


def forward(
    run: Run, policy: Policy, batch: PolicyBatch, *, entropy_grad: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and entropies of the batch's tokens, and their mask (N, T)."""
    return policy.through(
        completion_logprobs,
        batch.samples,
        batch.token_ids,
        temperature=run.config.rollout.temperature,
        entropy_grad=entropy_grad,
    )


def keep_old(
    run: Run, batch: PolicyBatch, logprobs_NT: Tensor, mask_NT: Tensor, mismatch: Mismatch
) -> None:
    """Keep the log-probabilities of the policy that was sampled from, and the weights that correct
    for an engine which drew the tokens with other ones."""
    config = run.config.loss
    batch.old_NT = old_NT = logprobs_NT.detach()
    sampling_NT = sampling_logprobs(batch.drawn, old_NT)
    if sampling_NT is None:
        return
    mismatch.add(old_NT, sampling_NT, mask_NT)
    if config.importance_sampling != "none":
        batch.weights_NT = grpo.importance_weights(
            old_NT,
            sampling_NT,
            mask_NT,
            level=config.importance_sampling,
            cap=config.importance_cap,
        )


def loss_of(
    run: Run, batch: PolicyBatch, normalizer: float, mismatch: Mismatch
) -> tuple[Tensor, dict[str, float]]:
    """A micro-batch's share of the loss, with gradient, and its sums over tokens for the log."""
    config = run.config.loss
    entropy_grad = config.entropy_coefficient > 0
    logprobs_NT, entropy_NT, mask_NT = forward(run, run.policy, batch, entropy_grad=entropy_grad)
    if batch.old_NT is None:
        keep_old(run, batch, logprobs_NT, mask_NT, mismatch)
    assert batch.old_NT is not None
    weighted_NT = logprobs_NT
    if batch.weights_NT is not None:
        weighted_NT = grpo.weight_gradient(logprobs_NT, batch.weights_NT)
    result = grpo.policy_loss(
        weighted_NT,
        batch.old_NT,
        batch.advantages_N,
        mask_NT,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        normalizer=normalizer,
        aggregation=config.aggregation,
        ratio=config.ratio,
        surrogate=config.surrogate,
    )
    loss = result.loss
    figures = {
        "tokens": float(result.tokens),
        "clipped_low": float(result.clipped_low),
        "clipped_high": float(result.clipped_high),
        "entropy": float((entropy_NT * mask_NT).sum().detach()),
    }

    def aggregate(terms_NT: Tensor) -> Tensor:
        return grpo.aggregate(
            terms_NT, mask_NT, aggregation=config.aggregation, normalizer=normalizer
        )

    if config.entropy_coefficient:
        loss = loss - config.entropy_coefficient * aggregate(entropy_NT)
    if run.reference and config.kl_in == "loss":
        if batch.reference_NT is None:
            with torch.no_grad(), run.reference.untrained():
                batch.reference_NT, _, _ = forward(run, run.reference, batch)
        kl_NT = grpo.kl(logprobs_NT, batch.reference_NT, config.kl_estimator)
        loss = loss + config.kl_coefficient * aggregate(kl_NT)
        figures["kl"] = float((kl_NT * mask_NT).sum().detach())
    figures["loss"] = float(loss.detach())
    return loss, figures


def step_optimizer(run: Run, loss: float, *, empty: bool) -> float:
    """Clip the gradients, take the step unless there are none or one is no number; their norm.

    ``loss`` is this rank's part. All ranks decide alike, from its sum and the norm over all.
    """
    if run.policy.root is None:
        run.parallel.sum_gradients(run.policy.trained())
    parameters = [p for p in run.policy.trained() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, run.config.optim.max_grad_norm)
    grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    bad = not (math.isfinite(run.parallel.total([loss])[0]) and math.isfinite(grad_norm))
    run.bad_steps = run.bad_steps + 1 if bad else 0
    if not (empty or bad):
        run.optimizer.step()
        run.policy.publish()
    run.optimizer.zero_grad(set_to_none=True)
    return grad_norm


def summed_up(run: Run, figures: Sequence[dict[str, float]], *, steps: int) -> dict[str, float]:
    """The metrics of an update, under TRL's names: loss per step, the others per token.

    ``cispo_clip_ratio`` is the share of tokens whose weight was clipped, in either direction. There
    is no entropy of an update without signal, which forwards no token.
    """
    config = run.config.loss

    def total(key: str) -> float:
        return sum(figure[key] for figure in figures)

    tokens = max(1.0, total("tokens"))
    low = [figure["clipped_low"] / max(1.0, figure["tokens"]) for figure in figures]
    high = [figure["clipped_high"] / max(1.0, figure["tokens"]) for figure in figures]
    clipped = (total("clipped_low") + total("clipped_high")) / tokens
    metrics = {"loss": total("loss") / steps}
    if figures:
        metrics["entropy"] = total("entropy") / tokens
    if config.surrogate == "cispo":
        metrics["cispo_clip_ratio"] = clipped
    else:
        metrics["clip_ratio/low_mean"] = total("clipped_low") / tokens
        metrics["clip_ratio/low_min"] = min(low, default=0.0)
        metrics["clip_ratio/high_mean"] = total("clipped_high") / tokens
        metrics["clip_ratio/high_max"] = max(high, default=0.0)
        metrics["clip_ratio/region_mean"] = clipped
    if run.reference and config.kl_in == "loss":
        metrics["kl"] = total("kl") / tokens
    return metrics


def set_lr(run: Run) -> None:
    """Linear warm-up, then constant."""
    warmup = run.config.optim.warmup_steps
    for group in run.optimizer.param_groups:
        group["lr"] = run.config.optim.lr * min(1.0, run.step / warmup if warmup else 1.0)

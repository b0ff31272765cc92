"""The groups of a step: sampled, rewarded, and drawn again where they would teach nothing.

Of several processes each samples and judges its share of the questions; all get all groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from observe.data.question import Question
from observe.model.processor import Sample
from observe.rewards import RewardBreakdown, compute_rewards, concatenate
from observe.rollout.engine import Completion, SamplingParams
from observe.run import Run, prompt_of, stable_seed
from observe.sharding import gathered
from observe.update import weigh


@dataclass(kw_only=True)
class Refill:
    """What drawing groups again took and brought."""

    tokens: int = 0
    """Prompt and completion tokens of the draws that were thrown away."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Empty where refill is switched off."""


def sample_groups(
    run: Run, questions: Sequence[Question], *, attempt: int = 0
) -> list[list[Completion]]:
    """A group of completions per question, each from its own random numbers.

    ``attempt`` counts how often the step has sampled the question before.
    """
    rollout = run.config.rollout
    params = SamplingParams(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        n=rollout.group_size,
    )
    again = (attempt,) if attempt else ()
    seeds = [stable_seed(run.config.seed, run.step, q.id, *again) for q in questions]
    return draw(run, questions, params, seeds)


def draw(
    run: Run,
    questions: Sequence[Question],
    params: SamplingParams,
    seeds: Sequence[int],
    *,
    prompt: Callable[[Run, Question], Sample] = prompt_of,
) -> list[list[Completion]]:
    """A group of completions per question from the run's engine, all of them on every rank.

    In process each rank draws for its share of the questions. vLLM draws all, for the first rank.
    """
    if run.parallel.world_size > 1 and run.config.rollout.engine != "native":
        return run.parallel.on_first(
            lambda: run.engine.generate([prompt(run, q) for q in questions], params, seeds)
        )
    prompts = [prompt(run, question) for question in run.parallel.share(questions)]
    with gathered(run.policy):
        groups = run.engine.generate(prompts, params, run.parallel.share(seeds))
    return run.parallel.gather(groups)


def reward_groups(
    run: Run, questions: Sequence[Question], groups: Sequence[Sequence[Completion]]
) -> tuple[RewardBreakdown, Tensor]:
    """Rewards by component, and the completions' lengths in tokens (P, G).

    Each rank judges its share; all ranks get all rewards.
    """
    lengths_PG = lengths_of(groups)
    part = []
    if mine := run.parallel.share(questions):
        texts = [[c.text for c in group] for group in run.parallel.share(groups)]
        own_PG = torch.stack(list(run.parallel.share(list(lengths_PG))))
        part = [compute_rewards(texts, own_PG, mine, run.reward)]
    return concatenate(run.parallel.gather(part)), lengths_PG


def refill_groups(
    run: Run,
    questions: Sequence[Question],
    groups: Sequence[list[Completion]],
    rewards: RewardBreakdown,
) -> tuple[list[list[Completion]], RewardBreakdown, Refill]:
    """Draw groups that would teach nothing again (rollout.refill_rounds), and say what it took.

    The questions stay, so that every order still consumes each of them once, in as many steps. The
    last draw of a group stands. A divergence in the reward is no signal here: nearly every group
    has one.
    """
    groups, refill = list(groups), Refill()
    if not run.config.rollout.refill_rounds:
        return groups, rewards, refill
    refill.metrics["observe/refill_first_reward"] = float(rewards.total_PG.nanmean().nan_to_num())
    drawn = 0
    empty = first = without_signal(run, rewards)
    for attempt in range(1, run.config.rollout.refill_rounds + 1):
        if not empty:
            break
        again = [questions[i] for i in empty]
        drawn += len(again)
        for i, group in zip(empty, sample_groups(run, again, attempt=attempt), strict=True):
            prompt_tokens = prompt_of(run, questions[i]).length * len(group)
            # Of what was sampled, the tokens that no other figure of the step contains.
            refill.tokens += sum(len(c.token_ids) for c in groups[i]) + prompt_tokens
            groups[i] = group
        fresh, _ = reward_groups(run, again, [groups[i] for i in empty])
        rewards = rewards.with_groups(empty, fresh)
        empty = without_signal(run, rewards)
    refill.metrics["observe/refill_groups_drawn"] = float(drawn)
    refill.metrics["observe/refill_groups_gained"] = float(len(first) - len(empty))
    refill.metrics["observe/refill_groups_empty"] = float(len(empty))
    return groups, rewards, refill


def without_signal(run: Run, rewards: RewardBreakdown) -> list[int]:
    """The groups whose advantages are all 0."""
    advantages_PG, _ = weigh(run, rewards)
    return (advantages_PG == 0).all(1).nonzero().flatten().tolist()


def lengths_of(groups: Sequence[Sequence[Completion]]) -> Tensor:
    """The completions' lengths in tokens (P, G)."""
    return torch.tensor([[len(c.token_ids) for c in group] for group in groups])

"""What a training run holds: policy, optimizer, questions in their order, and its counters."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from transformers.utils.logging import disable_progress_bar

from observe.allocator import keep_freed_memory
from observe.checkpoint import latest_checkpoint, load_state, save_checkpoint
from observe.config import DataConfig, Prompt, RewardConfig, TrainConfig
from observe.data.curriculum import Curriculum, ShuffledOrder, make_order
from observe.data.question import Question
from observe.data.rungs import length_quantile, load_ladder, select
from observe.data.sources import (
    Skipped,
    describe_skipped,
    load_usable,
    unreadable,
    write_skipped,
)
from observe.errors import InputError
from observe.model.policy import Policy, load_policy
from observe.model.processor import Processor, Sample
from observe.performance import Clock
from observe.prompts import build_messages
from observe.rollout.engine import Engine
from observe.rollout.factory import make_engine

COUNTERS = ("step", "tokens", "seconds", "bad_steps")
"""What of a Run is a number that a checkpoint holds."""


@dataclass
class Run:
    """What a training run carries from step to step."""

    config: TrainConfig
    policy: Policy
    reference: Policy | None
    """The starting policy, when the loss has a KL term."""
    engine: Engine
    """Draws the completions."""
    optimizer: torch.optim.Optimizer
    curriculum: Curriculum
    questions: dict[str, Question]
    reward: RewardConfig
    """The reward settings, resolved (resolve_rewards)."""
    validation: list[Question]
    skipped: list[Skipped] = field(default_factory=list)
    """Training questions that cannot be used, and whose places others have taken."""
    step: int = 0
    tokens: int = 0
    """Prompt and completion tokens consumed so far."""
    seconds: float = 0.0
    """Seconds spent in steps, over all attempts."""
    bad_steps: int = 0
    """Steps in a row, up to this one, that were left out for a NaN or infinite gradient."""
    samples: dict[str, Sample] = field(default_factory=dict)
    """Processed prompts of the current step by question id; each image is processed once."""
    clock: Clock = field(default_factory=Clock)
    """Where the time of the current step goes."""


def prepare(config: TrainConfig, out: Path, *, model: Path | str, ladder: Path | None) -> Run:
    """Load policy, questions and curriculum, and restore the checkpoint a killed run left."""
    keep_freed_memory()
    # A bar for every checkpoint would drown the lines that tell the progress.
    disable_progress_bar()
    saved = latest_checkpoint(out / "checkpoint")
    policy = load_policy(saved or model)
    if config.model.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        [p for p in policy.model.parameters() if p.requires_grad],
        lr=config.optim.lr,
        betas=(config.optim.beta1, config.optim.beta2),
        weight_decay=config.optim.weight_decay,
    )
    questions, curriculum, skipped = choose_questions(config, ladder, policy.processor)
    refuse_many_skipped(config, skipped, len(questions), out)
    validation: list[Question] = []
    if config.eval_steps:
        validation, _ = load_usable(
            config.data.source,
            split="validation",
            size=config.eval_size,
            problem=partial(unusable, config.data, policy.processor),
        )
    run = Run(
        config=config,
        policy=policy,
        reference=load_policy(model) if config.loss.kl_coefficient else None,
        engine=make_engine(policy, config.rollout),
        optimizer=optimizer,
        curriculum=curriculum,
        questions={question.id: question for question in questions},
        reward=resolve_rewards(config, ladder),
        validation=validation,
        skipped=skipped,
        clock=Clock(policy.model.device),
    )
    if saved:
        state = load_state(saved)
        for name in COUNTERS:
            setattr(run, name, state[name])
        optimizer.load_state_dict(state["optimizer"])
        try:
            curriculum.load_state_dict(state["curriculum"])
        except InputError as error:
            raise InputError(f"{saved}: {error}") from None
    return run


def choose_questions(
    config: TrainConfig, ladder: Path | None, processor: Processor
) -> tuple[list[Question], Curriculum, list[Skipped]]:
    """The questions of the run, their order, and what was skipped in choosing them.

    Every order consumes the same questions once: what cannot be used is left out before the
    selection, so that data.size questions are chosen among the others.
    """
    # Seed 0 whatever the run's seed: replicates differ in order and sampling, not in questions.
    data = config.data
    problem = partial(unusable, data, processor)
    if data.selection == "raw":
        questions, skipped = load_usable(data.source, size=data.size, seed=0, problem=problem)
        return questions, ShuffledOrder([q.id for q in questions], seed=config.seed), skipped
    if ladder is None:
        raise InputError("data.selection: ladder needs the folder of a ladder (--ladder)")
    built = load_ladder(ladder)
    questions, skipped = built.questions(), []
    if data.max_prompt_tokens is not None:  # That the images can be read the ladder has seen.
        skipped = [found for question in questions if (found := problem(question))]
    left_out = {one.question for one in skipped}
    rungs = select([r for r in built.rungs if r.question not in left_out], data.size, seed=0)
    chosen = {rung.question for rung in rungs}
    questions = [question for question in questions if question.id in chosen]
    return questions, make_order(data.order, rungs, seed=config.seed), skipped


def unusable(data: DataConfig, processor: Processor, question: Question) -> Skipped | None:
    """Why a question cannot be trained on: its images, or a prompt longer than the bound.

    Measured under the longest of the system prompts: arms that differ in it skip the same.
    """
    if data.max_prompt_tokens is None:
        return unreadable(question)
    try:
        images = question.open_images()
    except InputError as error:
        return Skipped(question=question.id, reason="image", detail=str(error))
    length = max(
        processor.prompt_length(
            build_messages(prompt, question.text, question.options, len(images)), images
        )
        for prompt in get_args(Prompt)
    )
    if length <= data.max_prompt_tokens:
        return None
    detail = f"{length} tokens, data.max_prompt_tokens is {data.max_prompt_tokens}"
    return Skipped(question=question.id, reason="too_long", detail=detail)


def refuse_many_skipped(
    config: TrainConfig, skipped: Sequence[Skipped], chosen: int, out: Path
) -> None:
    """Write what was skipped to skipped.jsonl; InputError when it is too much."""
    if not skipped:
        return
    write_skipped(skipped, out / "skipped.jsonl")
    share = len(skipped) / (len(skipped) + chosen)
    if share > config.data.max_skipped_share:
        raise InputError(
            f"{config.data.source}: {share:.1%} of the questions cannot be used, "
            f"data.max_skipped_share is {config.data.max_skipped_share:.1%}: "
            f"{describe_skipped(skipped)}. All are in {out / 'skipped.jsonl'}"
        )


def resolve_rewards(config: TrainConfig, ladder: Path | None) -> RewardConfig:
    """The reward settings with the lengths in them that other settings and the base decide.

    The punishment of length is whole at rollout.max_new_tokens unless told otherwise; the bonus's
    min_length is taken from the base's own lengths where that is asked for.
    """
    overlong, bonus = config.reward.overlong, config.reward.bonus
    if overlong.weight and overlong.max_length is None:
        overlong = dataclasses.replace(overlong, max_length=config.rollout.max_new_tokens)
    reward = dataclasses.replace(config.reward, overlong=overlong)
    if bonus.weight == 0 or bonus.min_length is not None or bonus.min_length_quantile is None:
        return reward
    if ladder is None:
        raise InputError("reward.bonus.min_length_quantile needs the folder of a ladder (--ladder)")
    length = length_quantile(load_ladder(ladder).summary, config.prompt, bonus.min_length_quantile)
    resolved = dataclasses.replace(bonus, min_length=round(length), min_length_quantile=None)
    return dataclasses.replace(reward, bonus=resolved)


def prompt_of(run: Run, question: Question) -> Sample:
    """The processed prompt of a question, kept until the end of the step."""
    if question.id not in run.samples:
        run.samples[question.id] = process(run, question)
    return run.samples[question.id]


def process(run: Run, question: Question) -> Sample:
    """The prompt of a question as the policy reads it."""
    images = question.open_images()
    messages = build_messages(run.config.prompt, question.text, question.options, len(images))
    return run.policy.processor.sample(messages, images)


def checkpoint(run: Run, out: Path) -> None:
    """Save everything a killed run needs to go on from this step."""
    state = {
        **{name: getattr(run, name) for name in COUNTERS},
        "optimizer": run.optimizer.state_dict(),
        "curriculum": run.curriculum.state_dict(),
    }
    save_checkpoint(out / "checkpoint", run.policy, state, keep=run.config.checkpoint_keep)


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

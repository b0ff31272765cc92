"""What a training run holds: policy, optimizer, questions in their order, and its counters."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from observe.allocator import keep_freed_memory
from observe.checkpoint import latest_checkpoint, load_state, save_checkpoint
from observe.config import RewardConfig, TrainConfig
from observe.data.curriculum import Curriculum, ShuffledOrder, make_order
from observe.data.question import Question
from observe.data.rungs import length_quantile, load_ladder, select
from observe.data.sources import load_questions
from observe.errors import InputError
from observe.model.policy import Policy, load_policy
from observe.model.processor import Sample
from observe.prompts import build_messages


@dataclass
class Run:
    """What a training run carries from step to step."""

    config: TrainConfig
    policy: Policy
    reference: Policy | None
    """The starting policy, when the loss has a KL term."""
    optimizer: torch.optim.Optimizer
    curriculum: Curriculum
    questions: dict[str, Question]
    reward: RewardConfig
    """The reward settings with the bonus's min_length resolved."""
    validation: list[Question]
    step: int = 0
    tokens: int = 0
    """Prompt and completion tokens consumed so far."""
    seconds: float = 0.0
    """Seconds spent in steps, over all attempts."""
    samples: dict[str, Sample] = field(default_factory=dict)
    """Processed prompts of the current step by question id; each image is processed once."""


def prepare(config: TrainConfig, out: Path, *, model: Path | str, ladder: Path | None) -> Run:
    """Load policy, questions and curriculum, and restore the checkpoint a killed run left."""
    keep_freed_memory()
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
    questions, curriculum = choose_questions(config, ladder)
    validation = []
    if config.eval_steps:
        validation = load_questions(
            config.data.source, split="validation", size=config.eval_size, seed=0
        )
    run = Run(
        config=config,
        policy=policy,
        reference=load_policy(model) if config.loss.kl_coefficient else None,
        optimizer=optimizer,
        curriculum=curriculum,
        questions={question.id: question for question in questions},
        reward=resolve_bonus(config, ladder),
        validation=validation,
    )
    if saved:
        state = load_state(saved)
        run.step, run.tokens, run.seconds = state["step"], state["tokens"], state["seconds"]
        optimizer.load_state_dict(state["optimizer"])
        try:
            curriculum.load_state_dict(state["curriculum"])
        except InputError as error:
            raise InputError(f"{saved}: {error}") from None
    return run


def choose_questions(config: TrainConfig, ladder: Path | None) -> tuple[list[Question], Curriculum]:
    """The questions of the run and their order; every order consumes the same ones once."""
    # Seed 0 whatever the run's seed: replicates differ in order and sampling, not in questions.
    data = config.data
    if data.selection == "raw":
        questions = load_questions(data.source, split="train", size=data.size, seed=0)
        return questions, ShuffledOrder([q.id for q in questions], seed=config.seed)
    if ladder is None:
        raise InputError("data.selection: ladder needs the folder of a ladder (--ladder)")
    built = load_ladder(ladder)
    rungs = select(built.rungs, data.size, seed=0)
    chosen = {rung.question for rung in rungs}
    questions = [question for question in built.questions() if question.id in chosen]
    return questions, make_order(data.order, rungs, seed=config.seed)


def resolve_bonus(config: TrainConfig, ladder: Path | None) -> RewardConfig:
    """The reward settings, min_length taken from the base's own lengths where it is asked for."""
    bonus = config.reward.bonus
    if bonus.weight == 0 or bonus.min_length is not None or bonus.min_length_quantile is None:
        return config.reward
    if ladder is None:
        raise InputError("reward.bonus.min_length_quantile needs the folder of a ladder (--ladder)")
    length = length_quantile(load_ladder(ladder).summary, config.prompt, bonus.min_length_quantile)
    resolved = dataclasses.replace(bonus, min_length=round(length), min_length_quantile=None)
    return dataclasses.replace(config.reward, bonus=resolved)


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
        "step": run.step,
        "tokens": run.tokens,
        "seconds": run.seconds,
        "optimizer": run.optimizer.state_dict(),
        "curriculum": run.curriculum.state_dict(),
    }
    save_checkpoint(out / "checkpoint", run.policy, state)


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

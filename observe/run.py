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
from observe.distributed import Parallel, start
from observe.errors import InputError
from observe.model.policy import Policy, load_policy
from observe.model.processor import Processor, Sample
from observe.model.trainable import trainable_policy
from observe.performance import Clock
from observe.prefetch import Prompts
from observe.prompts import build_messages
from observe.rollout.engine import Engine
from observe.rollout.factory import make_engine
from observe.rollout.native import NativeEngine
from observe.sharding import (
    OPTIMIZER_FOLDER,
    copy_for_server,
    load_optimizer,
    renew,
    save_optimizer,
    shard,
    snapshot,
    spread_optimizer,
)

COUNTERS = ("step", "tokens", "seconds", "bad_steps")
"""What of a Run is a number that a checkpoint holds."""


@dataclass
class Run:
    """What a training run carries from step to step."""

    config: TrainConfig
    parallel: Parallel
    """This process among those of the run."""
    policy: Policy
    reference: Policy | None
    """The starting policy, when the loss has a KL term; the policy itself when it is trained by an
    adapter, which its `untrained` switches off."""
    engine: Engine
    """Draws the completions."""
    optimizer: torch.optim.Optimizer
    curriculum: Curriculum
    questions: dict[str, Question]
    reward: RewardConfig
    """The reward settings, resolved (resolve_rewards)."""
    prompts: Prompts
    """Processed prompts of this step and the next; each image is processed once."""
    validation: list[Question]
    copy: Policy | None = None
    """What a rollout server's weights are read from where the policy's are spread; first rank."""
    skipped: list[Skipped] = field(default_factory=list)
    """Training questions that cannot be used, and whose places others have taken."""
    step: int = 0
    tokens: int = 0
    """Prompt and completion tokens consumed so far."""
    seconds: float = 0.0
    """Seconds spent in steps, over all attempts."""
    bad_steps: int = 0
    """Steps in a row, up to this one, that were left out for a NaN or infinite gradient."""
    clock: Clock = field(default_factory=Clock)
    """Where the time of the current step goes."""


def prepare(config: TrainConfig, out: Path, *, model: Path | str, ladder: Path | None) -> Run:
    """Load policy, questions and curriculum, and restore the checkpoint a killed run left."""
    keep_freed_memory()
    # A bar for every checkpoint would drown the lines that tell the progress.
    disable_progress_bar()
    parallel = start(config.parallel, prompts_per_step=config.prompts_per_step)
    saved = parallel.on_first(lambda: latest_checkpoint(out / "checkpoint"))
    sharded = config.parallel.strategy == "fsdp2" and parallel.world_size > 1
    if parallel.world_size > 1 and config.rollout.engine == "vllm":
        raise InputError(
            "rollout.engine: vllm samples in a trainer of one process; with several, use "
            "rollout.engine: server"
        )
    policy = trainable_policy(
        config.model,
        model,
        saved,
        seed=config.seed,
        device=parallel.device,
        sharded=sharded,
    )
    reference = reference_policy(config, policy, model)
    if sharded:
        dtype = getattr(torch, config.model.dtype)
        policy = shard(policy, parallel, dtype=dtype)
        if reference:
            reference = policy if reference.lora else shard(reference, parallel, dtype=dtype)
    optimizer = torch.optim.AdamW(
        policy.trained(),
        lr=config.optim.lr,
        betas=(config.optim.beta1, config.optim.beta2),
        weight_decay=config.optim.weight_decay,
        # On a GPU torch would make temporaries as large as all trained weights together.
        foreach=None if sharded else False,
    )
    # One rank looks for what cannot be used, and all train on what it found.
    questions, curriculum, skipped, validation = parallel.on_first(
        lambda: look_for_questions(config, ladder, policy.processor, out)
    )
    copy = None
    if sharded and config.rollout.engine == "server":
        copy = copy_for_server(policy, parallel, dtype=getattr(torch, config.model.dtype))
    # vLLM samples for all ranks, at the first one's bidding.
    engine: Engine = NativeEngine(policy)
    if parallel.is_first:
        engine = make_engine(copy or policy, config.rollout)
    run = Run(
        config=config,
        parallel=parallel,
        policy=policy,
        reference=reference,
        engine=engine,
        copy=copy,
        optimizer=optimizer,
        curriculum=curriculum,
        questions={question.id: question for question in questions},
        reward=resolve_rewards(config, ladder),
        prompts=Prompts(
            partial(as_prompt, config, policy.processor), threads=config.prefetch_threads
        ),
        validation=validation,
        skipped=skipped,
        clock=Clock(policy.model.device),
    )
    if saved:
        state = load_state(saved)
        for name in COUNTERS:
            setattr(run, name, state[name])
        if "optimizer" not in state:
            load_optimizer(saved / OPTIMIZER_FOLDER, policy, optimizer, parallel)
        elif sharded:
            spread_optimizer(policy, optimizer, state["optimizer"])
        else:
            optimizer.load_state_dict(state["optimizer"])
        try:
            curriculum.load_state_dict(state["curriculum"])
        except InputError as error:
            raise InputError(f"{saved}: {error}") from None
    return run


def look_for_questions(
    config: TrainConfig, ladder: Path | None, processor: Processor, out: Path
) -> tuple[list[Question], Curriculum, list[Skipped], list[Question]]:
    """Questions, their order, what was skipped (written to skipped.jsonl), validation questions."""
    questions, curriculum, skipped = choose_questions(config, ladder, processor)
    refuse_many_skipped(config, skipped, len(questions), out)
    validation: list[Question] = []
    if config.eval_steps:
        validation, _ = load_usable(
            config.data.source,
            split="validation",
            size=config.eval_size,
            problem=partial(unusable, config.data, processor),
        )
    return questions, curriculum, skipped, validation


def reference_policy(config: TrainConfig, policy: Policy, model: Path | str) -> Policy | None:
    """The policy that a KL term compares with, if there is one."""
    if not config.loss.kl_coefficient:
        return None
    if policy.lora:
        return policy
    reference = load_policy(model, dtype=getattr(torch, config.model.dtype))
    reference.model.to(policy.model.device)
    return reference


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
    questions, skipped = built.questions(data.source), []
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
    return run.prompts.get(question)


def process(run: Run, question: Question) -> Sample:
    """The prompt of a question as the policy reads it."""
    return as_prompt(run.config, run.policy.processor, question)


def as_prompt(config: TrainConfig, processor: Processor, question: Question) -> Sample:
    """A question under the system prompt of the config, its images opened."""
    images = question.open_images()
    messages = build_messages(config.prompt, question.text, question.options, len(images))
    return processor.sample(messages, images)


def checkpoint(run: Run, out: Path) -> None:
    """Save everything a killed run needs to go on from this step; every rank must call this."""
    state = {
        **{name: getattr(run, name) for name in COUNTERS},
        "curriculum": run.curriculum.state_dict(),
    }
    folders = {}
    if run.policy.root is None:
        state["optimizer"] = run.optimizer.state_dict()
    else:
        folders[OPTIMIZER_FOLDER] = out / "checkpoint.shards"
        save_optimizer(folders[OPTIMIZER_FOLDER], run.policy, run.optimizer, run.parallel)
    policy, keep = snapshot(run.policy, run.parallel), run.config.checkpoint_keep
    run.parallel.on_first(
        lambda: save_checkpoint(out / "checkpoint", policy, state, keep=keep, folders=folders)
    )


def sync_engine(run: Run) -> None:
    """Have the engine sample from the policy as it is now; every rank must call this."""
    if run.policy.root is not None and run.config.rollout.engine == "server":
        renew(run.copy, run.policy, run.parallel)
    run.engine.sync()


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

"""GRPO with the parts of Observe-R1, each switchable alone: ``python -m observe.train``.

One step: take the next questions, sample a group of completions for each, reward them, turn the
rewards of a group into advantages, take one gradient step. Everything random is drawn from
(seed, step, question, sample), so a resumed run repeats what an undisturbed one does.
"""

import dataclasses
import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import Tensor

from observe import grpo
from observe.checkpoint import latest_checkpoint, load_state, save_checkpoint
from observe.config import (
    EMBEDDED,
    RewardConfig,
    TrainConfig,
    from_mapping,
    load_yaml,
    to_mapping,
    with_overrides,
)
from observe.data.curriculum import Curriculum, ShuffledOrder, make_order
from observe.data.question import Question
from observe.data.rungs import length_quantile, load_ladder, select
from observe.data.sources import load_questions
from observe.errors import InputError
from observe.metrics import JsonLines, completion_row, rollout_metrics, weight_metrics
from observe.model.logprobs import completion_logprobs
from observe.model.policy import Policy, load_policy
from observe.model.processor import Sample
from observe.prompts import build_messages
from observe.rewards import RewardBreakdown, compute_rewards, shuffle_within_groups
from observe.rollout.engine import Completion, SamplingParams
from observe.rollout.native import NativeEngine

Progress = Callable[[int, int, str], None]


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


def train(
    config: TrainConfig,
    out: Path,
    *,
    model: Path | str,
    ladder: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Train a policy and leave it in ``out/checkpoint``; goes on from a checkpoint there.

    ``model`` is the policy to start from, ``ladder`` the folder of the ladder that selects and
    orders the questions. Writes metrics.jsonl and completions.jsonl. Returns the run's summary:
    steps, tokens, seconds, rewards of the last steps, and how often each mechanism acted.
    """
    run = prepare(config, out, model=model, ladder=ladder)
    metrics = JsonLines(out / "metrics.jsonl", resume_at=run.step)
    completions = JsonLines(out / "completions.jsonl", resume_at=run.step)
    total_steps = config.data.size // config.prompts_per_step
    if run.step == 0 and 0 in config.eval_steps and not metrics.rows():
        metrics.append({"step": 0, "samples": 0, "num_tokens": 0, **evaluate(run)})
    while run.step < total_steps:
        started = time.perf_counter()
        run.step += 1
        questions = [run.questions[i] for i in run.curriculum.next_batch(config.prompts_per_step)]
        groups = sample_groups(run, questions)
        sampled = time.perf_counter()
        rewards, lengths_PG = reward_groups(run, questions, groups)
        advantages_PG, weights_P = weigh(run, rewards)
        rewarded = time.perf_counter()
        update = update_policy(run, questions, groups, advantages_PG)
        updated = time.perf_counter()

        truncated_PG = torch.tensor([[c.truncated for c in group] for group in groups])
        prompt_tokens = sum(prompt_of(run, q).length for q in questions)
        step_tokens = int(lengths_PG.sum()) + prompt_tokens * config.rollout.group_size
        run.tokens += step_tokens
        row = {
            "step": run.step,
            "samples": run.step * config.prompts_per_step,
            "num_tokens": run.tokens,
            **rollout_metrics(rewards, lengths_PG, truncated_PG, advantages_PG),
            **weight_metrics(weights_P),
            **run.curriculum.metrics(),
            **update,
            "timing_s/gen": sampled - started,
            "timing_s/reward": rewarded - sampled,
            "timing_s/update": updated - rewarded,
            "timing_s/step": updated - started,
            "perf/throughput": step_tokens / (updated - started),
        }
        if run.step in config.eval_steps:
            row.update(evaluate(run))
        metrics.append(row)
        if run.step % config.log_completions_every == 0 or run.step == 1:
            completions.append(completion_row(run.step, questions[0], groups[0], rewards, 0))
        run.samples.clear()
        run.seconds += time.perf_counter() - started
        if run.step % config.checkpoint_every == 0 or run.step == total_steps:
            checkpoint(run, out)
        progress(
            run.step,
            total_steps,
            f"reward {row['reward']:.3f}  length {row['completions/mean_length']:.1f}",
        )
    return summarise(run, metrics.rows())


def prepare(config: TrainConfig, out: Path, *, model: Path | str, ladder: Path | None) -> Run:
    """Load policy, questions and curriculum, and restore the checkpoint a killed run left."""
    saved = latest_checkpoint(out / "checkpoint")
    policy = load_policy(saved or model)
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


def sample_groups(run: Run, questions: Sequence[Question]) -> list[list[Completion]]:
    """A group of completions per question, each from its own random numbers."""
    rollout = run.config.rollout
    params = SamplingParams(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        n=rollout.group_size,
    )
    seeds = [stable_seed(run.config.seed, run.step, question.id) for question in questions]
    engine = NativeEngine(run.policy)
    return engine.generate([prompt_of(run, q) for q in questions], params, seeds)


def reward_groups(
    run: Run, questions: Sequence[Question], groups: Sequence[Sequence[Completion]]
) -> tuple[RewardBreakdown, Tensor]:
    """Rewards by component, and the completions' lengths in tokens (P, G)."""
    lengths_PG = torch.tensor([[len(c.token_ids) for c in group] for group in groups])
    texts = [[c.text for c in group] for group in groups]
    return compute_rewards(texts, lengths_PG, questions, run.reward), lengths_PG


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
    # Groups of like length share a forward pass, so that little is padded.
    kept.sort(key=lambda i: max(len(c.token_ids) for c in groups[i]))
    num_tokens = sum(len(c.token_ids) for group in groups for c in group)
    normalizer = advantages_PG.numel() if loss_config.aggregation == "sequence" else num_tokens
    per_batch = max(1, config.micro_batch // config.rollout.group_size)
    totals = {"loss": 0.0, "entropy": 0.0, "kl": 0.0, "clipped": 0.0, "tokens": 0.0}
    run.policy.model.train()
    for start in range(0, len(kept), per_batch):
        chunk = kept[start : start + per_batch]
        samples = [prompt_of(run, questions[i]) for i in chunk]
        token_ids = [[c.token_ids for c in groups[i]] for i in chunk]
        logprobs_NT, entropy_NT, mask_NT = completion_logprobs(
            run.policy, samples, token_ids, temperature=config.rollout.temperature
        )
        result = grpo.policy_loss(
            logprobs_NT,
            logprobs_NT.detach(),
            advantages_PG[chunk].flatten(),
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
    if run.reference:
        metrics["kl"] = totals["kl"] / trained_tokens
    return metrics


def set_lr(run: Run) -> None:
    """Linear warm-up, then constant."""
    warmup = run.config.optim.warmup_steps
    for group in run.optimizer.param_groups:
        group["lr"] = run.config.optim.lr * min(1.0, run.step / warmup if warmup else 1.0)


def prompt_of(run: Run, question: Question) -> Sample:
    """The processed prompt of a question, kept until the end of the step."""
    if question.id not in run.samples:
        run.samples[question.id] = _process(run, question)
    return run.samples[question.id]


def _process(run: Run, question: Question) -> Sample:
    images = question.open_images()
    messages = build_messages(run.config.prompt, question.text, question.options, len(images))
    return run.policy.processor.sample(messages, images)


def evaluate(run: Run) -> dict[str, float]:
    """Greedy accuracy, valid form and length on the fixed validation questions."""
    params = SamplingParams(max_new_tokens=run.config.rollout.max_new_tokens, temperature=0.0)
    prompts = [_process(run, question) for question in run.validation]
    groups = NativeEngine(run.policy).generate(prompts, params, [0] * len(prompts))
    rewards, lengths_PG = reward_groups(run, run.validation, groups)
    return {
        "eval/accuracy": float(rewards.correct_PG.nanmean()),
        "eval/format": float(rewards.format_ok_PG.float().mean()),
        "eval/completion_length": float(lengths_PG.float().mean()),
    }


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


def summarise(run: Run, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the run came to, and how often each mechanism of Observe-R1 acted.

    A mechanism that is switched on and never acted cannot have made a difference.
    """
    steps = [row for row in rows if row["step"] > 0]

    def mean(key: str, part: Sequence[dict[str, Any]] = steps) -> float | None:
        values = [row[key] for row in part if key in row]
        return statistics.fmean(values) if values else None

    quarter = max(1, len(steps) // 4)
    first = mean("observe/difficulty", steps[:quarter])
    last = mean("observe/difficulty", steps[-quarter:])
    climbed = first is not None and last is not None and last - first > 0.05
    failures = mean("observe/format_failure_share") or 0.0
    bonus, active = mean("observe/bonus_share") or 0.0, mean("observe/weight_active_share") or 0.0
    return {
        "steps": run.step,
        "samples": run.step * run.config.prompts_per_step,
        "tokens": run.tokens,
        "seconds": run.seconds,
        "final_reward": mean("reward", steps[-quarter:]),
        "final_length": mean("completions/mean_length", steps[-quarter:]),
        "bonus_min_length": run.reward.bonus.min_length,
        "mechanisms": {
            "curriculum": {"difficulty_first": first, "difficulty_last": last, "acted": climbed},
            "format": {"failure_share": failures, "acted": 0 < failures < 1},
            "bonus": {"share": bonus, "acted": bonus > 0},
            "dynamic_weights": {"active_share": active, "acted": active > 0},
        },
    }


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stage(
    config: dict[str, Any], out: Path, inputs: dict[str, Path], progress: Progress
) -> dict[str, Any]:
    """The harness's stage ``train``; consumes ``model`` and ``ladder`` where it needs them."""
    settings = from_mapping(TrainConfig, config, source="train stage")
    model: Path | str = settings.model.path
    if "model" in inputs:
        model = inputs["model"] / "checkpoint"
    return train(settings, out, model=model, ladder=inputs.get("ladder"), progress=progress)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (2 for bad input)."""
    from jsonargparse import ArgumentParser

    from observe.cli import exit_code, print_progress

    parser = ArgumentParser(
        prog="python -m observe.train",
        description="Train one policy. A stopped run goes on when the command is given again.",
        print_config=None,
    )
    # The file is read by this package's own rules (YAML 1.2, strict), which name it in errors.
    parser.add_argument(
        "--config", type=Path | None, help="YAML file of settings; options beside it win."
    )
    parser.add_argument(
        "--print_config", action="store_true", help="Print all settings as YAML and exit."
    )
    parser.add_argument("--out", type=Path | None, help="Folder for checkpoint/ and the logs.")
    parser.add_argument(
        "--base", type=Path | None, help="Folder that observe.base wrote (model.path glyphs)."
    )
    parser.add_argument("--ladder", type=Path | None, help="Folder that observe.ladder wrote.")
    parser.add_class_arguments(TrainConfig)
    given = parser.parse_args(arguments, defaults=False).as_dict()
    file, out, base, ladder = (
        given.pop(name, None) for name in ("config", "out", "base", "ladder")
    )
    print_config = given.pop("print_config", False)

    def command() -> None:
        mapping = load_yaml(file) if file else {}
        if isinstance(mapping, dict):
            mapping = with_overrides(mapping, dict(_dotted(given)))
        config = from_mapping(TrainConfig, mapping, source=str(file or "options"))
        if print_config:
            yaml = YAML(typ="safe", pure=True)
            yaml.default_flow_style = False
            yaml.dump(to_mapping(config), sys.stdout)
            return
        if out is None:
            raise InputError("--out: missing; it names the folder for checkpoint/ and the logs")
        if config.model.path == EMBEDDED and base is None:
            raise InputError("--base: model.path glyphs needs the folder that observe.base wrote")
        if file and config.data.source != EMBEDDED:
            source = {"data.source": str(file.parent / config.data.source)}
            config = from_mapping(
                TrainConfig, with_overrides(to_mapping(config), source), source=str(file)
            )
        out.mkdir(parents=True, exist_ok=True)
        model = base / "checkpoint" if base else config.model.path
        result = train(config, out, model=model, ladder=ladder, progress=print_progress)
        print(f"{out / 'checkpoint'}: {result['steps']} steps, reward {result['final_reward']:.3f}")

    return exit_code(command)


def _dotted(mapping: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"reward": {"bonus": {"weight": 0.2}}}`` -> ``("reward.bonus.weight", 0.2)``."""
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


if __name__ == "__main__":
    raise SystemExit(main())

"""GRPO with the parts of Observe-R1, each switchable alone: ``python -m observe.train``.

One step: take the next questions, sample a group of completions for each, reward them, turn the
rewards of a group into advantages, take one gradient step. Everything random is drawn from
(seed, step, question, sample), so a resumed run repeats what an undisturbed one does.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import Tensor

from observe.config import EMBEDDED, TrainConfig
from observe.data.question import Question
from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml, to_mapping, with_overrides
from observe.metrics import JsonLines, completion_row, rollout_metrics, weight_metrics
from observe.rewards import RewardBreakdown, compute_rewards
from observe.rollout.engine import Completion, SamplingParams
from observe.run import Run, checkpoint, prepare, process, prompt_of, stable_seed
from observe.update import update_policy, weigh

Progress = Callable[[int, int, str], None]


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
        run.engine.sync()
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
    return run.engine.generate([prompt_of(run, q) for q in questions], params, seeds)


def reward_groups(
    run: Run, questions: Sequence[Question], groups: Sequence[Sequence[Completion]]
) -> tuple[RewardBreakdown, Tensor]:
    """Rewards by component, and the completions' lengths in tokens (P, G)."""
    lengths_PG = torch.tensor([[len(c.token_ids) for c in group] for group in groups])
    texts = [[c.text for c in group] for group in groups]
    return compute_rewards(texts, lengths_PG, questions, run.reward), lengths_PG


def evaluate(run: Run) -> dict[str, float]:
    """Greedy accuracy, valid form and length on the fixed validation questions."""
    params = SamplingParams(max_new_tokens=run.config.rollout.max_new_tokens, temperature=0.0)
    prompts = [process(run, question) for question in run.validation]
    groups = run.engine.generate(prompts, params, [0] * len(prompts))
    rewards, lengths_PG = reward_groups(run, run.validation, groups)
    return {
        "eval/accuracy": float(rewards.correct_PG.nanmean()),
        "eval/format": float(rewards.format_ok_PG.float().mean()),
        "eval/completion_length": float(lengths_PG.float().mean()),
    }


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

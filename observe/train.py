"""GRPO with the parts of Observe-R1, each switchable alone: ``python -m observe.train``.

One step: take the next questions, sample a group of completions for each, reward them, turn the
rewards of a group into advantages, take one gradient step. Everything random is drawn from
(seed, step, question, sample), so a resumed run repeats what an undisturbed one does.
"""

import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.tensor import DTensor

from observe.config import EMBEDDED, TrainConfig, late_evaluations
from observe.data.question import Question
from observe.errors import InputError, TrainingFailed
from observe.groups import Refill, draw, lengths_of, refill_groups, reward_groups, sample_groups
from observe.logbook import Logbook, progress_message
from observe.mapping import from_mapping, load_yaml, to_mapping, with_overrides
from observe.memory import memory_needed
from observe.metrics import completion_row, kl_metrics, rollout_metrics, weight_metrics
from observe.performance import mean_performance, performance_metrics
from observe.rewards import RewardBreakdown
from observe.rollout.engine import Completion, SamplingParams
from observe.run import Run, checkpoint, prepare, process, prompt_of, sync_engine
from observe.update import divergence, update_policy, weigh

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
    orders the questions. Writes metrics.jsonl, completions.jsonl and warnings.jsonl. Returns the
    run's summary: steps, tokens, seconds, rewards of the last steps, how often each mechanism
    acted, and what was found to be wrong. Raises TrainingFailed when it cannot go on.
    """
    run = prepare(config, out, model=model, ladder=ladder)
    total_steps = config.data.size // config.prompts_per_step
    if run.parallel.is_first:
        print(memory_needed(run), flush=True)
        if late := late_evaluations(config.eval_steps, total_steps):
            print(f"WARNING: {late}", flush=True)
    log = Logbook(config, out if run.parallel.is_first else None, resume_at=run.step)
    # A process that has failed or been stopped here may train again.
    with closing(log), closing(run.prompts):
        fresh = run.parallel.on_first(lambda: run.step == 0 and not log.rows())
        if fresh and 0 in config.eval_steps:
            log.log({"step": 0, "samples": 0, "num_tokens": 0, **evaluate(run)})
        while run.step < total_steps:
            run.step += 1
            run.clock.start()
            questions = take_questions(run)
            groups = sample_groups(run, questions)
            run.clock.lap("gen")
            rewards, _ = reward_groups(run, questions, groups)
            run.clock.lap("reward")
            groups, rewards, refill = refill_groups(run, questions, groups, rewards)
            run.clock.lap("refill")
            kl_PG = divergence(run, questions, groups)
            advantages_PG, weights_P = weigh(run, rewards, kl_PG)
            update = update_policy(run, questions, groups, advantages_PG)
            sync_engine(run)
            run.clock.lap("sync")

            row = {
                **describe_step(run, questions, groups, rewards, advantages_PG, weights_P, refill),
                **kl_metrics(kl_PG, lengths_of(groups)),
                **update,
            }
            if run.step in config.eval_steps:
                row.update(evaluate(run))
                run.clock.lap("evaluate")
            row.update(run.clock.metrics())
            log.log(row)
            if run.step % config.log_completions_every == 0 or run.step == 1:
                log.log_completions(completion_row(run.step, questions[0], groups[0], rewards, 0))
            stop_if_hopeless(run, out)
            run.seconds += run.clock.total
            if run.step % config.checkpoint_every == 0 or run.step == total_steps:
                log.sync()
                checkpoint(run, out)
            if run.parallel.is_first:
                progress(run.step, total_steps, progress_message(row))
    summary = run.parallel.on_first(lambda: summarise(run, log))
    run.parallel.stop()
    return summary


def take_questions(run: Run) -> list[Question]:
    """The questions of the step; those of the next one are begun to be processed."""
    number = run.config.prompts_per_step
    questions, coming = (
        [run.questions[i] for i in ids]
        for ids in (run.curriculum.next_batch(number), run.curriculum.upcoming(number))
    )
    run.prompts.expect([*run.parallel.share(questions), *run.parallel.share(coming)])
    return questions


def describe_step(
    run: Run,
    questions: Sequence[Question],
    groups: Sequence[Sequence[Completion]],
    rewards: RewardBreakdown,
    advantages_PG: Tensor,
    weights_P: Tensor,
    refill: Refill,
) -> dict[str, Any]:
    """The metrics of a step's rollout and of what it cost; counts its tokens into the run."""
    own = run.parallel.share(range(len(questions)))
    samples = [prompt_of(run, questions[i]) for i in own]
    lengths_PG = lengths_of(groups)
    truncated_PG = torch.tensor([[c.truncated for c in group] for group in groups])
    prompt_tokens = round(run.parallel.total([sum(sample.length for sample in samples)])[0])
    step_tokens = int(lengths_PG.sum()) + prompt_tokens * run.config.rollout.group_size
    step_tokens += refill.tokens
    run.tokens += step_tokens
    trained_P = advantages_PG.ne(0).any(1) | (run.reference is not None)
    performance = performance_metrics(
        run.policy,
        samples,
        [int(lengths_PG[i].sum()) for i in own],
        [bool(trained_P[i]) for i in own],
        run.clock.total,
        dtype=getattr(torch, run.config.model.dtype),
    )
    return {
        "step": run.step,
        "samples": run.step * run.config.prompts_per_step,
        "num_tokens": run.tokens,
        **rollout_metrics(rewards, lengths_PG, truncated_PG, advantages_PG),
        **weight_metrics(weights_P, rewards.correct_PG),
        **run.curriculum.metrics(),
        **refill.metrics,
        "perf/throughput": step_tokens / run.clock.total,
        **mean_performance(run.parallel.gather([performance])),
    }


def stop_if_hopeless(run: Run, out: Path) -> None:
    """Raise TrainingFailed when no step that follows can be of use.

    That is after too many steps in a row without a finite gradient, and when the weights have left
    the range of numbers. The step is not saved: the checkpoint before it stays.
    """
    bound = run.config.optim.max_bad_steps
    remedy = "Lower optim.lr, look at the rewards in metrics.jsonl, and train anew"
    if run.bad_steps > bound:
        raise TrainingFailed(
            f"{out}: step {run.step}: loss or gradient was NaN or infinite in {run.bad_steps} "
            f"steps in a row, more than optim.max_bad_steps ({bound}) allows; they were left out, "
            f"and the policy is that of step {run.step - run.bad_steps}. {remedy}"
        )
    weights = [p.to_local() if isinstance(p, DTensor) else p for p in run.policy.trained()]
    if run.parallel.most(not all(bool(weight.isfinite().all()) for weight in weights)):
        raise TrainingFailed(
            f"{out}: step {run.step}: it made weights infinite or NaN; the checkpoint before it is "
            f"kept. {remedy}"
        )


def evaluate(run: Run) -> dict[str, float]:
    """Greedy accuracy, valid form and length on the fixed validation questions."""
    params = SamplingParams(max_new_tokens=run.config.rollout.max_new_tokens, temperature=0.0)
    groups = draw(run, run.validation, params, [0] * len(run.validation), prompt=process)
    rewards, lengths_PG = reward_groups(run, run.validation, groups)
    return {
        "eval/accuracy": float(rewards.correct_PG.nanmean()),
        "eval/format": float(rewards.format_ok_PG.float().mean()),
        "eval/completion_length": float(lengths_PG.float().mean()),
    }


def summarise(run: Run, log: Logbook) -> dict[str, Any]:
    """What the run came to, and how often each mechanism of Observe-R1 acted.

    A mechanism that is switched on and never acted cannot have made a difference.
    """
    steps = [row for row in log.rows() if row["step"] > 0]

    def mean(key: str, part: Sequence[dict[str, Any]] = steps) -> float | None:
        values = [row[key] for row in part if row.get(key) is not None]
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
        "skipped_questions": len(run.skipped),
        "bad_steps": sum(row["observe/bad_step"] for row in steps),
        "warnings": [dataclasses.asdict(notice) for notice in log.notices],
    }


def stage(
    config: dict[str, Any], out: Path, inputs: dict[str, Path], progress: Progress
) -> dict[str, Any]:
    """The harness's stage ``train``; consumes ``model`` and ``ladder`` where it needs them."""
    settings = from_mapping(TrainConfig, config, source="train stage")
    model: Path | str = settings.model.path
    if "model" in inputs:
        model = inputs["model"] / "checkpoint"
    ladder = inputs.get("ladder")
    if ladder is None and settings.data.ladder.path is not None:
        ladder = Path(settings.data.ladder.path)
    return train(settings, out, model=model, ladder=ladder, progress=progress)


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
    parser.add_argument(
        "--ladder",
        type=Path | None,
        help="Folder that observe.ladder wrote; by default data.ladder.path.",
    )
    parser.add_class_arguments(TrainConfig)
    given = parser.parse_args(arguments, defaults=False).as_dict()
    file, out, base, ladder = (
        given.pop(name, None) for name in ("config", "out", "base", "ladder")
    )
    print_config = given.pop("print_config", False)
    options = dict(_dotted(given))

    def command() -> None:
        mapping = load_yaml(file) if file else {}
        if isinstance(mapping, dict):
            mapping = with_overrides(mapping, options)
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
        if file:
            # What the file names lies beside it; what an option names, where the command is given.
            named = {"data.source": config.data.source, "data.ladder.path": config.data.ladder.path}
            beside = {
                key: str(file.parent / path)
                for key, path in named.items()
                if path not in (None, EMBEDDED) and key not in options
            }
            config = from_mapping(
                TrainConfig, with_overrides(to_mapping(config), beside), source=str(file)
            )
        built = config.data.ladder.path if ladder is None else ladder
        out.mkdir(parents=True, exist_ok=True)
        model = base / "checkpoint" if base else config.model.path
        rungs = None if built is None else Path(built)
        result = train(config, out, model=model, ladder=rungs, progress=print_progress)
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
    # Of several processes the first to fail is named by torchrun, with its error.
    raise SystemExit(record(main)())

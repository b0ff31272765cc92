"""Evaluate a model: ``python -m benchmarks.evaluate --model PATH --suite NAME --out DIR``.

lm-eval asks (tasks, prompts, datasets), our engine answers, our scorer judges. Beside the means,
every item is written with its verdict, its reason, its length and its form.
"""

import hashlib
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from benchmarks.config import EvaluateConfig
from observe.cli import exit_code, print_progress
from observe.config import Prompt
from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml, to_mapping
from observe.prompts import SYSTEM_PROMPTS

if TYPE_CHECKING:
    from observe.model.policy import Policy
    from observe.rollout.engine import Completion

TASKS = Path(__file__).parent / "tasks"
SUITES = Path(__file__).parent / "suites.yaml"

Progress = Callable[[int, int, str], None]


def stage(
    config: dict[str, Any], out: Path, inputs: dict[str, Path], progress: Progress
) -> dict[str, Any]:
    """Evaluate the model of ``inputs["model"]`` (or of ``config["model"]``) and return its means.

    Writes to ``out``: items.jsonl, responses.jsonl, questions.jsonl with images/, protocol.json.
    Raises InputError for an unknown suite or benchmark and for an unreadable model.
    """
    settings = from_mapping(EvaluateConfig, config, source="evaluate")
    if "model" in inputs:
        model = str(inputs["model"] / "checkpoint")
    elif settings.model is not None:
        model = settings.model
    else:
        raise InputError("evaluate: model: missing; give a Hugging Face folder or Hub id")
    return _evaluate(settings, model, out, progress)


def read_suites() -> dict[str, list[str]]:
    """The suites and their benchmarks, from suites.yaml."""
    return load_yaml(SUITES)


def _evaluate(
    settings: EvaluateConfig, model: str, out: Path, progress: Progress
) -> dict[str, Any]:
    suites = _chosen_suites(settings)
    tasks = list(dict.fromkeys(task for names in suites.values() for task in names))
    started = time.perf_counter()
    # lm-eval reads these when it is imported; images stay images in its samples.
    os.environ.update(HF_DATASETS_OFFLINE="1", LMEVAL_HASHMM="0", TQDM_DISABLE="1")
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager

    from benchmarks.model import EngineLM
    from observe.allocator import keep_freed_memory
    from observe.model.policy import load_policy
    from observe.rollout.native import NativeEngine

    keep_freed_memory()
    policy = load_policy(model, dtype=getattr(torch, settings.dtype))
    engine = NativeEngine(policy, batch_size=settings.batch_size)
    lm = EngineLM(
        engine, policy.processor, max_new_tokens=settings.max_new_tokens, progress=progress
    )
    # It warns of every custom data set and repeats its settings for every task.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        known = ", ".join(sorted(manager.all_tasks))
        raise InputError(f"evaluate: tasks: no benchmark {unknown[0]!r}; known: {known}")
    loaded = time.perf_counter()
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=list(tasks),
        task_manager=manager,
        limit=settings.limit,
        system_instruction=SYSTEM_PROMPTS[settings.prompt],
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        bootstrap_iters=0,
        # The engine is greedy and the questions are fixed: leave the process's generators alone.
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
        fewshot_random_seed=None,
    )
    samples = {task: sorted(results["samples"][task], key=_by_document) for task in tasks}
    answered = time.perf_counter()
    rows = judge(samples, lm.completions, settings.prompt, seconds=lm.seconds)
    protocol = _protocol(settings, policy, samples)
    _write(out, suites, samples, rows, settings.images)
    (out / "protocol.json").write_text(json.dumps(protocol, indent=1) + "\n", encoding="utf-8")
    means = {task: _means(rows[task]) for task in tasks}
    return {
        "benchmarks": means,
        "suites": {
            suite: {
                key: _mean(means[task][key] for task in names)
                for key in ("score", "score_untagged", "faithful", "format_ok", "response_tokens")
            }
            for suite, names in suites.items()
        },
        "protocol": protocol["hash"],
        "seconds": {
            "load": loaded - started,
            "generate": lm.seconds,
            "total": time.perf_counter() - started,
            "judge": time.perf_counter() - answered,
        },
    }


def _chosen_suites(settings: EvaluateConfig) -> dict[str, list[str]]:
    suites = read_suites()
    chosen = {}
    for name in settings.suites:
        if name not in suites:
            known = ", ".join(suites)
            raise InputError(f"evaluate: suites: no suite {name!r}; known: {known}")
        chosen[name] = suites[name]
    if settings.tasks:
        chosen["tasks"] = list(settings.tasks)
    if not chosen:
        raise InputError("evaluate: suites: nothing to run; name a suite or a benchmark")
    return chosen


def _by_document(sample: dict[str, Any]) -> int:
    return sample["doc_id"]


def judge(
    samples: dict[str, list[dict[str, Any]]],
    completions: dict[tuple[str, int], "Completion"],
    prompt: Prompt,
    *,
    seconds: float,
) -> dict[str, list[dict[str, Any]]]:
    """The item rows of each benchmark, judged with tags and without.

    `samples` are lm-eval's by benchmark, `completions` the engine's by benchmark and document;
    `seconds` is what all of them took.
    """
    from benchmarks.docs import to_question
    from observe.glyphs import faithfulness
    from observe.rewards import format_valid
    from observe.scoring import ScoreRequest, score_many

    pairs = [(task, sample) for task, group in samples.items() for sample in group]
    questions = [to_question(sample["doc"]) for _, sample in pairs]
    answered = [completions[task, sample["doc_id"]] for task, sample in pairs]
    verdicts, untagged = (
        score_many(
            [
                ScoreRequest(
                    response=completion.text,
                    gold=question.gold,
                    answer_type=question.answer_type,
                    options=question.options,
                    ignore_tags=ignore_tags,
                )
                for question, completion in zip(questions, answered, strict=True)
            ]
        )
        for ignore_tags in (False, True)
    )
    rows: dict[str, list[dict[str, Any]]] = {task: [] for task in samples}
    for i, (task, _) in enumerate(pairs):
        question, completion, verdict = questions[i], answered[i], verdicts[i]
        rows[task].append(
            {
                "benchmark": task,
                "item": question.id,
                "cluster": question.cluster or question.id,
                "attempt": 0,
                "score": _as_score(verdict.correct),
                "score_untagged": _as_score(untagged[i].correct),
                "condition": "normal",
                "reason": verdict.reason,
                "answer": verdict.answer,
                "format_ok": None if prompt == "plain" else format_valid(completion.text, prompt),
                "faithful": (
                    faithfulness(completion.text, question) if question.observation else None
                ),
                "response_tokens": len(completion.token_ids),
                "truncated": completion.truncated,
                # Requests are answered in batches: an item's share of the whole.
                "seconds": seconds / len(pairs),
                "type": question.family,
                "level": question.level,
                "difficulty": None,
            }
        )
    return rows


def _as_score(correct: bool | None) -> int | None:
    return None if correct is None else int(correct)


def _write(
    out: Path,
    suites: dict[str, list[str]],
    samples: dict[str, list[dict[str, Any]]],
    rows: dict[str, list[dict[str, Any]]],
    num_images: int,
) -> None:
    """Write the three tables; images of the first items of each benchmark go beside them."""
    _write_jsonl(
        out / "items.jsonl",
        (
            {"suite": suite, **row}
            for suite, names in suites.items()
            for task in names
            for row in rows[task]
        ),
    )
    responses, questions = [], []
    for task, group in samples.items():
        for number, (sample, row) in enumerate(zip(group, rows[task], strict=True)):
            doc, key = sample["doc"], {"benchmark": task, "item": row["item"]}
            image = None
            if number < num_images and doc["images"]:
                image = f"images/{task}/{number:04d}.png"
                (out / image).parent.mkdir(parents=True, exist_ok=True)
                (out / image).write_bytes(doc["images"][0])
            responses.append({**key, "attempt": 0, "response": sample["resps"][0][0]})
            questions.append(
                {
                    **key,
                    "question": doc["text"],
                    "options": doc["options"],
                    "gold": doc["gold"],
                    "image": image,
                }
            )
    _write_jsonl(out / "responses.jsonl", responses)
    _write_jsonl(out / "questions.jsonl", questions)


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _protocol(
    settings: EvaluateConfig, policy: "Policy", samples: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Everything about the way of asking that can move a score, and its hash."""
    from benchmarks.docs import fingerprint
    from observe.scoring import VERSION

    processor = policy.processor
    template = str(processor.tokenizer.chat_template)
    protocol: dict[str, Any] = {
        "prompt": settings.prompt,
        "system_prompt": SYSTEM_PROMPTS[settings.prompt],
        "chat_template": _digest(template),
        "image": {
            "size": dict(processor.image_processor.size),
            "patch_size": processor.image_processor.patch_size,
            "merge_size": processor.image_processor.merge_size,
        },
        "engine": "native",
        "dtype": settings.dtype,
        "generation": {
            "max_new_tokens": settings.max_new_tokens,
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            "stop_strings": [],
            "end_tokens": processor.tokenizer.convert_ids_to_tokens(processor.eos_ids),
            "batch_size": settings.batch_size,
        },
        "scorer": VERSION,
        "limit": settings.limit,
        "data": {task: fingerprint(s["doc"] for s in group) for task, group in samples.items()},
        "versions": {name: version(name) for name in ("lm_eval", "torch", "transformers")},
    }
    return {**protocol, "hash": _digest(json.dumps(protocol, sort_keys=True))}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A benchmark's summary; each mean is over the items that have the value."""
    keys = ("score", "score_untagged", "format_ok", "faithful", "response_tokens", "truncated")
    return {
        **{key: _mean(row[key] for row in rows) for key in keys},
        "items": len(rows),
        "unscored": sum(row["score"] is None for row in rows),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    present = [float(value) for value in values if value is not None]
    return statistics.fmean(present) if present else None


def run(config: EvaluateConfig, out: Path) -> None:
    """Evaluate, write the results and their means (result.json) to `out`, and print the means."""
    out.mkdir(parents=True, exist_ok=True)
    result = stage(to_mapping(config), out, {}, print_progress)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, means in [*result["benchmarks"].items(), *result["suites"].items()]:
        score = "not scored" if means["score"] is None else f"{means['score']:.3f}"
        print(f"{name:24} {score}")
    print(f"{out / 'items.jsonl'}: {result['seconds']['total']:.0f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = ArgumentParser(
        prog="python -m benchmarks.evaluate",
        description="Evaluate a model on suites of benchmarks.",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the results.")
    parser.add_argument(
        "--suite", default="", help="Suites, separated by commas; without --tasks all of them."
    )
    parser.add_argument("--tasks", default="", help="Benchmarks, separated by commas.")
    parser.add_class_arguments(EvaluateConfig, skip={"suites", "tasks"})
    values = parser.parse_args(arguments).as_dict()
    del values["config"]
    out, suites, tasks = values.pop("out"), _names(values.pop("suite")), _names(values.pop("tasks"))
    if not suites and not tasks:
        suites = tuple(read_suites())
    return exit_code(lambda: run(EvaluateConfig(suites=suites, tasks=tasks, **values), out))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    sys.exit(main())

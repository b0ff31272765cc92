"""Evaluate a model: ``python -m benchmarks.evaluate --model PATH --suite NAME --out DIR``.

lm-eval asks (tasks, prompts, datasets), our engine answers, our scorer judges. Beside the means,
every item is written with its verdict, its reason, its length and its form.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from benchmarks import protocol, summary, tables
from benchmarks.config import EvaluateConfig, names
from benchmarks.judging import Item, Sample, judge
from benchmarks.registry import describe, read_registry
from observe.cli import exit_code, print_progress
from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml, to_mapping
from observe.prompts import SYSTEM_PROMPTS

if TYPE_CHECKING:
    from benchmarks.rows import Loaded

TASKS = Path(__file__).parent / "tasks"
SUITES = Path(__file__).parent / "suites.yaml"

Progress = Callable[[int, int, str], None]


def stage(
    config: dict[str, Any], out: Path, inputs: dict[str, Path], progress: Progress
) -> dict[str, Any]:
    """Evaluate the model of ``inputs["model"]`` (or of ``config["model"]``) and return its means.

    Writes to ``out``: answers.jsonl as answers come (a killed call goes on after the last of
    them), and at the end items.jsonl, responses.jsonl, questions.jsonl with images/, protocol.json;
    where there are any, control_responses.jsonl and skipped.jsonl. Raises InputError for an unknown
    suite or benchmark, an unreadable model, and data that is not there or cannot be used.
    """
    settings = from_mapping(EvaluateConfig, config, source="evaluate")
    if settings.engine == "endpoint":
        if "model" in inputs:
            raise InputError(
                "evaluate: engine: an endpoint answers with its own model, not with the one that "
                "was trained; take native, vllm or server"
            )
        model = settings.endpoint.model
    elif "model" in inputs:
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
    # lm-eval and datasets read these when they are imported; images stay images in its samples.
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.update(LMEVAL_HASHMM="0", TQDM_DISABLE="1")
    import lm_eval
    from lm_eval.tasks import TaskManager

    from benchmarks import controls, rows
    from benchmarks.answers import FILE, AnswerStore
    from benchmarks.docs import to_question
    from benchmarks.model import EngineLM, asking
    from observe.allocator import keep_freed_memory
    from observe.rollout.engine import SamplingParams
    from observe.rollout.factory import open_sampler

    # It warns of every custom data set and repeats its settings for every task.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    data = {name: getattr(settings, name) for name in ("data_dir", "limit", "on_bad_item")}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=data)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        known = ", ".join(sorted(manager.all_tasks))
        raise InputError(f"evaluate: tasks: no benchmark {unknown[0]!r}; known: {known}")
    # Bad data is said before a model is loaded.
    loaded_data = {task: rows.load(task, **data) for task in tasks if task in read_registry()}
    keep_freed_memory()
    params = SamplingParams(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        n=settings.samples,
    )
    system = SYSTEM_PROMPTS[settings.prompt]
    with contextlib.ExitStack() as opened:
        sampler = open_sampler(model, settings)
        opened.callback(sampler.close)
        how = asking(model, settings, sampler, params, settings.seed)
        out.mkdir(parents=True, exist_ok=True)
        store = opened.enter_context(contextlib.closing(AnswerStore(out / FILE, how)))
        lm = EngineLM(sampler, store, params=params, seed=settings.seed, progress=progress)
        loaded = time.perf_counter()
        results = lm_eval.simple_evaluate(
            model=lm,
            tasks=list(tasks),
            task_manager=manager,
            limit=settings.limit,
            system_instruction=system,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            bootstrap_iters=0,
            # Draws have seeds of their own and the questions are fixed: leave the generators alone.
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=None,
        )
        samples = {task: sorted(results["samples"][task], key=_by_document) for task in tasks}
        controlled = {
            f"{task}@{condition}": docs
            for task in tasks
            for condition, docs in controls.conditions(
                settings.controls, [sample["doc"] for sample in samples[task]]
            ).items()
        }
        if controlled:
            lm.generate_until(controls.requests(lm, controlled, system, {"until": []}))
    answered = time.perf_counter()
    judged = judge(samples, lm.completions, settings.prompt, seconds=lm.seconds)
    under_control = judge(
        {
            name: [{"doc_id": number, "doc": doc} for number, doc in enumerate(docs)]
            for name, docs in controlled.items()
        },
        lm.completions,
        settings.prompt,
        seconds=lm.seconds,
    )
    means = {task: _means(judged[task], samples[task], loaded_data.get(task)) for task in tasks}
    details = {
        task: summary.details(
            judged[task],
            {s["doc"]["id"]: to_question(s["doc"], decode=False) for s in samples[task]},
            public=task in loaded_data,
        )
        for task in tasks
    }
    for name, items in under_control.items():
        judged[name.partition("@")[0]] += items
    for task in tasks:
        if measured := summary.controls(judged[task]):
            details[task]["controls"] = measured
    described = _protocol(settings, how, samples, loaded_data)
    tables.write(out, suites, samples, judged, lm.completions, num_images=settings.images)
    tables.write_controls(out, under_control, lm.completions)
    tables.write_skipped(out, loaded_data)
    (out / "protocol.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return {
        "benchmarks": means,
        "suites": {
            suite: {
                key: summary.mean(means[task][key] for task in names)
                for key in ("score", "score_untagged", "faithful", "format_ok", "response_tokens")
            }
            for suite, names in suites.items()
        },
        "details": {task: found for task, found in details.items() if found},
        "protocol": described["hash"],
        "answers": {
            "asked": lm.asked,
            "kept": len(lm.completions) - lm.asked,
            "damaged": store.damaged,
        },
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
        chosen["tasks"] = list(dict.fromkeys(settings.tasks))
    return chosen


def _by_document(sample: dict[str, Any]) -> int:
    return sample["doc_id"]


def _protocol(
    settings: EvaluateConfig,
    how: dict[str, Any],
    samples: dict[str, list[Sample]],
    data: dict[str, "Loaded"],
) -> dict[str, Any]:
    """Everything about the way of asking that can move a score, and its hash."""
    from benchmarks.docs import fingerprint
    from observe.scoring import VERSION

    described: dict[str, Any] = {
        "prompt": settings.prompt,
        "system_prompt": SYSTEM_PROMPTS[settings.prompt],
        "question_format": "images first, then the question, then options as lines 'A. text'",
        **{name: value for name, value in how.items() if name != "model"},
        "samples": settings.samples,
        "scorer": VERSION,
        "limit": settings.limit,
        "controls": sorted(settings.controls),
        "data": {
            task: {
                "fingerprint": fingerprint(sample["doc"] for sample in group),
                "items": len(group),
                **(_data_facts(data[task]) if task in data else {}),
            }
            for task, group in samples.items()
        },
        "versions": {name: version(name) for name in ("lm_eval", "torch", "transformers")},
    }
    return protocol.hashed(described)


def _data_facts(loaded: "Loaded") -> dict[str, Any]:
    known = read_registry()[loaded.benchmark]
    return {
        "items_of_benchmark": known.items,
        "metric": known.metric,
        "source": loaded.source,
        "revision": loaded.revision,
        "skipped": len(loaded.skipped),
    }


def _means(
    items: Sequence[Item], samples: Sequence[Sample], loaded: "Loaded | None"
) -> dict[str, Any]:
    """A benchmark's summary, and for a public one what its score has to be read with."""
    from benchmarks.docs import chance, to_question

    found = summary.means(items)
    if loaded is None:
        return found
    known = read_registry()[loaded.benchmark]
    guesses = [chance(to_question(sample["doc"], decode=False)) for sample in samples]
    return {
        **found,
        # Of a few items nobody may know how many options the image shows; of most it means nothing.
        "chance": None if guesses.count(None) > len(guesses) / 20 else summary.mean(guesses),
        "items_of_benchmark": known.items,
        "skipped": len(loaded.skipped),
        "trained_on": list(known.trained_on),
    }


def run(config: EvaluateConfig, out: Path) -> None:
    """Evaluate, write the results and their means (result.json) to `out`, and print the means."""
    result = stage(to_mapping(config), out, {}, print_progress)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, means in [*result["benchmarks"].items(), *result["suites"].items()]:
        score = "not scored" if means["score"] is None else f"{means['score']:.3f}"
        print(f"{name:24} {score:>10}{_remarks(means)}")
    print(f"{out / 'items.jsonl'}: {result['seconds']['total']:.0f} s")


def _remarks(means: dict[str, Any]) -> str:
    """What a benchmark's score has to be read with, in counts; empty for a suite."""
    if "items" not in means:
        return ""
    whole = means.get("items_of_benchmark", means["items"])
    asked = f"{means['items']}" + (f", {whole} in all" if whole != means["items"] else "")
    parts = [
        f"{means[count]} {what}"
        for count, what in (
            ("cut", "cut off at the length limit"),
            ("malformed", "without the tags asked for"),
            ("unscored", "not to be judged"),
            ("skipped", "left out"),
        )
        if means.get(count)
    ]
    if means.get("chance") is not None:
        parts.append(f"chance {means['chance']:.3f}")
    if means.get("trained_on"):
        parts.append("NeuraLadder trains on it")
    return f"  of {asked}: " + ("; ".join(parts) or "nothing amiss")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = ArgumentParser(
        prog="python -m benchmarks.evaluate",
        description="Evaluate a model on suites of benchmarks, or compare two evaluations.",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings.")
    parser.add_argument("--out", type=Path | None, help="Folder for the results.")
    parser.add_argument(
        "--suite",
        default="",
        help="Suites, separated by commas; without --tasks those of the embedded world.",
    )
    parser.add_argument("--tasks", default="", help="Benchmarks, separated by commas.")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        type=Path,
        help="Folders of two evaluations: their scores beside each other, if asked the same way "
        "(else what differs, and exit code 1).",
    )
    parser.add_argument(
        "--list", action="store_true", help="The public benchmarks with source and licence."
    )
    parser.add_argument(
        "--data-dir",
        "--data_dir",
        type=str | None,
        help="Local files of public benchmarks: a folder with NAME/ or NAME.jsonl for each, or "
        "NAME=FOLDER,...; else the Hub's cache.",
    )
    parser.add_argument(
        "--controls",
        default="",
        help="no_image, shuffled_image, rotations (options at every letter), separated by commas.",
    )
    parser.add_class_arguments(EvaluateConfig, skip={"suites", "tasks", "data_dir", "controls"})
    values = parser.parse_args(arguments).as_dict()
    del values["config"]
    out, suites, tasks = values.pop("out"), names(values.pop("suite")), names(values.pop("tasks"))
    pair, listed = values.pop("compare"), values.pop("list")
    values["controls"] = names(values["controls"])
    if listed:
        print(describe())
        return 0
    if pair:
        return _compare(*pair)
    if out is None:
        parser.error("--out: missing; the folder for the results")
    if suites or tasks:
        values["suites"] = suites

    def command() -> None:
        run(from_mapping(EvaluateConfig, {**values, "tasks": tasks}, source="evaluate"), out)

    return exit_code(command)


def _compare(one: Path, other: Path) -> int:
    comparable = []

    def command() -> None:
        text, allowed = protocol.compare(one, other)
        comparable.append(allowed)
        print(text)

    return exit_code(command) or int(not comparable[0])


if __name__ == "__main__":
    sys.exit(main())

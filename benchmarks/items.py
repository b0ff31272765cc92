"""``python -m benchmarks.items``: the questions of benchmarks as files.

What is written is what `observe.ladder --against` looks for in training data.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from benchmarks.config import names
from benchmarks.evaluate import TASKS, read_suites
from observe.cli import exit_code
from observe.errors import InputError


def write_items(
    suites: Sequence[str], tasks: Sequence[str], out: Path, *, data_dir: str | None = None
) -> dict[str, int]:
    """Write ``out/BENCHMARK/questions.jsonl`` and its images; returns the items of each.

    Raises InputError for an unknown suite or benchmark.
    """
    known = read_suites()
    if unknown := [name for name in suites if name not in known]:
        raise InputError(f"--suite: no suite {unknown[0]!r}; known: {', '.join(known)}")
    wanted = list(dict.fromkeys([*(task for suite in suites for task in known[suite]), *tasks]))
    if not wanted:
        raise InputError("--suite or --tasks: missing; nothing to write")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.update(LMEVAL_HASHMM="0", TQDM_DISABLE="1")
    from lm_eval.tasks import TaskManager

    from benchmarks.docs import to_question
    from observe.data.question import write_jsonl

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    given = {"data_dir": data_dir, "limit": None, "on_bad_item": "skip"}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=given)
    if strange := [name for name in wanted if name not in manager.all_tasks]:
        there = ", ".join(sorted(manager.all_tasks))
        raise InputError(f"--tasks: no benchmark {strange[0]!r}; known: {there}")
    counts = {}
    for name, task in manager.load(wanted)["tasks"].items():
        questions = [to_question(doc) for doc in task.test_docs()]
        write_jsonl(questions, out / str(name) / "questions.jsonl")
        counts[str(name)] = len(questions)
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = ArgumentParser(
        prog="python -m benchmarks.items",
        description="Write the questions of benchmarks as JSONL files with images, e.g. for "
        "observe.ladder --against.",
    )
    parser.add_argument("--out", type=Path, required=True, help="Folder, one below it for each.")
    parser.add_argument("--suite", default="", help="Suites, separated by commas.")
    parser.add_argument("--tasks", default="", help="Benchmarks, separated by commas.")
    parser.add_argument(
        "--data_dir", type=str | None, help="Local files of public benchmarks, as for evaluate."
    )
    given = parser.parse_args(arguments)

    def command() -> None:
        counts = write_items(
            names(given.suite), names(given.tasks), given.out, data_dir=given.data_dir
        )
        for name, count in counts.items():
            print(f"{given.out / name / 'questions.jsonl'}: {count} items")

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m observe.ladder``: build the question ladder of a recipe, or of data sets."""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from observe.cli import exit_code, print_progress
from observe.config import EMBEDDED, DataConfig, LadderConfig, TrainConfig
from observe.data.ladder import stage
from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml, to_mapping

_DEFAULT = LadderConfig()


def build(
    model: Path,
    out: Path,
    config: Path | None = None,
    sources: str = "",
    ladder: LadderConfig = _DEFAULT,
    against: str = "",
    contaminated: Literal["drop", "report", "stop"] = "drop",
    on_bad: Literal["skip", "stop"] = "skip",
    shard: str = "1/1",
    chunk: int = 32,
    export: Path | None = None,
) -> None:
    """Measure questions with a model and arrange them from easy to hard.

    Args:
        model: Hugging Face folder of the model that answers.
        out: folder for ladder.jsonl, dropped.jsonl, summary.json, samples.jsonl and, with
            --sources, the pool of questions and card.md; a stopped call goes on in it.
        config: YAML of a TrainConfig: data.ladder, and data.source unless --sources is given.
        sources: data sets to take questions from, separated by commas: mathvision, we_math,
            polymath, scemqa, mathv360k (from the Hub), NAME=FOLDER for files of such a data set,
            or JSONL files.
        ladder: settings, where no config is given; data.ladder.pool bounds the questions drawn.
        against: benchmarks whose questions are looked for in the sources: names as for --sources,
            or files and folders of rows with a question and images.
        contaminated: what becomes of questions that a benchmark asks too.
        on_bad: skip a row that cannot be used (rejected.jsonl names it), or stop.
        shard: K/N samples the K-th of N parts of the pool, for several machines at once; a call
            without it then merges them.
        chunk: questions sampled between two writes (with --sources).
        export: folder for a Hugging Face data set: Parquet files with the images, and the card.
    """
    recipe = None
    if config:
        recipe = from_mapping(TrainConfig, load_yaml(config), source=str(config))
        if ladder != _DEFAULT:
            raise InputError("--ladder: the recipe of --config has these settings (data.ladder)")
    if not (model / "config.json").is_file():
        raise InputError(f"{model}: not a Hugging Face model folder (no config.json)")
    if sources:
        from observe.data.builder import Task, build_from_sources

        whole = recipe or TrainConfig(data=DataConfig(ladder=ladder))
        found = re.fullmatch(r"(\d+)/(\d+)", shard)
        if not found:
            raise InputError(f"--shard: expected K/N, e.g. 1/4, got {shard!r}")
        task = Task(
            sources=_names(sources),
            model=model,
            ladder=whole.data.ladder,
            against=_names(against),
            contaminated=contaminated,
            on_bad=on_bad,
            shard=(int(found[1]), int(found[2])),
            chunk=chunk,
            export=export,
        )
        say = partial(print, flush=True)
        result = build_from_sources(task, out, progress=print_progress, say=say)
        print(
            f"pool of {result['pool']}; {result['rejected']} rows rejected, "
            f"{result['contaminated']} questions contaminated"
        )
        if result["counts"] is None:
            print(
                f"shard {shard}: {result['sampled']} questions sampled; when all shards are "
                "done, the same command without --shard merges them"
            )
            return
        made = out / "card.md"
    else:
        if recipe is None or config is None:
            raise InputError("--config or --sources: missing; one says where questions come from")
        if against or export or shard != "1/1":
            raise InputError("--against, --export and --shard go with --sources")
        source = recipe.data.source
        if source != EMBEDDED:
            source = str(config.parent / source)
        out.mkdir(parents=True, exist_ok=True)
        result = stage(
            {
                "ladder": to_mapping(recipe.data.ladder),
                "model": str(model.absolute()),
                "source": source,
            },
            out,
            {},
            print_progress,
        )
        made = out / "ladder.jsonl"
    counts = ", ".join(f"{name} {count}" for name, count in result["counts"].items())
    print(f"{made}: {counts}; {result['seconds']:.0f} s")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def main() -> int:
    """The command; returns its exit code (2 for bad input)."""
    parser = ArgumentParser(prog="python -m observe.ladder")
    parser.add_function_arguments(build, as_positional=False)
    arguments = parser.parse_args()

    def command() -> None:
        given = arguments.ladder.as_dict()
        from_mapping(LadderConfig, given, source="options", key="--ladder")
        build(**parser.instantiate(arguments).as_dict())

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())

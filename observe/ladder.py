"""``python -m observe.ladder``: build the question ladder of a recipe with a given model."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser

from observe.cli import exit_code, print_progress
from observe.config import EMBEDDED, TrainConfig
from observe.data.ladder import stage
from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml, to_mapping


def build(config: Path, model: Path, out: Path) -> None:
    """Measure a recipe's questions with a model and arrange them from easy to hard.

    Args:
        config: YAML of a TrainConfig; data.source and data.ladder are used.
        model: Hugging Face folder of the model that answers.
        out: folder for ladder.jsonl, dropped.jsonl, summary.json and samples.jsonl; a stopped
            call goes on in it.
    """
    recipe = from_mapping(TrainConfig, load_yaml(config), source=str(config))
    if not (model / "config.json").is_file():
        raise InputError(f"{model}: not a Hugging Face model folder (no config.json)")
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
    counts = ", ".join(f"{name} {count}" for name, count in result["counts"].items())
    print(f"{out / 'ladder.jsonl'}: {counts}; {result['seconds']:.0f} s")


def main() -> int:
    """The command; returns its exit code (2 for bad input)."""
    parser = ArgumentParser(prog="python -m observe.ladder")
    parser.add_function_arguments(build)
    arguments = parser.parse_args()
    return exit_code(lambda: build(**arguments.as_dict()))


if __name__ == "__main__":
    sys.exit(main())

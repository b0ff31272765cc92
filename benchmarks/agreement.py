"""``python -m benchmarks.agreement A B``: how far two evaluations of the same items agree.

At temperature 0 two engines should give the same answers to the same questions. They do not quite:
kernels add up in another order, and where two tokens are almost equally probable that decides. How
often it does, and how often it moves a verdict, is what this says.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from observe.cli import exit_code
from observe.errors import InputError

_KEY = ("benchmark", "item", "condition", "attempt")


def agreement(first: Path, second: Path) -> dict[str, Any]:
    """Compare the item and response tables of two result folders.

    Per benchmark, and for all: ``items`` that both have, the shares of them with an
    ``identical_response`` and an ``identical_verdict``, how many only the first (``only_first``) or
    only the second got right, and the mean scores of both on these items. ``differences``: what of
    the protocol is not the same; ``missing``: items that one of them lacks.

    Raises InputError for a folder without results, and when the two have no item in common or ask
    different questions under one name.
    """
    one, two = _read(first), _read(second)
    shared = [key for key in one if key in two]
    if not shared:
        raise InputError(f"{first} and {second} have no item in common")
    for key in shared:
        if one[key]["question"] != two[key]["question"]:
            raise InputError(
                f"{second}: {key[0]}: item {key[1]} is another question than in {first}; evaluate "
                "both on the same data"
            )
    tasks = dict.fromkeys(key[0] for key in shared)
    return {
        "benchmarks": {
            task: _compare([(one[k], two[k]) for k in shared if k[0] == task]) for task in tasks
        },
        "all": _compare([(one[k], two[k]) for k in shared]),
        "differences": _differences(_protocol(first), _protocol(second)),
        "missing": len(one) + len(two) - 2 * len(shared),
    }


def _compare(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    scores = [(a["score"], b["score"]) for a, b in pairs]
    return {
        "items": len(pairs),
        "identical_response": _share(a["response"] == b["response"] for a, b in pairs),
        "identical_verdict": _share(a == b for a, b in scores),
        "only_first": sum(a == 1 and b != 1 for a, b in scores),
        "only_second": sum(b == 1 and a != 1 for a, b in scores),
        "scores": [_mean([a for a, _ in scores]), _mean([b for _, b in scores])],
    }


def _share(flags: Any) -> float:
    return statistics.fmean(map(float, flags))


def _mean(scores: Sequence[int | None]) -> float | None:
    judged = [float(score) for score in scores if score is not None]
    return statistics.fmean(judged) if judged else None


def _read(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Key -> score, response and question; an item of several suites once."""
    items = {_key(row): row for row in _rows(folder / "items.jsonl")}
    texts = _rows(folder / "responses.jsonl")
    if (asked_again := folder / "control_responses.jsonl").exists():
        texts += _rows(asked_again)
    responses = {_key(row): row["response"] for row in texts}
    questions = {
        (row["benchmark"], row["item"]): [row["question"], row["options"], row["gold"]]
        for row in _rows(folder / "questions.jsonl")
    }
    try:
        return {
            key: {
                "score": row["score"],
                "response": responses[key],
                "question": questions[key[:2]],
            }
            for key, row in items.items()
        }
    except KeyError as error:
        raise InputError(f"{folder}: its tables do not hold the same items ({error})") from None


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    defaults = {"condition": "normal", "attempt": 0}
    return tuple(row.get(name, defaults.get(name)) for name in _KEY)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; give the --out of two finished evaluations"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); evaluate again") from None


def _protocol(folder: Path) -> dict[str, Any]:
    path = folder / "protocol.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); evaluate again") from None


def _differences(one: Any, two: Any, key: str = "") -> dict[str, list[Any]]:
    """Dotted keys whose values differ, hashes of the whole aside."""
    if isinstance(one, dict) and isinstance(two, dict):
        found = {}
        for name in dict.fromkeys([*one, *two]):
            if key or name != "hash":
                inner = _differences(one.get(name), two.get(name), f"{key}.{name}".lstrip("."))
                found.update(inner)
        return found
    return {} if one == two else {key: [one, two]}


def _show(first: Path, second: Path, found: dict[str, Any]) -> None:
    print(f"A {first}\nB {second}")
    for key, (one, two) in found["differences"].items():
        print(f"  {key}: {json.dumps(one)} | {json.dumps(two)}")
    header = ("items", "same text", "same verdict", "only A", "only B", "score A", "score B")
    print(f"\n{'':28}" + "".join(f"{name:>13}" for name in header))
    for name, row in [*found["benchmarks"].items(), ("all", found["all"])]:
        cells = [
            str(row["items"]),
            f"{row['identical_response']:.2%}",
            f"{row['identical_verdict']:.2%}",
            str(row["only_first"]),
            str(row["only_second"]),
            *("-" if score is None else f"{score:.4f}" for score in row["scores"]),
        ]
        print(f"{name:28}" + "".join(f"{cell:>13}" for cell in cells))
    if found["missing"]:
        print(f"{found['missing']} items are in one of them only and were left out")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (2 for bad input)."""
    parser = ArgumentParser(
        prog="python -m benchmarks.agreement",
        description="How far two evaluations of the same items agree, as of two engines.",
    )
    parser.add_argument("first", type=Path, help="Result folder of one evaluation (A).")
    parser.add_argument("second", type=Path, help="Result folder of the other (B).")
    parser.add_argument("--json", action="store_true", help="Print a JSON object instead.")
    given = parser.parse_args(arguments)

    def command() -> None:
        found = agreement(given.first, given.second)
        if given.json:
            print(json.dumps(found, indent=1))
        else:
            _show(given.first, given.second, found)

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())

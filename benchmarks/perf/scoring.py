"""How fast answers are judged, here and by Math-Verify alone.

``python -m benchmarks.perf.scoring [--data DIR]``. Both judge the same responses against the same
golds in ``--workers`` processes. How to read it:

- ``world``: responses of the embedded world in all their habits, right and wrong;
- ``real mix``: judged outputs of real models (``--data``, see `benchmarks.scorer_audit`), every
  file of it; ``real, free form`` those of them without options;
- ``hostile``: text made to hang a scorer; only ours is run on it, since a hung Math-Verify call can
  only be waited for. ``slowest`` is the longest that one verdict took;
- ``ours, first``: as a training step meets it, workers already started, nothing remembered;
  ``ours, again``: the same once more, with what is remembered;
- ``ratio``: items a second over Math-Verify's. Above 1, ours is faster.

Math-Verify parses gold and response (with its fallbacks off the clock: no time limits, which its
authors recommend in worker processes) and verifies, in a pool of processes already warm.
"""

import multiprocessing
import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from benchmarks import scorer_audit
from benchmarks.perf.results import publish
from harness.cli import run_command
from observe.scoring import ScoreRequest, score_many, workers

COLUMNS = ("mix", "items", "scorer", "items/s", "(range)", "ratio", "unscored", "slowest, s")

HOSTILE = (
    "{" * 100_000,
    "\\frac{" * 20_000,
    "\\boxed{" * 15_000 + "8" + "}" * 15_000,
    "10^9^9",
    "10^{9^{9}}",
    "(1+x)^{999999999}",
    "9999999999!",
    "9" * 100_000,
    "7 or 8, " * 12_500,
    "the answer is " * 7_000,
    "answer to " * 10_000,
    "(A) (B) " * 12_500,
    "A) w\nB) x\nC) y\nD) z\n" * 5_000,
    "\\int_0^y \\frac{\\sin(x^7) \\cos(x^5)}{\\sqrt{x^9 + \\ln(x + 3)}} dx",
    "\\sum_{n=1}^{\\infty} \\frac{\\sin(n^n)}{n!}",
    "\\prod_{n=1}^{99999999} (1 + \\frac{1}{n^n})",
)
TIMEOUT_S = 5.0


def world(size: int) -> list[ScoreRequest]:
    """Responses of the embedded world, half of them with another question's answer."""
    from observe.config import BaseConfig
    from observe.glyphs import questions
    from observe.glyphs.responses import response

    rng = random.Random(0)
    asked = [*questions("reasoning", size // 4), *questions("general", size // 4)]
    requests = []
    for question in asked:
        same_kind = [q.gold for q in asked if q.answer_type == question.answer_type]
        for gold in (question.gold, rng.choice(same_kind)):
            text = response(replace(question, gold=gold), "observe", BaseConfig(), rng)
            requests.append(
                ScoreRequest(
                    response=text,
                    gold=question.gold,
                    answer_type=question.answer_type,
                    options=question.options,
                )
            )
    return requests


def hostile() -> list[ScoreRequest]:
    """Every hostile text as an answer of every kind."""
    golds: dict[Any, str] = {"integer": "7", "choice": "B", "expression": "\\sqrt{2} y"}
    options = ("red", "blue", "green")
    return [
        ScoreRequest(
            response=response,
            gold=gold,
            answer_type=kind,
            options=options if kind == "choice" else None,
        )
        for text in HOSTILE
        for response in (text, f"<answer>{text}</answer>")
        for kind, gold in golds.items()
    ]


def ours(requests: Sequence[ScoreRequest], processes: int) -> tuple[float, float, int]:
    """Seconds that `score_many` takes at first and once more, and how many it could not judge."""
    _forget()
    workers.start(processes)
    score_many([_algebra(i) for i in range(4 * processes)], workers=processes)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        verdicts = score_many(requests, workers=processes, timeout_s=TIMEOUT_S)
        seconds.append(time.perf_counter() - began)
    return seconds[0], seconds[1], sum(verdict.correct is None for verdict in verdicts)


def _forget() -> None:
    """Forget all that the scorer remembers, in this process and in its workers, which end."""
    workers.forget()
    for name, module in list(sys.modules.items()):
        if name.startswith("observe.scoring"):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
    re.purge()


def slowest(requests: Sequence[ScoreRequest]) -> float:
    """The longest time that a single verdict takes, in seconds."""
    longest = 0.0
    for request in requests:
        began = time.perf_counter()
        score_many([request], workers=1, timeout_s=TIMEOUT_S)
        longest = max(longest, time.perf_counter() - began)
    return longest


def math_verify(requests: Sequence[ScoreRequest], processes: int) -> float:
    """Seconds that Math-Verify takes for the same pairs."""
    pairs = [(str(request.gold), request.response) for request in requests]
    with multiprocessing.get_context("spawn").Pool(processes, _load_math_verify) as pool:
        pool.map(_verify, pairs[: 8 * processes])
        began = time.perf_counter()
        pool.map(_verify, pairs, chunksize=max(1, len(pairs) // (8 * processes)))
        return time.perf_counter() - began


def _load_math_verify() -> None:
    import logging

    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401


def _verify(pair: tuple[str, str]) -> bool:
    from math_verify import parse, verify

    gold, response = (parse(text, parsing_timeout=None) for text in (f"${pair[0]}$", pair[1]))
    return bool(verify(gold, response, timeout_seconds=None))


def _algebra(seed: int) -> ScoreRequest:
    """What only algebra decides, with the roots, fractions and pi that all of it is about."""
    gold = rf"\frac{{\sqrt{{{seed + 2}}}}}{{3}} + \pi x"
    return ScoreRequest(response=rf"\boxed{{\pi x + \sqrt{{{seed + 2}}}/3}}", gold=gold)


def compare(
    mixes: dict[str, list[ScoreRequest]], *, processes: int, repeats: int
) -> list[dict[str, Any]]:
    """Rows of ours and of Math-Verify by mix, and ours on the hostile set."""
    rows = []
    for mix, requests in mixes.items():
        seconds: dict[str, list[float]] = {"ours, first": [], "ours, again": [], "Math-Verify": []}
        for _ in range(repeats):  # In turn, so that what else the machine does falls on all.
            first, again, unscored = ours(requests, processes)
            seconds["ours, first"].append(first)
            seconds["ours, again"].append(again)
            seconds["Math-Verify"].append(math_verify(requests, processes))
        theirs = statistics.median(seconds["Math-Verify"])
        for name, taken in seconds.items():
            row = _row(mix, name, len(requests), taken)
            row["ratio"] = theirs / statistics.median(taken)
            row["unscored"] = None if name == "Math-Verify" else unscored
            rows.append(row)
    requests = hostile()
    first, _, unscored = ours(requests, processes)
    row = _row("hostile", "ours, first", len(requests), [first])
    rows.append(row | {"ratio": None, "unscored": unscored, "slowest_s": slowest(requests)})
    return rows


def _row(mix: str, scorer: str, items: int, seconds: Sequence[float]) -> dict[str, Any]:
    rates = [items / taken for taken in seconds]
    return {
        "mix": mix,
        "items": items,
        "scorer": scorer,
        "items_per_s": items / statistics.median(seconds),
        "items_per_s_range": [min(rates), max(rates)],
    }


def show(rows: Sequence[dict[str, Any]], described: dict[str, object]) -> None:
    """Print the table."""
    title = f"{described['cpu']}, {described['cores']} cores"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in COLUMNS:
        left = column in ("mix", "scorer")
        table.add_column(column, justify="left" if left else "right")
    for row in rows:
        low, high = row["items_per_s_range"]
        table.add_row(
            row["mix"],
            str(row["items"]),
            row["scorer"],
            f"{row['items_per_s']:.0f}",
            f"{low:.0f}-{high:.0f}",
            "-" if row["ratio"] is None else f"{row['ratio']:.1f}",
            "-" if row["unscored"] is None else str(row["unscored"]),
            f"{row['slowest_s']:.2f}" if "slowest_s" in row else "-",
        )
    Console(width=120).print(table)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = ArgumentParser(
        prog="python -m benchmarks.perf.scoring",
        description="How fast answers are judged, here and by Math-Verify alone.",
    )
    parser.add_argument("--data", type=Path, default=None, help="Folder of judged outputs.")
    parser.add_argument("--size", type=int, default=1000, help="Responses of the embedded world.")
    parser.add_argument("--rows", type=int, default=None, help="Draw so many of them; else all.")
    parser.add_argument("--workers", type=int, default=2, help="Processes of either scorer.")
    parser.add_argument("--repeats", type=int, default=3, help="Times that each mix is judged.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead.")
    options = parser.parse_args(arguments)

    def command() -> int:
        mixes = {"world": world(options.size)}
        if options.data is not None:
            rows = scorer_audit.load(options.data)
            if options.rows is not None:
                rows = random.Random(0).sample(rows, min(options.rows, len(rows)))
            mixes["real mix"] = [scorer_audit.request(row) for row in rows]
            mixes["real, free form"] = [r for r in mixes["real mix"] if r.options is None]
        found = compare(mixes, processes=options.workers, repeats=options.repeats)
        return publish(found, show, as_json=options.json)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())

"""A ladder on disk: its rungs, what was left out, and what training takes from it.

``ladder.jsonl`` holds one `Rung` per line in the order in which they are climbed, ``dropped.jsonl``
one `Dropped` per line, ``summary.json`` the ladder in numbers.
"""

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observe.config import EMBEDDED
from observe.data.question import Question
from observe.data.sources import load_questions
from observe.errors import InputError

POOL = "questions.jsonl"
"""The pool of a ladder that was built from data sets, beside it."""

DROPS = ("unverifiable", "simple", "unjudged", "too_easy", "unsolved")
"""Why a question is not on the ladder, in the order of the filters."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the base model made of a question."""

    question: str
    """The question's id."""
    family: str
    """The question's family."""
    difficulty: float
    """1 - share of the samples that are correct."""
    complexity: float
    """Mean length of the samples in tokens."""
    prompts: tuple[str, ...]
    """The prompt of each sample."""
    correct: tuple[bool, ...]
    """Whether each sample is correct."""
    lengths: tuple[int, ...]
    """Length of each sample in tokens."""

    @property
    def own_level(self) -> int:
        """Number of samples that are wrong: the difficulty on its grid."""
        return len(self.correct) - sum(self.correct)


@dataclass(frozen=True, kw_only=True)
class Rung(Measured):
    """A measured question in its place on the ladder."""

    level: int
    """The stage it is placed in; its own level or, by mixing, a neighbour of it."""
    order_index: int
    """Its position on the whole ladder, from 0."""


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A question that is not on the ladder."""

    question: str
    """The question's id."""
    family: str
    """The question's family."""
    reason: str
    """One of `DROPS`."""
    difficulty: float | None = None
    """Null when it was dropped before it was measured."""
    complexity: float | None = None
    """Null when it was dropped before it was measured."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """A finished ladder."""

    rungs: tuple[Rung, ...]
    """In the order in which they are climbed."""
    dropped: tuple[Dropped, ...]
    """What was left out, in the order of the pool."""
    summary: dict[str, Any]
    """Counts, levels, stages, correct lengths and where the questions came from."""

    def questions(self, source: str | None = None) -> list[Question]:
        """The questions of the rungs, in their order, read from the source again.

        ``source``: where they lie now, when the ladder was built from a copy elsewhere. Raises
        InputError when one of them is not there.
        """
        origin = {**self.summary["origin"], **({"source": source} if source else {})}
        # A file is read whole: the pool was a sample of what of it can be used.
        embedded = origin["source"] == EMBEDDED
        pool = load_questions(
            origin["source"],
            split=origin["split"],
            size=origin["pool"] if embedded else None,
            seed=origin["seed"],
        )
        by_id = {question.id: question for question in pool}
        missing = [rung.question for rung in self.rungs if rung.question not in by_id]
        if missing:
            raise InputError(
                f"{origin['source']}: {len(missing)} of the ladder's {len(self.rungs)} questions "
                f"are not there, e.g. {missing[0]!r}; give the questions that the ladder was built "
                "from as data.source, or build it anew"
            )
        return [by_id[rung.question] for rung in self.rungs]


def load_ladder(folder: Path) -> Ladder:
    """Read what `save_ladder` wrote.

    Raises InputError when files are missing or damaged.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        if summary["origin"]["source"] == POOL:
            summary["origin"]["source"] = str(folder.absolute() / POOL)
        rungs = tuple(Rung(**row) for row in _read_rows(folder / "ladder.jsonl"))
        dropped = tuple(Dropped(**row) for row in _read_rows(folder / "dropped.jsonl"))
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: no such file; build the ladder first") from None
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise InputError(
            f"{folder}: damaged ladder ({error}); delete it and build it anew"
        ) from None
    return Ladder(rungs=rungs, dropped=dropped, summary=summary)


def save_ladder(ladder: Ladder, folder: Path) -> None:
    """Write the three files into a folder that exists.

    Questions that lie in the folder, too, are named relative to it, so that it can be moved.
    """
    summary = ladder.summary
    if summary["origin"]["source"] == str(folder.absolute() / POOL):
        summary = {**summary, "origin": {**summary["origin"], "source": POOL}}
    _write_rows(folder / "ladder.jsonl", ladder.rungs)
    _write_rows(folder / "dropped.jsonl", ladder.dropped)
    text = json.dumps(summary, indent=1) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")


def _write_rows(path: Path, rows: Sequence[Measured] | Sequence[Dropped]) -> None:
    lines = [json.dumps(dataclasses.asdict(row)) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]


def select(rungs: Sequence[Rung], size: int, seed: int) -> list[Rung]:
    """``size`` rungs, one at random from each of ``size`` equal parts of the ladder, in its order.

    The selection depends on the ladder, ``size`` and ``seed`` alone, so that every order of
    training consumes the same questions. Raises InputError when the ladder has too few.
    """
    if size > len(rungs):
        raise InputError(
            f"data.size: {size} questions asked for, but the ladder keeps {len(rungs)}; "
            "raise data.ladder.pool or lower data.size"
        )
    rng = random.Random(f"{seed}/select")
    edges = [i * len(rungs) // size for i in range(size + 1)]
    return [rungs[rng.randrange(a, b)] for a, b in zip(edges, edges[1:], strict=False)]


def length_quantile(summary: dict[str, Any], prompt: str, q: float) -> float:
    """Quantile of the lengths, in tokens, of the base model's correct answers under ``prompt``.

    Measured on the kept questions and interpolated on the grid of ``summary.json``. Raises
    InputError when the ladder has no correct answer under that prompt.
    """
    grid = summary["correct_lengths"].get(prompt)
    if grid is None:
        raise InputError(
            f"reward.bonus.min_length_quantile: the ladder has no correct answer under the prompt "
            f"{prompt!r}; add it to data.ladder.prompts or set reward.bonus.min_length"
        )
    if not 0 <= q <= 1:
        raise InputError(f"reward.bonus.min_length_quantile: expected 0 to 1, got {q}")
    values = list(grid.values())
    position = q * (len(values) - 1)
    below = min(math.floor(position), len(values) - 2)
    return values[below] + (position - below) * (values[below + 1] - values[below])

"""Where questions come from: the embedded world, or a JSONL file with images beside it."""

import json
import random
import re
import typing
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from observe.config import EMBEDDED
from observe.data.question import Question, from_record
from observe.errors import InputError
from observe.scoring import AnswerType, ScoreRequest, score_many

ANSWER_TYPES: tuple[str, ...] = typing.get_args(AnswerType)

VISION_TOKEN = re.compile(r"<\|(?:image|video|vision)_\w+\|>")

# Key: (type of its value, whether it must be there). ``split`` belongs to the file alone.
_KEYS: dict[str, tuple[type, bool]] = {
    "id": (str, True),
    "text": (str, True),
    "gold": (str, True),
    "answer_type": (str, True),
    "options": (list, False),
    "images": (list, False),
    "family": (str, False),
    "level": (int, False),
    "cluster": (str, False),
    "observation": (str, False),
    "metadata": (dict, False),
    "split": (str, False),
}


def load_questions(
    source: str | Path, *, split: str = "train", size: int | None = None, seed: int = 0
) -> list[Question]:
    """Questions of a split, the same for equal arguments.

    Args:
        source: ``glyphs``, or a JSONL file whose lines have the keys of `Question`, images named
            relative to the file, and optionally ``split`` (a line without it is ``train``).
        split: ``train``, ``validation`` or whatever other split the source has.
        size: how many. From a file a sample in file order, a larger one containing a smaller one;
            None takes the whole file (the embedded world has no end and needs a size).
        seed: seed of the sample, or of the generated questions.

    Raises InputError naming file, line and key when the file is at fault, or holds too few.
    """
    if str(source) == EMBEDDED:
        if size is None:
            raise InputError(f"the source {EMBEDDED!r} has no end: say how many questions")
        from observe import glyphs

        return glyphs.questions(split, size, seed=seed)
    path = Path(source)
    questions = [question for own, question in read_jsonl(path) if own == split]
    if not questions:
        raise InputError(
            f'{path}: no question of the split {split!r}; add lines with "split": {split!r}'
        )
    if size is None or size == len(questions):
        return questions
    if size > len(questions):
        raise InputError(
            f"{path}: {len(questions)} questions of the split {split!r}, {size} asked for; "
            f"add questions or lower data.size, data.ladder.pool or eval_size"
        )
    return [questions[i] for i in sorted(_sample_order(len(questions), split, seed)[:size])]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A question that cannot be used, and whose place another takes."""

    question: str
    """The question's id."""
    reason: str
    """``image``: it cannot be read; ``too_long``: the prompt is."""
    detail: str
    """What is wrong, in words."""


def unreadable(question: Question) -> Skipped | None:
    """What is wrong with the images of a question; every one is decoded."""
    try:
        question.open_images()
    except InputError as error:
        return Skipped(question=question.id, reason="image", detail=str(error))
    return None


def load_usable(
    source: str | Path,
    *,
    split: str = "train",
    size: int,
    seed: int = 0,
    problem: Callable[[Question], Skipped | None] = unreadable,
) -> tuple[list[Question], list[Skipped]]:
    """`load_questions` without those that ``problem`` objects to; further ones take their places.

    The same ``size`` questions for equal arguments, whatever order they are then asked in, so that
    skipping changes neither the length of a pass nor what two orders have in common. Also returns
    what was skipped on the way. Raises InputError when too few are left.
    """
    if str(source) == EMBEDDED:
        pool = load_questions(source, split=split, size=size, seed=seed)
        order = list(range(size))
    else:
        pool = load_questions(source, split=split)
        order = _sample_order(len(pool), split, seed)
        if size > len(pool):
            load_questions(source, split=split, size=size)  # Says so.
    usable: list[int] = []
    skipped: list[Skipped] = []
    rest = iter(order)
    with ThreadPoolExecutor() as threads:
        while block := list(islice(rest, size - len(usable))):
            problems = threads.map(problem, [pool[i] for i in block])
            for index, found in zip(block, problems, strict=True):
                if found is None:
                    usable.append(index)
                else:
                    skipped.append(found)
    if len(usable) < size:
        raise InputError(
            f"{source}: {len(usable)} usable questions of the split {split!r}, {size} asked for: "
            f"{describe_skipped(skipped)}. Mend them, add questions or ask for fewer"
        )
    return [pool[i] for i in sorted(usable)], skipped


def describe_skipped(skipped: Sequence[Skipped]) -> str:
    """How many were skipped for what reason, and the first of each."""
    parts = []
    for reason in dict.fromkeys(one.reason for one in skipped):
        those = [one for one in skipped if one.reason == reason]
        parts.append(
            f"{len(those)} skipped ({reason}), e.g. {those[0].question}: {those[0].detail}"
        )
    return "; ".join(parts)


def write_skipped(skipped: Sequence[Skipped], path: Path) -> None:
    """Write them one per line."""
    lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in skipped]
    path.write_text("".join(lines), encoding="utf-8")


def _sample_order(total: int, split: str, seed: int) -> list[int]:
    """The order in which a sample of a file is drawn; a larger one contains a smaller one."""
    indices = list(range(total))
    random.Random(f"{seed}/{split}").shuffle(indices)
    return indices


def read_jsonl(path: Path) -> list[tuple[str, Question]]:
    """All questions of a JSONL file, each with its split; blank lines are skipped.

    Raises InputError with ``file:line``, key and remedy for a line that is not a JSON object, an
    unknown, missing or mistyped key, a missing image file, a repeated id, or a gold answer that
    the scorer cannot read as its answer type. (Golds of type ``expression`` need algebra; the
    ladder's verifiable filter judges those.)
    """
    try:
        # A text may hold other line separators, which splitlines() would cut at.
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; data.source is 'glyphs' or a JSONL file") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSONL text file ({error})") from None
    rows: list[tuple[str, str, Question]] = []
    seen: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = _checked(line, where, path.parent)
        if record["id"] in seen:
            first = seen[record["id"]]
            raise InputError(f"{where}: id: {record['id']!r} is taken by {first}; ids are unique")
        seen[record["id"]] = where
        split = record.pop("split", "train")
        rows.append((where, split, from_record(record, path.parent)))
    simple = [(where, q) for where, _, q in rows if q.answer_type != "expression"]
    readable = verifiable([question for _, question in simple])
    for (where, question), ok in zip(simple, readable, strict=True):
        if not ok:
            raise InputError(
                f"{where}: gold: {question.gold!r} cannot be read as {question.answer_type}; "
                "correct it, or change answer_type"
            )
    return [(split, question) for _, split, question in rows]


def verifiable(questions: list[Question]) -> list[bool]:
    """Whether the scorer, given the gold itself as the answer, calls it right.

    What fails this can never be rewarded (Observe-R1, NeuraLadder step 1).
    """
    verdicts = score_many(
        [
            ScoreRequest(
                response=f"<answer>{q.gold}</answer>",
                gold=q.gold,
                answer_type=q.answer_type,
                options=q.options,
            )
            for q in questions
        ]
    )
    return [verdict.correct is True for verdict in verdicts]


def _checked(line: str, where: str, folder: Path) -> dict[str, Any]:
    """A line as a record with the right keys and types, or InputError."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}); "
            "each line is one JSON object"
        ) from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(record).__name__}")
    for key, value in record.items():
        if key not in _KEYS:
            raise InputError(f"{where}: {key}: unknown key; known keys: {', '.join(_KEYS)}")
        kind = _KEYS[key][0]
        if type(value) is not kind:
            raise InputError(f"{where}: {key}: expected {kind.__name__}, got {value!r}")
    for key, (_, required) in _KEYS.items():
        if required and not record.get(key):
            raise InputError(f"{where}: {key}: missing or empty; every question needs it")
    if record["answer_type"] not in ANSWER_TYPES:
        raise InputError(
            f"{where}: answer_type: expected one of {', '.join(ANSWER_TYPES)}, "
            f"got {record['answer_type']!r}"
        )
    for text in (record["text"], *record.get("options", [])):
        if found := VISION_TOKEN.search(str(text)):
            raise InputError(
                f"{where}: text: holds {found[0]}, which stands for pixels; list images under "
                '"images", they come before the text'
            )
    for key in ("options", "images"):
        for value in record.get(key, []):
            if not isinstance(value, str):
                raise InputError(f"{where}: {key}: expected strings, got {value!r}")
    for name in record.get("images", []):
        if not (folder / name).is_file():
            raise InputError(
                f"{where}: images: no such file: {folder / name}; "
                "paths are relative to the JSONL file"
            )
    if record["answer_type"] == "choice":
        letters = [chr(ord("A") + i) for i in range(len(record.get("options", [])))]
        if record["gold"] not in letters:
            known = ", ".join(letters) or "none"
            raise InputError(
                f"{where}: gold: expected the letter of an option ({known}), "
                f'got {record["gold"]!r}; list the options under "options"'
            )
    return record

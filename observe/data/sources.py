"""Where questions come from: the embedded world, or a JSONL file with images beside it."""

import json
import random
import typing
from pathlib import Path
from typing import Any

from observe.config import EMBEDDED
from observe.data.question import Question, from_record
from observe.errors import InputError
from observe.scoring import AnswerType, ScoreRequest, score_many

ANSWER_TYPES: tuple[str, ...] = typing.get_args(AnswerType)

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
    indices = list(range(len(questions)))
    random.Random(f"{seed}/{split}").shuffle(indices)
    return [questions[i] for i in sorted(indices[:size])]


def read_jsonl(path: Path) -> list[tuple[str, Question]]:
    """All questions of a JSONL file, each with its split; blank lines are skipped.

    Raises InputError with ``file:line``, key and remedy for a line that is not a JSON object, an
    unknown, missing or mistyped key, a missing image file, a repeated id, or a gold answer that
    the scorer cannot read as its answer type. (Golds of type ``expression`` need algebra; the
    ladder's verifiable filter judges those.)
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
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

"""What a model answered, written as it comes, so that nothing is asked twice.

`answers.jsonl` is appended to and never rewritten. A line is an answer with everything that it
depends on, or the settings that the answers after it name by their digest; each ends with a
checksum. A process that dies leaves at most a torn last line, which is cut off; a damaged line is
left out and counted, and its question asked again. What is kept are answers, not verdicts: they
are judged anew each time.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from observe.errors import InputError
from observe.rollout.engine import Completion

FILE = "answers.jsonl"


@dataclass(frozen=True, kw_only=True)
class Key:
    """What an answer depends on, beside the settings that all answers of a run share."""

    task: str
    """The benchmark."""
    task_hash: str
    """Of the benchmark's name and the settings that its requests carry."""
    item: str
    """The item's id."""
    attempt: int
    """Which of several answers to the item."""
    prompt: str
    """Digest of the chat, its system prompt included."""
    image: str
    """Digest of the pixels of all its images; empty without any."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer as it is kept."""

    text: str
    tokens: int
    truncated: bool
    seconds: float
    """Its share of the time of the batch that it was answered in."""


class AnswerStore:
    """The answers in a file, of these settings to be looked up, of all kept."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open the file, or begin it.

        ``settings`` (JSON values) say what answers: model hash, engine, generation. Raises
        InputError when another process has the file open.
        """
        self.path = path
        self.settings = digest(settings)
        self.damaged = 0
        """Lines that could not be read."""
        self._answers: dict[Key, Answer] = {}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise InputError(
                f"{path}: another evaluation is writing there; wait for it or give another --out"
            ) from None
        if not self._read():
            self._write([{"settings": self.settings, "of": dict(settings)}])

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: Key) -> Answer | None:
        """The answer to a question under the store's settings, if it was given."""
        return self._answers.get(key)

    def add(self, answers: Mapping[Key, Answer]) -> None:
        """Keep answers; when this returns they are on the disk."""
        self._answers.update(answers)
        self._write(
            [
                {"by": self.settings, **asdict(key), **asdict(answer)}
                for key, answer in answers.items()
            ]
        )

    def close(self) -> None:
        """Let others write to the file."""
        os.close(self._file)

    def _read(self) -> bool:
        """Load what is whole; returns whether the settings are there."""
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            self.damaged += 1
            os.ftruncate(self._file, end)
        known = False
        for line in data[:end].splitlines():
            row = _checked(line)
            if row is None:
                self.damaged += 1
            elif row.get("settings") == self.settings:
                known = True
            elif row.get("by") == self.settings:
                key = Key(**{name: row[name] for name in Key.__dataclass_fields__})
                answer = Answer(**{name: row[name] for name in Answer.__dataclass_fields__})
                self._answers[key] = answer
        return known

    def _write(self, rows: list[dict[str, Any]]) -> None:
        data = b"".join(_line(row) for row in rows)
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps({**row, "check": digest(row)}, ensure_ascii=False) + "\n").encode()


def _checked(line: bytes) -> dict[str, Any] | None:
    """A line's row, or None when the line is not what was written."""
    try:
        row = json.loads(line)
        check = row.pop("check")
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    return row if check == digest(row) else None


def to_answer(completion: Completion, seconds: float) -> Answer:
    """What is kept of a completion."""
    return Answer(
        text=completion.text,
        tokens=completion.num_tokens,
        truncated=completion.truncated,
        seconds=seconds,
    )


def to_completion(answer: Answer) -> Completion:
    """An answer that was kept; which tokens it had is not known any more."""
    return Completion(
        token_ids=[], text=answer.text, truncated=answer.truncated, counted=answer.tokens
    )


def digest(value: Any) -> str:
    """16 hex digits of a JSON value, the order of its keys aside."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def image_digest(images: Sequence[Image.Image]) -> str:
    """16 hex digits of the images' sizes and pixels."""
    if not images:
        return ""
    hashed = hashlib.sha256()
    for image in images:
        hashed.update(f"{image.mode} {image.size}\n".encode() + image.tobytes())
    return hashed.hexdigest()[:16]

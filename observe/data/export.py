"""A ladder as a Hugging Face data set: Parquet files with the images in them, in ladder order."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from observe.data.question import Question
from observe.data.rungs import Ladder
from observe.errors import InputError

FILE_BYTES = 400 * 2**20
"""Images in one Parquet file, about."""


def export_ladder(
    ladder: Ladder, questions: list[Question], licences: Mapping[str, str], card: str, folder: Path
) -> int:
    """Write ``data/train-*.parquet`` and ``README.md``; `datasets.load_dataset` opens the folder.

    ``questions`` are those of the rungs in their order, their images files; ``licences`` those of
    the sources, the first part of an id. Returns the number of files. Raises InputError when the
    folder holds something else.
    """
    from datasets import Dataset, Features, Image, Value
    from datasets import List as ListOf

    text, number = Value("string"), Value("int32")
    features = Features(
        {
            **{name: text for name in ("id", "source", "licence", "question")},
            "options": ListOf(text),
            "images": ListOf(Image()),
            **{name: text for name in ("answer", "answer_type", "family", "cluster")},
            **{"difficulty": Value("float32"), "complexity": Value("float32")},
            **{"stage": number, "position": number},
            **{"prompts": ListOf(text), "correct": ListOf(Value("bool"))},
            "lengths": ListOf(number),
        }
    )
    check_folder(folder)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for old in data.glob("train-*.parquet"):
        old.unlink()
    parts = list(_parts(ladder, questions))
    for i, part in enumerate(parts):
        rows = [_row(rung, question, licences) for rung, question in part]
        name = f"train-{i:05d}-of-{len(parts):05d}.parquet"
        Dataset.from_list(rows, features=features).to_parquet(data / name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return len(parts)


def check_folder(folder: Path) -> None:
    """Raise InputError when the folder holds anything but an export."""
    strange = sorted(set(folder.glob("*")) - {folder / "data", folder / "README.md"})
    if strange:
        raise InputError(f"--export: {folder} holds {strange[0].name}; name an empty folder")


def _parts(ladder: Ladder, questions: list[Question]) -> Iterator[list[tuple[Any, Question]]]:
    part, size = [], 0
    for pair in zip(ladder.rungs, questions, strict=True):
        part.append(pair)
        size += sum(file.stat().st_size for file in pair[1].images if isinstance(file, Path))
        if size >= FILE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _row(rung: Any, question: Question, licences: Mapping[str, str]) -> dict[str, Any]:
    source = question.id.split("/")[0]
    return {
        "id": question.id,
        "source": source,
        "licence": licences[source],
        "question": question.text,
        "options": list(question.options),
        "images": [
            {"bytes": file.read_bytes(), "path": file.name}
            for file in question.images
            if isinstance(file, Path)
        ],
        "answer": question.gold,
        "answer_type": question.answer_type,
        "family": question.family,
        "cluster": question.cluster,
        "difficulty": rung.difficulty,
        "complexity": rung.complexity,
        "stage": rung.level,
        "position": rung.order_index,
        "prompts": list(rung.prompts),
        "correct": list(rung.correct),
        "lengths": list(rung.lengths),
    }

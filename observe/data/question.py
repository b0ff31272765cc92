"""A question about images, and its form in a JSONL file."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from observe.data.images import decode_image, read_image, to_rgb
from observe.scoring import AnswerType


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with its gold answer."""

    id: str
    """Unique within its source."""
    text: str
    """What is asked, without the options."""
    gold: str
    """The right answer; for a choice question the letter of the right option."""
    answer_type: AnswerType
    """How answers are judged."""
    options: tuple[str, ...] = ()
    """Option texts in the order of their letters; empty for an open question."""
    images: tuple[Image.Image | Path | bytes, ...] = ()
    """Images, the files that hold them, or what those hold, in the order the prompt shows them."""
    family: str = ""
    """Kind of question."""
    level: int = 0
    """Difficulty that the source itself states."""
    cluster: str = ""
    """What questions share when they are not independent (a scene); empty: the question alone."""
    observation: str = ""
    """What a correct and complete description of the images says, when it is known."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the source knows; JSON values only."""

    def open_images(self) -> list[Image.Image]:
        """The images as RGB, read from their files where they are files.

        Raises InputError naming the file of an image that cannot be read.
        """
        return [_opened(image, f"{self.id}, image {n}") for n, image in enumerate(self.images)]


def _opened(image: Image.Image | Path | bytes, name: str) -> Image.Image:
    if isinstance(image, bytes):
        return decode_image(image, name)
    return read_image(image) if isinstance(image, Path) else to_rgb(image)


_REQUIRED = ("id", "text", "gold", "answer_type")


def to_record(question: Question, folder: Path) -> dict[str, Any]:
    """A question as JSON values; fields at their defaults are left out.

    An image in memory is saved as ``images/<id>-<n>.png`` under ``folder``; image files are named
    relative to ``folder`` when they lie below it, else by their absolute path.
    """
    record = {spec.name: getattr(question, spec.name) for spec in dataclasses.fields(question)}
    record["options"] = list(question.options)
    record["images"] = [
        _image_name(question.id, n, image, folder) for n, image in enumerate(question.images)
    ]
    record["metadata"] = dict(question.metadata)
    return {key: value for key, value in record.items() if value or key in _REQUIRED}


def _image_name(
    question_id: str, number: int, image: Image.Image | Path | bytes, folder: Path
) -> str:
    if isinstance(image, Path):
        path = image.absolute()
        root = folder.absolute()
        return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in question_id)
    path = folder / "images" / f"{name}-{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    (decode_image(image, name) if isinstance(image, bytes) else image).save(path)
    return path.relative_to(folder).as_posix()


def from_record(record: Mapping[str, Any], folder: Path) -> Question:
    """The inverse of `to_record`: images become paths, relative ones taken from ``folder``."""
    values = dict(record)
    values["options"] = tuple(values.get("options", ()))
    values["images"] = tuple(folder / name for name in values.get("images", ()))
    return Question(**values)


def write_jsonl(questions: Iterable[Question], path: Path) -> None:
    """Write questions one per line, images in memory as PNG files beside the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for question in questions:
            file.write(json.dumps(to_record(question, path.parent), ensure_ascii=False) + "\n")

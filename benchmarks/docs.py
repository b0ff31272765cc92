"""A question as a row of an lm-eval dataset, and the functions that task YAMLs refer to."""

import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset, Features, Value
from datasets import List as ListOf
from PIL import Image

from observe.data.question import Question
from observe.prompts import format_question
from observe.scoring import score

PLACEHOLDER = "<image>"
"""Where an image goes in lm-eval's text; `benchmarks.model` turns it into a chat message's part."""

_FEATURES = Features(
    {name: Value("string") for name in ("id", "text", "gold", "answer_type")}
    | {"options": ListOf(Value("string")), "images": ListOf(Value("binary"))}
    | {"family": Value("string"), "level": Value("int64"), "cluster": Value("string")}
    | {"observation": Value("string")}
)


def to_dataset(questions: Iterable[Question]) -> dict[str, Dataset]:
    """Questions as lm-eval's `custom_dataset` returns them: one split, `test`; images as PNG."""
    rows = [
        {name: getattr(question, name) for name in _FEATURES if name not in ("options", "images")}
        | {"options": list(question.options), "images": [_png(i) for i in question.open_images()]}
        for question in questions
    ]
    return {"test": Dataset.from_list(rows, features=_FEATURES)}


def to_question(doc: dict[str, Any]) -> Question:
    """The question that a row holds."""
    fields = {name: doc[name] for name in _FEATURES if name not in ("options", "images")}
    return Question(**fields, options=tuple(doc["options"]), images=tuple(images(doc)))


def fingerprint(docs: Iterable[dict[str, Any]]) -> str:
    """16 hex digits that change with any question, option, gold or pixel of a benchmark."""
    digest = hashlib.sha256()
    for doc in docs:
        for name in ("id", "text", "gold", "answer_type", "options"):
            digest.update(f"{name}={doc[name]}\n".encode())
        for image in images(doc):
            digest.update(f"{image.size}".encode() + image.tobytes())
    return digest.hexdigest()[:16]


def images(doc: dict[str, Any]) -> list[Image.Image]:
    """`doc_to_image`: the images of a row as RGB."""
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in doc["images"]]


def text(doc: dict[str, Any]) -> str:
    """`doc_to_text`: a placeholder per image, the question, and its options on lettered lines."""
    return PLACEHOLDER * len(doc["images"]) + format_question(doc["text"], doc["options"])


def judge(doc: dict[str, Any], responses: Sequence[str]) -> dict[str, float]:
    """`process_results`: `acc` is 1, 0, or NaN where the answer could not be judged."""
    verdict = score(
        responses[0], doc["gold"], answer_type=doc["answer_type"], options=doc["options"]
    )
    return {"acc": math.nan if verdict.correct is None else float(verdict.correct)}


def mean_of_judged(values: Sequence[float]) -> float:
    """`aggregation`: the mean of what could be judged, NaN if nothing could."""
    judged = [value for value in values if not math.isnan(value)]
    return sum(judged) / len(judged) if judged else math.nan


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()

"""A question as a row of an lm-eval dataset, and the functions that task YAMLs refer to."""

import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

from datasets import Dataset, Features, Value
from datasets import List as ListOf
from PIL import Image

from observe.data.images import decode_image, to_rgb
from observe.data.question import Question
from observe.prompts import format_question
from observe.scoring import ScoreRequest, Verdict, score_many
from observe.scoring.values import clean, read_number

PLACEHOLDER = "<image>"
"""Where an image goes in lm-eval's text; `benchmarks.model` turns it into a chat message's part."""

_PLAIN = ("id", "text", "gold", "answer_type", "family", "level", "cluster", "observation")
_FEATURES = Features(
    {name: Value("int64" if name == "level" else "string") for name in _PLAIN}
    | {"options": ListOf(Value("string")), "images": ListOf(Value("large_binary"))}
    | {"metadata": Value("string")}
)


def to_doc(question: Question, *, by_image: bool = False) -> dict[str, Any]:
    """A question as a row: what image files hold as it is, images in memory as PNG.

    `by_image`: questions that show the same images form a cluster.
    """
    encoded = [_encoded(image) for image in question.images]
    cluster = question.cluster
    if by_image and encoded:
        cluster = hashlib.sha256(b"".join(encoded)).hexdigest()[:16]
    plain = {name: getattr(question, name) for name in _PLAIN}
    return {
        **plain,
        "cluster": cluster,
        "options": list(question.options),
        "images": encoded,
        "metadata": json.dumps(dict(question.metadata)),
    }


def to_dataset(questions: Iterable[Question]) -> dict[str, Dataset]:
    """Questions as lm-eval's `custom_dataset` returns them: one split, `test`; images as PNG."""
    return {"test": to_dataset_of_docs(to_doc(question) for question in questions)}


def to_dataset_of_docs(docs: Iterable[dict[str, Any]]) -> Dataset:
    """Rows as a dataset of lm-eval."""
    return Dataset.from_list(list(docs), features=_FEATURES)


def to_question(doc: dict[str, Any], *, decode: bool = True) -> Question:
    """The question that a row holds; without its images unless `decode`."""
    return Question(
        **{name: doc[name] for name in _PLAIN},
        options=tuple(doc["options"]),
        images=tuple(images(doc)) if decode else (),
        metadata=json.loads(doc["metadata"]),
    )


def fingerprint(docs: Iterable[dict[str, Any]]) -> str:
    """16 hex digits that change with any question, option, gold or pixel of a benchmark."""
    digest = hashlib.sha256()
    for doc in docs:
        for name in ("id", "text", "gold", "answer_type", "options"):
            digest.update(f"{name}={doc[name]}\n".encode())
        if accepted := json.loads(doc["metadata"]).get("accepted"):
            digest.update(f"accepted={accepted}\n".encode())
        for image in images(doc):
            digest.update(f"{image.size}".encode() + image.tobytes())
    return digest.hexdigest()[:16]


class EncodedImages(Sequence[Image.Image]):
    """Images as RGB that are decoded each time they are looked at, and not kept.

    lm-eval makes all requests of a run before the first is answered: the pixels of a whole
    benchmark would fill the memory.
    """

    def __init__(self, encoded: Sequence[bytes], name: str) -> None:
        self._encoded = encoded
        self._name = name

    def __len__(self) -> int:
        return len(self._encoded)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(index, slice):
            return [decode_image(data, self._name) for data in self._encoded[index]]
        return decode_image(self._encoded[index], self._name)


def images(doc: dict[str, Any]) -> EncodedImages:
    """`doc_to_image`: the images of a row as RGB."""
    return EncodedImages(doc["images"], doc["id"])


def text(doc: dict[str, Any]) -> str:
    """`doc_to_text`: a placeholder per image, the question, and its options on lettered lines."""
    return PLACEHOLDER * len(doc["images"]) + format_question(doc["text"], doc["options"])


def judge(doc: dict[str, Any], responses: Sequence[str]) -> dict[str, float]:
    """`process_results`: `acc` is 1, 0, or NaN where the answer could not be judged.

    Only lm-eval's own table shows it: `benchmarks.evaluate` judges all responses at once.
    """
    asked = request(to_question(doc, decode=False), responses[0], public=False)
    (verdict,) = score_many([asked], workers=1)
    return {"acc": math.nan if verdict.correct is None else float(verdict.correct)}


def request(
    question: Question, response: str, *, public: bool, ignore_tags: bool = False
) -> ScoreRequest:
    """What the scorer is asked about a response; of `public` benchmarks it also gets the text."""
    return ScoreRequest(
        response=response,
        gold=[question.gold, *question.metadata.get("accepted", ())],
        answer_type=question.answer_type,
        options=question.options,
        question=question.text if public else None,
        ignore_tags=ignore_tags,
    )


def relaxed(verdict: Verdict, question: Question) -> Verdict:
    """ChartQA's relaxed accuracy (Masry et al. 2022): within 5% of a gold number is right too."""
    if verdict.correct is not False or verdict.answer is None:
        return verdict
    said = read_number(clean(verdict.answer))
    for gold in (question.gold, *question.metadata.get("accepted", ())):
        right = read_number(clean(gold))
        if said and right and abs(said.value - right.value) * 20 <= abs(right.value):
            return Verdict(True, verdict.answer, f"{verdict.reason}, within 5%")
    return verdict


def chance(question: Question) -> float | None:
    """How often guessing is right: one in the number of options, 0 for an open answer.

    None where the options are only in the image and nobody says how many there are.
    """
    if question.answer_type == "yes_no":
        return 0.5
    if question.answer_type == "choice":
        choices = len(question.options) or question.metadata.get("choices")
        return 1 / choices if choices else None
    # Several letters of options in the image.
    return None if re.fullmatch(r"\{[A-J](, [A-J])+\}", question.gold) else 0.0


def mean_of_judged(values: Sequence[float]) -> float:
    """`aggregation`: the mean of what could be judged, NaN if nothing could."""
    judged = [value for value in values if not math.isnan(value)]
    return sum(judged) / len(judged) if judged else math.nan


def _encoded(image: Image.Image | Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return image.read_bytes()
    buffer = io.BytesIO()
    to_rgb(image).save(buffer, format="PNG")
    return buffer.getvalue()

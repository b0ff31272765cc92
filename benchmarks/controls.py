"""Questions asked again under other conditions, through the same model of lm-eval."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance

from benchmarks.config import Control
from benchmarks.docs import images, text

if TYPE_CHECKING:
    from lm_eval.api.model import LM

Doc = dict[str, Any]

# Options that speak of others lose their sense when their order changes; so do bare letters.
_FIXED_OPTION = re.compile(
    r"\b(?:[Aa]ll|[Nn]one|[Bb]oth|[Nn]either|[Ee]ither|[Aa]ny) of (?:the|them|these)\b|\babove\b"
    r"|\(?\b[A-J]\)?\s*(?:and|or|&|,)\s*\(?[A-J]\b|^\W*[A-J]\W*$"
)
# As the adapters name images, and the panels of a single one, which may bear letters.
_PANEL = re.compile(r"\(image \d+\)")


def conditions(controls: Sequence[Control], docs: Sequence[Doc]) -> dict[str, list[Doc]]:
    """Condition -> its rows, for the conditions that apply to any of these rows.

    ``no_image``: asked without its images. ``shuffled_image``: with the images of another row, the
    same ones for the same rows. ``rotation_K``: the options moved K letters on, where their order
    means nothing and there are more than K; over all K every option stands at every letter.
    """
    found: dict[str, list[Doc]] = {}
    if "no_image" in controls:
        found["no_image"] = [{**doc, "images": []} for doc in docs if doc["images"]]
    if "shuffled_image" in controls:
        found["shuffled_image"] = _with_images_of_others([doc for doc in docs if doc["images"]])
    if "rotations" in controls:
        movable = [doc for doc in docs if permutable(doc)]
        for k in range(1, max((len(doc["options"]) for doc in movable), default=1)):
            found[f"rotation_{k}"] = [rotated(doc, k) for doc in movable if len(doc["options"]) > k]
    return {condition: rows for condition, rows in found.items() if rows}


def permutable(doc: Doc) -> bool:
    """Whether its options may stand in another order.

    None may speak of another one or of a letter, or name a panel of the question's only image.
    """
    fixed = [_FIXED_OPTION] if len(doc["images"]) > 1 else [_FIXED_OPTION, _PANEL]
    return (
        doc["answer_type"] == "choice"
        and len(doc["options"]) > 1
        and not any(mark.search(option) for mark in fixed for option in doc["options"])
    )


def rotated(doc: Doc, k: int) -> Doc:
    """The row with its options (and the gold letter) moved k letters on, the last to the front."""
    options = list(doc["options"])
    place = (ascii_uppercase.index(doc["gold"]) + k) % len(options)
    return {**doc, "options": options[-k:] + options[:-k], "gold": ascii_uppercase[place]}


def _with_images_of_others(docs: Sequence[Doc]) -> list[Doc]:
    """Each row with the images of the next one, in a fixed random order, that has others."""
    order = list(range(len(docs)))
    random.Random(0).shuffle(order)
    lent: dict[int, list[bytes]] = {}
    for place, own in enumerate(order):
        for step in range(1, len(order)):
            other = docs[order[(place + step) % len(order)]]["images"]
            if other != docs[own]["images"]:
                lent[own] = other
                break
    return [{**doc, "images": lent[i]} for i, doc in enumerate(docs) if i in lent]


def requests(
    lm: "LM", rows: Mapping[str, Iterable[Doc]], system: str, settings: Mapping[str, Any]
) -> list[Instance]:
    """Requests of rows by name, as lm-eval itself makes them of its tasks.

    `settings` are those of generation.
    """
    return [
        Instance(
            request_type="generate_until",
            doc=doc,
            arguments=(
                lm.apply_chat_template(
                    [{"role": "system", "content": system}, {"role": "user", "content": text(doc)}]
                ),
                dict(settings),
                {"visual": images(doc)},
            ),
            idx=0,
            metadata=(name, number, 1),
        )
        for name, docs in rows.items()
        for number, doc in enumerate(docs)
    ]

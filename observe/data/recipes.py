"""Data sets of others as questions: the sources of NeuraLadder, each with its schema.

The data sets are those that Observe-R1 (arXiv 2505.12432) names. A recipe says where a data set
lies and turns one of its rows into a `Row`; what a row may not be is judged in `observe.data.pool`.
Fields as public descriptions of the data sets give them. The Hub decides what they are: a row that
lacks a field is rejected by name.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from observe.scoring import AnswerType


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a data set, read but not yet checked."""

    id: str
    """Unique within the data set."""
    text: str
    """What is asked, without the options."""
    gold: str
    """The right answer; with options a letter, or the text of one of them."""
    options: tuple[str, ...] = ()
    """Option texts in the order of their letters."""
    images: tuple[Any, ...] = ()
    """A path below the data set's folder, the bytes of a file, or {bytes, path} as `datasets` has
    them."""
    answer_type: AnswerType | None = None
    """Null where the gold itself tells."""
    family: str = ""
    level: int = 0
    cluster: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Rejected(Exception):
    """A row that cannot become a question."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        """One of `observe.data.pool.REASONS`."""
        self.detail = detail
        """What is wrong, in words."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A data set by name."""

    name: str
    hub: str | None
    """Repository on the Hugging Face Hub; null for files of one's own."""
    licence: str
    """As the data set states it."""
    adapt: Callable[[Mapping[str, Any], int], Row]
    """A row and its number, from 0."""
    split: str = "train"
    files: tuple[str, ...] = ()
    """Where the repository holds plain files, those to fetch; empty: `datasets` reads it."""
    images_below: tuple[str, ...] = ("",)
    """Folders that image paths may be relative to, tried in order."""
    benchmark: bool = False
    """Also used to evaluate: what is trained on it is contaminated there."""
    note: str = ""


def read_row(recipe: Recipe, raw: Any, number: int) -> Row:
    """A row of a recipe's data set, `number` its place there; Rejected where it is of another
    schema."""
    if not isinstance(raw, Mapping):
        raise Rejected("malformed", f"expected an object, got {type(raw).__name__}")
    try:
        return recipe.adapt(raw, number)
    except KeyError as error:
        fields = ", ".join(map(str, raw))
        raise Rejected("malformed", f"no field {error.args[0]!r}; it has {fields}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise Rejected("malformed", f"a field of another type: {error}") from None


def mathvision(row: Mapping[str, Any], number: int) -> Row:
    """MATH-Vision: a letter where there are options, else a value."""
    text, options = row["question"].strip(), _texts(row, "options")
    # Every row has one image file; where there are several marks they name panels in it.
    several = len(set(_MARK.findall(" ".join((text, *options))))) > 1
    panel = r"(image \1)" if several else "the image"
    if not several:
        # At the end of a line, or on one of its own, it only says where the image goes.
        text = _MARK_ALONE.sub("", text)
    image = row.get("decoded_image") or row.get("image")
    return Row(
        id=str(row["id"]),
        text=_MARK.sub(panel, text).strip(),
        gold=_string(row["answer"]),
        options=tuple(_MARK.sub(panel, option) for option in options),
        images=(image,) if image else (),
        family=str(row.get("subject") or ""),
        level=_whole(row, "level"),
    )


def we_math(row: Mapping[str, Any], number: int) -> Row:
    """We-Math: options in one string; the steps of a problem share its number."""
    steps = re.match(r"(\d)steps", str(row["key"]))
    return Row(
        id=f"{row['ID']}@{row['key']}",
        text=str(row["question"]).strip(),
        gold=_string(row["answer"]).upper(),
        options=split_options(str(row["option"])),
        images=(image,) if (image := _first(row, "image_path", "image", default=None)) else (),
        family=str(row.get("knowledge concept") or ""),
        level=int(steps[1]) if steps and str(row["key"]).endswith("multi") else 1,
        cluster=str(row["ID"]),
    )


def polymath(row: Mapping[str, Any], number: int) -> Row:
    """PolyMATH: the question, options included, stands in the image; answers are their labels."""
    gold = _string(row["final_answer"]).strip("[]()' \"")
    if not gold:
        raise Rejected("no_gold", "final_answer is empty")
    if re.search(r"[,;/]", gold):
        raise Rejected("several_golds", f"final_answer {gold!r} names several answers")
    text = str(row.get("question") or "").strip() or "Answer the question in the image."
    labels = str(row.get("final_answer_range") or "").strip()
    if re.fullmatch(r"[A-Fa-f]", gold):
        named = re.findall(r"[A-F]", labels.upper()) or ["D"]
        last = max(named[-1], gold.upper())
        letters = ascii_uppercase[: ascii_uppercase.index(last) + 1]
        return Row(
            id=str(_first(row, "id", "sample_id", default=number)),
            text=text,
            gold=gold.upper(),
            options=tuple(f"the one marked {letter}" for letter in letters),
            images=(row["image"],) if row["image"] else (),
            family=str(row.get("category") or ""),
        )
    return Row(
        id=str(_first(row, "id", "sample_id", default=number)),
        text=f"{text} The answer is one of: {labels}." if labels else text,
        gold=gold,
        images=(row["image"],) if row["image"] else (),
        family=str(row.get("category") or ""),
    )


def scemqa(row: Mapping[str, Any], number: int) -> Row:
    """SceMQA: options in the question; a free answer stands in ``\\answer{}`` with its solution."""
    answer = str(row["Answer (final answer highlighted)"]).strip()
    text, options = split_question(str(row["Question"]).strip())
    marked = [gold.strip() for gold in re.findall(r"\\answer\s*\{([^{}]*)\}", answer)]
    if len(set(marked)) > 1:
        raise Rejected("several_golds", f"answers {', '.join(marked)}")
    text = re.sub(r"\s*\((?:Final Answer is a value|Yes or No)\.?\)\s*$", "", text)
    return Row(
        id=f"{row['group']}/{number}",
        text=text,
        gold=marked[0] if marked else answer,
        options=options,
        images=(row["ImagePath"],) if row["ImagePath"] else (),
        family=str(row["group"]).removesuffix("_Free_Response"),
        cluster=str(row["ImagePath"]),
    )


def mathv360k(row: Mapping[str, Any], number: int) -> Row:
    """MathV360K: a conversation of two turns. Its ids repeat, so the row's number is the id."""
    turns = {turn["from"]: str(turn["value"]) for turn in row["conversations"]}
    if len(row["conversations"]) != 2 or set(turns) != {"human", "gpt"}:
        raise Rejected("malformed", "expected one turn of human and one of gpt")
    asked = turns["human"].replace("<image>", "").strip()
    asked = re.sub(r"^Hint:[^\n]*\n?", "", asked).strip()
    text, options = split_question(re.sub(r"^Question:\s*", "", asked))
    said = turns["gpt"].strip()
    stated = re.search(r"[Tt]he answer is:?\s*(.+?)\.?\s*$", said)
    image = str(row.get("image") or "")
    return Row(
        id=str(number),
        text=re.sub(r"\s*(?:Choices|Options):\s*$", "", text),
        gold=(stated[1] if stated else said).strip().strip("()"),
        options=options,
        images=(image,) if image else (),
        family=image.split("/")[0],
        cluster=image,
    )


_OWN_KEYS = {"id", "text", "gold", "answer_type", "observation", "split"}
_OWN_TYPES = {
    **{"options": list, "images": list, "family": str, "level": int, "cluster": str},
    "metadata": dict,
}
"""What may be absent, and else is of this type: the pool is read again as strictly."""


def own(row: Mapping[str, Any], number: int) -> Row:
    """A line of the project's own JSONL form (`observe.data.sources`); null is absent."""
    if unknown := set(row) - _OWN_KEYS - set(_OWN_TYPES):
        raise Rejected("malformed", f"unknown key {min(unknown)!r}")
    if (split := row.get("split") or "train") != "train":
        raise Rejected("other_split", f"split {split!r}")
    given = {name: row[name] for name in _OWN_TYPES if row.get(name) is not None}
    for name, value in given.items():
        if type(value) is not _OWN_TYPES[name]:
            wanted, got = _OWN_TYPES[name].__name__, type(value).__name__
            raise Rejected("malformed", f"{name}: expected {wanted}, got {got}")
    return Row(
        id=str(row["id"]),
        text=row["text"],
        gold=row["gold"],
        answer_type=row["answer_type"],
        options=tuple(given.get("options", ())),
        images=tuple(given.get("images", ())),
        family=given.get("family", ""),
        level=given.get("level", 0),
        cluster=given.get("cluster", ""),
        metadata=given.get("metadata", {}),
    )


OWN = Recipe(name="jsonl", hub=None, licence="not stated", adapt=own)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="mathvision",
            hub="MathLLMs/MathVision",
            split="test",
            licence="MIT",
            adapt=mathvision,
            benchmark=True,
        ),
        Recipe(
            name="we_math",
            hub="We-Math/We-Math",
            split="testmini",
            licence="CC BY-NC 4.0",
            adapt=we_math,
            benchmark=True,
        ),
        Recipe(
            name="polymath",
            hub="him1411/polymath",
            split="test",
            licence="AFL-3.0",
            adapt=polymath,
            benchmark=True,
            note="The image holds the question.",
        ),
        Recipe(
            name="scemqa",
            hub="Haozy/SceMQA-main",
            licence="see the data set's page",
            adapt=scemqa,
            files=("Multiple_Choice/*", "Free_Response/*"),
            images_below=("Multiple_Choice", "Free_Response", ""),
            benchmark=True,
        ),
        Recipe(
            name="mathv360k",
            hub="Zhiqiang007/MathV360K",
            licence="see the data set's page; its parts have their own",
            adapt=mathv360k,
            files=("train_samples_all_tuning.json", "data_images/*", "data_images.zip"),
            images_below=("data_images", ""),
            note="Gathers 24 data sets, some of which have test splits that are benchmarks.",
        ),
    )
}
"""The sources of NeuraLadder by name."""


_MARK = re.compile(r"<image(\d+)>")
_MARK_ALONE = re.compile(r"^\s*<image\d+>\s*$|^<image\d+>\s*|\s*<image\d+>$", re.M)
_LABEL = re.compile(r"(?:^|(?<=[\s;；]))\(?([A-J])(?:\)|[.．、:])[ \t]*(?=\S)")
_LABEL_OF_LINE = re.compile(r"(?m)^[ \t]*\(?([A-J])(?:\)|[.．、:])[ \t]*(?=\S)")


def split_question(text: str) -> tuple[str, tuple[str, ...]]:
    """A question whose last lines are lettered options -> question and options."""
    starts = _in_order(list(_LABEL_OF_LINE.finditer(text)))
    return (text[: starts[0].start()].strip(), _between(text, starts)) if starts else (text, ())


def split_options(text: str) -> tuple[str, ...]:
    """``A. 3 cm; B. 4 cm`` -> the option texts; empty when there are no two in order."""
    return _between(text, _in_order(list(_LABEL.finditer(text))))


def _in_order(labels: list[re.Match[str]]) -> list[re.Match[str]]:
    """The last run A, B, C ... among the labels; a letter within an option's text is passed by."""
    begins = [i for i, m in enumerate(labels) if m[1] == "A"]
    run: list[re.Match[str]] = []
    for m in labels[begins[-1] :] if begins else ():
        if m[1] == ascii_uppercase[len(run)]:
            run.append(m)
    return run if len(run) > 1 else []


def _between(text: str, starts: list[re.Match[str]]) -> tuple[str, ...]:
    ends = [*(m.start() for m in starts[1:]), len(text)][: len(starts)]
    return tuple(
        text[m.end() : end].strip().rstrip(";；").strip()
        for m, end in zip(starts, ends, strict=True)
    )


def _texts(row: Mapping[str, Any], name: str) -> list[str]:
    """A field that holds a list of texts; null is an empty one."""
    value = row[name]
    if value is not None and not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}: expected a list, got {type(value).__name__}")
    return list(map(_string, value or ()))


def _whole(row: Mapping[str, Any], name: str) -> int:
    """A field that holds a whole number, however it is written; 0 where it is empty."""
    text = _string(row.get(name))
    try:
        return int(float(text)) if text and text != "nan" else 0
    except (ValueError, OverflowError):
        raise Rejected("malformed", f"{name}: expected a number, got {text[:80]!r}") from None


def _string(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _first(row: Mapping[str, Any], *names: str, default: Any) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), default)

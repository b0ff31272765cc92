"""Rows of public benchmarks as questions: one plain function for each schema.

An adapter reads a row by the names of its fields on the Hub and returns a `Question`. Whatever else
is right beside the gold goes to ``metadata["accepted"]``, groups that count as a whole to
``metadata["groups"]``, how many options there are where they are only drawn in the image to
``metadata["choices"]``. A row that is not what the schema says raises `BadRow`.
"""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from observe.data import recipes
from observe.data.question import Question
from observe.scoring import AnswerType
from observe.scoring.choices import key
from observe.scoring.equivalence import infer_type

MAX_OPTIONS = 10
"""The scorer knows the letters A to J."""

SHOWN = "Answer the question that the image shows."
"""What is asked where the question stands in the image alone."""

_MARK = re.compile(r"(?:^|(?<=[\s;,(\uff1b]))\(?([A-J])\s*[.:)\uff0e\u3001]\s*")
_LEAD_IN = re.compile(r"\s*(?:options|choices)\s*:?\s*$", re.IGNORECASE)
_NUMBERED_IMAGE = re.compile(r"<image ?(\d)>")
_VISION_TOKEN = re.compile(r"<\|(?:image|video|vision)_\w+\|>")


class BadRow(Exception):
    """A row that no question can be made of."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        """``field``, ``options``, ``gold``, ``text``, ``image_missing``, ``image_outside``,
        ``image_unreadable`` or ``duplicate_id``."""
        self.detail = detail
        """What is wrong, in words."""


class Row:
    """A row of a data set, its fields read by name and type."""

    def __init__(
        self,
        values: Mapping[str, Any],
        number: int,
        open_image: Callable[[Any], Path | bytes],
    ) -> None:
        self.values = values
        self.number = number
        """Its place in the data set, from 0."""
        self._open_image = open_image

    def has(self, name: str) -> bool:
        """Whether the field is there and not empty."""
        value = self.values.get(name)
        return value is not None and value != "" and value != [] and str(value) != "nan"

    def text(self, *names: str, default: str | None = None) -> str:
        """The first of these fields that is there, as text."""
        for name in names:
            if self.has(name):
                value = self.values[name]
                if isinstance(value, (str, int, float)):
                    return str(value).strip()
                raise BadRow("field", f"{name}: expected text, got {type(value).__name__}")
        if default is not None:
            return default
        raise BadRow("field", f"{' or '.join(names)}: missing; fields: {', '.join(self.values)}")

    def integer(self, name: str, default: int = 0) -> int:
        """A field as a whole number, however it is written (3, 3.0, "3")."""
        text = self.text(name, default=str(default))
        try:
            return int(float(text))
        except (ValueError, OverflowError):
            raise BadRow("field", f"{name}: expected a number, got {text[:80]!r}") from None

    def texts(self, name: str) -> list[str]:
        """A list of texts; a string that holds one is read as MMMU writes it. Absent: empty."""
        value = self.values.get(name)
        if isinstance(value, str) and value.strip().startswith("["):
            try:
                value = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                raise BadRow("options", f"{name}: not a list: {value[:80]!r}") from None
        if value is None or value == "":
            return []
        if not isinstance(value, (list, tuple)):
            raise BadRow("options", f"{name}: expected a list, got {type(value).__name__}")
        return [str(one).strip() for one in value]

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A field that holds fields; absent: empty."""
        value = self.values.get(name)
        return value if isinstance(value, Mapping) else {}

    def images(self, *names: str) -> tuple[Path | bytes, ...]:
        """The images of the first of these fields that has any; there must be one."""
        for name in names:
            if self.has(name):
                value = self.values[name]
                return self.open(value if isinstance(value, (list, tuple)) else [value])
        raise BadRow("image_missing", f"no image in {' or '.join(names)}")

    def open(self, images: Sequence[Any]) -> tuple[Path | bytes, ...]:
        """Images as fields hold them, checked."""
        return tuple(self._open_image(one) for one in images)


Adapter = Callable[[Row], Question]


def mathvista(row: Row) -> Question:
    """MathVista: options by text, else a number with its precision and unit in the question."""
    kinds: dict[str, AnswerType] = {"integer": "integer", "float": "decimal", "list": "list"}
    options = row.texts("choices")
    text, kind = row.text("question"), kinds.get(row.text("answer_type", default="text"), "text")
    if options:
        gold, kind = _letter_of_text(row.text("answer"), options), "choice"
    else:
        if row.text("question_type", default="") == "multi_choice":
            raise BadRow("options", "choices: missing in a multiple-choice question")
        gold = row.text("answer")
        if row.has("unit"):
            text += f" (Unit: {row.text('unit')})"
        if kind == "decimal" and row.has("precision"):
            text += f" (Decimals: {row.integer('precision')})"
        if kind == "list":
            text += " (Answer with a list.)"
    metadata = row.mapping("metadata")
    return _question(
        row,
        id=row.text("pid"),
        text=text,
        options=options,
        gold=gold,
        answer_type=kind,
        images=row.images("decoded_image", "image"),
        family=str(metadata.get("task", "")),
    )


def mathverse(row: Row) -> Question:
    """MathVerse: one of five versions of a problem; options stand in the question, if anywhere."""
    text, options = split_options(row.text("question", default=""))
    gold = row.text("answer")
    kind: AnswerType
    if row.text("question_type") == "multi-choice":
        gold, kind = _letter(gold, options), "choice"
    else:
        # What looks like options in an open question is part of it.
        text, options = row.text("question", default=""), []
        kind = infer_type(gold, None)
    problem = row.text("problem_index")
    return _question(
        row,
        id=row.text("sample_index"),
        text=text or SHOWN,
        options=options,
        gold=gold,
        answer_type=kind,
        images=row.images("image"),
        family=row.text("problem_version"),
        cluster=problem,
        metadata={"groups": {"problem": problem}},
    )


def mathvision(row: Row) -> Question:
    """MathVision: options and a letter, or a value."""
    read, images = _as_in_training(row, "mathvision")
    return _question(
        row,
        id=read.id,
        text=read.text,
        options=read.options,
        gold=_letter(read.gold, read.options) if read.options else read.gold,
        answer_type="choice" if read.options else infer_type(read.gold, None),
        images=images,
        family=read.family,
        level=read.level,
    )


def wemath(row: Row) -> Question:
    """We-Math: a step of a problem, or the whole of it; options in one string."""
    read, images = _as_in_training(row, "we_math")
    step = row.text("key")
    return _question(
        row,
        id=f"{read.cluster}-{step}",
        text=read.text,
        options=_required(read.options, "option"),
        gold=_letter(read.gold, read.options),
        answer_type="choice",
        images=images,
        family=step,
        cluster=read.cluster,
        metadata={"groups": {"problem": read.cluster}, "step": step},
    )


def logicvista(row: Row) -> Question:
    """LogicVista: one letter, or several that belong together; options mostly in the image."""
    text, options = split_options(row.text("question"))
    letters = re.findall(r"\b[A-Ja-j]\b", row.text("answer"))
    if not letters:
        raise BadRow("gold", f"answer: no option letter in {row.text('answer')[:80]!r}")
    skill = row.values.get("skill") or row.values.get("broad_capability") or ""
    several = len(letters) > 1
    gold = "{" + ", ".join(letter.upper() for letter in letters) + "}"
    return _question(
        row,
        id=row.text("id", "index", default=f"row-{row.number}"),
        # Several letters are judged as a set, to which the options' texts say nothing.
        text=row.text("question") if several else text,
        options=[] if several else options,
        gold=gold if several else _letter(letters[0], options),
        answer_type="list" if several else "choice",
        images=row.images("image"),
        family=skill if isinstance(skill, str) else ", ".join(map(str, skill)),
    )


def mmmu(row: Row) -> Question:
    """MMMU and MMMU-Pro (standard): up to seven images, options in a string that holds a list."""
    fields = [f"image_{k}" for k in range(1, 8) if row.has(f"image_{k}")] or ["image"]
    images = [image for name in fields for image in row.images(name)]
    numbers = {name.rpartition("_")[2]: place for place, name in enumerate(fields, start=1)}

    def named(text: str) -> str:
        def one(match: re.Match[str]) -> str:
            place = numbers.get(match[1])
            if place is None:
                raise BadRow("image_missing", f"the text names {match[0]}, which is not there")
            return f"(image {place})"

        return _NUMBERED_IMAGE.sub(one, text)

    options = [named(option) for option in row.texts("options")]
    text, answer = named(row.text("question")), row.text("answer")
    if len(images) == 1:
        # At either end it only says where the image goes; within a sentence it is a part of it.
        text = re.sub(r"^\(image 1\)\s*|(?<=[.?!:])\s*\(image 1\)$", "", text.strip()) or SHOWN
        text = text.replace("(image 1)", "the image")
    accepted: list[str] = []
    kind: AnswerType = "choice"
    if options:
        answer = _letter(answer, options)
    else:
        if row.text("question_type", default="open") == "multiple-choice":
            raise BadRow("options", "options: missing in a multiple-choice question")
        answer, *accepted = row.texts("answer") if answer.startswith("[") else [answer]
        kind = infer_type(answer, None)
    return _question(
        row,
        id=row.text("id"),
        text=text,
        options=options,
        gold=answer,
        answer_type=kind,
        images=images,
        family=row.text("subfield", "subject", default=""),
        level={"Easy": 1, "Medium": 2, "Hard": 3}.get(row.text("topic_difficulty", default=""), 0),
        metadata={"accepted": accepted},
    )


def mmmu_pro_vision(row: Row) -> Question:
    """MMMU-Pro (vision): the image holds question and options."""
    options = _required(row.texts("options"), "options")
    return _question(
        row,
        id=row.text("id"),
        text=SHOWN,
        options=[],
        gold=_letter(row.text("answer"), options),
        answer_type="choice",
        images=row.images("image"),
        family=row.text("subject", default=""),
        metadata={"choices": len(options)},
    )


def geometry3k(row: Row) -> Question:
    """Geometry3K: a value (as on the Hub), or options and a letter (as its authors' files)."""
    text = row.text("problem", "question").replace("<image>", "").strip()
    options, gold = row.texts("options"), row.text("answer")
    return _question(
        row,
        id=row.text("id", default=f"row-{row.number}"),
        text=text,
        options=options,
        gold=_letter(gold, options) if options else gold,
        answer_type="choice" if options else infer_type(gold, None),
        images=row.images("images", "image"),
        family=", ".join(row.texts("problem_type_goal")),
    )


def puzzlevqa(row: Row) -> Question:
    """PuzzleVQA: the answer is an option's text; captions and explanations stay out of it."""
    options = _required(row.texts("options"), "options")
    name = row.values.get("image")
    stem = Path(name).stem if isinstance(name, str) else ""
    puzzle = row.text("puzzle_type", default=stem.rpartition("_")[0])
    return _question(
        row,
        id=row.text("id", default=stem or f"row-{row.number}"),
        text=row.text("question"),
        options=options,
        gold=_letter_of_text(row.text("answer"), options),
        answer_type="choice",
        images=row.images("image"),
        family=puzzle,
        cluster=puzzle,
    )


def mmstar(row: Row) -> Question:
    """MMStar: options stand in the question."""
    text, options = split_options(row.text("question"))
    return _question(
        row,
        id=row.text("index"),
        text=text,
        options=options,
        gold=_letter(row.text("answer"), options),
        answer_type="choice",
        images=row.images("image"),
        family=row.text("category", default=""),
    )


def mmbench(row: Row) -> Question:
    """MMBench: options in fields A to D, and a hint before the question where there is one.

    The Hub's rows are those of CircularEval: a question stands there once for each turn of its
    options, the turned ones a multiple of 1,000,000 further on in `index`.
    """
    index = row.text("index")
    question = str(row.integer("index") % 1_000_000) if index.isdecimal() else index
    options = []
    for letter in ascii_uppercase[:MAX_OPTIONS]:
        if not row.has(letter):
            break
        options.append(row.text(letter))
    return _question(
        row,
        id=index,
        text=_joined(row.text("hint", default=""), row.text("question")),
        options=_required(options, "A, B"),
        gold=_letter(row.text("answer"), options),
        answer_type="choice",
        images=row.images("image"),
        family=row.text("category", default=""),
        metadata={"groups": {"question": question}},
    )


def scienceqa(row: Row) -> Question:
    """ScienceQA with images: the answer is an index; the lecture and the solution stay out."""
    options = _required(row.texts("choices"), "choices")
    return _question(
        row,
        id=row.text("id", default=f"row-{row.number}"),
        text=_joined(row.text("hint", default=""), row.text("question")),
        options=options,
        gold=_letter_of_index(row.text("answer"), options),
        answer_type="choice",
        images=row.images("image"),
        family=row.text("topic", "subject", default=""),
    )


def ai2d(row: Row) -> Question:
    """AI2D: the answer is an index; many questions share a diagram."""
    options = _required(row.texts("options"), "options")
    return _question(
        row,
        id=row.text("id", default=f"row-{row.number}"),
        text=row.text("question"),
        options=options,
        gold=_letter_of_index(row.text("answer"), options),
        answer_type="choice",
        images=row.images("image"),
    )


def chartqa(row: Row) -> Question:
    """ChartQA: a value or a word; numbers are judged with 5% tolerance (metric relaxed)."""
    field = "answer" if row.has("answer") else "label"
    golds = row.texts(field) if isinstance(row.values.get(field), list) else [row.text(field)]
    kind = infer_type(golds[0], None)
    return _question(
        row,
        id=row.text("id", default=f"row-{row.number}"),
        text=row.text("question", "query"),
        options=[],
        gold=golds[0],
        # A label such as "A" is a word, and no option is meant.
        answer_type="text" if kind in ("choice", "expression") else kind,
        images=row.images("image"),
        family=row.text("type", "human_or_machine", default=""),
        metadata={"accepted": golds[1:]},
    )


def hallusionbench(row: Row) -> Question:
    """HallusionBench: yes or no about figures, some of them edited so that the answer changes."""
    gold = {"0": "no", "1": "yes"}.get(row.text("gt_answer"))
    if gold is None:
        raise BadRow("gold", f"gt_answer: expected 0 or 1, got {row.text('gt_answer')!r}")
    inside = "_".join(row.text(name) for name in ("category", "subcategory", "set_id"))
    figure, question = row.text("figure_id"), row.text("question_id")
    return _question(
        row,
        id=f"{inside}_{figure}_{question}",
        text=row.text("question"),
        options=[],
        gold=gold,
        answer_type="yes_no",
        images=row.images("image"),
        family=row.text("subcategory"),
        cluster=inside,
        metadata={"groups": {"question": f"{inside}_{question}", "figure": f"{inside}_{figure}"}},
    )


def pope(row: Row) -> Question:
    """POPE: is the object there; the category says how the absent ones were chosen."""
    category = row.text("category")
    return _question(
        row,
        id=f"{category}-{row.text('question_id', 'id')}",
        text=row.text("question"),
        options=[],
        gold=_yes_no(row.text("answer")),
        answer_type="yes_no",
        images=row.images("image"),
        family=category,
        cluster=row.text("image_source", default=""),
    )


def mme(row: Row) -> Question:
    """MME: two questions per image, one to be answered yes and one no."""
    image, gold = row.text("question_id"), _yes_no(row.text("answer"))
    return _question(
        row,
        id=f"{image}-{gold}",
        text=row.text("question"),
        options=[],
        gold=gold,
        answer_type="yes_no",
        images=row.images("image"),
        family=row.text("category"),
        cluster=image,
        metadata={"groups": {"image": image}},
    )


ADAPTERS: dict[str, Adapter] = {
    function.__name__: function
    for function in (
        *(mathvista, mathverse, mathvision, wemath, logicvista, mmmu, mmmu_pro_vision),
        *(geometry3k, puzzlevqa, mmstar, mmbench, scienceqa, ai2d, chartqa, hallusionbench),
        *(pope, mme),
    )
}
"""By the name that the registry uses."""


def split_options(text: str) -> tuple[str, list[str]]:
    """A text without the lettered options in it, and those: "Which? A. red; B. blue".

    The longest run A, B, C ... counts, of equal ones the last; without two options there are none.
    """
    marks = list(_MARK.finditer(text))
    best: list[re.Match[str]] = []
    for start, mark in enumerate(marks):
        if mark[1] != "A":
            continue
        run = [mark]
        for following in marks[start + 1 :]:
            if following[1] == ascii_uppercase[len(run)]:
                run.append(following)
                if len(run) == MAX_OPTIONS:
                    break
        best = run if len(run) >= len(best) else best
    ends = [mark.start() for mark in best[1:]] + [len(text)]
    options = (
        [
            text[mark.end() : end].strip().rstrip(";,\uff1b").strip()
            for mark, end in zip(best, ends, strict=True)
        ]
        if best
        else []
    )
    if len(options) < 2 or not all(options):
        return text.strip(), []
    return _LEAD_IN.sub("", text[: best[0].start()]).strip(), options


def _question(
    row: Row,
    *,
    id: str,
    text: str,
    options: Sequence[str],
    gold: str,
    answer_type: AnswerType,
    images: Sequence[Path | bytes],
    family: str = "",
    level: int = 0,
    cluster: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Question:
    if len(options) == 1 or len(options) > MAX_OPTIONS:
        raise BadRow("options", f"{len(options)} options; expected 2 to {MAX_OPTIONS}")
    for part in (text, *options):
        if found := _VISION_TOKEN.search(part):
            raise BadRow("text", f"holds {found[0]}, which stands for pixels")
    return Question(
        id=id,
        text=text.replace("<image>", "").strip(),
        gold=gold,
        answer_type=answer_type,
        options=tuple(options),
        images=tuple(images),
        family=family,
        level=level,
        cluster=cluster,
        metadata={key: value for key, value in (metadata or {}).items() if value},
    )


def _as_in_training(row: Row, recipe: str) -> tuple[recipes.Row, tuple[Path | bytes, ...]]:
    """A row as the ladder's recipe of the data set reads it, and its images."""
    try:
        read = recipes.read_row(recipes.RECIPES[recipe], row.values, row.number)
    except recipes.Rejected as error:
        raise BadRow("field", error.detail) from None
    if not read.text:
        raise BadRow("field", "the question is empty")
    if not read.gold:
        raise BadRow("gold", "the answer is empty")
    if not read.images:
        raise BadRow("image_missing", "it names no image")
    return read, row.open(read.images)


def _required(options: Sequence[str], field: str) -> Sequence[str]:
    if len(options) < 2:
        raise BadRow("options", f"{field}: {len(options)} options; a choice needs two or more")
    return options


def _letter(gold: str, options: Sequence[str]) -> str:
    """A gold letter, however it is wrapped; it must be one of the options', where they are known.

    Where it is no letter it may be the text of an option.
    """
    match = re.fullmatch(r"\(?([A-Ja-j])\)?[.:]?", gold.strip())
    if match is None:
        if options:
            return _letter_of_text(gold, options)
        raise BadRow("gold", f"expected an option letter, got {gold[:80]!r}")
    letter = match[1].upper()
    if options and letter not in ascii_uppercase[: len(options)]:
        raise BadRow("gold", f"{letter} is none of the {len(options)} options")
    return letter


def _letter_of_text(gold: str, options: Sequence[str]) -> str:
    for same in (str.__eq__, lambda one, other: key(one) == key(other)):
        places = [place for place, option in enumerate(options) if same(option, gold)]
        if places:
            return ascii_uppercase[places[0]]
    raise BadRow("gold", f"{gold[:80]!r} is none of the options")


def _letter_of_index(gold: str, options: Sequence[str]) -> str:
    if not gold.isdecimal() or int(gold) >= len(options):
        raise BadRow("gold", f"expected an index below {len(options)}, got {gold[:80]!r}")
    return ascii_uppercase[int(gold)]


def _yes_no(gold: str) -> str:
    if gold.casefold() not in ("yes", "no"):
        raise BadRow("gold", f"expected yes or no, got {gold[:80]!r}")
    return gold.casefold()


def _joined(*parts: str) -> str:
    return "\n".join(part for part in parts if part)

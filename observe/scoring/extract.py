r"""Find the answer in a response.

In order of trust:

1. `tag`: the last complete `<answer>...</answer>`, over several lines too. An empty one is no
   answer. Inside it, rules 2 and 3 may narrow it down.
2. `boxed`: the last `\boxed{...}` with balanced braces.
3. `phrase`: what follows the last "the answer is", "answer:" or, with options, "the correct option
   is"; also "B is the right answer". On the same line or the next one.
4. `bare`: what running text states (`observe.scoring.prose`): a leading or closing option letter,
   an option's text, the last number, yes or no; else the last line.

Rules 2 to 4 read only what stands outside `<observe>` and `<think>`: a number in an observation is
not an answer. `extract_untagged` is the measure that ignores form: it strips all tags and takes the
last value stated anywhere.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from observe.scoring import prose
from observe.scoring.choices import read_choices
from observe.scoring.values import clean
from observe.scoring.verdict import AnswerType

MAX_LENGTH = 20_000
"""Characters: of a longer text outside the tags the end is read."""

_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_WORKINGS = re.compile(r"<(observe|think)>.*?(?:</\1>|(?=<answer>)|\Z)", re.DOTALL)
_ANY_TAG = re.compile(r"</?(?:observe|think|answer)>")
_IS = (
    r"(?:\s+(?:is|would be|should be)(?!n't)|\s*[:=\u662f\u4e3a])[ \t]*:?[ \t]*(?:\n\s*)?(?!not\b)"
)
_ABOUT = r"(?:\s(?:to|for|of)\s[^.\n]{1,100}?)?"
_PHRASE = re.compile(
    rf"(?:\b(?:answer|final\s(?:value|result))|\u7b54\u6848){_ABOUT}{_IS}(\S[^\n]*)", re.IGNORECASE
)
_CHOICE_PHRASES = (
    re.compile(
        r"\b(?:(?:correct|right|best)\s(?:option|choice|letter)(?:\sletter)?|solution)"
        rf"{_ABOUT}{_IS}(\S[^\n]*)",
        re.IGNORECASE,
    ),
    re.compile(r"\b(?:option|choice|letter)\s+(?:is|would be)[ \t:]*(\(?[A-J]\)?)(?![\w'])"),
    re.compile(
        r"(?<![\w'])(\(?[A-J]\)?)[.:)]?\s+(?:is|would be)\s+(?:the\s+)?(?:correct|right|answer)\b"
    ),
    re.compile(r"(?:\u9009\u9879|\u9009)\s*[\u662f\u4e3a:]?\s*(\(?[A-J]\)?)(?![A-Za-z'])"),
)
_CUES = ("answer", "final", "correct", "right", "best", "solution", "option", "choice", "letter")
"""One of these words, or of two Chinese ones, stands in each of the phrases."""
_CUE = re.compile("|".join((*_CUES, "\u7b54", "\u9009")), re.IGNORECASE)
_SHORTEST_PHRASE = len("answer:7")
_PHRASE_END = re.compile(r"\s+(?:because|since)\b|\.\s+(?=[A-Z])|\u3002")
_LETTER_ALONE = re.compile(r"\W*[A-J]\W*")
_BOLD = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])")
_WIDE = str.maketrans("\uff08\uff09\uff1a\uff0c", "():,")


class Extraction(NamedTuple):
    """The answer as written and the rule that found it."""

    text: str
    source: str


def extract(
    response: str,
    kind: AnswerType,
    options: Sequence[str] | None,
    question: str | None = None,
) -> Extraction | None:
    """The answer by the first rule that finds one; None when the response states none."""
    tagged = _last(_ANSWER, response) if "<answer>" in response else None
    if tagged is not None:
        content = tagged[1].strip()
        inner = _boxed(content) or _phrase(_plain(content), kind, options) or content
        return Extraction(inner, "tag") if inner else None
    outside = response.strip()
    if "<" in outside:
        outside = _ANY_TAG.sub("\n", _WORKINGS.sub("\n", outside)).strip()
    outside = outside[-MAX_LENGTH:]
    boxed = _boxed(outside)
    if boxed:
        return Extraction(boxed, "boxed")
    outside = prose.own_words(_plain(outside))
    phrase = _phrase(outside, kind, options)
    if phrase:
        return Extraction(phrase, "phrase")
    bare = _bare(outside, kind, options, question)
    return Extraction(bare, "bare") if bare else None


def extract_untagged(
    response: str,
    kind: AnswerType,
    options: Sequence[str] | None,
    question: str | None = None,
) -> Extraction | None:
    """The last value stated anywhere in the response, its tags ignored."""
    text = _ANY_TAG.sub("\n", response[-MAX_LENGTH:]).strip()
    for line in reversed(text.split("\n")):
        plain = _plain(line).strip()
        found = (
            _boxed(line)
            or _phrase(plain, kind, options)
            or _bare_last(plain, kind, options, question)
        )
        if found:
            return Extraction(found, "untagged")
    return None


def _plain(text: str) -> str:
    text = _BOLD.sub("", text) if "**" in text else text
    return text if text.isascii() else text.translate(_WIDE)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007
        pass
    return match


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end].strip() or None
    return None


def _phrase(text: str, kind: AnswerType, options: Sequence[str] | None) -> str | None:
    if not _has_cue(text):
        return None
    patterns = (_PHRASE, *_CHOICE_PHRASES) if kind == "choice" else (_PHRASE,)
    found = [match for match in (_last(pattern, text) for pattern in patterns) if match]
    found.sort(key=lambda match: match.start(1), reverse=True)
    stated = [_PHRASE_END.split(match[1], maxsplit=1)[0].strip() for match in found]
    if kind == "choice" and options:
        # The last that names an option; a letter beyond the options is none of them.
        named = [phrase for phrase in stated if read_choices(clean(phrase), options)]
        stated = named or [phrase for phrase in stated if not _LETTER_ALONE.fullmatch(phrase)]
    return stated[0] or None if stated else None


def _has_cue(text: str) -> bool:
    """Whether one of the phrases can stand in the text at all."""
    if not text.isascii():
        return _CUE.search(text) is not None
    if len(text) < _SHORTEST_PHRASE:
        return False
    lowered = text.lower()
    return any(cue in lowered for cue in _CUES)


def _bare_last(
    text: str, kind: AnswerType, options: Sequence[str] | None, question: str | None
) -> str | None:
    """Like `_bare`, but of several options in a sentence the last is taken."""
    if kind == "choice":
        return prose.find_choice(text, options, question, latest=True)
    return _bare(text, kind, options, question)


def _bare(
    text: str, kind: AnswerType, options: Sequence[str] | None, question: str | None
) -> str | None:
    if kind == "choice":
        return prose.find_choice(text, options, question)
    if kind in ("integer", "decimal"):
        return prose.find_number(text, question)
    if kind == "yes_no":
        return prose.find_yes_no(text, question)
    if kind == "expression":
        return prose.find_expression(text)
    return text.rsplit("\n", 1)[-1].strip() or None

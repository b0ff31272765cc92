r"""Find the answer in a response.

In order of trust:

1. `tag`: the last complete `<answer>...</answer>`, over several lines too. An empty one is no
   answer. Inside it, rules 2 and 3 may narrow it down.
2. `boxed`: the last `\boxed{...}` with balanced braces.
3. `phrase`: what follows the last "the answer is" or "answer:".
4. `bare`: the last value of the expected kind (option letter or option text, number, yes or no),
   else the last line.

Rules 2 to 4 read only what stands outside `<observe>` and `<think>`: a number in an observation is
not an answer. `extract_untagged` is the measure that ignores form: it strips all tags and takes the
last value stated anywhere.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from observe.scoring.values import (
    LETTERED,
    LETTERS,
    NUMBER,
    NUMBER_WORD,
    YES_NO,
    option_pattern,
)
from observe.scoring.verdict import AnswerType

_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_WORKINGS = re.compile(r"<(observe|think)>.*?(?:</\1>|(?=<answer>)|\Z)", re.DOTALL)
_ANY_TAG = re.compile(r"</?(?:observe|think|answer)>")
_PHRASE = re.compile(r"\banswer(?:\s+is|\s*[:=])[ \t]*:?[ \t]*(\S[^\n]*)", re.IGNORECASE)
_PHRASE_END = re.compile(r"\s+(?:because|since)\b|\.\s+(?=[A-Z])")


class Extraction(NamedTuple):
    """The answer as written and the rule that found it."""

    text: str
    source: str


def extract(response: str, kind: AnswerType, options: Sequence[str] | None) -> Extraction | None:
    """The answer by the first rule that finds one; None when the response states none."""
    tagged = _last(_ANSWER, response)
    if tagged is not None:
        content = tagged[1].strip()
        inner = _boxed(content) or _phrase(content) or content
        return Extraction(inner, "tag") if inner else None
    outside = _ANY_TAG.sub("\n", _WORKINGS.sub("\n", response)).strip()
    for source, find in (("boxed", _boxed), ("phrase", _phrase)):
        found = find(outside)
        if found:
            return Extraction(found, source)
    bare = _bare(outside, kind, options)
    return Extraction(bare, "bare") if bare else None


def extract_untagged(
    response: str, kind: AnswerType, options: Sequence[str] | None
) -> Extraction | None:
    """The last value stated anywhere in the response, its tags ignored."""
    text = _ANY_TAG.sub("\n", response).strip()
    last_line = text.rsplit("\n", 1)[-1].strip()
    found = _boxed(last_line) or _phrase(last_line) or _bare(text, kind, options)
    return Extraction(found, "untagged") if found else None


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


def _phrase(text: str) -> str | None:
    match = _last(_PHRASE, text)
    return _PHRASE_END.split(match[1], maxsplit=1)[0].strip() if match else None


def _bare(text: str, kind: AnswerType, options: Sequence[str] | None) -> str | None:
    if kind == "choice":
        value = rf"(?:{LETTERS}" + (f"|{option_pattern(options)})" if options else ")")
    elif kind in ("integer", "decimal"):
        value = rf"(?:{NUMBER}|\b(?:{NUMBER_WORD})\b)"
    elif kind == "yes_no":
        value = rf"\b(?:{YES_NO})\b"
    else:
        return text.rsplit("\n", 1)[-1].strip() or None
    last_line = text.rsplit("\n", 1)[-1].strip()
    if kind == "choice" and (re.fullmatch(r"\W*\w\W*", last_line) or LETTERED.match(last_line)):
        return last_line
    if (
        kind in ("integer", "decimal")
        and "=" not in last_line
        and not re.search(r"[^\W\d_]{2}", last_line)
    ):
        # A line without words is an answer as a whole: "3 \times 4" is not 4.
        return last_line or None
    # "7 or 8" is one statement of two values, which the judge must see together.
    joined = rf"{value}(?:\s*(?:,|;|/|\bor\b|\band\b)+\s*{value})*"
    match = _last(re.compile(joined, re.IGNORECASE if kind != "choice" else 0), text)
    return match[0].strip() if match else None

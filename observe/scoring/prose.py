"""Find the answer in running text, where nothing marks it: the last rule of `extract`.

A statement counts, a mention does not: a lettered list of all options is the question said again;
single letters in the middle of a sentence may be points of a figure; a number that the question
gives is not the answer while another number stands beside it.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from observe.scoring import choices, values
from observe.scoring.choices import LETTER, LETTERED, MARKED
from observe.scoring.restated import restated
from observe.scoring.values import NUMBER, NUMBER_WORD, YES_NO

_OTHERS_TURN = re.compile(r"^\s*(?:human|user|question|q)\s*:", re.IGNORECASE | re.MULTILINE)
_ECHO_LINE = re.compile(r"^\s*\(?([A-J])[).:]\s*\S[^\n]*$", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[^\d\s.][.!?])\s+(?=\S)|(?<=\d\.)\s+(?=[A-Z])|\n+|\u3002\s*")
_CONCLUSION = re.compile(
    r"\b(?:so|thus|therefore|hence|finally|in conclusion|conclude)\b", re.IGNORECASE
)
_TABLE_LINE = re.compile(r"^\s*\d+[.)]\s[^:=\n]{1,40}[:(]\s*[\d./]+\)?%?\s*$", re.MULTILINE)
_APPENDED = re.compile(r",\s+(?:with|which|where)\b[^=]*\Z", re.IGNORECASE)
_UNDECIDED = re.compile(
    r"\b(?:(?:not|im)\s?possible to|can(?:not|'t| not)(?: be)?)\s+"
    r"(?:tell|say|know|predict|determine)",
    re.IGNORECASE,
)
_CONTRAST = re.compile(r"\b(?:compared (?:to|with)|than|instead of|unlike)\b", re.IGNORECASE)
_ONE_SIGN = re.compile(r"\W*\w\W*")
_LETTER_FIRST = re.compile(r"\W*\(?([A-J])(?:\s*[).:,]|\s+-\s|\s*\Z|\s*\n)")
_JOINT = r"(?:\s*(?:,|;|/|\bor\b|\band\b|\bto\b)+\s*{0})*"


def _joined(value: str) -> str:
    # "7 or 8" is one statement of two values, which the judge must see together.
    return value + _JOINT.format(value)


_LETTERS = re.compile(_joined(LETTER))
_MARKED = re.compile(_joined(MARKED))
_YES_NO = re.compile(_joined(rf"\b(?:{YES_NO})\b"), re.IGNORECASE)
_YES_NO_FIRST = re.compile(rf"\W*({YES_NO})\s*(?:[,.;:!\n](?!\s*(?:{YES_NO})\b)|\Z)", re.IGNORECASE)
_DIGITS = re.compile(_joined(NUMBER), re.IGNORECASE)
_NUMBER_WORDS = re.compile(_joined(rf"\b(?:{NUMBER_WORD})\b"), re.IGNORECASE)
_DIGIT = re.compile(r"\d")
_WORDY = re.compile(r"[^\W\d_]{2}|_")
_DENIED = re.compile(r"(?:\bnot|n't)\s+(?:is\s+)?\Z", re.IGNORECASE)
_WHOLE = re.compile(r"\bof (?:the|these|those|all) \Z", re.IGNORECASE)
_MATHS = re.compile(r"\$([^$\n]+)\$")


@lru_cache(maxsize=1024)
def _joined_mentions(options: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(_joined(choices.mention_pattern(options).pattern))


def own_words(text: str) -> str:
    """`text` up to where the model begins to speak for somebody else ("Human: ...")."""
    turn = _OTHERS_TURN.search(text) if ":" in text else None
    return text[: turn.start()].strip() if turn else text


def find_choice(
    text: str, options: Sequence[str] | None, question: str | None, *, latest: bool = False
) -> str | None:
    """The option that a text without any marked answer states, as written or as its text.

    Where a sentence names several options, all of them are returned, or with `latest` the last.
    """
    options = tuple(options or ())
    text = _without_echo(text, len(options))
    last_line = text.rsplit("\n", 1)[-1].strip()
    yes_or_no = bool(options) and choices.yes_no_options(options)
    if yes_or_no and text.startswith("A: "):
        # "A: no" is "Answer: no", not the first option.
        return find_yes_no(text.removeprefix("A: "), question) or "A"
    if _ONE_SIGN.fullmatch(last_line) or LETTERED.match(last_line):
        return last_line
    first_line = text.split("\n", 1)[0].strip()
    if _LETTER_FIRST.match(first_line):
        return first_line
    if yes_or_no:
        return _last(_MARKED, text) or find_yes_no(text, question)
    marked = _last(_MARKED, text)
    if marked:
        return marked
    last_sentence = _SENTENCE_END.split(last_line)[-1]
    if len(last_sentence.split()) <= 6 and not last_sentence.endswith("?"):
        letters = _last(_LETTERS, last_sentence)
        if letters:
            return letters
    if not options:
        return None
    if latest:
        return _last(_joined_mentions(options), values.clean(text))
    return _option_text(text, options, question)


def _without_echo(text: str, count: int) -> str:
    """The text without a lettered list of all options, which says nothing."""
    if count < 2 or text.count("\n") < count - 1:
        return text
    letters = "".join(match[1] for match in _ECHO_LINE.finditer(text))
    listed = letters.startswith("ABCDEFGHIJ"[:count])
    return _ECHO_LINE.sub("", text).strip() if listed else text


def _option_text(text: str, options: tuple[str, ...], question: str | None) -> str | None:
    if choices.numeric_options(options):
        number = find_number(text, question)
        if number is not None:
            return number
    if _UNDECIDED.search(text):
        # Only an option that says the same is then an answer.
        same = [option for option in options if _UNDECIDED.search(option)]
        return same[0] if len(same) == 1 else None
    given = choices.mentioned(values.clean(question), options) if question else set()
    named: list[tuple[bool, set[int]]] = []
    for sentence in map(values.clean, sentences_of(text)):
        concludes = _CONCLUSION.search(sentence) is not None
        # In "B is larger, compared to A" only what stands before the contrast is stated.
        found = _named(_CONTRAST.split(sentence, maxsplit=1)[0], options)
        found = found or _named(sentence, options)
        found = found - given if len(found) > 1 and found - given else found
        if found:
            named.append((concludes, found))
    if not named:
        return None
    concluded = [found for concludes, found in named if concludes]
    chosen = concluded[-1] if concluded else named[-1][1]
    return " or ".join(options[i] for i in sorted(chosen))


def _named(text: str, options: tuple[str, ...]) -> set[int]:
    found = choices.mentioned(text, options, loosely=True)
    return found or choices.mentioned(text, options)


def find_number(text: str, question: str | None) -> str | None:
    """The last number stated; within a sentence digits before words.

    A number that the question gives counts only when there is no other; "of the five" says of how
    many something is a part.
    """
    text = _without_table(text)
    last_line = text.rsplit("\n", 1)[-1].strip()
    if "=" not in last_line and not _WORDY.search(last_line):
        # A line without words is an answer as a whole: "3 \\times 4" is not 4.
        return last_line or None
    given = _given(question) if question else frozenset()
    old = None
    for sentence in reversed(sentences_of(text)):
        if "__" in sentence:
            continue
        # What "with" or "which" appends explains the number that stands before it.
        main = _APPENDED.split(sentence, maxsplit=1)[0]
        for part in (main, sentence) if main != sentence else (sentence,):
            for pattern in (_DIGITS, _NUMBER_WORDS):
                found = _all(pattern, part, unless=_WHOLE)
                new = [number for number in found if not given.issuperset(_values(number))]
                if new:
                    return new[-1]
                old = old or (found[-1] if found else None)
    return old


def _without_table(text: str) -> str:
    """The text without a numbered list of values, which states none of them."""
    if text.count("\n") < 2 or len(_TABLE_LINE.findall(text)) < 3:
        return text
    return _TABLE_LINE.sub("", text).strip()


@lru_cache(maxsize=1024)
def _given(question: str) -> frozenset[Fraction]:
    """The numbers in a question, in digits and in words."""
    in_words = _values(_DIGIT.sub("", question)) if values.may_have_number_words(question) else ()
    return frozenset((*_values(question), *in_words))


def _values(text: str) -> list[Fraction]:
    return [number.value for number in values.find_numbers(values.clean(text))]


def find_yes_no(text: str, question: str | None) -> str | None:
    """A leading "yes," or "no,", else the last, else what repeating the question says."""
    leading = _YES_NO_FIRST.match(text)
    said = leading[1] if leading else _last(_YES_NO, text)
    if said or not question:
        return said
    for sentence in sentences_of(text):
        answer = restated(question, sentence)
        if answer is not None:
            return "yes" if answer else "no"
    return None


def find_expression(text: str) -> str | None:
    """The last line; where it has words, the last formula in it."""
    last_line = text.rsplit("\n", 1)[-1].strip()
    formula = _last(_MATHS, last_line) if _WORDY.search(_MATHS.sub("", last_line)) else None
    return (formula or last_line) or None


def sentences_of(text: str) -> list[str]:
    """The sentences of a text but its questions; a point within a number ends none."""
    return [s for s in map(str.strip, _SENTENCE_END.split(text)) if s and not s.endswith("?")]


def _all(
    pattern: re.Pattern[str], text: str, *, unless: re.Pattern[str] | None = None
) -> list[str]:
    """The matches that neither "not" nor `unless` stands before."""
    found = []
    for match in pattern.finditer(text):
        before = text[max(0, match.start() - 12) : match.start()]
        if not (_DENIED.search(before) or (unless and unless.search(before))):
            found.append(match[0].strip())
    return found


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = _all(pattern, text)
    return found[-1] if found else None

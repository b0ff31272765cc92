"""Read values from short answers: numbers, yes and no, options. By rules alone."""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from string import ascii_uppercase
from typing import NamedTuple

MAX_DIGITS = 100
"""A number with more digits is not read as a number."""

_INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d+)?|\.\d+)"
_POWER_OF_TEN = r"(?:[eE][-+]?\d{1,3}|\s*(?:\\times|\u00d7|\*)\s*10\s*\^\s*\{?-?\d{1,3}\}?)"
NUMBER = (
    r"(?<![\w.^])(?:(?<![\w.)])[-+]\s?)?\$?(?:"
    r"\\[dt]?frac\{\s*-?\d+\s*\}\{\s*\d+\s*\}"
    r"|\d+\s+\d+\s*/\s*\d+"
    rf"|{_DECIMAL}\s*/\s*{_DECIMAL}"
    rf"|{_DECIMAL}{_POWER_OF_TEN}?"
    r")(?:\s*(?:\\?%|percent\b))?"
)
"""A number as it is written: 1,234 -0.5 3/4 1 1/2 \\frac{3}{4} 50% 1.2e3."""

_WORDS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty",
)
NUMBER_WORD = "|".join(sorted(_WORDS, key=len, reverse=True))
YES_NO = "yes|no|true|false"
LETTERS = (
    r"(?:\([A-J]\)|(?<![\w'])(?:[Oo]ption|[Cc]hoice)\s+[A-J](?!\w)"
    r"|(?<![\w'])[B-HJ](?![\w'])|(?<![\w'])[AI](?=\s*(?:[.):,;*/]|\Z|\n|or\b|and\b)))"
)
"""An option letter in running text: the words "A" and "I" count only where they end something."""

LETTERED = re.compile(r"\(?[A-J][).:]\s+(?!or\b|and\b|,)(\S.*)")
"""An option written with its letter: "B. blue" or "(B) blue"."""

_NUMBER = re.compile(NUMBER, re.IGNORECASE)
_FRACTION = re.compile(r"\\[dt]?frac\{\s*(-?\d+)\s*\}\{\s*(\d+)\s*\}")
_MIXED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)")
_SCIENTIFIC = re.compile(r"([\d.]+)(?:e|\s*(?:\\times|\u00d7|\*)\s*10\s*\^\s*\{?)([-+]?\d+)\}?")
_UNIT_POWER = re.compile(r"(?<=[^\W\d])\^\{?-?\d\}?")
_UNIT = re.compile(
    r"\s*(?:[^\W\d_]{2,}|[mgslhLWVNJAK\u00b0\u20ac\u00a3$])(?:[\s/.*\u00b7-]+[^\W\d_]+)*"
)
_SUPERSCRIPT = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-"
)
_SUPERSCRIPTS = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
_WRAPPERS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s*\{([^{}]*)\}")
_LEAD_IN = re.compile(
    r"(?:(?:so|thus|therefore|hence),?\s+)?"
    r"(?:it is|it's|this is|(?:the )?(?:final |correct )?answer is|there are|there is)\s+",
    re.IGNORECASE,
)


class Number(NamedTuple):
    """A number as read, with what its writing says about its precision."""

    value: Fraction
    decimals: int | None
    """Digits after the point; None for a fraction."""
    percent: bool


def clean(text: str) -> str:
    """One line without mark-up: Unicode forms unified, TeX wrappers, quotes and final stop gone."""
    text = _SUPERSCRIPTS.sub(lambda m: "^{" + m[0].translate(_SUPERSCRIPT) + "}", text)
    text = re.sub("(\\d)([\u00bc-\u00be\u2150-\u215e])", r"\1 \2", text)
    text = unicodedata.normalize("NFKC", text).translate({0x2044: "/", 0x2212: "-", 0x2013: "-"})
    text = _WRAPPERS.sub(r"\1", text)
    text = re.sub(r"\\[()\[\],;!]|\*\*|`|\$(?!\d)|\\\s", " ", text).replace("\\$", "$")
    text = " ".join(text.split()).strip("\"'")
    text = _LEAD_IN.sub("", text, count=1) if _LEAD_IN.match(text) else text
    return text.rstrip(".").strip()


def fold(text: str) -> str:
    """For comparing texts: cleaned, case-folded, without a leading article."""
    return re.sub(r"^(?:the|an?) (?=\w)", "", clean(text).casefold())


def read_number(text: str) -> Number | None:
    """The number that cleaned `text` is as a whole, its unit aside; None if it is not one."""
    text = _UNIT_POWER.sub("", text)
    if text.casefold() in _WORDS:
        return Number(Fraction(_WORDS.index(text.casefold())), 0, False)
    match = _NUMBER.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    return _to_number(match[0]) if not rest or _UNIT.fullmatch(rest) else None


def find_numbers(text: str) -> list[Number]:
    """All numbers in cleaned `text`, in order; number words only where there are no digits."""
    found = (_to_number(match[0]) for match in _NUMBER.finditer(_UNIT_POWER.sub("", text)))
    numbers = [number for number in found if number is not None]
    if not numbers:
        words = re.findall(rf"\b(?:{NUMBER_WORD})\b", text.casefold())
        numbers = [Number(Fraction(_WORDS.index(word)), 0, False) for word in words]
    return numbers


def _to_number(written: str) -> Number | None:
    if len(written) > MAX_DIGITS:
        return None
    percent = written.lower().endswith(("%", "percent"))
    body = re.sub(r"\\?%|percent|[\s$](?![\d/])|\$|(?<=\d),(?=\d)", "", written, flags=re.I).strip()
    sign = -1 if body.startswith("-") else 1
    body = body.lstrip("+- ")
    decimals: int | None = None
    try:
        if match := _FRACTION.fullmatch(body):
            value = Fraction(int(match[1]), int(match[2]))
        elif match := _MIXED.fullmatch(body):
            value = int(match[1]) + Fraction(int(match[2]), int(match[3]))
        elif match := _SCIENTIFIC.fullmatch(body.lower()):
            value = Fraction(match[1]) * Fraction(10) ** int(match[2])
        elif "/" in body:
            numerator, denominator = body.split("/")
            value = Fraction(numerator.strip()) / Fraction(denominator.strip())
        else:
            value = Fraction(body)
            decimals = len(body.partition(".")[2])
    except (ValueError, ZeroDivisionError):
        return None
    return Number(sign * value, decimals, percent)


def numbers_equal(answer: Number, gold: Number) -> bool:
    """Whether an answer states the gold number.

    Equal values; or an answer that, rounded to the gold's decimal places (one at least), gives the
    gold; or, for a gold fraction, a decimal of three or more places that is the gold rounded to
    them. A percentage equals its number of per cent and its share: 50% is 50 and 0.5, unless both
    are percentages.
    """
    values = [answer.value]
    if answer.percent and not gold.percent:
        values.append(answer.value / 100)
    if gold.percent and not answer.percent:
        values.append(answer.value * 100)
    return any(_close(value, answer.decimals, gold) for value in values)


def _close(value: Fraction, decimals: int | None, gold: Number) -> bool:
    if value == gold.value:
        return True
    if gold.decimals:
        return abs(value - gold.value) <= Fraction(1, 2 * 10**gold.decimals)
    if gold.decimals is None and decimals is not None and decimals >= 3:
        return abs(value - gold.value) <= Fraction(1, 2 * 10**decimals)
    return False


def read_yes_no(text: str) -> bool | None:
    """True or False for cleaned `text` that says yes/true or no/false; None if neither or both.

    A leading word followed by a clause decides ("no, it is not true").
    """
    said = [word in ("yes", "true") for word in re.findall(rf"\b(?:{YES_NO})\b", text.casefold())]
    if len(set(said)) == 1:
        return said[0]
    leading = re.match(rf"(?:{YES_NO})\b[,.:;]?\s+(?!or\b)\w+\s+\w+\s+\w+", text.casefold())
    return said[0] if said and leading else None


def option_pattern(options: Sequence[str]) -> str:
    """A pattern for any option's text as whole words, longest first, whatever its case."""
    texts = sorted({fold(option) for option in options} - {""}, key=len, reverse=True)
    return (
        r"(?<![\w.])(?i:" + "|".join(map(re.escape, texts)) + r")(?![.,]?\w)" if texts else r"(?!)"
    )


def read_choices(text: str, options: Sequence[str] | None) -> set[int]:
    """The options (by index) that cleaned `text` names, by letter or by text."""
    if not options:
        return {ascii_uppercase.index(letter) for letter in _letters(text, 10)}
    folded = [fold(option) for option in options]
    if len(text) > 1 and fold(text) in folded:
        return {folded.index(fold(text))}
    letters = {ascii_uppercase.index(letter) for letter in _letters(text, len(options))}
    lettered = LETTERED.match(text)
    if lettered and letters:
        # What follows "C. " is that option's text in some spelling, unless it is just another's.
        named = fold(lettered[1])
        return letters | ({folded.index(named)} if named in folded else set())
    bare_texts = [match.casefold() for match in re.findall(option_pattern(options), text)]
    texts = {folded.index(match) for match in bare_texts if len(match) > 1 or not letters}
    number = read_number(text)
    if not letters and not texts and number is not None:
        values = [read_number(clean(option)) for option in options]
        texts = {i for i, v in enumerate(values) if v is not None and numbers_equal(number, v)}
    return letters | texts


def _letters(text: str, count: int) -> set[str]:
    if len(text) == 1 or re.fullmatch(r"\(?[a-z]\)", text):
        named = set(text.strip("()").upper())
    else:
        named = {
            match[-2] if match[-1] == ")" else match[-1] for match in re.findall(LETTERS, text)
        }
    return named & set(ascii_uppercase[:count])

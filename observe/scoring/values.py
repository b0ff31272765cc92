"""Read values from short answers: numbers with their units, yes and no. By rules alone."""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from observe.scoring.units import Unit, read_unit

MAX_DIGITS = 100
"""A number with more digits is not read as a number."""
REMEMBERED = 400
"""Characters; what is read from texts up to so many is remembered, as the same golds, options and
short answers come again and again."""

_INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d+)?|\.\d+)"
_POWER_OF_TEN = (
    r"(?:[eE][-+]?\d{1,3}|\s*(?:\\times|\\cdot|\u00d7|\u00b7|\*)\s*10\s*\^\s*\{?-?\d{1,3}\}?)"
)
_TEX_FRACTION = r"\\[dt]?frac\s*(?:\{\s*-?\d+\s*\}|\d)\s*(?:\{\s*\d+\s*\}|\d)"
NUMBER = (
    r"(?<![\w.^])(?:(?<![\w.)])[-+]\s?)?\$?(?:"
    rf"(?:\d+\s*)?{_TEX_FRACTION}"
    r"|\d+\s+\d+\s*/\s*\d+"
    rf"|{_DECIMAL}\s*/\s*{_DECIMAL}"
    rf"|{_DECIMAL}{_POWER_OF_TEN}?"
    r")(?!\d|\s*(?:\\sqrt|\\pi|\u221a|\u03c0))(?:\s*(?:\\?%|percent\b))?"
)
"""A number as it is written: 1,234 -0.5 3/4 1 1/2 \\frac{3}{4} 50% 1.2e3.

The factor of a root or of pi is none."""

_WORDS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty",
)
NUMBER_WORD = "|".join(sorted(_WORDS, key=len, reverse=True))
YES_NO = "yes|no|true|false"

_NUMBER = re.compile(NUMBER, re.IGNORECASE)
_NUMBER_WORDS = re.compile(rf"\b(?:{NUMBER_WORD})\b", re.IGNORECASE)
_FRACTION = re.compile(
    r"(\d*)\s*\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))"
)
_DIGITS = re.compile(r"\d+")
_MIXED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)")
_SCIENTIFIC = re.compile(
    r"([\d.]+)(?:e|\s*(?:\\times|\\cdot|\u00d7|\u00b7|\*)\s*10\s*\^\s*\{?)([-+]?\d+)\}?"
)
_SPACED_THOUSANDS = re.compile(r"([-+]?\d{1,3})((?: \d{3})+)(?=\D*$)")
_UNIT_POWER = re.compile(r"(?<=[^\W\d])\^\{?-?\d\}?")
_UNIT = re.compile(
    r"\s*(?:[^\W\d_]{2,}|[mgslhLWVNJAK\u00b0\u20ac\u00a3\u00a2$\u7c73])(?:[\s/.*\u00b7-]+[^\W\d_]+)*"
)
_SUPERSCRIPT = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-"
)
_SUPERSCRIPTS = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
_WRAPPERS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname|mbox|boxed)\s*\{([^{}]*)\}")
_LEAD_IN = re.compile(
    r"(?:(?:(?:so|thus|therefore|hence),?\s+)?"
    r"(?:it is|it's|this is|(?:the )?(?:final |correct )?answer is|there are|there is)\s+)+",
    re.IGNORECASE,
)
_YES_NO = re.compile(rf"(\bnot\s+|n't\s+)?\b({YES_NO})\b")
_YES_NO_LEADING = re.compile(rf"(?:{YES_NO})\b[,.:;]?\s+(?!or\b)\w+\s+\w+\s+\w+")
_MATHS = re.compile(r"(?<!\\)\$([^$]*[^$\\])\$")
_MARK_UP = re.compile(r"\\[()\[\],;!]|\*\*|`|\$(?!\d)|\\\s")
_SPACED = re.compile(r"(?<=\d)(?:\\,|\\!|\{,\})\s?(?=\d{3}(?!\d))")
_DEGREES = re.compile(r"[\^*]?\{?\s*\\(?:circ|degree)\b\s*\}?")
_SIZED = re.compile(r"\\(?:left|right|displaystyle)\b\s?(?:(?<=left)\.|(?<=right)\.)?")
_VULGAR = re.compile("(\\d)([\u00bc-\u00be\u2150-\u215e])")
_BESIDE_DIGITS = re.compile(r"\\?%|percent|[\s$](?![\d/\\])|\$|(?<=\d),(?=\d)", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:the|an?) (?=\w)")
_SIGNS = {0x2044: "/", 0x2212: "-", 0x2013: "-", 0x2010: "-", 0x2011: "-", 0x200B: None}


class Number(NamedTuple):
    """A number as read, with what its writing says about its precision."""

    value: Fraction
    decimals: int | None
    """Digits after the point, negative for 1.2e5; None where the writing is exact (a fraction)."""
    percent: bool
    unit: Unit | None = None


def clean(text: str) -> str:
    """One line without mark-up: Unicode forms unified, TeX wrappers, quotes and final stop gone."""
    if text.isalnum() and text.isascii():
        return text
    return _clean_again(text) if len(text) <= REMEMBERED else _clean(text)


def _clean(text: str) -> str:
    if not text.isascii():
        text = _SUPERSCRIPTS.sub(lambda m: "^{" + m[0].translate(_SUPERSCRIPT) + "}", text)
        text = _VULGAR.sub(r"\1 \2", text)
        text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    if "\\" in text or "{,}" in text:
        text = _SPACED.sub(",", text)
    if "\\" in text:
        text = _DEGREES.sub("\u00b0", text)
        text = _SIZED.sub("", text)
        text = _WRAPPERS.sub(r"\1", text)
    text = _MATHS.sub(r" \1 ", text) if text.count("$") > 1 else text
    if "\\" in text or "$" in text or "*" in text or "`" in text:
        text = _MARK_UP.sub(" ", text).replace("\\$", "$")
    text = " ".join(text.split()).strip("\"'")
    lead_in = _LEAD_IN.match(text)
    text = text[lead_in.end() :] if lead_in else text
    return text.rstrip(".").strip()


_clean_again = lru_cache(maxsize=8192)(_clean)


def fold(text: str) -> str:
    """For comparing texts: cleaned, case-folded, without a leading article."""
    return _ARTICLE.sub("", clean(text).casefold())


def read_number(text: str) -> Number | None:
    """The number that cleaned `text` is as a whole, its unit aside; None if it is not one."""
    return _read_number(text) if text and len(text) <= 2 * MAX_DIGITS else None


@lru_cache(maxsize=8192)
def _read_number(text: str) -> Number | None:
    if text.casefold() in _WORDS:
        return Number(Fraction(_WORDS.index(text.casefold())), 0, False)
    if spaced := _SPACED_THOUSANDS.match(text):
        text = spaced[0].replace(" ", "") + text[spaced.end() :]
    match = _NUMBER.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    if not rest:
        number = _to_number(match[0])
        dollars = read_unit("$") if "$" in match[0] else None
        return number._replace(unit=dollars) if number else None
    if not _UNIT.fullmatch(_UNIT_POWER.sub("", rest)):
        return None
    number = _to_number(match[0])
    return number._replace(unit=read_unit(rest)) if number else None


def find_numbers(text: str) -> list[Number]:
    """All numbers in cleaned `text`, in order; number words only where there are no digits."""
    found = (_to_number(match[0]) for match in _NUMBER.finditer(_UNIT_POWER.sub("", text)))
    numbers = [number for number in found if number is not None]
    if not numbers:
        words = _NUMBER_WORDS.findall(text)
        numbers = [Number(Fraction(_WORDS.index(word.casefold())), 0, False) for word in words]
    return numbers


def may_have_number_words(text: str) -> bool:
    """Whether number words can be found in `text` once its digits are out."""
    return not text.isascii() or _NUMBER_WORDS.search(_DIGITS.sub("", text)) is not None


def _to_number(written: str) -> Number | None:
    if len(written) > MAX_DIGITS:
        return None
    if written.isdigit():
        return Number(Fraction(int(written)), 0, False)
    percent = written.lower().endswith(("%", "percent"))
    body = _BESIDE_DIGITS.sub("", written).strip()
    sign = -1 if body.startswith("-") else 1
    body = body.lstrip("+- ")
    decimals: int | None = None
    try:
        if match := _FRACTION.fullmatch(body):
            share = Fraction(int(match[2] or match[3]), int(match[4] or match[5]))
            value = int(match[1] or 0) + share
        elif match := _MIXED.fullmatch(body):
            value = int(match[1]) + Fraction(int(match[2]), int(match[3]))
        elif match := _SCIENTIFIC.fullmatch(body.lower()):
            value = Fraction(match[1]) * Fraction(10) ** int(match[2])
            places = len(match[1].partition(".")[2])
            decimals = places - int(match[2]) if places else None
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

    Equal values; or an answer that, rounded to the gold's decimal places (one at least) or to the
    significant digits of its scientific notation, gives the gold; or, for an exact gold such as a
    fraction, a decimal of three or more places that is the gold rounded to them. A percentage
    equals its number of per cent and its share: 50% is 50 and 0.5, unless both are percentages.
    Where both have a known unit, the answer's is converted; without one it counts as the gold's.
    """
    value = answer.value
    if answer.unit and gold.unit and answer.unit != gold.unit:
        if answer.unit[:2] != gold.unit[:2]:
            return False
        value, answer = value * answer.unit.size / gold.unit.size, answer._replace(decimals=None)
    values = [value]
    if answer.percent and not gold.percent:
        values.append(value / 100)
    if gold.percent and not answer.percent:
        values.append(value * 100)
    return any(_close(value, answer.decimals, gold) for value in values)


def tolerance(gold: Number) -> Fraction:
    """How far an answer may lie from a gold whose writing is rounded; 0 where it is exact."""
    return Fraction(10) ** -gold.decimals / 2 if gold.decimals else Fraction(0)


def _close(value: Fraction, decimals: int | None, gold: Number) -> bool:
    if value == gold.value:
        return True
    if gold.decimals:
        return abs(value - gold.value) <= tolerance(gold)
    if gold.decimals is None and decimals is not None and decimals >= 3:
        return abs(value - gold.value) <= Fraction(1, 2 * 10**decimals)
    return False


def read_yes_no(text: str) -> bool | None:
    """True or False for cleaned `text` that says yes/true or no/false; None if neither or both.

    A leading word followed by a clause decides ("no, it is true that"); "not true" is no.
    """
    text = text.casefold()
    said = [(word in ("yes", "true")) != bool(denied) for denied, word in _YES_NO.findall(text)]
    if len(set(said)) == 1:
        return said[0]
    return said[0] if said and _YES_NO_LEADING.match(text) else None

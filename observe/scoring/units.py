"""Units of measure: their names, and how one converts into another."""

import re
from fractions import Fraction
from typing import NamedTuple

_SIZES = {
    "length": {
        "mm millimeter millimetre": Fraction(1, 1000),
        "cm centimeter centimetre": Fraction(1, 100),
        "dm decimeter decimetre": Fraction(1, 10),
        "m meter metre \u7c73": Fraction(1),
        "km kilometer kilometre": Fraction(1000),
        "in inch inche": Fraction(254, 10_000),
        "ft foot feet": Fraction(3048, 10_000),
        "yd yard": Fraction(9144, 10_000),
        "mi mile": Fraction(1_609_344, 1000),
    },
    "mass": {
        "mg milligram": Fraction(1, 1000),
        "g gram": Fraction(1),
        "kg kilogram": Fraction(1000),
    },
    "volume": {"ml milliliter millilitre": Fraction(1, 1000), "l liter litre": Fraction(1)},
    "time": {
        "ms millisecond": Fraction(1, 1000),
        "s sec second": Fraction(1),
        "min minute": Fraction(60),
        "h hr hour": Fraction(3600),
        "day": Fraction(86_400),
    },
    "angle": {"\u00b0 deg degree": Fraction(1)},
    "dollar": {"$ dollar usd": Fraction(1), "\u00a2 cent": Fraction(1, 100)},
    "euro": {"\u20ac euro eur": Fraction(1)},
}
"""Dimension -> names of a unit, in the singular -> its size. No name has two meanings here: the
pound is left out."""


class Unit(NamedTuple):
    """What a unit measures, to which power, and how large it is."""

    dimension: str
    power: int
    size: Fraction


_UNITS = {
    name: (dimension, size)
    for dimension, units in _SIZES.items()
    for names, size in units.items()
    for name in names.split()
}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3, "2": 2, "3": 3}
_NAME = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_UNIT = re.compile(
    rf"(?:(square|sq|cubic)\.?\s*)?({_NAME})s?\.?(?:\s*\^?\s*\{{?\s*(squared|cubed|[23])\s*\}}?)?",
    re.IGNORECASE,
)
_TRAILING = re.compile(
    rf"(?<=[\d)}}\]\u00b0i\u03c0\s])[\s{{]*((?:(?:square|sq|cubic)\.?\s*)?(?:{_NAME}|unit)s?\.?"
    r"(?:\s*(?:squared|cubed)|\s*\^\s*\{?[23]\}?)?)[\s}]*$",
    re.IGNORECASE,
)


def read_unit(text: str) -> Unit | None:
    """The known unit that `text` names as a whole ("cm", "square metres", "m^2"), or None."""
    match = _UNIT.fullmatch(text.strip())
    if match is None:
        return None
    dimension, size = _UNITS[match[2].casefold()]
    power = _POWERS.get((match[1] or match[3] or "").casefold(), 1)
    return Unit(dimension, power, size**power)


def without_unit(expression: str) -> str:
    r"""An expression without the unit of several letters that it ends with: "4\pi cm" is "4\pi".

    A single letter may be a variable and stays, unless it is a sign such as the degree's.
    """
    match = _TRAILING.search(expression)
    if match is None or (len(match[1]) == 1 and match[1].isascii() and match[1].isalpha()):
        return expression
    left = expression[: match.start()].rstrip()
    return left + "}" * max(0, left.count("{") - left.count("}")) if left else expression

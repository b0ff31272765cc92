"""The value of a simple expression as a float, without an algebra system.

Good for saying that two expressions differ, which is what most answers do; that they are equal is
left to algebra.
"""

import math
import re

MAX_TOKENS = 80

_TOKEN = re.compile(
    r"\s*(\d+(?:\.\d+)?|\.\d+|\\[dt]?frac|\\sqrt|\u221a|\\pi\b|\u03c0|\\cdot\b|\\times\b"
    r"|[-+*/^(){}]"
    r"|(?<![\\A-Za-z])[A-DF-HJ-Za-df-hj-z](?![A-Za-z]))"
)
_PRODUCT = {"*", "\\cdot", "\\times", "/"}


def estimate(expression: str, variables: float | None = None) -> float | None:
    """The value of numbers, roots, fractions, pi and powers; None for anything else.

    With ``variables``, single letters stand for it: all but e and i, which are numbers.
    """
    tokens: list[str] = []
    place = 0
    expression = expression.strip()
    while place < len(expression):
        match = _TOKEN.match(expression, place)
        if match is None or len(tokens) == MAX_TOKENS:
            return None
        if variables is None and match[1].isalpha() and match[1].isascii():
            return None
        tokens.append(match[1])
        place = match.end()
    reader = _Reader(tokens, variables)
    try:
        value = reader.sum()
    except (IndexError, ValueError, ZeroDivisionError, OverflowError):
        return None
    real = isinstance(value, float) and math.isfinite(value)
    return value if real and reader.place == len(tokens) else None


class _Reader:
    """Reads tokens from left to right; each method one level of precedence."""

    def __init__(self, tokens: list[str], variables: float | None) -> None:
        self.tokens, self.place = tokens, 0
        self.variables = variables

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1]

    def sum(self) -> float:
        value = self.product()
        while self.peek() in ("+", "-"):
            value += self.product() if self.take() == "+" else -self.product()
        return value

    def product(self) -> float:
        value = self.signed()
        while self.peek() and self.peek() not in ("+", "-", ")", "}"):
            divide = self.peek() == "/"
            if self.peek() in _PRODUCT:
                self.take()
            value = value / self.signed() if divide else value * self.signed()
        return value

    def signed(self) -> float:
        if self.peek() in ("+", "-"):
            return self.signed() if self.take() == "+" else -self.signed()
        value = self.factor()
        if self.peek() == "^":
            self.take()
            value = value ** (self.signed() if self.peek() == "-" else self.factor())
        return value

    def factor(self) -> float:
        token = self.take()
        if token in ("(", "{"):
            value = self.sum()
            if self.take() != {"(": ")", "{": "}"}[token]:
                raise ValueError(token)
            return value
        if token.endswith("frac"):
            numerator = self.factor()
            return numerator / self.factor()
        if token in ("\\sqrt", "\u221a"):
            return math.sqrt(self.factor())
        if token in ("\\pi", "\u03c0"):
            return math.pi
        if self.variables is not None and token.isalpha():
            return self.variables
        return float(token)

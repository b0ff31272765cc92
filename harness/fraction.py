"""Regular fractions of two-level factorials.

A fraction of 2^(k-p) runs varies k - p basic factors in every combination and sets each of the
other p to a product of some of them. Factors are coded +1 and -1; a word is a set of factors whose
product is +1 in every run, and the resolution is the length of the shortest word. (Box, Hunter and
Hunter, Statistics for Experimenters, chapter 6.)
"""

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

Word = frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Fraction:
    """A regular fraction."""

    basic: tuple[str, ...]
    """The factors that are varied in every combination."""
    generated: dict[str, tuple[str, ...]]
    """Every other factor -> the basic ones whose product it is."""

    @property
    def factors(self) -> tuple[str, ...]:
        """All factors, the basic ones first."""
        return (*self.basic, *self.generated)

    @property
    def words(self) -> set[Word]:
        """The defining relation: the generators and all their products."""
        words: set[Word] = set()
        for factor, parents in self.generated.items():
            word = frozenset((factor, *parents))
            words |= {word} | {word ^ other for other in words}
        return words

    @property
    def resolution(self) -> float:
        """Length of the shortest word; infinite for the full factorial."""
        return min(map(len, self.words), default=math.inf)

    @property
    def pattern(self) -> list[int]:
        """How many words have 1, 2, 3, ... letters; the least in this order aberrates least."""
        lengths = [len(word) for word in self.words]
        return [lengths.count(n) for n in range(1, len(self.factors) + 1)]

    def runs(self) -> Iterator[dict[str, bool]]:
        """Factor -> whether it is at +1, for every run; the first has all at +1."""
        for levels in itertools.product((True, False), repeat=len(self.basic)):
            run = dict(zip(self.basic, levels, strict=True))
            for factor, parents in self.generated.items():
                run[factor] = sum(not run[parent] for parent in parents) % 2 == 0
            yield run

    def aliases(self, flipped: Collection[str] = ()) -> dict[str, list[str]]:
        """Effect of one or two factors -> the others of up to two that equal it in every run.

        ``flipped`` are the factors whose effect is asked for as -1 against +1; a leading ``-`` says
        that the two effects enter with opposite signs.
        """
        order = {name: i for i, name in enumerate(self.factors)}
        effects = [Word(names) for n in (1, 2) for names in itertools.combinations(order, n)]

        def named(effect: Word) -> str:
            return ":".join(sorted(effect, key=order.__getitem__))

        words = self.words
        found: dict[str, list[str]] = {}
        for effect in effects:
            others = [other for other in effects if effect ^ other in words]
            if others:
                found[named(effect)] = [
                    "-" * (len((effect ^ other) & set(flipped)) % 2) + named(other)
                    for other in others
                ]
        return found


def smallest_fraction(factors: tuple[str, ...], resolution: int) -> Fraction:
    """The fraction with the fewest runs that has at least the resolution.

    Among equals the one with the fewest shortest words (minimum aberration, A. Fries and
    W. G. Hunter, 1980), among those tried first. The full factorial when no fraction will do.
    """
    for count in range(1, len(factors)):
        best = min(
            itertools.islice(_fractions(factors, count, resolution), _TRIED),
            key=lambda fraction: fraction.pattern,
            default=None,
        )
        if best is not None:
            return best
    return Fraction(basic=factors, generated={})


_TRIED = 300
"""Fractions of one size that are compared; for up to seven factors these are all there are."""


def _fractions(factors: tuple[str, ...], count: int, resolution: int) -> Iterator[Fraction]:
    """All fractions with ``count`` basic factors that have the resolution, longest words first."""
    basic, rest = factors[:count], factors[count:]
    generators = [
        parents
        for size in range(count, resolution - 2, -1)
        for parents in itertools.combinations(basic, size)
    ]

    def extend(
        chosen: tuple[tuple[str, ...], ...], words: set[Word], start: int
    ) -> Iterator[Fraction]:
        if len(chosen) == len(rest):
            yield Fraction(basic=basic, generated=dict(zip(rest, chosen, strict=True)))
            return
        for i in range(start, len(generators)):
            word = frozenset((rest[len(chosen)], *generators[i]))
            new = {word} | {word ^ other for other in words}
            if min(map(len, new)) >= resolution:
                yield from extend((*chosen, generators[i]), words | new, i + 1)

    return extend((), set(), 0)

"""Two-level designs: which effects the runs cannot tell apart, and Lenth's method."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import stats

from reports.stats.effects import Design

Effect = tuple[str, ...]
"""Factors whose product it is: one for a main effect, two for an interaction."""
MANY = 8
"""Up to so many factors effects of every order are looked at; beyond, up to three."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Effects that have the same column, up to sign, in all runs: only their sum is estimable."""

    members: dict[Effect, int]
    """effect -> +1 or -1, its sign in the sum; the first, of the lowest order, has +1."""
    column: np.ndarray
    """(N,) +1 or -1 for each run; a factor is +1 off its control level."""

    @property
    def name(self) -> Effect:
        """The effect after which the chain is called: the first of the lowest order."""
        return next(iter(self.members))


@lru_cache(maxsize=32)
def chains(design: Design) -> list[Chain] | None:
    """The alias table of a two-level design, those of one effect included.

    The first chain has no name but `()`: the mean, and the words that are constant. None where a
    factor has more than two levels.
    """
    if not design.present or any(len(levels) != 2 for levels in design.present.values()):
        return None
    columns = {
        name: np.where(design.levels[name] == levels[0], 1, -1)
        for name, levels in design.present.items()
    }
    count = len(design.levels)
    found: dict[bytes, Chain] = {}
    highest = len(columns) if len(columns) <= MANY else 3
    for size in range(highest + 1):
        for effect in combinations(columns, size):
            column = np.prod([columns[name] for name in effect] or [np.ones(count, int)], axis=0)
            key = (column * column[0]).astype(np.int8).tobytes()
            if key in found:
                chain = found[key]
                chain.members[effect] = int(column[0] * chain.column[0])
            else:
                found[key] = Chain(members={effect: 1}, column=column)
    return list(found.values())


def named(effect: Effect) -> str:
    """`a:b` for an interaction; the mean for the empty effect."""
    return ":".join(effect) or "mean"


def aliases(table: list[Chain]) -> dict[str, list[str]]:
    """Each effect of one or two factors -> the others in its chain; `-` where the sign differs.

    Those of three and more factors are named only where there is no other.
    """
    found = {}
    for chain in table:
        for effect, sign in chain.members.items():
            if not 1 <= len(effect) <= 2 or len(chain.members) == 1:
                continue
            others = {other: own for other, own in chain.members.items() if other != effect}
            order = max(2, min(map(len, others)))
            found[named(effect)] = [
                ("" if own == sign else "-") + named(other)
                for other, own in others.items()
                if len(other) <= order
            ]
    return found


def sum_weights(design: Design, chain: Chain) -> np.ndarray | None:
    """(N,) weights of the sum of a chain's two-factor interactions; None where it has not two.

    A main effect in the chain takes its name; the sum is what is estimated then, too.
    """
    pairs: dict[Effect, int] = {
        effect: sign for effect, sign in chain.members.items() if len(effect) == 2
    }
    if len(pairs) < 2 or len(chain.name) != 2:
        return None
    return design.pair_sum_weights(pairs)


def two_level_contrasts(design: Design, means: np.ndarray) -> np.ndarray | None:
    """The N - 1 orthogonal effects of an unreplicated two-level design, full or fraction.

    None for other designs, and where a run is missing.
    """
    table = chains(design)
    if table is None or design.replicated or len(table) != len(means):
        return None
    columns = np.stack([chain.column for chain in table])
    if np.any(columns @ columns.T != len(means) * np.eye(len(means), dtype=int)):
        return None
    return 2 * (columns[1:] @ means) / len(means)


def lenth(effects: np.ndarray, *, confidence: float) -> tuple[float, float]:
    """Lenth's pseudo standard error of unreplicated effects (m,), and its margin of error.

    For seven or more contrasts of which most are null (Lenth 1989, Technometrics 31).
    """
    size = np.abs(effects)
    start = 1.5 * float(np.median(size))
    pse = 1.5 * float(np.median(size[size < 2.5 * start])) if start > 0 else 0.0
    return pse, float(stats.t.ppf((1 + confidence) / 2, len(effects) / 3)) * pse

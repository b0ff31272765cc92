"""From factors to cells: which combinations of levels are run."""

import dataclasses
import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

from harness import fraction
from harness.ablation import Ablation, Levels
from harness.ablation_checks import in_order_of_conditions
from observe.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run of a design: an arm with a seed."""

    arm: str
    """Its name: the non-control levels, or the variant's name."""
    levels: Levels
    """The level of every factor, in factor order."""
    seed: int
    """Seed of the training run."""
    kind: Literal["cell", "variant", "trial"] = "cell"
    """A cell of the design, an extra arm beside it, or a trial of a search."""
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Dotted settings that make the arm from the recipe."""


def cells(ablation: Ablation) -> list[Cell]:
    """The cells of the design, once per seed, without what is excluded.

    A factor whose condition (``when``) does not hold is at its control level; cells that are the
    same then are one. Raises InputError where different cells would have the same name.
    """
    chosen: dict[str, Levels] = {}
    order = in_order_of_conditions(ablation)
    for levels in DESIGNS[ablation.design](ablation):
        levels = _conditioned(ablation, levels, order)
        if any(excluded.items() <= levels.items() for excluded in ablation.exclude):
            continue
        name = arm_name(ablation, levels)
        if chosen.setdefault(name, levels) != levels:
            raise InputError(
                f"factors: {chosen[name]} and {levels} would both be the arm {name!r}; rename a "
                "factor or a level"
            )
    return [
        Cell(arm=arm, levels=levels, seed=seed, overrides=_settings(ablation, levels))
        for arm, levels in chosen.items()
        for seed in ablation.seeds
    ]


def variants(ablation: Ablation) -> list[Cell]:
    """The extra arms: the reference with a variant's changes."""
    extra = []
    for name, variant in ablation.variants.items():
        levels = _complete(ablation, {**ablation.reference, **variant.levels})
        overrides = {**_settings(ablation, levels), **variant.set}
        seeds = ablation.seeds if variant.seeds is None else variant.seeds
        extra += [
            Cell(arm=name, levels=levels, seed=seed, kind="variant", overrides=overrides)
            for seed in seeds
        ]
    return extra


def arm_name(ablation: Ablation, levels: Levels) -> str:
    """The arm's non-control levels joined by ``+`` in factor order; ``control`` without any.

    A level of a factor with more than two is named ``factor=level``.
    """
    parts = [
        name if len(factor.levels) == 2 else f"{name}={levels[name]}"
        for name, factor in ablation.factors.items()
        if levels[name] != factor.control
    ]
    return "+".join(parts) or "control"


def reference_arm(ablation: Ablation) -> str:
    """Name of the arm that the others are compared with."""
    return arm_name(ablation, ablation.reference)


def full_factorial(ablation: Ablation) -> list[Levels]:
    """Every combination of levels, the control first."""
    names = list(ablation.factors)
    choices = [
        [factor.control, *(level for level in factor.levels if level != factor.control)]
        for factor in ablation.factors.values()
    ]
    return [dict(zip(names, levels, strict=True)) for levels in itertools.product(*choices)]


def fractional_factorial(ablation: Ablation) -> list[Levels]:
    """The runs of the smallest fraction of the resolution asked for; the reference is one."""
    chosen = fraction_of(ablation)
    assert chosen is not None
    others = {
        name: next(level for level in factor.levels if level != ablation.reference[name])
        for name, factor in ablation.factors.items()
    }
    return [
        {name: ablation.reference[name] if at else others[name] for name, at in run.items()}
        for run in chosen.runs()
    ]


def fraction_of(ablation: Ablation) -> fraction.Fraction | None:
    """The fraction of a fractional_factorial, None for other designs."""
    if ablation.resolution is None:
        return None
    resolution = {"III": 3, "IV": 4, "V": 5}[ablation.resolution]
    return fraction.smallest_fraction(tuple(ablation.factors), resolution)


def aliases(ablation: Ablation) -> dict[str, list[str]]:
    """Effect (``a`` or ``a:b``) -> the effects of up to two factors that it cannot be told from.

    A leading ``-`` says that the other enters with the opposite sign. Empty but for fractions.
    """
    chosen = fraction_of(ablation)
    if chosen is None:
        return {}
    flipped = {n for n, f in ablation.factors.items() if ablation.reference[n] == f.control}
    return chosen.aliases(flipped)


def indistinct(cells: list[Cell]) -> dict[str, list[str]]:
    """``factor`` or ``factor=level`` -> the others that its main effect cannot be told from.

    Looked for in a model of main effects over the arms of ``cells``; a factor that has one level in
    all of them is left out.
    """
    arms = list({cell.arm: cell.levels for cell in cells}.values())
    columns = {"": (1 << len(arms)) - 1}  # Label -> the arms, as bits, in which its column is 1.
    for name in arms[0]:
        first, *others = dict.fromkeys(levels[name] for levels in arms)
        for level in others:
            label = name if len(others) == 1 else f"{name}={level}"
            columns[label] = sum(1 << i for i, levels in enumerate(arms) if levels[name] == level)
    found: dict[str, list[str]] = {}
    for null in _null_space(
        [[(a & b).bit_count() for a in columns.values()] for b in columns.values()]
    ):
        together = [label for label, weight in zip(columns, null, strict=True) if label and weight]
        for label in together:
            others = [other for other in together if other != label]
            found[label] = list(dict.fromkeys([*found.get(label, []), *others]))
    return found


def _null_space(matrix: list[list[int]]) -> list[list[Fraction]]:
    """A basis of the vectors that a matrix of integers takes to zero, by exact elimination."""
    rows, size = [[Fraction(value) for value in row] for row in matrix], len(matrix[0])
    pivots: list[int] = []
    for column in range(size):
        at = len(pivots)
        found = next((i for i in range(at, len(rows)) if rows[i][column]), None)
        if found is None:
            continue
        rows[at], rows[found] = rows[found], rows[at]
        rows[at] = [value / rows[at][column] for value in rows[at]]
        for i, row in enumerate(rows):
            if i != at and row[column]:
                rows[i] = [v - row[column] * p for v, p in zip(row, rows[at], strict=True)]
        pivots.append(column)
    basis = []
    for free in sorted(set(range(size)) - set(pivots)):
        vector = [Fraction(int(column == free)) for column in range(size)]
        for row, pivot in zip(rows, pivots, strict=False):
            vector[pivot] = -row[free]
        basis.append(vector)
    return basis


def leave_one_out(ablation: Ablation) -> list[Levels]:
    """The reference, and the reference with one factor at a time set to its control level."""
    reference = _complete(ablation, ablation.reference)
    return [reference] + [
        {**reference, name: factor.control}
        for name, factor in ablation.factors.items()
        if reference[name] != factor.control
    ]


def add_one_in(ablation: Ablation) -> list[Levels]:
    """The control, the control with one level of one factor at a time, and the reference."""
    control = _complete(ablation, {})
    added = [
        {**control, name: level}
        for name, factor in ablation.factors.items()
        for level in factor.levels
        if level != factor.control
    ]
    return [control, *added, _complete(ablation, ablation.reference)]


def product(ablation: Ablation) -> list[Levels]:
    """Every combination of the factors that vary, the others as in the reference."""
    choices = [list(ablation.factors[name].levels) for name in ablation.vary]
    return [
        {**_complete(ablation, ablation.reference), **dict(zip(ablation.vary, levels, strict=True))}
        for levels in itertools.product(*choices)
    ]


def zip_levels(ablation: Ablation) -> list[Levels]:
    """The reference, then the i-th levels of the factors that vary, the others as in it."""
    reference = _complete(ablation, ablation.reference)
    rows = zip(*(ablation.factors[name].levels for name in ablation.vary), strict=True)
    return [reference] + [
        {**reference, **dict(zip(ablation.vary, row, strict=True))} for row in rows
    ]


def arms(ablation: Ablation) -> list[Levels]:
    """The arms that are listed; what they do not name is at its control level."""
    return [_complete(ablation, levels) for levels in ablation.arms]


DESIGNS: dict[str, Callable[[Ablation], list[Levels]]] = {
    "full_factorial": full_factorial,
    "fractional_factorial": fractional_factorial,
    "leave_one_out": leave_one_out,
    "add_one_in": add_one_in,
    "product": product,
    "zip": zip_levels,
    "arms": arms,
}


def _complete(ablation: Ablation, levels: Levels) -> Levels:
    return {name: levels.get(name, f.control) for name, f in ablation.factors.items()}


def _conditioned(ablation: Ablation, levels: Levels, order: list[str]) -> Levels:
    """Levels with every factor whose condition does not hold at its control level."""
    levels = dict(levels)
    for name in order:
        factor = ablation.factors[name]
        if not factor.when.items() <= levels.items():
            levels[name] = factor.control
    return levels


def _settings(ablation: Ablation, levels: Levels) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, level in levels.items():
        settings |= ablation.factors[name].levels[level]
    return settings

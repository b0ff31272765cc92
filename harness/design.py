"""From factors to cells: which combinations of levels are run."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal

from harness.ablation import Ablation, Levels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run of a design: an arm with a seed."""

    arm: str
    """Its name: the non-control levels, or the variant's name."""
    levels: Levels
    """The level of every factor, in factor order."""
    seed: int
    """Seed of the training run."""
    kind: Literal["cell", "variant"] = "cell"
    """A cell of the design, or an extra arm beside it."""
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Dotted settings that make the arm from the recipe."""


def cells(ablation: Ablation) -> list[Cell]:
    """The cells of the design, once per seed, without what is excluded."""
    chosen: dict[str, Levels] = {}
    for levels in DESIGNS[ablation.design](ablation):
        if not any(excluded.items() <= levels.items() for excluded in ablation.exclude):
            chosen[arm_name(ablation, levels)] = levels
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
        seeds = ablation.seeds if variant.seed is None else (variant.seed,)
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


def leave_one_out(ablation: Ablation) -> list[Levels]:
    """The reference, and the reference with one factor at a time set to its control level."""
    reference = _complete(ablation, ablation.reference)
    return [reference] + [
        {**reference, name: factor.control}
        for name, factor in ablation.factors.items()
        if reference[name] != factor.control
    ]


def arms(ablation: Ablation) -> list[Levels]:
    """The arms that are listed; what they do not name is at its control level."""
    return [_complete(ablation, levels) for levels in ablation.arms]


DESIGNS: dict[str, Callable[[Ablation], list[Levels]]] = {
    "full_factorial": full_factorial,
    "leave_one_out": leave_one_out,
    "arms": arms,
}


def _complete(ablation: Ablation, levels: Levels) -> Levels:
    return {name: levels.get(name, f.control) for name, f in ablation.factors.items()}


def _settings(ablation: Ablation, levels: Levels) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, level in levels.items():
        settings |= ablation.factors[name].levels[level]
    return settings

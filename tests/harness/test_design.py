"""Which cells a design has, and what they are called."""

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ablation import Ablation, Factor, Variant
from harness.design import aliases, cells, indistinct, reference_arm, variants
from observe.errors import InputError


def ablation(levels: list[int], **changes: Any) -> Ablation:
    """Factors f0, f1, ... with so many levels (the first is the control), all references last."""
    factors = {
        f"f{i}": Factor(control="l0", levels={f"l{j}": {f"x{i}": j} for j in range(count)})
        for i, count in enumerate(levels)
    }
    made = Ablation(
        name="made",
        recipe="r",
        factors=factors,
        design="full_factorial",
        reference={name: list(factor.levels)[-1] for name, factor in factors.items()},
    )
    return dataclasses.replace(made, **changes)


sizes = st.lists(st.integers(2, 4), min_size=1, max_size=4)


@given(sizes, st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
def test_a_full_factorial_has_every_combination_once_per_seed(
    levels: list[int], seeds: list[int]
) -> None:
    asked = ablation(levels, seeds=tuple(seeds))
    made = cells(asked)
    combinations = set(itertools.product(*([f"l{j}" for j in range(n)] for n in levels)))
    assert {(tuple(c.levels.values()), c.seed) for c in made} == set(
        itertools.product(combinations, seeds)
    )
    assert len(made) == len(combinations) * len(seeds)
    assert len({c.arm for c in made}) == len(combinations), "names are unique"
    assert made[0].arm == "control"
    assert all(
        c.overrides == {f"x{i}": int(v[1:]) for i, v in enumerate(c.levels.values())} for c in made
    )


@given(sizes)
def test_leave_one_out_differs_from_the_reference_in_one_factor(levels: list[int]) -> None:
    asked = ablation(levels, design="leave_one_out")
    made = cells(asked)
    assert made[0].levels == asked.reference
    for i, cell in enumerate(made[1:]):
        different = [f for f in asked.factors if cell.levels[f] != asked.reference[f]]
        assert different == [f"f{i}"] and cell.levels[f"f{i}"] == "l0"
    assert len(made) == len(levels) + 1


@given(sizes, st.data())
def test_excluded_cells_are_left_out_and_no_others(levels: list[int], data: st.DataObject) -> None:
    asked = ablation(levels)
    chosen = data.draw(st.lists(st.sampled_from(list(asked.factors)), min_size=1, unique=True))
    excluded = {f: data.draw(st.sampled_from(list(asked.factors[f].levels))) for f in chosen}
    every = cells(asked)
    left = cells(dataclasses.replace(asked, exclude=(excluded,)))
    assert left == [c for c in every if not excluded.items() <= c.levels.items()]


def test_arms_are_named_by_their_non_control_levels() -> None:
    asked = ablation(
        [2, 3], design="arms", arms=({}, {"f0": "l1"}, {"f1": "l2", "f0": "l1"}, {"f1": "l1"})
    )
    assert [c.arm for c in cells(asked)] == ["control", "f0", "f0+f1=l2", "f1=l1"]
    assert reference_arm(asked) == "f0+f1=l2"


def test_variants_start_from_the_reference() -> None:
    asked = ablation(
        [2, 2],
        seeds=(0, 1),
        variants={
            "placebo": Variant(set={"reward.shuffle": True}),
            "again": Variant(seeds=(1000, 1001)),
            "half": Variant(levels={"f1": "l0"}),
        },
    )
    made = variants(asked)
    assert [(c.arm, c.seed, c.kind) for c in made] == [
        ("placebo", 0, "variant"),
        ("placebo", 1, "variant"),
        ("again", 1000, "variant"),
        ("again", 1001, "variant"),
        ("half", 0, "variant"),
        ("half", 1, "variant"),
    ]
    assert made[0].overrides == {"x0": 1, "x1": 1, "reward.shuffle": True}
    assert made[2].overrides == {"x0": 1, "x1": 1}
    assert made[4].levels == {"f0": "l1", "f1": "l0"}


@pytest.mark.parametrize(("resolution", "runs"), [("III", 8), ("IV", 8), ("V", 16)])
def test_a_fraction_holds_the_reference_and_tells_main_effects_apart(
    resolution: Any, runs: int
) -> None:
    asked = ablation([2, 2, 2, 2], design="fractional_factorial", resolution=resolution)
    made = cells(asked)
    assert len(made) == runs
    assert reference_arm(asked) in {cell.arm for cell in made}
    assert indistinct(made) == {}
    assert bool(aliases(asked)) == (resolution != "V")


@pytest.mark.parametrize(
    "factors",
    [
        {"control": ["off", "on"], "b": ["off", "on"]},
        {"m": ["none", "x", "x+b"], "b": ["off", "on"]},
    ],
    ids=str,
)
def test_different_cells_of_one_name_are_refused(factors: dict[str, list[str]]) -> None:
    made = Ablation(
        name="names",
        recipe="glyphs",
        factors={
            name: Factor(control=levels[0], levels={level: {} for level in levels})
            for name, levels in factors.items()
        },
        design="full_factorial",
        reference={name: levels[0] for name, levels in factors.items()},
    )
    with pytest.raises(InputError, match="would both be the arm"):
        cells(made)


def test_aliases_have_the_sign_of_level_minus_control() -> None:
    asked = ablation([2, 2, 2], design="fractional_factorial", resolution="III")
    assert aliases(asked)["f0"] == ["f1:f2"]
    turned = dataclasses.replace(asked, reference={"f0": "l0", "f1": "l1", "f2": "l1"})
    assert aliases(turned)["f0"] == ["-f1:f2"]
    signs = [[1 if c.levels[f] == "l1" else -1 for f in turned.factors] for c in cells(turned)]
    assert all(a == -b * c for a, b, c in signs)


def test_add_one_in_adds_one_level_of_one_factor_to_the_control() -> None:
    made = cells(ablation([2, 3], design="add_one_in"))
    assert [c.arm for c in made] == ["control", "f0", "f1=l1", "f1=l2", "f0+f1=l2"]


def test_a_product_keeps_the_other_factors_as_in_the_reference() -> None:
    made = cells(ablation([2, 3, 2], design="product", vary=("f0", "f1")))
    assert len(made) == 6
    assert {c.levels["f2"] for c in made} == {"l1"}


def test_zip_moves_levels_together_and_keeps_the_reference() -> None:
    asked = ablation([2, 2, 3], design="zip", vary=("f0", "f1"))
    asked = dataclasses.replace(asked, reference={"f0": "l1", "f1": "l0", "f2": "l2"})
    made = [(c.levels["f0"], c.levels["f1"], c.levels["f2"]) for c in cells(asked)]
    assert made == [("l1", "l0", "l2"), ("l0", "l0", "l2"), ("l1", "l1", "l2")]
    assert indistinct([c for c in cells(asked)][1:]) == {"f0": ["f1"], "f1": ["f0"]}


@given(st.permutations(["f0", "f1", "f2"]))
def test_a_factor_stays_at_its_control_where_its_condition_does_not_hold(
    chain: list[str],
) -> None:
    asked = ablation([2, 2, 2])
    factors = dict(asked.factors)
    for needed, name in itertools.pairwise(chain):
        factors[name] = dataclasses.replace(factors[name], when={needed: "l1"})
    made = cells(dataclasses.replace(asked, factors=factors))
    on = {tuple(name for name in chain if cell.levels[name] == "l1") for cell in made}
    assert on == {tuple(chain[:n]) for n in range(4)}, "each needs the one before it"
    assert len(made) == 4, "cells that are then equal are one"

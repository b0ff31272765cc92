"""Which cells a design has, and what they are called."""

import dataclasses
import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from harness.ablation import Ablation, Factor, Variant
from harness.design import cells, reference_arm, variants


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
            "again": Variant(seed=1000),
            "half": Variant(levels={"f1": "l0"}),
        },
    )
    made = variants(asked)
    assert [(c.arm, c.seed, c.kind) for c in made] == [
        ("placebo", 0, "variant"),
        ("placebo", 1, "variant"),
        ("again", 1000, "variant"),
        ("half", 0, "variant"),
        ("half", 1, "variant"),
    ]
    assert made[0].overrides == {"x0": 1, "x1": 1, "reward.shuffle": True}
    assert made[2].overrides == {"x0": 1, "x1": 1}
    assert made[3].levels == {"f0": "l1", "f1": "l0"}

"""Do the report's intervals keep their word? `python -m reports.simulate`

Sweeps are made up from a model whose effects are known, with variation between runs, clusters,
items of different difficulty, and effects that differ from item to item; the statistics of the
report (the same code, without rendering) are asked for them back. Counted is how often an interval
covers the truth, how often a sweep without effects claims one, and how often an effect of the size
that sweeps call detectable is found. docs/statistics.md holds the table.

Every answer is right with the probability

    easy or hard item + run + run x cluster
    + sum over factors (+-1/2) (effect + cluster's own + item's own) + interactions

which never leaves [0, 1], so that the truth is known exactly. The truth of an effect for "these
items" is its mean over the items drawn; for "items of their kind" it is the planted one.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jsonargparse import ArgumentParser, set_parsing_settings

from reports.analysis import Analysis, Row, Settings
from reports.numbers import contrasts, effects, interactions, sensitivity
from reports.precision import minimum_detectable
from reports.stats.bootstrap import resample_clusters
from reports.stats.effects import Design
from reports.stats.outcomes import Outcome, suite_weights
from reports.tables import Factor, Tables

SUITE = "made"
BENCHMARKS = ("one", "two")
KEY = (SUITE, None)
CHUNK = 50


@dataclass(frozen=True, kw_only=True)
class World:
    """The model that answers come from. All numbers are probabilities of a right answer."""

    effects: tuple[float, ...] = (0.04, 0.02, 0.0, 0.0, 0.0)
    """Of the factors a, b, c ..., on minus off."""
    together: float = 0.02
    """The interaction of a and b."""
    run_sd: float = 0.015
    run_by_cluster: float = 0.02
    """Half-width of the luck that a run has with a cluster."""
    cluster_effect: float = 0.05
    """Half-width by which the effects of a, b and c differ between clusters."""
    item_effect: float = 0.03
    """Half-width by which they differ between items of a cluster."""
    clusters: int = 40
    """Of each of the two benchmarks."""
    each: int = 5
    """Items of a cluster."""
    hard: float = 0.23
    """Chance of a right answer to a hard item; to an easy one it is 1 minus that."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A design to simulate."""

    name: str
    cells: tuple[tuple[int, ...], ...]
    """Level of each factor, +1 or -1, for each cell; the last is the reference."""
    seeds: tuple[int, ...]
    """Of each cell."""
    world: World = field(default_factory=World)


def _grid(factors: int) -> tuple[tuple[int, ...], ...]:
    return tuple(product((-1, 1), repeat=factors))


def scenarios() -> list[Scenario]:
    """The designs of the table."""
    four, three = _grid(4), _grid(3)
    half = tuple((*row, int(np.prod(row))) for row in four)
    without = tuple(tuple(-1 if i == out else 1 for i in range(4)) for out in (0, 1, 2, 3, -1))
    uneven = World(cluster_effect=0.25, item_effect=0.0, hard=0.42, effects=(0.04, 0.02, 0.0, 0.0))
    return [
        Scenario(name="2^4, 1 seed", cells=four, seeds=(1,) * 16),
        Scenario(name="2^3, 3 seeds", cells=three, seeds=(3,) * 8),
        Scenario(name="2^(5-1), 2 seeds", cells=half, seeds=(2,) * 16),
        Scenario(
            name="leave one out, 3 seeds",
            cells=without,
            seeds=(3,) * 5,
            world=World(together=0.0),
        ),
        Scenario(name="2^3, 1 to 4 seeds", cells=three, seeds=(1, 4, 2, 3, 1, 2, 4, 3)),
        Scenario(name="2^4, 1 seed, a cell missing", cells=four[1:], seeds=(1,) * 15),
        Scenario(
            name="2^3, 3 seeds, effects very uneven over items",
            cells=three,
            seeds=(3,) * 8,
            world=uneven,
        ),
    ]


def tables_of(scenario: Scenario) -> Tables:
    """The result tables of a sweep of this design, but for the items."""
    names = [chr(ord("a") + index) for index in range(len(scenario.cells[0]))]
    rows: list[Row] = []
    for cell, seeds in zip(scenario.cells, scenario.seeds, strict=True):
        levels = {n: "on" if x > 0 else "off" for n, x in zip(names, cell, strict=True)}
        arm = "+".join(n for n in names if levels[n] == "on") or "control"
        for seed in range(seeds):
            row = {"run": f"{arm}-{seed}", "arm": arm, "seed": seed, "kind": "cell"}
            rows.append(row | {"prompt": "think"} | levels)
    base = {"run": "base", "arm": "base/think", "seed": 0, "kind": "base", "prompt": "think"}
    rows.append(base | dict.fromkeys(names))
    return Tables(
        folder=Path("."),
        sweep={"name": scenario.name, "reference_arm": rows[-2]["arm"]},
        factors=tuple(Factor(name=n, levels=("off", "on"), control="off") for n in names),
        suites={SUITE: list(BENCHMARKS)},
        runs=pd.DataFrame(rows).set_index("run"),
        items=pd.DataFrame(),
    )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One simulated sweep, and the truth about it."""

    outcome: Outcome
    here: np.ndarray
    """(F,) effects on the items drawn."""
    here_together: float
    """The interaction of a and b, the same on all items."""


def sweeps(scenario: Scenario, tables: Tables, count: int, seed: int) -> Iterator[Sweep]:
    """Simulated sweeps; N runs and the base, F factors, I items."""
    world = scenario.world
    generator = np.random.default_rng(seed)
    signs_nf = np.repeat(np.array(scenario.cells), scenario.seeds, axis=0)
    runs, factors = signs_nf.shape
    planted = np.array(world.effects[:factors] + (0.0,) * (factors - len(world.effects)))
    clusters = 2 * world.clusters
    owner = np.repeat(np.arange(clusters), world.each)
    uneven = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])[:factors]
    if world.cluster_effect > 0.1:
        uneven[1:] = 0.0
    index = list(tables.runs.index)
    local = owner[: len(owner) // 2]
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        easy = generator.random((size, clusters)) * 0.6 + 0.3
        item = np.where(
            generator.random((size, len(owner))) < easy[:, owner], 1 - world.hard, world.hard
        )
        own = world.cluster_effect * generator.uniform(-1, 1, (size, factors, clusters))[..., owner]
        own += world.item_effect * generator.uniform(-1, 1, (size, factors, len(owner)))
        own *= uneven[:, None]
        run = np.clip(
            generator.normal(0, world.run_sd, (size, runs)),
            *(2.7 * world.run_sd * np.array([-1, 1])),
        )
        luck = world.run_by_cluster * generator.uniform(-1, 1, (size, runs, clusters))[..., owner]
        chance = item[:, None, :] + run[:, :, None] + luck
        chance += np.einsum("nf,sfi->sni", signs_nf / 2, own + planted[:, None])
        chance += (signs_nf[:, 0] * signs_nf[:, 1] * world.together / 2)[:, None]
        chance = np.concatenate([chance, item[:, None, :] - 0.05], axis=1)
        if chance.min() < 0 or chance.max() > 1:
            raise ValueError(f"{scenario.name}: a probability left [0, 1]; plant less")
        right = (generator.random(chance.shape) < chance).astype(float)
        for one in range(size):
            halves = np.split(right[one], 2, axis=1)
            yield Sweep(
                outcome=Outcome(
                    scores={
                        (SUITE, name): pd.DataFrame(half, index=index)
                        for name, half in zip(BENCHMARKS, halves, strict=True)
                    },
                    clusters={(SUITE, name): local for name in BENCHMARKS},
                    weights=suite_weights({SUITE: list(BENCHMARKS)}),
                ),
                here=planted + own[one].mean(axis=1),
                here_together=world.together,
            )


class Count:
    """How often, of how many, for each estimand of a kind."""

    def __init__(self) -> None:
        self.hits: dict[str, dict[str, list[int]]] = defaultdict(dict)

    def add(
        self, kind: str, name: str, truth: float, low: float | None, high: float | None
    ) -> None:
        """An interval; one that is not estimable does not count."""
        if low is not None and high is not None:
            self.put(kind, name, int(low <= truth <= high), 1)

    def put(self, kind: str, name: str, hits: int, of: int) -> None:
        """So many more, of so many."""
        had = self.hits[kind].setdefault(name, [0, 0])
        self.hits[kind][name] = [had[0] + hits, had[1] + of]

    def rows(self) -> list[Row]:
        """Mean coverage of each kind, and the least and most of its estimands.

        `hits` has the counts that `join` adds up: estimand -> [covered, of].
        """
        found = []
        for kind, names in self.hits.items():
            shares = [hits / of for hits, of in names.values()]
            mean = float(np.mean(shares))
            row: Row = {
                "kind": kind,
                "estimands": len(shares),
                "sweeps": next(iter(names.values()))[1],
                "hits": names,
            }
            found.append(row | {"coverage": mean, "least": min(shares), "most": max(shares)})
        return found


def coverage(scenario: Scenario, count: int, seed: int, *, also: int = 0) -> list[Row]:
    """Coverage of the 95% intervals of a design; of the sensitivity rows in the first `also`."""
    tables, settings, known = tables_of(scenario), Settings(), dict[tuple[str, ...], Design]()
    world = scenario.world
    factors = [factor.name for factor in tables.factors]
    planted = dict(zip(factors, [*world.effects, *[0.0] * len(factors)], strict=False))
    levels = {arm: tables.levels_of(arm) for arm in tables.arms("cell")}
    tally = Count()
    for number, sweep in enumerate(sweeps(scenario, tables, count, seed)):
        analysis = Analysis(tables, sweep.outcome, settings, known)
        here = dict(zip(factors, sweep.here, strict=True))

        def arm_truth(arm: str, effect: dict[str, float]) -> float:
            if arm.startswith("base"):
                return -0.05
            sign = {n: 1 if level == "on" else -1 for n, level in levels[arm].items()}
            pair = sign["a"] * sign["b"] * world.together
            return (sum(sign[n] * effect[n] for n in factors) + pair) / 2

        for row in effects(analysis):
            name = row["factor"]
            tally.add("main effects, these items", name, here[name], row["low"], row["high"])
            bounds = row["other_items_low"], row["other_items_high"]
            tally.add("main effects, items of the kind", name, planted[name], *bounds)
            tally.add(
                "main effects, these items' interval for items of the kind",
                name,
                planted[name],
                row["low"],
                row["high"],
            )
        for row in interactions(analysis):
            pair = row["factors"]
            truth = world.together if pair == ["a", "b"] else 0.0
            name = ":".join(pair)
            tally.add("interactions, these items", name, truth, row["low"], row["high"])
        middle = world.hard + (1 - 2 * world.hard) * 0.6
        for arm in [*levels, "base/think"]:
            interval = analysis.arm(arm, KEY)
            assert interval is not None
            kind = "arm means" if arm in levels else "the base's mean"
            tally.add(
                f"{kind}, items of the kind",
                arm,
                middle + arm_truth(arm, planted),
                interval.low,
                interval.high,
            )
        for row in contrasts(analysis, [KEY]):
            arm, against = row["arm"], row["against"]
            truth = arm_truth(arm, planted) - arm_truth(against, planted)
            if row["family"] == "base":
                tally.add(
                    "arms against the base, items of the kind", arm, truth, row["low"], row["high"]
                )
                continue
            now = arm_truth(arm, here) - arm_truth(against, here)
            tally.add("arms against the reference, these items", arm, now, row["low"], row["high"])
            bounds = row["other_items_low"], row["other_items_high"]
            tally.add("arms against the reference, items of the kind", arm, truth, *bounds)
        if number < also:
            drawn = resample_clusters(sweep.outcome, draws=300, seed=number)
            for row in sensitivity(analysis, drawn):
                if not row["method"].startswith("run-level"):
                    method = row["method"].split(":")[0]
                    tally.add(
                        f"main effects, {method} (sensitivity)",
                        row["factor"],
                        here[row["factor"]],
                        row["low"],
                        row["high"],
                    )
    return tally.rows()


def main_effects(scenario: Scenario, count: int, seed: int) -> list[tuple[list[Row], Row]]:
    """The main effects and the detectable effect of each of `count` sweeps."""
    tables, settings, known = tables_of(scenario), Settings(), dict[tuple[str, ...], Design]()
    found = []
    for sweep in sweeps(scenario, tables, count, seed):
        analysis = Analysis(tables, sweep.outcome, settings, known)
        found.append((effects(analysis), minimum_detectable(analysis)[0]))
    return found


def false_positives_and_power(scenario: Scenario, count: int, seed: int) -> Row:
    """Sweeps without effects that claim one, and power at what those sweeps call detectable."""
    nothing = replace(scenario.world, effects=(), together=0.0, cluster_effect=0.0, item_effect=0.0)
    null = main_effects(replace(scenario, world=nothing), count, seed)
    claims = [any(row["p_adjusted"] <= 0.05 for row in rows) for rows, _ in null]
    found: Row = {"family_wise": float(np.mean(claims)), "sweeps": count}
    for name, field_ in (("value", "p"), ("corrected", "p_adjusted")):
        size = float(np.mean([mde[name] for _, mde in null]))
        world = replace(nothing, effects=(size,))
        rows = main_effects(replace(scenario, world=world), count, seed + len(name))
        hits = [one[0][field_] <= 0.05 for one, _ in rows]
        found |= {f"mde_{name}": size, f"power_{name}": float(np.mean(hits))}
    return found


def join(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of other seeds, of other machines, as those of one simulation; by design."""
    designs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for part in parts:
        designs[part["design"]].append(part)
    found = []
    for name, same in designs.items():
        tally = Count()
        for row in (row for part in same for row in part["coverage"]):
            for estimand, (hits, of) in row["hits"].items():
                tally.put(row["kind"], estimand, hits, of)
        sweeps = [part["sweeps"] for part in same]
        means = {
            key: float(np.average([part[key] for part in same], weights=sweeps))
            for key in same[0]
            if key not in ("design", "coverage", "sweeps", "seed")
        }
        joined = {"design": name, "coverage": tally.rows(), **means, "sweeps": sum(sweeps)}
        found.append(joined | {"seed": [part["seed"] for part in same]})
    return found


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """Simulate sweeps with known effects and count how often the report is right."""

    sweeps: int = 2000
    """Simulated sweeps of each design, for each of coverage, false positives and power."""
    also: int = 500
    """Of those, how many get the sensitivity rows (bootstrap, Lenth) too; they take longest."""
    designs: str = ""
    """Only the design of this name, or those whose name begins so."""
    seed: int = 0
    """Seed of the simulation."""
    json: Path | None = None
    """A file for the numbers; written after each design."""
    join: list[Path] = field(default_factory=list)
    """Simulate nothing: print, and write, such files of several seeds as one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as Markdown; 0 when done, 2 when no design has such a name."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="python -m reports.simulate", description=SimulationConfig.__doc__)
    parser.add_class_arguments(SimulationConfig)
    given = parser.parse_args(None if arguments is None else list(arguments))
    if given.join:
        parts = [part for file in given.join for part in json.loads(file.read_text("utf-8"))]
        _write(given.json, joined := join(parts))
        print("\n".join(map(markdown, joined)))
        return 0
    named = [one for one in scenarios() if one.name.startswith(given.designs)]
    chosen = [one for one in named if one.name == given.designs] or named
    if not chosen:
        names = ", ".join(one.name for one in scenarios())
        print(
            f"error: --designs {given.designs}: expected the beginning of one of {names}",
            file=sys.stderr,
        )
        return 2
    results: list[dict[str, Any]] = []
    for scenario in chosen:
        rows = coverage(scenario, given.sweeps, given.seed, also=given.also)
        others = false_positives_and_power(scenario, given.sweeps, given.seed + 1)
        found = {"design": scenario.name, "seed": given.seed, "coverage": rows, **others}
        results.append(found)
        _write(given.json, results)
        print(markdown(found), flush=True)
    return 0


def _write(file: Path | None, results: list[dict[str, Any]]) -> None:
    if file is not None:
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def markdown(result: dict[str, Any]) -> str:
    """One design's part of the table."""
    lines = [f"**{result['design']}**", "", "| intervals of | coverage, % | least | most |"]
    lines.append("|---|---:|---:|---:|")
    for row in result["coverage"]:
        shares = " | ".join(f"{100 * row[name]:.1f}" for name in ("coverage", "least", "most"))
        lines.append(f"| {row['kind']} ({row['estimands']}) | {shares} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Family-wise false positives {100 * result['family_wise']:.1f}%. "
            f"Power at the detectable effect of {100 * result['mde_value']:.1f} points "
            f"{100 * result['power_value']:.1f}%; after Holm at "
            f"{100 * result['mde_corrected']:.1f} points {100 * result['power_corrected']:.1f}%. "
            f"{result['sweeps']} sweeps each.",
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())

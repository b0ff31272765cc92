"""What each part of the method is worth: taken out, put in alone, and on average over all orders.

A part is a factor at its level in the reference, against the factor at its control.
"""

from __future__ import annotations

from itertools import combinations
from math import factorial

import numpy as np

from reports.analysis import Analysis, Row, interval_row, with_family
from reports.stats.outcomes import Key

Levels = dict[str, str]


def leave_one_out(analysis: Analysis) -> list[Row]:
    """The reference minus the reference without one part: what the part adds at the end."""
    reference = _reference(analysis)
    return _deltas(
        analysis, reference, {name: _without(analysis, reference, name) for name in reference}
    )


def add_one_in(analysis: Analysis) -> list[Row]:
    """The control with one part minus the control: what the part adds by itself."""
    reference = _reference(analysis)
    control = {factor.name: factor.control for factor in analysis.tables.factors}
    return _deltas(
        analysis, control, {name: control | {name: reference[name]} for name in reference}
    )


def _reference(analysis: Analysis) -> Levels:
    """The reference's level of every factor; empty where that of one is not known."""
    tables = analysis.tables
    if tables.runs_of(tables.reference):
        levels = tables.levels_of(tables.reference)
    else:
        levels = {str(k): str(v) for k, v in (tables.sweep.get("reference") or {}).items()}
    names = [factor.name for factor in tables.factors]
    return {name: levels[name] for name in names} if set(names) <= set(levels) else {}


def _without(analysis: Analysis, levels: Levels, name: str) -> Levels:
    control = {factor.name: factor.control for factor in analysis.tables.factors}
    return levels | {name: control[name]}


def _arms(analysis: Analysis) -> dict[tuple[str, ...], str]:
    """Levels, in the factors' order, -> the arm of the design that has them."""
    names = [factor.name for factor in analysis.tables.factors]
    cells = analysis.tables.runs[analysis.tables.runs["kind"] == "cell"]
    return {
        tuple(map(str, levels)): str(arm)
        for arm, *levels in cells[["arm", *names]].itertuples(index=False)
    }


def _deltas(analysis: Analysis, around: Levels, others: dict[str, Levels]) -> list[Row]:
    """For each part, its level in the reference minus its control, all else as in `around`."""
    names = [factor.name for factor in analysis.tables.factors]
    controls = {factor.name: factor.control for factor in analysis.tables.factors}
    known = _arms(analysis)
    rows = []
    for key in analysis.suites():
        family = []
        for name, other in others.items():
            if around.get(name) == other.get(name):
                continue
            here, there = (known.get(tuple(x[n] for n in names)) for x in (around, other))
            if here is None or there is None:
                continue
            first, second = (here, there) if other[name] == controls[name] else (there, here)
            interval = analysis.contrast(first, second, key)
            if interval is not None:
                row: Row = {"factor": name, "arm": first, "against": second, "suite": key[0]}
                row |= {"delta": interval.estimate} | interval_row(interval)
                del row["estimate"]
                family.append(row)
        rows += with_family(family, analysis.settings.correction)
    return rows


def shapley(analysis: Analysis) -> list[Row]:
    """Shapley's share of each part in the reference's gain over the control.

    The mean of what the part adds over all orders in which the parts can be put in (Shapley 1953);
    the shares sum to the reference minus the control. Only where every combination of the
    reference's and the control's levels was run.
    """
    reference = _reference(analysis)
    parts = [
        factor.name
        for factor in analysis.tables.factors
        if reference.get(factor.name) not in (None, factor.control)
    ]
    rows = []
    for key in analysis.suites() if parts else []:
        family = []
        for name in parts:
            weights = _shapley_weights(analysis, key, reference, parts, name)
            if weights is None:
                break
            row: Row = {"factor": name, "level": reference[name], "suite": key[0]}
            family.append(row | interval_row(analysis.combination(weights, key)))
        rows += with_family(family, analysis.settings.correction)
    return rows


def _shapley_weights(
    analysis: Analysis, key: Key, reference: Levels, parts: list[str], name: str
) -> np.ndarray | None:
    """(N,) weights of the runs in a part's share; None where a combination was not run."""
    names = [factor.name for factor in analysis.tables.factors]
    controls = {factor.name: factor.control for factor in analysis.tables.factors}
    known = _arms(analysis)
    position = {run: index for index, run in enumerate(analysis.cells(key))}
    weights = np.zeros(len(position))
    rest = [part for part in parts if part != name]
    for size in range(len(rest) + 1):
        share = factorial(size) * factorial(len(rest) - size) / factorial(len(parts))
        for before in combinations(rest, size):
            for on, sign in (({*before, name}, 1), ({*before}, -1)):
                levels = tuple(reference[n] if n in on else controls[n] for n in names)
                runs = analysis.runs_of(known[levels], key) if levels in known else []
                if not runs:
                    return None
                for run in runs:
                    weights[position[run]] += sign * share / len(runs)
    return weights

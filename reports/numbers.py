"""From tables to every number of the report: `results.json` is this module's output."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np

from reports.analysis import Analysis, Row, Settings, interval_row, with_family
from reports.clarity import clarity, pareto
from reports.controls import controls
from reports.cost import cost_by_arm
from reports.measures import Measures
from reports.parts import add_one_in, leave_one_out, shapley
from reports.precision import minimum_detectable, resolving, variance_split
from reports.scorer import agreement, paths
from reports.slices import slices
from reports.stats.bootstrap import (
    ClusterBootstrap,
    effect_draws,
    mcnemar_exact,
    percentile,
    resample_clusters,
)
from reports.stats.fractions import aliases, chains, lenth, named, sum_weights, two_level_contrasts
from reports.stats.logit import NotFitted, mixed_logit
from reports.stats.outcomes import Key
from reports.tables import Tables


def analyse(tables: Tables, settings: Settings) -> Row:
    """All numbers of the report except validity and verdict: JSON-ready, scores as fractions."""
    measures = Measures(tables=tables, settings=settings)
    analysis = measures.of("score")
    assert analysis is not None, "read_tables admits no table without scores"
    measured = analysis.outcome
    bootstrap = resample_clusters(measured)
    suites = analysis.suites()
    benchmarks = [key for key in measured.weights if key[1] is not None]
    return {
        "name": tables.sweep["name"],
        "reference_arm": tables.reference,
        "confidence": settings.confidence,
        "correction": settings.correction,
        "arms": _arms(analysis, bootstrap),
        "effects": effects(analysis),
        "interactions": interactions(analysis),
        "aliases": _aliases(analysis),
        "alias_sums": _alias_sums(analysis),
        "sensitivity": sensitivity(analysis, bootstrap),
        "logit": _logit(analysis),
        "contrasts": contrasts(analysis, suites, bootstrap),
        "benchmark_contrasts": contrasts(analysis, benchmarks, bootstrap),
        "leave_one_out": leave_one_out(analysis),
        "add_one_in": add_one_in(analysis),
        "shapley": shapley(analysis),
        "slices": slices(analysis),
        "variance": variance_split(analysis),
        "mde": minimum_detectable(analysis),
        "reference_gain": _reference_gain(measures),
        "lengths": _lengths(measures),
        "clarity": clarity(measures),
        "controls": controls(measures),
        "agreement": agreement(tables),
        "paths": paths(tables),
        "cost": cost_by_arm(tables),
    }


def _arms(analysis: Analysis, bootstrap: ClusterBootstrap) -> list[Row]:
    rows = []
    for arm in analysis.tables.arms("base", "cell", "variant"):
        for key in analysis.outcome.weights:
            interval = analysis.arm(arm, key)
            if interval is None:
                continue
            runs = analysis.runs_of(arm, key)
            low, high = bootstrap.interval(key, runs, confidence=analysis.settings.confidence)
            rows.append(
                {
                    "arm": arm,
                    "kind": str(analysis.kinds[runs[0]]),
                    "suite": key[0],
                    "benchmark": key[1],
                    "mean": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "items": analysis.outcome.items(key, runs),
                    "seeds": len(runs),
                    "method": interval.method,
                    "why": interval.why,
                    "checkpoints_low": low,
                    "checkpoints_high": high,
                }
            )
    return rows


def effects(analysis: Analysis) -> list[Row]:
    """Main effects, one family for each suite."""
    rows = []
    for key in analysis.suites():
        design, names = analysis.designs[key], _alias_names(analysis, key)
        family = []
        for factor in analysis.tables.factors:
            for level in factor.others:
                weights = analysis.main_weights(factor.name, level, key)
                row: Row = {"factor": factor.name, "level": level, "against": factor.control}
                row |= {"suite": key[0], **interval_row(analysis.combination(weights, key))}
                wider = analysis.combination(weights, key, other_items=True)
                row |= {"other_items_low": wider.low, "other_items_high": wider.high}
                row["aliases"] = names.get(factor.name, [])
                row["assumes"] = design.assumes
                family.append(row)
        corrected = with_family(family, analysis.settings.correction)
        rows += [row | resolving(analysis, key, row, corrected) for row in corrected]
    return rows


def interactions(analysis: Analysis) -> list[Row]:
    """Two-way interactions, one family for each suite."""
    rows = []
    for key in analysis.suites():
        design, names = analysis.designs[key], _alias_names(analysis, key)
        family = []
        for first, second in combinations(analysis.tables.factors, 2):
            for a, b in product(first.others, second.others):
                weights = (
                    design.interaction_weights((first.name, a), (second.name, b))
                    if analysis.cells(key)
                    else None
                )
                row: Row = {"factors": [first.name, second.name], "levels": [a, b], "suite": key[0]}
                row["aliases"] = names.get(f"{first.name}:{second.name}", [])
                row |= interval_row(analysis.combination(weights, key))
                wider = analysis.combination(weights, key, other_items=True)
                row |= {"other_items_low": wider.low, "other_items_high": wider.high}
                family.append(row)
        rows += with_family(family, analysis.settings.correction)
    return rows


def _alias_names(analysis: Analysis, key: Key) -> dict[str, list[str]]:
    """What the planner said, and what the runs at hand say, which may be fewer than planned."""
    planned: dict[str, list[str]] = analysis.tables.sweep.get("aliases") or {}
    table = chains(analysis.designs[key])
    return planned | (aliases(table) if table else {})


def _aliases(analysis: Analysis) -> list[Row]:
    """The alias table: each effect of one or two factors with those it cannot be told from."""
    rows = []
    for key in analysis.suites():
        for effect, others in _alias_names(analysis, key).items():
            rows.append({"suite": key[0], "effect": effect, "aliases": others})
    return rows


def _alias_sums(analysis: Analysis) -> list[Row]:
    """Sums of two-way interactions that the runs cannot tell apart, one family for each suite."""
    rows = []
    for key in analysis.suites():
        family = []
        for chain in chains(analysis.designs[key]) or []:
            weights = sum_weights(analysis.designs[key], chain)
            if weights is None:
                continue
            members = [
                ("" if sign > 0 else "-") + named(effect)
                for effect, sign in chain.members.items()
                if len(effect) == 2
            ]
            row: Row = {"suite": key[0], "effects": members}
            family.append(row | interval_row(analysis.combination(weights, key)))
        rows += with_family(family, analysis.settings.correction)
    return rows


def sensitivity(analysis: Analysis, bootstrap: ClusterBootstrap) -> list[Row]:
    """Main effects by other methods: wider items, Lenth (seven or more contrasts), bootstrap."""
    rows = []
    confidence = analysis.settings.confidence
    for key in analysis.suites():
        design, ids = analysis.designs[key], analysis.cells(key)
        means = analysis.cell_means(key)
        grid = two_level_contrasts(design, means) if ids else None
        margin = lenth(grid, confidence=confidence)[1] if grid is not None and len(grid) >= 7 else 0
        columns = [bootstrap.places[run] for run in ids]
        method = (
            "bootstrap over seeds and item clusters"
            if ids and design.replicated
            else "bootstrap over item clusters: these checkpoints only"
        )
        for factor in analysis.tables.factors:
            for level in factor.others:
                weights = analysis.main_weights(factor.name, level, key)
                if weights is None:
                    continue
                estimate = float(weights @ means)
                row: Row = {"factor": factor.name, "level": level, "against": factor.control}
                row |= {"suite": key[0], "estimate": estimate}
                wider = analysis.combination(weights, key, other_items=True)
                if wider.estimable:
                    name = "run-level model plus item clusters: also for other items of the kind"
                    rows.append({**row, "low": wider.low, "high": wider.high, "method": name})
                draws = effect_draws(bootstrap.draws[key][:, columns], weights, design.cell)
                low, high = percentile(draws, confidence)
                rows.append({**row, "low": low, "high": high, "method": method})
                if margin > 0:
                    low, high = estimate - margin, estimate + margin
                    rows.append({**row, "low": low, "high": high, "method": "Lenth"})
    return rows


def _logit(analysis: Analysis) -> list[Row]:
    """Main effects in a mixed logit of the answers, as a check; with the reason where it is none.

    On the scale of log-odds, over the answers of a suite's benchmarks together.
    """
    rows = []
    for key in analysis.suites():
        design, ids = analysis.designs[key], analysis.cells(key)
        effect_names = [(f, level) for f in analysis.tables.factors for level in f.others]
        contrasts_ = {
            (factor.name, level): design.main_row(factor.name, level)
            for factor, level in effect_names
        }
        try:
            fit = mixed_logit(analysis.outcome, key, ids, design) if ids else None
            why = None if fit else "no trained run of the design is there"
        except NotFitted as error:
            fit, why = None, str(error)
        for (name, level), contrast in contrasts_.items():
            row: Row = {"factor": name, "level": level, "suite": key[0]}
            row |= {"log_odds": None, "low": None, "high": None, "p": None, "why": why}
            if fit and contrast is not None:
                found = fit.interval(contrast, confidence=analysis.settings.confidence)
                row |= {"log_odds": found.estimate, "low": found.low, "high": found.high}
                row |= {"p": found.p, "run_sd": fit.run_sd, "item_sd": fit.item_sd}
                row["method"] = found.method
            elif fit:
                row["why"] = "the runs at hand confound it with other effects, or lack a level"
            rows.append(row)
    return rows


def _families(tables: Tables) -> list[tuple[str, list[tuple[str, str]]]]:
    """Pairs of arms to compare, by family: each family has its own correction, each pair one."""
    trained, variants = tables.arms("cell"), tables.arms("variant")
    known = set(tables.arm_of.values())
    named = [
        (str(entry["arm"]), str(entry["against"]))
        for entry in tables.sweep.get("planned_contrasts") or []
    ]
    # A pair that is named twice is one test; an arm against itself is none.
    planned = [pair for pair in dict.fromkeys(named) if set(pair) <= known and len(set(pair)) == 2]
    bases = [(arm, tables.base_of(arm)) for arm in trained]
    variant_bases = [(arm, tables.base_of(arm)) for arm in variants]
    reference = tables.reference
    families = [
        ("planned", planned),
        ("base", [(arm, base) for arm, base in bases if base]),
        ("reference", [(arm, reference) for arm in trained if arm != reference]),
        (
            "variant",
            [(arm, reference) for arm in variants]
            + [(arm, base) for arm, base in variant_bases if base],
        ),
    ]
    return [
        (family, [pair for pair in pairs if family == "planned" or pair not in planned])
        for family, pairs in families
    ]


def contrasts(
    analysis: Analysis, keys: list[Key], bootstrap: ClusterBootstrap | None = None
) -> list[Row]:
    """Pairs of arms, each family and outcome corrected by itself.

    Fields called `checkpoints_` say what the items alone say of these checkpoints.
    """
    rows = []
    confidence = analysis.settings.confidence
    for family, pairs in _families(analysis.tables):
        for key in keys:
            found = []
            for arm, against in pairs:
                interval = analysis.contrast(arm, against, key)
                if interval is None:
                    continue
                first, second = analysis.runs_of(arm, key), analysis.runs_of(against, key)
                row: Row = {"arm": arm, "against": against, "family": family, "suite": key[0]}
                row |= {"benchmark": key[1], "delta": interval.estimate, **interval_row(interval)}
                del row["estimate"]
                wider = interval
                if family != "base":
                    wider = analysis.contrast(arm, against, key, other_items=True) or interval
                row |= {"other_items_low": wider.low, "other_items_high": wider.high}
                if bootstrap is not None:
                    low, high = bootstrap.interval(key, first, second, confidence=confidence)
                    row |= {"checkpoints_low": low, "checkpoints_high": high}
                    row["checkpoints_mcnemar_p"] = _mcnemar(analysis, key, first, second)
                found.append(row)
            rows += with_family(found, analysis.settings.correction)
    return rows


def _mcnemar(analysis: Analysis, key: Key, first: list[str], second: list[str]) -> float | None:
    """McNemar's exact test on the items of one pair of checkpoints; None for several seeds."""
    if len(first) != 1 or len(second) != 1:
        return None
    return mcnemar_exact(
        np.concatenate(analysis.outcome.by_item(key, first)),
        np.concatenate(analysis.outcome.by_item(key, second)),
    )


def _reference_gain(measures: Measures) -> list[Row]:
    """The reference against the base under its own prompt, in every measure that was recorded."""
    tables = measures.tables
    against = tables.base_of(tables.reference) if tables.runs_of(tables.reference) else None
    rows: list[Row] = []
    for measure in ("score", "score_untagged", "faithful", "format_ok", "response_tokens"):
        analysis = measures.of(measure)
        if analysis is None or against is None:
            continue
        for key in analysis.suites():
            interval = analysis.contrast(tables.reference, against, key)
            base, arm = analysis.arm(against, key), analysis.arm(tables.reference, key)
            if interval is None or base is None or arm is None:
                continue
            row: Row = {
                "measure": measure,
                "suite": key[0],
                "arm": tables.reference,
                "against": against,
            }
            row |= {"before": base.estimate, "after": arm.estimate, **interval_row(interval)}
            rows.append(row)
    return rows


def _lengths(measures: Measures) -> list[Row]:
    """Mean response tokens of every arm and suite, with the same intervals as the scores.

    `front`: no other arm is as accurate with as few tokens.
    """
    tables, analysis, score = measures.tables, measures.of("response_tokens"), measures.of("score")
    if analysis is None or score is None:
        return []
    rows = []
    for key in analysis.suites():
        found = []
        for arm in tables.arms("base", "cell", "variant"):
            interval, right = analysis.arm(arm, key), score.arm(arm, key)
            if interval is not None and right is not None:
                row: Row = {"arm": arm, "suite": key[0], "mean": interval.estimate}
                row |= {"low": interval.low, "high": interval.high}
                found.append(row | {"score": right.estimate, "tokens": interval.estimate})
        for row, front in zip(found, pareto(found), strict=True):
            del row["tokens"]
            rows.append(row | {"front": front})
    return rows

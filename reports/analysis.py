"""From tables to every number of the report: `results.json` is this module's output."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from reports.stats.bootstrap import (
    ClusterBootstrap,
    effect_draws,
    mcnemar_exact,
    percentile,
    resample_clusters,
)
from reports.stats.contrasts import against_base, against_trained, arm_mean, checkpoint_mean
from reports.stats.effects import (
    Design,
    Interval,
    RunVariance,
    contrasts_of_two_level_grid,
    lenth,
)
from reports.stats.multiplicity import adjust
from reports.stats.outcomes import Key, Outcome, outcome
from reports.stats.power import minimum_detectable_effect
from reports.tables import Tables

Row = dict[str, Any]
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the reader asks of the statistics."""

    confidence: float = 0.95
    correction: str = "holm"


class Analysis:
    """One measure of a sweep: run means, the design's model, and the noise of items.

    Variants (placebo, second seed) and the base are no part of the design: they enter contrasts
    only.
    """

    def __init__(self, tables: Tables, measured: Outcome, settings: Settings) -> None:
        self.tables = tables
        self.outcome = measured
        self.settings = settings
        self.means = measured.means
        self.kinds = tables.runs.loc[measured.runs, "kind"]
        self.known: dict[str, list[str]] = {}
        for run, arm in tables.runs.loc[measured.runs, "arm"].items():
            self.known.setdefault(str(arm), []).append(str(run))
        self.designs: dict[Key, Design] = {}
        self.variances: dict[Key, RunVariance] = {}
        known: dict[tuple[str, ...], Design] = {}
        for key in measured.weights:
            ids = tuple(self.cells(key))
            if ids not in known:
                known[ids] = self._design(list(ids))
            self.designs[key] = known[ids]
            self.variances[key] = (
                known[ids].run_variance(self.means[key].loc[list(ids)].to_numpy(dtype=float))
                if ids
                else RunVariance(value=None, df=0, source="no trained run of the design is there")
            )

    def _design(self, runs: list[str]) -> Design:
        factors = self.tables.factors
        return Design(
            levels=self.tables.runs.loc[runs, [factor.name for factor in factors]].astype(str),
            arms=list(self.tables.runs.loc[runs, "arm"]),
            controls={factor.name: factor.control for factor in factors},
            order={factor.name: factor.levels for factor in factors},
        )

    def cells(self, key: Key) -> list[str]:
        """Runs of the design that were evaluated on all benchmarks of an outcome."""
        return list(self.kinds.index[(self.kinds == "cell") & self.means[key].notna()])

    def runs_of(self, arm: str, key: Key) -> list[str]:
        """An arm's runs that were evaluated on all benchmarks of an outcome."""
        return [run for run in self.known.get(arm, []) if not np.isnan(self.means[key][run])]

    def arm(self, arm: str, key: Key) -> Interval | None:
        """An arm's mean; None when no run of it was evaluated."""
        runs = self.runs_of(arm, key)
        if not runs:
            return None
        mean = float(self.means[key].loc[runs].mean())
        items = self.outcome.item_variance(key, runs)
        if self.kinds[runs[0]] == "base":
            return checkpoint_mean(mean, items, confidence=self.settings.confidence)
        return arm_mean(
            mean, len(runs), self.variances[key], items, confidence=self.settings.confidence
        )

    def contrast(self, arm: str, against: str, key: Key) -> Interval | None:
        """An arm's difference from another arm or from the base; None when one is missing."""
        first, second = self.runs_of(arm, key), self.runs_of(against, key)
        if not first or not second:
            return None
        delta = float(self.means[key].loc[first].mean() - self.means[key].loc[second].mean())
        run, confidence = self.variances[key], self.settings.confidence
        if self.kinds[second[0]] == "base":
            items = self.outcome.item_variance(key, first, second)
            return against_base(delta, len(first), run, items, confidence=confidence)
        return against_trained(delta, len(first), len(second), run, confidence=confidence)


def analyse(tables: Tables, settings: Settings) -> Row:
    """All numbers of the report except validity and verdict: JSON-ready, scores as fractions."""
    measured = outcome(tables.items, "score", tables.suites)
    assert measured is not None, "read_tables admits no table without items"
    analysis = Analysis(tables, measured, settings)
    bootstrap = resample_clusters(measured)
    suites = _suite_keys(analysis)
    benchmarks = [key for key in measured.weights if key[1] is not None]
    return {
        "name": tables.sweep["name"],
        "reference_arm": tables.reference,
        "confidence": settings.confidence,
        "correction": settings.correction,
        "arms": _arms(analysis, bootstrap),
        "effects": _effects(analysis),
        "interactions": _interactions(analysis),
        "sensitivity": _sensitivity(analysis, bootstrap),
        "contrasts": _contrasts(analysis, bootstrap, suites),
        "benchmark_contrasts": _contrasts(analysis, bootstrap, benchmarks),
        "mde": _mde(analysis),
        "reference_gain": _reference_gain(tables, settings),
        "lengths": _lengths(tables, settings),
    }


def interval_row(interval: Interval) -> Row:
    """The fields that every estimate in `results.json` shares."""
    return {
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "p": interval.p,
        "df": interval.df,
        "method": interval.method,
        "estimable": interval.estimable,
        "why": interval.why,
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


def _suite_keys(analysis: Analysis) -> list[Key]:
    return [key for key in analysis.outcome.weights if key[1] is None]


def _with_family(rows: list[Row], analysis: Analysis) -> list[Row]:
    adjusted = adjust([row["p"] for row in rows], analysis.settings.correction)
    return [{**row, "p_adjusted": p} for row, p in zip(rows, adjusted, strict=True)]


def _effects(analysis: Analysis) -> list[Row]:
    rows = []
    aliases: dict[str, list[str]] = analysis.tables.sweep.get("aliases") or {}
    for key in _suite_keys(analysis):
        design = analysis.designs[key]
        means = analysis.means[key].loc[design.levels.index].to_numpy(dtype=float)
        family = []
        for factor in analysis.tables.factors:
            for level in factor.others:
                interval = design.estimate(
                    design.main_weights(factor.name, level) if len(means) else None,
                    means,
                    confidence=analysis.settings.confidence,
                )
                row: Row = {"factor": factor.name, "level": level, "against": factor.control}
                row |= {"suite": key[0], **interval_row(interval)}
                row["aliases"] = aliases.get(factor.name, [])
                row["assumes"] = (
                    "no interactions: the design has no runs to tell them apart"
                    if design.degree == 1 and len(design.present) > 1
                    else None
                )
                family.append(row)
        rows += _with_family(family, analysis)
    return rows


def _interactions(analysis: Analysis) -> list[Row]:
    rows = []
    aliases: dict[str, list[str]] = analysis.tables.sweep.get("aliases") or {}
    for key in _suite_keys(analysis):
        design = analysis.designs[key]
        means = analysis.means[key].loc[design.levels.index].to_numpy(dtype=float)
        family = []
        for first, second in combinations(analysis.tables.factors, 2):
            for a, b in product(first.others, second.others):
                weights = (
                    design.interaction_weights((first.name, a), (second.name, b))
                    if len(means)
                    else None
                )
                interval = design.estimate(weights, means, confidence=analysis.settings.confidence)
                row: Row = {"factors": [first.name, second.name], "levels": [a, b], "suite": key[0]}
                row["aliases"] = aliases.get(f"{first.name}:{second.name}", [])
                family.append(row | interval_row(interval))
        rows += _with_family(family, analysis)
    return rows


def _sensitivity(analysis: Analysis, bootstrap: ClusterBootstrap) -> list[Row]:
    """Main effects by other methods: Lenth (seven or more contrasts) and the bootstrap."""
    rows = []
    confidence = analysis.settings.confidence
    for key in _suite_keys(analysis):
        design = analysis.designs[key]
        ids = list(design.levels.index)
        means = analysis.means[key].loc[ids].to_numpy(dtype=float)
        grid = contrasts_of_two_level_grid(design, means) if len(means) else None
        margin = lenth(grid, confidence=confidence)[1] if grid is not None and len(grid) >= 7 else 0
        columns = [bootstrap.runs.index(run) for run in ids]
        method = (
            "bootstrap over seeds and item clusters"
            if len(ids) and design.replicated
            else "bootstrap over item clusters: these checkpoints only"
        )
        for factor in analysis.tables.factors:
            for level in factor.others:
                weights = design.main_weights(factor.name, level) if len(means) else None
                if weights is None:
                    continue
                estimate = float(weights @ means)
                row: Row = {"factor": factor.name, "level": level, "against": factor.control}
                row |= {"suite": key[0], "estimate": estimate}
                draws = effect_draws(bootstrap.draws[key][:, columns], weights, design.cell)
                low, high = percentile(draws, confidence)
                rows.append({**row, "low": low, "high": high, "method": method})
                if margin > 0:
                    low, high = estimate - margin, estimate + margin
                    rows.append({**row, "low": low, "high": high, "method": "Lenth"})
    return rows


def _families(tables: Tables) -> list[tuple[str, list[tuple[str, str]]]]:
    """Pairs of arms to compare, by family: each family has its own correction, each pair one."""
    trained, variants = tables.arms("cell"), tables.arms("variant")
    known = set(tables.runs["arm"])
    planned = [
        (str(entry["arm"]), str(entry["against"]))
        for entry in tables.sweep.get("planned_contrasts") or []
        if {str(entry["arm"]), str(entry["against"])} <= known
    ]
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


def _contrasts(analysis: Analysis, bootstrap: ClusterBootstrap, keys: list[Key]) -> list[Row]:
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
                low, high = bootstrap.interval(key, first, second, confidence=confidence)
                row: Row = {"arm": arm, "against": against, "family": family, "suite": key[0]}
                row |= {"benchmark": key[1], "delta": interval.estimate, **interval_row(interval)}
                del row["estimate"]
                row |= {"checkpoints_low": low, "checkpoints_high": high}
                row["checkpoints_mcnemar_p"] = _mcnemar(analysis, key, first, second)
                found.append(row)
            rows += _with_family(found, analysis)
    return rows


def _mcnemar(analysis: Analysis, key: Key, first: list[str], second: list[str]) -> float | None:
    """McNemar's exact test on the items of one pair of checkpoints; None for several seeds."""
    if len(first) != 1 or len(second) != 1:
        return None
    return mcnemar_exact(
        np.concatenate(analysis.outcome.by_item(key, first)),
        np.concatenate(analysis.outcome.by_item(key, second)),
    )


def _mde(analysis: Analysis) -> list[Row]:
    """The smallest main effect and the smallest difference of two runs that would be found."""
    rows = []
    alpha = 1 - analysis.settings.confidence
    for key in _suite_keys(analysis):
        variance, design = analysis.variances[key], analysis.designs[key]
        row: Row = {
            "suite": key[0],
            "value": None,
            "contrast": None,
            "power": POWER,
            "alpha": alpha,
        }
        row |= {"why": None if variance.value is not None else variance.source, "df": variance.df}
        if variance.value is not None:
            run_sd = float(np.sqrt(variance.value))
            unit = minimum_detectable_effect(1.0, variance.df, alpha=alpha, power=POWER)
            weights = [
                design.main_weights(name, level)
                for name, levels in design.present.items()
                for level in levels[:-1]
            ]
            sizes = [float(np.sqrt(w @ w)) for w in weights if w is not None]
            row["value"] = unit * run_sd * max(sizes) if sizes else None
            row["contrast"] = unit * run_sd * float(np.sqrt(2))
            row["run_sd"] = run_sd
        rows.append(row)
    return rows


def _reference_gain(tables: Tables, settings: Settings) -> list[Row]:
    """The reference against the base under its own prompt, in every measure that was recorded."""
    against = tables.base_of(tables.reference) if tables.runs_of(tables.reference) else None
    rows: list[Row] = []
    for measure in ("score", "score_untagged", "faithful", "format_ok", "response_tokens"):
        measured = outcome(tables.items, measure, tables.suites)
        if measured is None or against is None:
            continue
        analysis = Analysis(tables, measured, settings)
        for key in _suite_keys(analysis):
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


def _lengths(tables: Tables, settings: Settings) -> list[Row]:
    """Mean response tokens of every arm and suite, with the same intervals as the scores."""
    measured = outcome(tables.items, "response_tokens", tables.suites)
    if measured is None:
        return []
    analysis = Analysis(tables, measured, settings)
    rows = []
    for arm in tables.arms("base", "cell", "variant"):
        for key in _suite_keys(analysis):
            interval = analysis.arm(arm, key)
            if interval is not None:
                row: Row = {"arm": arm, "suite": key[0], "mean": interval.estimate}
                rows.append(row | {"low": interval.low, "high": interval.high})
    return rows

"""One measure of a sweep: run means, the model that the design bears, and the noise of items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.stats.contrasts import (
    ARM_METHOD,
    BASE_METHOD,
    OWN_RUNS_METHOD,
    Share,
    between_runs,
    between_runs_and_items,
    checkpoint_mean,
)
from reports.stats.effects import Design, Interval, RunVariance
from reports.stats.multiplicity import adjust
from reports.stats.outcomes import Key, Outcome
from reports.tables import Tables

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the reader asks of the statistics."""

    confidence: float = 0.95
    correction: str = "holm"

    @property
    def alpha(self) -> float:
        """The level of a test."""
        return 1 - self.confidence


class Analysis:
    """Estimates of arms, contrasts and effects of one measure.

    Variants (placebo, second seed) and the base are no part of the design: they enter contrasts
    only. `designs` keeps what was computed from the runs' levels, for other measures of the same
    runs.
    """

    def __init__(
        self,
        tables: Tables,
        measured: Outcome,
        settings: Settings,
        designs: dict[tuple[str, ...], Design] | None = None,
    ) -> None:
        self.tables = tables
        self.outcome = measured
        self.settings = settings
        self.means = {key: values.to_dict() for key, values in measured.means.items()}
        self.kinds = {run: tables.kind_of[run] for run in measured.runs}
        self.known: dict[str, list[str]] = {}
        for run in measured.runs:
            self.known.setdefault(tables.arm_of[run], []).append(run)
        self.designs: dict[Key, Design] = {}
        self.variances: dict[Key, RunVariance] = {}
        self._noise: dict[Key, tuple[float, float]] = {}
        self._cells: dict[Key, list[str]] = {}
        self._places: dict[Key, dict[str, int]] = {}
        self._arms: dict[tuple[str, Key], Interval | None] = {}
        self.known_designs = known = {} if designs is None else designs
        for key in measured.weights:
            ids = tuple(self.cells(key))
            if ids not in known:
                known[ids] = self._design(list(ids))
            self.designs[key] = known[ids]
            self.variances[key] = (
                known[ids].run_variance(self.cell_means(key))
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

    def suites(self) -> list[Key]:
        """The outcomes that are suites, "all" included."""
        return [key for key in self.outcome.weights if key[1] is None]

    def cells(self, key: Key) -> list[str]:
        """Runs of the design that were evaluated on all benchmarks of an outcome."""
        if key not in self._cells:
            means, kinds = self.means[key], self.kinds.items()
            self._cells[key] = [
                run for run, kind in kinds if kind == "cell" and means[run] == means[run]
            ]
            self._places[key] = {run: place for place, run in enumerate(self._cells[key])}
        return self._cells[key]

    def cell_means(self, key: Key) -> np.ndarray:
        """(N,) means of the runs of the design."""
        return np.array([self.means[key][run] for run in self.cells(key)], dtype=float)

    def runs_of(self, arm: str, key: Key) -> list[str]:
        """An arm's runs that were evaluated on all benchmarks of an outcome."""
        means = self.means[key]
        return [run for run in self.known.get(arm, []) if means[run] == means[run]]

    def mean(self, runs: list[str], key: Key) -> float:
        """The mean of these runs' means."""
        return float(np.mean([self.means[key][run] for run in runs]))

    def noise(self, key: Key) -> tuple[float, float]:
        """Variance of one run's mean from how it answered these very items, and its df."""
        if key not in self._noise:
            design = self.designs[key]
            self._noise[key] = self.outcome.run_by_item_variance(
                key, self.cells(key), design.residuals, design.df
            )
        return self._noise[key]

    def share(self, weights: Mapping[str, float], key: Key) -> Share:
        """What a sum of run means with these weights carries of the variance between runs."""
        design, places = np.zeros(len(self.cells(key))), self._places[key]
        for run, weight in weights.items():
            if run in places:
                design[places[run]] = weight
        size = sum(w**2 for run, w in weights.items() if self.kinds[run] != "base")
        return Share(size=size, shared=self.designs[key].shared(design) if len(design) else 0.0)

    def own_variance(self, runs: list[str], key: Key) -> RunVariance | None:
        """The variance between the several runs of a variant, which is no part of the design.

        What a placebo's runs vary by the design's do not say: they follow no signal, and the runs
        of a design that share a seed differ less. None for any other arm.
        """
        if len(runs) < 2 or any(self.kinds[run] != "variant" for run in runs):
            return None
        value = float(np.var([self.means[key][run] for run in runs], ddof=1))
        df = len(runs) - 1
        return RunVariance(
            value=value, df=df, source=f"variance between the variant's {df + 1} runs"
        )

    def arm(self, arm: str, key: Key) -> Interval | None:
        """An arm's mean, for items of their kind; None when no run of it was evaluated."""
        if (arm, key) not in self._arms:
            self._arms[arm, key] = self._arm(arm, key)
        return self._arms[arm, key]

    def _arm(self, arm: str, key: Key) -> Interval | None:
        runs = self.runs_of(arm, key)
        if not runs:
            return None
        mean = self.mean(runs, key)
        items = self.outcome.item_variance(key, runs)
        confidence = self.settings.confidence
        if self.kinds[runs[0]] == "base":
            return checkpoint_mean(mean, items, confidence=confidence)
        return between_runs_and_items(
            mean,
            self.share(dict.fromkeys(runs, 1 / len(runs)), key),
            self.variances[key],
            items,
            self.noise(key),
            confidence=confidence,
        )

    def contrast(
        self, arm: str, against: str, key: Key, *, other_items: bool = False
    ) -> Interval | None:
        """An arm's difference from another arm or from the base; None when one is missing.

        For these items, unless it is against the base or `other_items` of their kind are asked for.
        """
        first, second = self.runs_of(arm, key), self.runs_of(against, key)
        if not first or not second:
            return None
        delta = self.mean(first, key) - self.mean(second, key)
        weights = dict.fromkeys(first, 1 / len(first)) | dict.fromkeys(second, -1 / len(second))
        share, run = self.share(weights, key), self.variances[key]
        base = "base" in (self.kinds[first[0]], self.kinds[second[0]])
        if share.size == 0:
            items = self.outcome.item_variance(key, first, second)
            return checkpoint_mean(delta, items, confidence=self.settings.confidence)
        if not base and not other_items:
            return between_runs(delta, share, run, confidence=self.settings.confidence)
        noise, method = self.noise(key), BASE_METHOD if base else ARM_METHOD
        if base and (own := self.own_variance(first, key)) is not None:
            # How much of it the items make is not known: none is taken off.
            run, noise, method = own, (0.0, np.inf), OWN_RUNS_METHOD
        return between_runs_and_items(
            delta,
            share,
            run,
            self.outcome.item_variance(key, first, second),
            noise,
            confidence=self.settings.confidence,
            method=method,
        )

    def combination(
        self, weights: np.ndarray | None, key: Key, *, other_items: bool = False
    ) -> Interval:
        """A sum of the design's run means with `weights` (N,): an effect, a share."""
        design, means = self.designs[key], self.cell_means(key)
        confidence = self.settings.confidence
        if weights is None or not other_items:
            return design.estimate(weights, means, confidence=confidence)
        cells = self.cells(key)
        return between_runs_and_items(
            float(weights @ means),
            Share(size=float(weights @ weights), shared=design.shared(weights)),
            self.variances[key],
            self.outcome.contrast_item_variance(key, cells, weights),
            self.noise(key),
            confidence=confidence,
        )

    def main_weights(self, factor: str, level: str, key: Key) -> np.ndarray | None:
        """(N,) weights of a main effect; None where it is not estimable."""
        return self.designs[key].main_weights(factor, level) if self.cells(key) else None


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


def with_family(rows: list[Row], correction: str) -> list[Row]:
    """The rows with `p_adjusted`, as one family."""
    adjusted = adjust([row["p"] for row in rows], correction)
    return [{**row, "p_adjusted": p} for row, p in zip(rows, adjusted, strict=True)]

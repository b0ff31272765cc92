"""Resampling: clusters of items (and, for effects, seeds). Deterministic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from reports.stats.effects import ROUNDING
from reports.stats.outcomes import Key, Outcome


@dataclass(frozen=True, kw_only=True)
class ClusterBootstrap:
    """B resamples of the items' clusters, the same for every run, so differences stay paired."""

    runs: list[str]
    draws: dict[Key, np.ndarray]
    """outcome -> (B, R) run means."""

    @cached_property
    def places(self) -> dict[str, int]:
        """run -> its column in the draws."""
        return {run: place for place, run in enumerate(self.runs)}

    @cached_property
    def _known(self) -> dict[tuple[Key, tuple[str, ...]], np.ndarray]:
        return {}

    def means(self, key: Key, arm: list[str]) -> np.ndarray:
        """(B,) resampled mean of an arm's runs."""
        of = (key, tuple(arm))
        if of not in self._known:
            self._known[of] = self.draws[key][:, [self.places[run] for run in arm]].mean(axis=1)
        return self._known[of]

    def interval(
        self, key: Key, arm: list[str], against: list[str] | None = None, *, confidence: float
    ) -> tuple[float | None, float | None]:
        """Percentile interval of an arm's mean, or of its paired difference from another's.

        It speaks of these checkpoints only: no run-to-run variation is in it.
        """
        draws = self.means(key, arm)
        if against is not None:
            draws = draws - self.means(key, against)
        return percentile(draws, confidence)


def percentile(draws: np.ndarray, confidence: float) -> tuple[float | None, float | None]:
    """Central percentile interval of (B,) draws; None where they are undefined or all equal."""
    if np.isnan(draws).any() or np.ptp(draws) < ROUNDING:
        return None, None
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def resample_clusters(outcome: Outcome, *, draws: int = 1000, seed: int = 0) -> ClusterBootstrap:
    """Resample each benchmark's clusters with replacement, `draws` times."""
    generator = np.random.default_rng(seed)
    means = {}
    for name, table in outcome.scores.items():
        codes = outcome.clusters[name]
        values = table.to_numpy()
        seen = ~np.isnan(values)
        size = int(codes.max()) + 1
        member = np.zeros((len(codes), size))
        member[np.arange(len(codes)), codes] = 1.0
        weights = generator.multinomial(size, np.full(size, 1 / size), size=draws).astype(float)
        total = weights @ (np.where(seen, values, 0.0) @ member).T
        count = weights @ (seen.astype(float) @ member).T
        means[name] = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    combined = {
        key: np.sum([weight * means[name] for name, weight in parts.items()], axis=0)
        for key, parts in outcome.weights.items()
    }
    return ClusterBootstrap(runs=outcome.runs, draws=combined)


def effect_draws(
    draws: np.ndarray, weights: np.ndarray, cell: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """(B,) effect with clusters resampled (`draws`, (B, N)) and seeds resampled within each cell.

    `weights` (N,) make the effect from the runs' means. Without replicates only the items move.
    """
    generator = np.random.default_rng(seed)
    effect = np.zeros(len(draws))
    for index in np.unique(cell):
        members = np.flatnonzero(cell == index)
        chosen = generator.integers(len(members), size=(len(draws), len(members)))
        picked = np.take_along_axis(draws[:, members], chosen, axis=1)
        effect += weights[members].sum() * picked.mean(axis=1)
    return effect


def mcnemar_exact(first: np.ndarray, second: np.ndarray) -> float | None:
    """Two-sided exact McNemar p-value of paired 0/1 scores (n,), NaN unscored.

    None without discordant pairs, and where a score is neither 0 nor 1 (the mean of attempts).
    """
    both = np.concatenate([first, second])
    if not np.isin(both[~np.isnan(both)], (0.0, 1.0)).all():
        return None
    fixed = int(np.sum((first == 1) & (second == 0)))
    broken = int(np.sum((first == 0) & (second == 1)))
    if fixed + broken == 0:
        return None
    return min(1.0, 2 * float(stats.binom.cdf(min(fixed, broken), fixed + broken, 0.5)))

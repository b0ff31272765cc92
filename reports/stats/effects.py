"""Factor effects: a linear model on run-level means. A trained run is the unit of replication.

Effect coding (sum to zero), so that an effect is a difference of marginal means over the grid:
"estimate" is the level minus the control, averaged evenly over the levels of all other factors.
An interaction is half the difference between a factor's effect with the other factor at its level
and at its control (Box, Hunter and Hunter), so it has the same standard error as a main effect.

Which run variance the intervals use:
- cells with several seeds: pooled within cells (t with its degrees of freedom);
- no replicates: pooled interactions of order three and higher (2^4: 5 degrees of freedom);
- a few replicates, fewer degrees of freedom than those interactions have: both pooled together;
- neither: not estimable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

ROUNDING = 1e-12
_NODES, ANGLE_WEIGHTS = np.polynomial.legendre.leggauss(48)
ANGLES = np.pi / 2 * (1 + _NODES)
NORMALS, NORMAL_WEIGHTS = np.polynomial.hermite_e.hermegauss(48)


@dataclass(frozen=True, kw_only=True)
class RunVariance:
    """The variance of one run's mean around its arm's, pooled over the design."""

    value: float | None
    """Squared standard deviation; None where it cannot be estimated."""
    df: float
    source: str
    """Where it comes from, or why it cannot be estimated."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its uncertainty, or the reason why there is none."""

    estimate: float | None
    se: float | None = None
    df: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    method: str = ""
    why: str | None = None

    @property
    def estimable(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None


LEAST_DF = 0.5
"""With fewer degrees of freedom an interval of 95% is over 200 standard errors wide."""


def t_interval(
    estimate: float,
    variance: float | None,
    df: float,
    *,
    confidence: float,
    method: str,
    shared: float = 0.0,
) -> Interval:
    """The t interval and two-sided p-value of an estimate with this variance.

    `shared` is the part of the estimate's variance that lies in the residuals from which the
    variance itself was estimated: 0 for what the model fits, more for single cells of a design
    without replicates (`tails`). Not estimable when `variance` is None (`method` says why) or 0.
    """
    if variance is None or not variance > ROUNDING**2:
        why = method if variance is None else "there is no variation to estimate it from"
        return Interval(estimate=estimate, method="not estimable", why=why)
    if df < LEAST_DF:
        why = "hardly a degree of freedom is left to estimate its variance from"
        return Interval(estimate=estimate, method="not estimable", why=why)
    se = float(np.sqrt(variance))
    half = critical_value(confidence, float(df), round(shared, 9)) * se
    return Interval(
        estimate=estimate,
        se=se,
        df=float(df),
        low=estimate - half,
        high=estimate + half,
        p=tails(abs(estimate) / se, float(df), shared),
        method=method,
    )


def tails(ratio: float, df: float, shared: float = 0.0) -> float:
    """P(|T| >= ratio) of an estimate over its standard error, from `df` residual degrees.

    Where the estimate has a `shared` part in the residuals, numerator and denominator depend on
    each other: with normal runs T = sqrt(1 - shared) t + sqrt(shared df) u, where t is Student's
    and u, independent of it, one coordinate of a random direction in the residuals' space
    (u^2 ~ Beta(1/2, (df - 1)/2)). Exact; without a shared part Student's t. A contrast that the
    model takes for nothing but residual gets Student's t too, which is conservative there.
    """
    if not _partly(shared) or np.isinf(df):
        return float(2 * special.stdtr(df, -ratio) if np.isfinite(df) else 2 * stats.norm.sf(ratio))
    node, weight = _direction(df)
    scale, offset = np.sqrt(1 - shared), np.sqrt(shared * df) * node
    # The directions are symmetric, so that both tails hold the same.
    return float(2 * weight @ special.stdtr(df, (-ratio - offset) / scale))


@lru_cache(maxsize=4096)
def critical_value(confidence: float, df: float, shared: float = 0.0) -> float:
    """The ratio whose two tails (`tails`) together hold 1 - confidence."""
    student = float(
        stats.norm.ppf((1 + confidence) / 2)
        if np.isinf(df)
        else special.stdtrit(df, (1 + confidence) / 2)
    )
    if not _partly(shared) or np.isinf(df):
        return student
    upper = student + np.sqrt(df)
    return float(
        optimize.brentq(
            lambda ratio: tails(ratio, df, shared) - 1 + confidence, 0.0, upper, xtol=1e-8
        )
    )


def _partly(shared: float) -> bool:
    return 1e-9 < shared < 1 - 1e-9


def _direction(df: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of one coordinate of a uniformly random direction in `df` dimensions.

    The cosine of the angle, whose density is sin(angle)^(df - 2); nearly normal for many.
    """
    if df < 2:
        return np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    if df > 25:
        inside = np.maximum(0.0, 1 - NORMALS**2 / df)
        weight = NORMAL_WEIGHTS * inside ** ((df - 3) / 2) * np.exp(NORMALS**2 / 2)
        return NORMALS / np.sqrt(df), weight / weight.sum()
    weight = ANGLE_WEIGHTS * np.sin(ANGLES) ** (df - 2)
    return np.cos(ANGLES), weight / weight.sum()


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """Levels of N trained runs on the factors of a sweep, and the model that they can bear."""

    levels: pd.DataFrame
    """(N, factors), index run id: the level names."""
    arms: Sequence[str]
    """(N,) the arm, that is the cell, of each run."""
    controls: Mapping[str, str]
    """factor -> its control level."""
    order: Mapping[str, tuple[str, ...]]
    """factor -> its levels, in the sweep's order."""

    @cached_property
    def present(self) -> dict[str, tuple[str, ...]]:
        """factor -> levels that occur, the control last; a factor with one level is left out."""
        found = {}
        for name in self.levels.columns:
            seen = set(self.levels[name])
            others = [x for x in self.order[name] if x in seen and x != self.controls[name]]
            if others and self.controls[name] in seen:
                found[name] = (*others, self.controls[name])
        return found

    @cached_property
    def cell(self) -> np.ndarray:
        """(N,) index of each run's cell."""
        return pd.factorize(np.asarray(self.arms, dtype=object))[0]

    @property
    def replicated(self) -> bool:
        """Whether at least one cell has two or more runs."""
        return len(np.unique(self.cell)) < len(self.cell)

    @cached_property
    def _lack_of_fit(self) -> int:
        """Degrees of freedom that interactions of order three and higher have in these cells."""
        if not self.present or not self._all_estimable(2):
            return 0
        return len(np.unique(self.cell)) - int(np.linalg.matrix_rank(self._model(2)[0]))

    @property
    def within(self) -> bool:
        """Whether run variance comes from within cells alone."""
        df = len(self.cell) - len(np.unique(self.cell))
        return df > 0 and df >= self._lack_of_fit

    def _row(self, assigned: Mapping[str, str], degree: int) -> np.ndarray:
        """Model row of a marginal mean: factors not assigned are averaged over their levels."""
        codes = {}
        for name, levels in self.present.items():
            code = np.zeros(len(levels) - 1)
            if name in assigned:
                position = levels.index(assigned[name])
                if position == len(levels) - 1:
                    code[:] = -1.0
                else:
                    code[position] = 1.0
            codes[name] = code
        parts: list[np.ndarray] = [np.ones(1)]
        for size in range(1, degree + 1):
            for names in combinations(self.present, size):
                product: np.ndarray = np.ones(1)
                for name in names:
                    product = np.outer(product, codes[name]).ravel()
                parts.append(product)
        return np.concatenate(parts)

    @cached_property
    def _weights(self) -> dict[tuple[tuple[str, str], ...], np.ndarray | None]:
        """(factor, level), one or two of them -> the weights of that effect."""
        return {}

    @cached_property
    def _matrices(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return {}

    def _model(self, degree: int) -> tuple[np.ndarray, np.ndarray]:
        """The model matrix of all interactions up to `degree`, and its pseudoinverse."""
        if degree not in self._matrices:
            runs = self.levels.to_dict("records")
            made = {tuple(row.values()): row for row in runs}
            known = {levels: self._row(row, degree) for levels, row in made.items()}
            matrix = np.stack([known[tuple(row.values())] for row in runs])
            self._matrices[degree] = matrix, np.linalg.pinv(matrix)
        return self._matrices[degree]

    @cached_property
    def degree(self) -> int:
        """Order of the highest interactions in the model; 0 when no main effect is estimable.

        With replicates and a complete grid every order (a mean for each cell); otherwise two; or
        one, when with two the main effects would not be estimable (leave-one-out, resolution III).
        """
        grid = int(np.prod([len(levels) for levels in self.present.values()]))
        complete = len(np.unique(self.cell)) == grid
        for degree in [*([len(self.present)] if self.within and complete else []), 2, 1]:
            if self.present and self._all_estimable(degree):
                return degree
        return 0

    def _all_estimable(self, degree: int) -> bool:
        """Whether the model of this degree tells every main effect from all its other terms."""
        return all(
            self._hat(self._main(name, level, degree), degree) is not None
            for name, levels in self.present.items()
            for level in levels[:-1]
        )

    def _main(self, name: str, level: str, degree: int) -> np.ndarray:
        control = self.controls[name]
        return self._row({name: level}, degree) - self._row({name: control}, degree)

    def _hat(self, row: np.ndarray, degree: int) -> np.ndarray | None:
        """(N,) weights of the runs in a contrast; None where the design confounds it."""
        matrix, inverse = self._model(degree)
        weights = row @ inverse
        return weights if np.allclose(weights @ matrix, row, atol=1e-8) else None

    @property
    def assumes(self) -> str | None:
        """What the model takes for granted because the runs cannot show it."""
        if self.degree == 1 and len(self.present) > 1:
            return "no interactions: the design has no runs to tell them apart"
        if self.degree == 2 and len(self.present) > 2:
            return "no interactions of order three and higher"
        return None

    def main_row(self, name: str, level: str) -> np.ndarray | None:
        """Coefficients of a main effect in the columns of `matrix`; None where not estimable."""
        if self.main_weights(name, level) is None:
            return None
        return self._main(name, level, self.degree)

    @property
    def matrix(self) -> np.ndarray:
        """(N, columns) of the model, effects coded to sum to zero."""
        return self._model(self.degree)[0]

    def main_weights(self, name: str, level: str) -> np.ndarray | None:
        """(N,) such that weights @ means is the effect of `level` against the control."""
        if self.degree == 0 or level not in self.present.get(name, ()):
            return None
        key = ((name, level),)
        if key not in self._weights:
            self._weights[key] = self._hat(self._main(name, level, self.degree), self.degree)
        return self._weights[key]

    def interaction_weights(
        self, first: tuple[str, str], second: tuple[str, str]
    ) -> np.ndarray | None:
        """(N,) weights of the interaction of two (factor, level) pairs."""
        if self.degree < 2 or any(
            x not in self.present.get(name, ()) for name, x in (first, second)
        ):
            return None
        if (first, second) not in self._weights:
            row = self._interaction(first, second, self.degree)
            self._weights[first, second] = self._hat(row, self.degree)
        return self._weights[first, second]

    def _interaction(
        self, first: tuple[str, str], second: tuple[str, str], degree: int
    ) -> np.ndarray:
        row = np.zeros(self._row({}, degree).shape)
        for a, sign_a in ((first[1], 1), (self.controls[first[0]], -1)):
            for b, sign_b in ((second[1], 1), (self.controls[second[0]], -1)):
                row += sign_a * sign_b * self._row({first[0]: a, second[0]: b}, degree)
        return row / 2

    def pair_sum_weights(self, pairs: Mapping[tuple[str, ...], int]) -> np.ndarray | None:
        """(N,) weights of the signed sum of interactions of two-level factors.

        None where the runs cannot tell even the sum from the main effects.
        """
        row = np.zeros(self._row({}, 2).shape)
        for (a, b), sign in pairs.items():
            row += sign * self._interaction((a, self.present[a][0]), (b, self.present[b][0]), 2)
        return self._hat(row, 2)

    @cached_property
    def df(self) -> int:
        """Degrees of freedom of the residuals that run variance comes from."""
        count = len(self.cell)
        if self.within:
            return count - len(np.unique(self.cell))
        if self.degree < 2:
            return 0
        return count - int(np.linalg.matrix_rank(self.matrix))

    def residuals(self, values: np.ndarray) -> np.ndarray:
        """(N, ...) of each run -> what the cells' means, or the model, leave of it.

        Projected on the space that run variance comes from; 0 where there is none (`df` is 0).
        """
        if self.df == 0:
            return np.zeros_like(values)
        if not self.within:
            matrix, inverse = self._model(self.degree)
            return values - matrix @ (inverse @ values)
        order, starts, sizes = self._grouped
        shape = (-1, *[1] * (values.ndim - 1))
        means = np.add.reduceat(values[order], starts, axis=0) / sizes.reshape(shape)
        return values - means[self.cell]

    @cached_property
    def _grouped(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) runs by cell, and where each cell starts among them, and its size."""
        order = np.argsort(self.cell, kind="stable")
        starts = np.flatnonzero(np.diff(self.cell[order], prepend=-1))
        return order, starts, np.bincount(self.cell)

    def planned(self, weights: np.ndarray, seeds: int) -> tuple[float, float]:
        """(squared length of a contrast, df) if every cell had this many seeds.

        The contrast is that of `weights` (N,), which the runs at hand make of the cells' means.
        """
        cells = np.bincount(self.cell, weights=weights)
        df = len(cells) * (seeds - 1)
        if df == 0 or df < self._lack_of_fit:
            df += self._lack_of_fit
        return float(cells @ cells) / seeds, df

    def run_variance(self, means: np.ndarray) -> RunVariance:
        """The variance of a run, pooled over the design, from the runs' means (N,)."""
        df = self.df
        if df == 0:
            return RunVariance(
                value=None,
                df=0,
                source="one run per cell and no interactions of order three or higher to pool: "
                "add seeds to estimate the variation between runs",
            )
        squares = float(np.sum(self.residuals(means) ** 2))
        if squares <= ROUNDING * max(1.0, float(means @ means)):
            return RunVariance(value=None, df=df, source="the runs show no variation at all")
        pooled = "variance within cells and " if self.replicated else ""
        pooled += "interactions of order three and higher"
        source = "variance within cells" if self.within else pooled
        return RunVariance(
            value=squares / df, df=df, source=f"run-level model, pooled {source}, t({df})"
        )

    def shared(self, weights: np.ndarray) -> float:
        """(N,) weights -> the squared length that they have in the residuals' space."""
        return float(weights @ self.residuals(weights))

    def estimate(
        self, weights: np.ndarray | None, means: np.ndarray, *, confidence: float
    ) -> Interval:
        """The interval of the contrast weights @ means."""
        if weights is None:
            return Interval(
                estimate=None,
                method="not estimable",
                why="the runs at hand confound it with other effects, or lack one of its levels",
            )
        variance = self.run_variance(means)
        scaled = None if variance.value is None else variance.value * float(weights @ weights)
        return t_interval(
            float(weights @ means),
            scaled,
            variance.df,
            confidence=confidence,
            method=variance.source,
            shared=self.shared(weights) / float(weights @ weights),
        )

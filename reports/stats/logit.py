"""A mixed logit of single answers, as a check of the run-level model.

logit P(right) = factors of the run + benchmark + run (random) + item (random). Run and item are
crossed; their standard deviations maximise the Laplace approximation of the likelihood in which
the fixed effects are integrated out as well (REML, so that few runs do not make the runs look too
alike). The Hessian is an arrow: diagonal in the items, so that everything comes down to a matrix
of runs and coefficients (Pinheiro and Bates 1995; Breslow and Clayton 1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from reports.stats.effects import Design, Interval, t_interval
from reports.stats.outcomes import Key, Outcome

MOST_ANSWERS = 400_000
METHOD = "mixed logit with random runs and items (Laplace, REML)"


class NotFitted(ValueError):
    """The check cannot be made; the message says why."""


@dataclass(frozen=True, kw_only=True)
class MixedLogit:
    """The fit: coefficients of the design's model matrix on the scale of log-odds."""

    coefficients: np.ndarray
    """(p,)"""
    covariance: np.ndarray
    """(p, p)"""
    run_sd: float
    """Standard deviation between runs, in log-odds."""
    item_sd: float
    """Standard deviation between items, in log-odds."""
    df: float
    """Residual degrees of freedom of the run-level model, which the intervals use."""

    def interval(self, contrast: np.ndarray, *, confidence: float) -> Interval:
        """The interval of contrast (p,) @ coefficients."""
        return t_interval(
            float(contrast @ self.coefficients),
            float(contrast @ self.covariance @ contrast),
            self.df,
            confidence=confidence,
            method=f"{METHOD}, t({self.df:g})",
        )


def mixed_logit(outcome: Outcome, key: Key, runs: list[str], design: Design) -> MixedLogit:
    """Fit the answers of these runs (the design's) to an outcome's benchmarks.

    Raises NotFitted where run variance is not estimable, scores are not single right or wrong
    answers, all or none are right, there are too many, or the fit does not converge.
    """
    df = design.df
    if df == 0:
        raise NotFitted("one run per cell and nothing to estimate the variation between runs from")
    parts = [outcome.scores[name].loc[runs].to_numpy(dtype=float) for name in outcome.weights[key]]
    answers = np.concatenate(parts, axis=1)
    benchmark = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
    known = ~np.isnan(answers)
    if answers.size > MOST_ANSWERS:
        raise NotFitted(f"skipped: more than {MOST_ANSWERS:,} answers would take minutes")
    if not np.isin(answers[known], (0.0, 1.0)).all():
        raise NotFitted("scores are not single right or wrong answers")
    if answers[known].mean() in (0.0, 1.0):
        raise NotFitted("all answers are right, or none")
    scored = known.any(axis=0)
    model = _Model(
        answers=np.where(known, answers, 0.0)[:, scored],
        known=known[:, scored].astype(float),
        fixed=design.matrix,
        benchmark=np.eye(len(parts))[benchmark][scored, 1:],
    )
    log_sd = _best(model)
    model.deviance(log_sd)
    columns = design.matrix.shape[1]
    return MixedLogit(
        coefficients=model.dense[:columns],
        covariance=np.linalg.inv(model.schur)[:columns, :columns],
        run_sd=float(np.exp(log_sd[0])),
        item_sd=float(np.exp(log_sd[1])),
        df=df,
    )


def _best(model: _Model) -> np.ndarray:
    """The log standard deviations of least deviance, one after the other: they hardly interact."""
    log_sd = np.log([0.1, 1.0])
    for _ in range(20):
        before = log_sd.copy()
        for which, bounds in enumerate(((-6.0, 2.0), (-4.0, 2.5))):

            def along(value: float, which: int = which) -> float:
                return model.deviance(np.where(np.arange(2) == which, value, log_sd))

            found = optimize.minimize_scalar(
                along, bounds=bounds, method="bounded", options={"xatol": 1e-3}
            )
            log_sd[which] = found.x
        # A standard deviation of nearly 0 has no definite logarithm.
        if np.all(np.abs(np.exp(log_sd) - np.exp(before)) < 2e-3):
            return log_sd
    raise NotFitted("the fit did not converge")


class _Model:
    """The penalised likelihood for given standard deviations; starts where it last ended.

    The dense part of the parameters is (p fixed effects, N runs, B - 1 benchmarks); the I items
    are eliminated.
    """

    def __init__(
        self, *, answers: np.ndarray, known: np.ndarray, fixed: np.ndarray, benchmark: np.ndarray
    ) -> None:
        self.answers, self.known, self.benchmark = answers, known, benchmark
        self.runs, self.items = answers.shape
        self.by_run = np.hstack([fixed, np.eye(self.runs)])
        self.dense = np.zeros(self.by_run.shape[1] + benchmark.shape[1])
        self.item = np.zeros(self.items)
        self.schur = np.eye(len(self.dense))
        self.columns = fixed.shape[1]

    def _linear(self, dense: np.ndarray, item: np.ndarray) -> np.ndarray:
        width = self.by_run.shape[1]
        return (self.by_run @ dense[:width])[:, None] + self.benchmark @ dense[width:] + item

    def _penalised(self, dense: np.ndarray, item: np.ndarray, run: float, each: float) -> float:
        linear = self._linear(dense, item)
        fit = np.sum(self.known * np.logaddexp(0, linear)) - np.sum(self.answers * linear)
        own = dense[self.columns : self.columns + self.runs]
        return float(fit + run * own @ own / 2 + each * item @ item / 2)

    def deviance(self, log_sd: np.ndarray) -> float:
        """-2 log of the approximated likelihood at the (run, item) log standard deviations."""
        run, each = np.exp(-2 * np.asarray(log_sd))
        width = self.by_run.shape[1]
        penalty = np.zeros(len(self.dense))
        penalty[self.columns : self.columns + self.runs] = run
        value = self._penalised(self.dense, self.item, run, each)
        for _ in range(50):
            chance = special.expit(self._linear(self.dense, self.item))
            weight = self.known * chance * (1 - chance)
            error = self.answers - self.known * chance
            column, row = weight.sum(axis=0), weight.sum(axis=1)
            diagonal = column + each
            cross = np.vstack([self.by_run.T @ weight, self.benchmark.T * column])
            block = np.zeros((len(self.dense), len(self.dense)))
            block[:width, :width] = (self.by_run.T * row) @ self.by_run
            block[:width, width:] = self.by_run.T @ (weight @ self.benchmark)
            block[width:, :width] = block[:width, width:].T
            block[width:, width:] = (self.benchmark.T * column) @ self.benchmark
            self.schur = block + np.diag(penalty) - (cross / diagonal) @ cross.T
            item_slope = error.sum(axis=0) - each * self.item
            slope = np.concatenate(
                [self.by_run.T @ error.sum(axis=1), self.benchmark.T @ error.sum(axis=0)]
            )
            slope -= penalty * self.dense
            try:
                step = np.linalg.solve(self.schur, slope - cross @ (item_slope / diagonal))
            except np.linalg.LinAlgError:
                raise NotFitted("the answers do not determine every coefficient") from None
            item_step = (item_slope - cross.T @ step) / diagonal
            length = 1.0
            while True:
                trial = self.dense + length * step, self.item + length * item_step
                found = self._penalised(*trial, run, each)
                if found <= value + 1e-9 or length < 1e-4:
                    break
                length /= 2
            (self.dense, self.item), change, value = trial, value - found, found
            if abs(change) < 1e-10 * max(1.0, abs(value)):
                break
        else:
            raise NotFitted("the fit did not converge")
        sign, determinant = np.linalg.slogdet(self.schur)
        if sign <= 0:
            raise NotFitted("the answers do not determine every coefficient")
        return float(
            2 * value
            + determinant
            + np.sum(np.log(diagonal))
            - self.runs * np.log(run)
            - self.items * np.log(each)
        )

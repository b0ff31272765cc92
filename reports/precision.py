"""How fine a sweep sees, what limits it, and what would resolve what it leaves open."""

from __future__ import annotations

import numpy as np
from scipy import stats

from reports.analysis import Analysis, Row
from reports.stats.outcomes import Key
from reports.stats.power import fewest, minimum_detectable_effect

POWER = 0.8


def minimum_detectable(analysis: Analysis) -> list[Row]:
    """The smallest main effect and the smallest difference of two runs that would be found.

    `value` is of one test, `corrected` of a test that stands for sure after Holm's correction over
    the main effects of the suite.
    """
    rows = []
    alpha, confidence = analysis.settings.alpha, analysis.settings.confidence
    for key in analysis.suites():
        run, design = analysis.variances[key], analysis.designs[key]
        row: Row = {"suite": key[0], "value": None, "corrected": None, "contrast": None}
        row |= {"power": POWER, "alpha": alpha, "df": run.df}
        row["why"] = run.source if run.value is None else None
        if run.value is not None:
            weights = [
                design.main_weights(name, level)
                for name, levels in design.present.items()
                for level in levels[:-1]
            ]
            sizes = [float(np.sqrt(w @ w)) for w in weights if w is not None]
            sd = float(np.sqrt(run.value))
            one = minimum_detectable_effect(sd, run.df, alpha=alpha, power=POWER)
            if sizes:
                strict = _one_test(analysis, len(sizes))
                many = minimum_detectable_effect(sd, run.df, alpha=strict, power=POWER)
                row |= {"value": one * max(sizes), "corrected": many * max(sizes)}
            row["contrast"] = one * float(np.sqrt(2))
            row["run_sd"] = sd
            bounds = stats.chi2.ppf([(1 + confidence) / 2, (1 - confidence) / 2], run.df)
            row["run_sd_low"], row["run_sd_high"] = (
                float(x) for x in sd * np.sqrt(run.df / bounds)
            )
        rows.append(row)
    return rows


def _one_test(analysis: Analysis, family: int) -> float:
    """The level at which a test stands for sure after correction over this many."""
    corrected = analysis.settings.correction != "none"
    return analysis.settings.alpha / (family if corrected else 1)


def resolving(analysis: Analysis, key: Key, row: Row, family: list[Row]) -> Row:
    """Seeds for each arm, or times the items, that would resolve an effect of the size found.

    Found with 80% power after correction, were the estimate the truth. None where the effect
    stands already, where it is not estimable, and where no number up to 1,000 would do: more items
    do not help against the variation between runs.
    """
    needed: Row = {"seeds_to_resolve": None, "items_to_resolve": None}
    run, design = analysis.variances[key], analysis.designs[key]
    if not row["estimable"] or run.value is None or row["p_adjusted"] <= analysis.settings.alpha:
        return needed
    weights = analysis.main_weights(row["factor"], row["level"], key)
    assert weights is not None
    variance, noise = run.value, min(analysis.noise(key)[0], run.value)
    alpha = _one_test(analysis, sum(one["estimable"] for one in family))

    def with_seeds(seeds: int) -> tuple[float, float]:
        size, df = design.planned(weights, seeds)
        return float(np.sqrt(variance * size)), df

    def with_items(times: int) -> tuple[float, float]:
        own = variance - noise + noise / times
        return float(np.sqrt(own * float(weights @ weights))), run.df

    size = abs(row["estimate"])
    needed["seeds_to_resolve"] = fewest(with_seeds, size, alpha, POWER)
    needed["items_to_resolve"] = fewest(with_items, size, alpha, POWER)
    return needed


def variance_split(analysis: Analysis) -> list[Row]:
    """What makes one run's score vary: its seed, which items are asked, how it answers them.

    Standard deviations of one run's mean. `seed`: between runs of an arm beyond their answers'
    noise; `items`: were other items of their kind asked, the same for all arms; `residual`: the
    run's luck with the very items. A crossed analysis of variance; an estimate below 0 is shown
    as 0.
    """
    rows = []
    for key in analysis.suites():
        run = analysis.variances[key]
        row: Row = {"suite": key[0], "seed": None, "items": None, "residual": None}
        row["why"] = run.source if run.value is None else None
        noise = analysis.noise(key)[0] if run.value is not None else np.nan
        cells = analysis.cells(key)
        items = analysis.outcome.item_variance(key, cells)[0] if cells else np.nan
        if run.value is not None and np.isfinite(noise) and np.isfinite(items):
            parts = {
                "seed": run.value - noise,
                "items": items - noise / len(cells),
                "residual": noise,
            }
            row |= {name: float(np.sqrt(max(0.0, value))) for name, value in parts.items()}
        elif run.value is not None:
            row["why"] = "a benchmark has fewer than two clusters of items"
        rows.append(row)
    return rows

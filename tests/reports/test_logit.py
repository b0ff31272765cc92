"""The mixed logit: planted log-odds come back, statsmodels agrees, and it says when it cannot."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import special
from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM

from reports.stats.effects import Design
from reports.stats.logit import NotFitted, mixed_logit
from reports.stats.outcomes import Outcome, suite_weights

KEY = ("s", None)
TRUE = {"a": 0.8, "b": -0.4}


def grid(seeds: int) -> Design:
    rows = [row for row in product("01", repeat=2) for _ in range(seeds)]
    return Design(
        levels=pd.DataFrame(rows, columns=["a", "b"], index=[f"r{i}" for i in range(len(rows))]),
        arms=["".join(row) for row in rows],
        controls=dict.fromkeys("ab", "0"),
        order=dict.fromkeys("ab", ("0", "1")),
    )


def answers(
    design: Design, items: int, *, run_sd: float = 0.0, item_sd: float = 1.0, seed: int = 0
) -> Outcome:
    generator = np.random.default_rng(seed)
    linear = sum(TRUE[name] * (design.levels[name] == "1").to_numpy() for name in "ab")
    linear = np.asarray(linear)[:, None] + generator.normal(0, run_sd, (len(design.levels), 1))
    scores = {}
    for name, level in (("x", 0.0), ("y", 0.5)):
        chance = special.expit(linear + level + generator.normal(0, item_sd, items))
        right = (generator.random(chance.shape) < chance).astype(float)
        scores["s", name] = pd.DataFrame(right, index=design.levels.index)
    return Outcome(
        scores=scores,
        clusters={key: np.arange(items) for key in scores},
        weights=suite_weights({"s": ["x", "y"]}),
    )


def test_planted_log_odds_and_deviations_come_back() -> None:
    design = grid(seeds=6)
    found = mixed_logit(answers(design, 400, run_sd=0.2), KEY, list(design.levels.index), design)
    for name, value in TRUE.items():
        row = design.main_row(name, "1")
        assert row is not None
        interval = found.interval(row, confidence=0.95)
        assert interval.low is not None and interval.high is not None
        assert interval.low < value < interval.high
        assert interval.high - interval.low < 0.6
        assert interval.df == 20
    assert found.item_sd == pytest.approx(1.0, abs=0.1)
    assert found.run_sd == pytest.approx(0.2, abs=0.1)


def test_coefficients_agree_with_statsmodels() -> None:
    """Its variational posterior, with a flat prior on the fixed effects."""
    design = grid(seeds=2)
    data = answers(design, 40, seed=3)
    runs = list(design.levels.index)
    found = mixed_logit(data, KEY, runs, design)
    long = pd.concat(
        [
            table.stack().rename("y").reset_index().assign(z=name[1])
            for name, table in data.scores.items()
        ]
    )
    long.columns = ["run", "item", "y", "z"]
    long = long.merge(design.levels, left_on="run", right_index=True)
    long["item"] = long["z"] + long["item"].astype(str)
    for name in "ab":
        long[name] = long[name].map({"0": -1, "1": 1})
    model = BinomialBayesMixedGLM.from_formula(
        "y ~ a * b + z", {"run": "0 + C(run)", "item": "0 + C(item)"}, long, vcp_p=1.0, fe_p=10.0
    )
    theirs = dict(zip(model.exog_names, model.fit_vb().fe_mean, strict=True))
    for name in "ab":
        row = design.main_row(name, "1")
        assert row is not None
        assert row @ found.coefficients == pytest.approx(2 * theirs[name], abs=0.12)


def test_few_runs_do_not_make_runs_look_alike() -> None:
    """With seven seeds for one coefficient each, the fixed effects cost degrees of freedom."""
    design = grid(seeds=2)
    runs = list(design.levels.index)
    found = [
        mixed_logit(answers(design, 150, run_sd=0.4, seed=s), KEY, runs, design).run_sd
        for s in range(12)
    ]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(0.4, abs=0.12)


def test_what_cannot_be_fitted_says_why() -> None:
    design, single = grid(seeds=2), grid(seeds=1)
    runs = list(design.levels.index)
    data = answers(design, 20)

    def with_scores(value: float) -> Outcome:
        scores = {key: table * 0 + value for key, table in data.scores.items()}
        return Outcome(scores=scores, clusters=data.clusters, weights=data.weights)

    with pytest.raises(NotFitted, match="one run per cell"):
        mixed_logit(answers(single, 20), KEY, list(single.levels.index), single)
    with pytest.raises(NotFitted, match="right or wrong"):
        mixed_logit(with_scores(0.5), KEY, runs, design)
    with pytest.raises(NotFitted, match="or none"):
        mixed_logit(with_scores(1.0), KEY, runs, design)

"""Sicknesses told from synthetic curves: each is found, named once, ended, and nothing else is."""

import random

import pytest

from observe.health import WINDOW, Health

HEALTHY = {
    "reward": 1.0,
    "rewards/accuracy/mean": 0.6,
    "observe/format_failure_share": 0.2,
    "completions/mean_length": 60.0,
    "completions/clipped_ratio": 0.02,
    "frac_reward_zero_std": 0.3,
    "entropy": 0.6,
    "observe/bad_step": 0.0,
}


def curve(steps=60, **values):
    """Rows of a run: each value a number or a function of the step, with the noise of sampling."""
    noise = random.Random(0)
    rows = []
    for step in range(1, steps + 1):
        row = {**HEALTHY, **values}
        row = {key: value(step) if callable(value) else value for key, value in row.items()}
        row = {
            key: value * (1 + 0.1 * noise.uniform(-1, 1)) if key in HEALTHY else value
            for key, value in row.items()
        }
        rows.append({"step": step, **row})
    return rows


def said(rows, **settings):
    health = Health(**settings)
    for row in rows:
        health.observe(row)
    return health.notices


def slope(start, end, first=0, last=60):
    """From start to end between two steps."""
    return lambda step: (
        start + (end - start) * min(1, max(0, (step - first) / max(1, last - first)))
    )


ACCURACY = "rewards/accuracy/mean"
LENGTH = "completions/mean_length"
SICK = {
    "reward_collapse": {"reward": slope(1.0, 0.1, 20, 40), ACCURACY: slope(0.6, 0.1, 20, 40)},
    "length_collapse": {LENGTH: slope(60, 5, 20, 40)},
    "length_explosion": {LENGTH: slope(60, 250, 20, 40)},
    "format_hacking": {
        "observe/format_failure_share": slope(0.5, 0.0, 20, 40),
        ACCURACY: slope(0.6, 0.4, 20, 40),
    },
    "entropy_collapse": {"entropy": slope(0.6, 0.005, 20, 40)},
    "groups_without_gradient": {"frac_reward_zero_std": slope(0.3, 0.95, 20, 40)},
    "nan_steps": {"observe/bad_step": lambda step: float(step in (30, 31))},
}


@pytest.mark.parametrize("sickness", SICK)
def test_each_sickness_is_found_named_once_and_nothing_else_is(sickness):
    begun = [n for n in said(curve(**SICK[sickness])) if n.event == "begins"]
    assert [notice.sickness for notice in begun] == [sickness]
    assert 20 < begun[0].step < 50
    assert len(begun[0].message.split()) > 12


@pytest.mark.parametrize(
    ("sickness", "values"),
    [
        ("reward_collapse", {"reward": lambda step: 0.1 if 20 < step < 40 else 1.0}),
        ("length_collapse", {LENGTH: lambda step: 5.0 if 20 < step < 40 else 60.0}),
        ("length_explosion", {"completions/clipped_ratio": slope(1.0, 0.0, 20, 40)}),
        ("entropy_collapse", {"entropy": lambda step: 0.001 if 20 < step < 40 else 0.6}),
        ("groups_without_gradient", {"frac_reward_zero_std": slope(0.95, 0.2, 20, 40)}),
        ("nan_steps", {"observe/bad_step": lambda step: float(step == 3)}),
    ],
)
def test_a_sickness_that_is_over_is_said_to_be(sickness, values):
    notices = said(curve(**values))
    assert [(n.sickness, n.event) for n in notices] == [(sickness, "begins"), (sickness, "ends")]
    assert notices[0].step < notices[1].step


def test_a_run_that_is_ruined_in_its_first_steps_is_found():
    ruined = {"reward": lambda step: 1.0 if step < 3 else 0.05, ACCURACY: 0.1}
    [notice] = said(curve(**ruined))
    assert (notice.sickness, notice.step) == ("reward_collapse", WINDOW)


def test_truncation_from_the_first_steps_on_is_a_sickness():
    [notice] = said(curve(**{"completions/clipped_ratio": 0.8}))
    assert (notice.sickness, notice.step) == ("length_explosion", WINDOW)
    assert "rollout.max_new_tokens" in notice.message


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"reward": slope(0.5, 1.4), ACCURACY: slope(0.3, 0.9), LENGTH: slope(90, 30)},
        {"reward": slope(0.5, 1.4), ACCURACY: slope(0.3, 0.9), LENGTH: slope(40, 160)},
        {"entropy": slope(0.9, 0.15), "observe/format_failure_share": slope(0.5, 0.0)},
        # A ladder: harder and longer questions, and the policy keeps its distance from the base.
        {
            "observe/difficulty": slope(0.0, 1.0),
            "observe/complexity": slope(30, 90),
            "reward": slope(1.4, 0.7),
            ACCURACY: slope(1.0, 0.25),
            LENGTH: slope(30, 90),
            "observe/format_failure_share": slope(0.3, 0.0),
        },
    ],
    ids=["level", "shorter and better", "longer and better", "surer", "ladder"],
)
def test_a_healthy_run_is_left_alone(values):
    assert said(curve(**values)) == []


def test_a_collapse_on_a_ladder_is_found():
    # Half-way up the base would still have half of its answers right.
    values = {
        "observe/difficulty": slope(0.0, 1.0),
        "reward": lambda step: 1.4 - 0.7 * step / 60 if step < 25 else 0.05,
        ACCURACY: lambda step: 1.0 - 0.7 * step / 60 if step < 25 else 0.0,
    }
    assert said(curve(**values))[0].sickness == "reward_collapse"


def test_a_log_read_again_tells_the_same():
    rows = curve(**SICK["reward_collapse"])
    whole = Health()
    for row in rows:
        whole.observe(row)
    resumed = Health()
    for row in [{"step": 0, "eval/accuracy": 0.4}, *rows[:33]]:
        resumed.observe(row)
    later = [notice for row in rows[33:] for notice in resumed.observe(row)]
    assert resumed.notices == whole.notices
    assert later == [notice for notice in whole.notices if notice.step > 33]
    assert resumed.present == whole.present


def test_few_steps_are_too_few_to_judge_by():
    rows = curve(steps=WINDOW - 1, **{"completions/clipped_ratio": 1.0, "reward": 0.0})
    assert said(rows) == []


def test_what_a_skipped_step_does_not_know_is_left_out():
    rows = curve(**{"entropy": lambda step: 0.6})
    rows[20]["entropy"] = None
    assert said(rows) == []


def test_nothing_earned_at_all_is_no_collapse():
    assert said(curve(**{"reward": 0.0, ACCURACY: 0.0})) == []

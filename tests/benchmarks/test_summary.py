"""Figures from items: votes and passes against brute force, groups, yes and no, controls."""

from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import summary

responses = st.lists(
    st.sampled_from([("a", True), ("b", False), ("c", False), (None, False)]),
    min_size=2,
    max_size=7,
)


def row(item, score, **more):
    return {
        **{"item": item, "score": score, "condition": "normal", "attempt": 0, "type": ""},
        **{"answer": "x", "reason": ""},
        **more,
    }


def voted(drawn):
    """Share of a vote that goes to a right answer, ties by lot."""
    answers = [answer for answer, _ in drawn if answer is not None]
    most = max((answers.count(answer) for answer in answers), default=0)
    leaders = {answer for answer in answers if answers.count(answer) == most}
    return ("a" in leaders) / len(leaders) if leaders else 0.0


@given(responses, st.data())
def test_passes_and_votes_are_those_of_all_draws(given_responses, data):
    k = data.draw(st.integers(1, len(given_responses)))
    draws = list(combinations(given_responses, k))
    assert summary.majority_at(k, given_responses) == pytest.approx(fmean(map(voted, draws)))
    passed = fmean(any(right for _, right in drawn) for drawn in draws)
    assert summary.pass_at(k, given_responses) == pytest.approx(passed)


@given(responses)
def test_one_response_passes_and_wins_as_often_as_it_is_right(given_responses):
    share = fmean(right for _, right in given_responses)
    assert summary.pass_at(1, given_responses) == pytest.approx(share)
    assert summary.majority_at(1, given_responses) == pytest.approx(share)


def test_stability_is_the_share_of_pairs_that_agree():
    assert summary.stability([("a", True), ("A.", True), ("b", False)]) == pytest.approx(1 / 3)
    assert summary.stability([("b", False)] * 4) == 1


def test_attempts_are_summarised_for_powers_of_two_and_all():
    found = summary.attempts({"q": [("a", True)] + [("b", False)] * 4})
    assert list(found["pass@k"]) == [1, 2, 4, 5]
    assert found["pass@k"][5] == 1 and found["maj@k"][5] == 0
    assert summary.attempts({"q": [("a", True)]}) == {}


def test_a_group_is_right_when_all_of_it_is():
    rows = [row("a", 1), row("b", 1), row("c", 0), row("d", None)]
    members = {
        "a": {"image": "1"},
        "b": {"image": "1"},
        "c": {"image": "2"},
        "d": {"image": "3"},
    }
    assert summary.groups(rows, members) == {
        "image": {"all_right": pytest.approx(1 / 3), "groups": 3}
    }


def test_finding_yes():
    golds = {"a": "yes", "b": "yes", "c": "no", "d": "no", "e": "yes"}
    rows = [
        row("a", 1),
        row("b", 0),
        row("c", 0),
        row("d", 1),
        row("e", 0, answer=None),
    ]
    found = summary.yes_no(rows, golds)
    assert found["precision"] == 1 / 2 and found["recall"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx(0.4) and found["yes_share"] == 1 / 2


@pytest.mark.parametrize(
    ("first", "second", "whole", "strict", "loose"),
    [(1, 1, 1, 1, 1), (1, 1, 0, 0.5, 0.5), (1, 0, 1, 0, 1), (0, 0, 1, 0, 0), (1, 0, 0, 0, 0)],
)
def test_wemath_scores_whole_problems(first, second, whole, strict, loose):
    scores = {"2steps_1": first, "2steps_2": second, "2steps_multi": whole}
    rows = [row(step, score) for step, score in scores.items()]
    found = summary.wemath(rows, {step: ("p", step) for step in scores})
    assert found == {"strict": strict, "loose": loose, "problems": 1}
    assert summary.wemath(rows[1:], {step: ("p", step) for step in scores}) == {}


def test_controls_stand_beside_the_same_items():
    rows = [
        *(row("a", 1), row("b", 1), row("c", 0)),
        *(row("a", 0, condition="no_image"), row("b", 1, condition="no_image")),
        *(row("a", 1, condition="rotation_1"), row("b", 0, condition="rotation_1")),
        row("a", 1, condition="rotation_2"),
    ]
    found = summary.controls(rows)
    assert found["no_image"] == {"score": 0.5, "normal": 1.0, "items": 2}
    assert found["rotation_2"] == {"score": 1.0, "normal": 1.0, "items": 1}
    assert found["circular"] == {"score": 0.5, "normal": 1.0, "items": 2}

"""Verdicts by table, and on adversarial text."""

import subprocess
import sys
from string import ascii_letters

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observe.scoring import ScoreRequest, score, score_many, score_untagged, symbolic
from observe.scoring.equivalence import Outcome, equal
from observe.scoring.extract import extract
from observe.scoring.symbolic import too_complex

COLOURS = ("red", "blue", "dark blue", "green")


def tag(answer: str) -> str:
    return f"<think>some work</think><answer>{answer}</answer>"


def test_importing_the_scorer_is_light():
    code = "import sys, observe.scoring; print([m for m in ('sympy', 'torch') if m in sys.modules])"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("answer", "gold", "answer_type", "correct"),
    [
        ("7", "7", "integer", True),
        ("7.0", "7", "integer", True),
        ("7.2", "7", "integer", False),
        ("+7", "7", "integer", True),
        ("-7", "7", "integer", False),
        ("\u22127", "-7", "integer", True),
        ("1,234", "1234", "integer", True),
        ("\u0667", "7", "integer", True),
        ("seven", "7", "integer", True),
        ("seven circles", "7", "integer", True),
        ("7 circles", "7", "integer", True),
        ("7 cm\u00b2", "7", "integer", True),
        ("$7$", "7", "integer", True),
        ("**7**", "7", "integer", True),
        ("x = 7", "7", "integer", True),
        ("3 + 4 = 7", "7", "integer", True),
        ("The answer is 7.", "7", "integer", True),
        ("7 or 8", "7", "integer", False),
        ("x = 8 or x = 7", "7", "integer", False),
        ("7, 8", "7", "integer", False),
        ("\u00b17", "7", "integer", False),
        ("77", "7", "integer", False),
        ("seventeen", "7", "integer", False),
        ("many", "7", "integer", False),
        ("10\u00b2", "102", "integer", False),
        ("3.14159", "3.14", "decimal", True),
        ("3.1", "3.14", "decimal", False),
        ("3.15", "3.14", "decimal", False),
        ("1/2", "0.5", "decimal", True),
        ("\\frac{1}{2}", "0.5", "decimal", True),
        ("1 1/2", "1.5", "decimal", True),
        ("1\u00bd", "1.5", "decimal", True),
        ("0.333", "1/3", None, True),
        ("0.3", "1/3", None, False),
        ("50%", "0.5", "decimal", True),
        ("50 percent", "50", "integer", True),
        ("0.5", "50%", None, True),
        ("5%", "50%", None, False),
        ("1.2e3", "1200", "integer", True),
        ("1.2 \\times 10^3", "1200", "integer", True),
        ("1/0", "7", "integer", False),
        ("yes", "yes", "yes_no", True),
        ("Yes, it is larger.", "yes", "yes_no", True),
        ("no, it is not true", "no", "yes_no", True),
        ("True", "yes", "yes_no", True),
        ("yes or no", "yes", "yes_no", False),
        ("not true", "yes", "yes_no", False),
        ("That isn't true.", "no", "yes_no", True),
        ("no, that is not true", "no", "yes_no", True),
        ("yes no", "yes", "yes_no", False),
        ("yesterday", "yes", "yes_no", False),
        ("The  Red circle", "red circle", "text", True),
        ("red square", "red circle", "text", False),
        ("red", "Red.", None, True),
        ("1, 2 and 3", "[1, 2, 3]", None, True),
        ("3, 2, 1", "[1, 2, 3]", "list", False),
        ("{3, 1, 2}", "{1, 2, 3}", "list", True),
        ("1, 2", "1, 2, 3", "list", False),
        ("red, blue", "Red, Blue", "list", True),
        ("B", "B", None, True),
        ("(B)", "B", "choice", True),
        ("b", "B", "choice", True),
        ("B, because A is smaller", "B", "choice", True),
    ],
)
def test_equivalence(answer, gold, answer_type, correct):
    verdict = score(tag(answer), gold, answer_type=answer_type)
    assert verdict.correct is correct, verdict
    assert verdict.reason.startswith("tag/")


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("B", "B", True),
        ("b)", "B", True),
        ("B. blue", "B", True),
        ("option B", "B", True),
        ("blue", "B", True),
        ("It is blue", "B", True),
        ("dark blue", "B", False),
        ("dark blue", "C", True),
        ("B", "blue", True),
        ("A", "B", False),
        ("A or B", "B", False),
        ("A, B, C or D", "B", False),
        ("red or blue", "B", False),
        ("B. red", "B", False),
        ("E", "B", False),
        ("a colour", "A", False),
        ("the correct answer is A or B or C", "B", False),
        ("not B", "B", False),
        ("not blue", "B", False),
        ("It isn't blue", "B", False),
        ("It is not option B", "B", False),
        ("B is not correct", "B", False),
        ("Option B is wrong", "B", False),
        ("B is the answer, not a doubt", "B", True),
        ("B, as A is not larger", "B", True),
        ("It is not clear, but B", "B", True),
    ],
)
def test_choices(answer, gold, correct):
    assert score(tag(answer), gold, answer_type="choice", options=COLOURS).correct is correct


def test_a_letter_with_its_options_text_counts_as_the_letter():
    options = ("2", "\u221a{3}", "\u221a{2}")
    for response in ("(C) \u221a2", tag("(C) \u221a2"), "so\nC. \u221a2"):
        assert score(response, "C", options=options).correct is True
    assert score(tag("(C) 2"), "C", options=options).correct is False


@pytest.mark.parametrize(
    ("answer", "correct"), [("4", True), ("B", True), ("4.0", True), ("3", False)]
)
def test_numeric_options(answer, correct):
    assert score(tag(answer), "B", options=("3", "4", "5")).correct is correct


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("\\frac{\\sqrt{8}}{2}", "\\sqrt{2}", True),
        ("x^2 + 2x + 1", "(x+1)^2", True),
        ("x^2 + 1", "(x+1)^2", False),
        ("y = 2x", "2x", True),
        ("2x or 3x", "2x", False),
        ("\\pm\\sqrt{2}", "\\sqrt{2}", False),
        ("(3+4) \\cdot 2", "14", True),
        ("2x", "2", False),
        ("\\frac{", "\\sqrt{2}", False),
    ],
)
def test_algebra(answer, gold, correct):
    assert score(tag(answer), gold, timeout_s=30).correct is correct


@pytest.mark.parametrize(
    ("response", "answer", "source"),
    [
        ("<answer>1</answer> no, <answer>\n2\n</answer>", "2", "tag"),
        ("<answer>\\boxed{3}</answer>", "3", "tag"),
        ("<answer>5", "5", "bare"),
        ("\\boxed{1} and \\boxed{\\frac{1}{\\sqrt{2}}}", "\\frac{1}{\\sqrt{2}}", "boxed"),
        ("The answer is 4 because 2 + 2. Done", "4", "phrase"),
        ("Answer: 4", "4", "phrase"),
        ("<think>the answer is 9</think>4", "4", "bare"),
        ("I count 3 here and then 4 there", "4", "bare"),
        ("It is 7 or 8", "7 or 8", "bare"),
    ],
)
def test_order_of_trust(response, answer, source):
    assert extract(response, "integer", None) == (answer, source)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "  \n",
        "<answer></answer>",
        "<answer> \n </answer> 7",
        "<observe>7 circles</observe>",
        "<observe>7 circles",
        "<observe>7</observe><think>so 7",
        "<think>the answer is 7</think>",
    ],
)
def test_no_answer_is_wrong(response):
    verdict = score(response, "7", answer_type="integer")
    assert (verdict.correct, verdict.answer) == (False, None)
    assert verdict.reason.endswith("no answer")


@pytest.mark.parametrize(
    ("gold", "answer_type", "options"),
    [
        ("", None, None),
        ("seven-ish", "integer", None),
        ("maybe", "yes_no", None),
        ("E", "choice", COLOURS),
        ("purple", "choice", COLOURS),
        ("\\frac{", "expression", None),
    ],
)
@pytest.mark.parametrize("response", [tag("7"), tag("\\sqrt{2}")])
def test_an_unreadable_gold_is_reported(gold, answer_type, options, response):
    verdict = score(response, gold, answer_type=answer_type, options=options, timeout_s=30)
    assert verdict.correct is None
    assert "gold" in verdict.reason


def test_no_gold_at_all_is_reported():
    verdict = score(tag("7"), [])
    assert (verdict.correct, verdict.reason) == (None, "tag/text: gold is empty")


def test_what_an_option_says_may_have_not_in_it():
    options = ("not red", "red", "it cannot be told")
    assert score(tag("not red"), "A", options=options).correct is True
    assert score(tag("not red"), "B", options=options).correct is False


def test_any_of_several_golds_is_right():
    assert score(tag("6"), ["5", "6"]).correct is True
    assert score(tag("7"), ["5", "6"]).correct is False
    assert score(tag("7"), ["5", "six-ish"], answer_type="integer").correct is None


@pytest.mark.parametrize(
    ("value", "gold", "answer_type", "options"),
    [
        ("7", "7", "integer", None),
        ("8", "7", "integer", None),
        ("seven", "7", "integer", None),
        ("7 or 8", "7", "integer", None),
        ("3 + 4 = 7", "7", "integer", None),
        ("0.5", "1/2", "decimal", None),
        ("yes", "yes", "yes_no", None),
        ("yes or no", "yes", "yes_no", None),
        ("B", "B", "choice", COLOURS),
        ("(b)", "B", "choice", COLOURS),
        ("A or B", "B", "choice", COLOURS),
        ("dark blue", "C", "choice", COLOURS),
        ("red circle", "red circle", "text", None),
    ],
)
@pytest.mark.parametrize(
    "form",
    ["{}", "<think>2 or A, red, no</think><answer>{}</answer>", "<observe>9 B yes\n<answer>{}"],
)
def test_without_tags_the_same_final_value_counts_the_same(value, gold, answer_type, options, form):
    tagged = score(f"<answer>{value}</answer>", gold, answer_type=answer_type, options=options)
    untagged = score_untagged(form.format(value), gold, answer_type=answer_type, options=options)
    assert untagged.correct is tagged.correct, (tagged, untagged)


def test_untagged_takes_the_last_statement_wherever_it_stands():
    assert score_untagged("<think>first 3, so it is 7", "7").correct is True
    assert score("<think>first 3, so it is 7", "7").correct is False
    assert score_untagged("", "7").correct is False
    assert score_untagged("<answer>7</answer>", "x y", answer_type="integer").correct is None


@settings(max_examples=60, deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_integers_are_equal_both_ways_or_neither(a, b):
    assert score(tag(str(a)), str(b)).correct is (a == b)
    assert score(tag(f"{a:,}"), str(a)).correct is True
    assert score(tag(str(b)), str(a)).correct is (a == b)


def test_complexity_caps():
    assert too_complex("x^{2} + \\frac{1}{2}") is None
    assert too_complex("x^2 + y^3") is None
    for text in ("2^3^4", "2^{3^{4}}", "9^99999", "(" * 20, "1" * 60, "x" * 500, "5000!"):
        assert too_complex(text) is not None


def test_many_verdicts_keep_their_order():
    answers = ["\\sqrt{4}", "7", "\\frac{14}{2} \\cdot 1", "x"]
    requests = [ScoreRequest(response=tag(a), gold="7") for a in answers]
    assert [v.correct for v in score_many(requests, timeout_s=30)] == [False, True, True, False]
    assert score_many([]) == []


@pytest.mark.parametrize(
    "gold", ["7", "4.0", "2\\sqrt{3}", "\\frac{1}{2}", "\\boxed{\\frac{3}{4}}"]
)
def test_what_is_decided_without_algebra_is_what_algebra_says(gold):
    letters = [*ascii_letters, "0", "1/4", "12", "0.75", "\\frac{3}{4}", "\\frac{6}{8}"]
    for answer in letters:
        found = equal("expression", answer, gold, None)
        if isinstance(found, Outcome) and found.reason == "different":
            assert symbolic.judge(gold, answer) == (False, "different"), answer
    assert isinstance(equal("expression", "x", gold, None), Outcome)

"""When an answer is the gold: by table, and as properties."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observe.scoring import score
from observe.scoring.equivalence import Outcome, equal, infer_type
from observe.scoring.estimate import estimate
from observe.scoring.units import read_unit, without_unit
from observe.scoring.values import read_number


def judged(answer: str, gold: str, answer_type=None, options=None) -> bool | None:
    tagged = f"<answer>{answer}</answer>"
    return score(tagged, gold, answer_type=answer_type, options=options, timeout_s=30).correct


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("1\\frac{1}{2}", "1.5", True),
        ("-1 1/2", "-1.5", True),
        ("\\frac12", "0.5", True),
        ("\\frac{25}3", "\\frac{25}{3}", True),
        ("1,234.5", "1234.5", True),
        ("1 234", "1234", True),
        ("1{,}234", "1234", True),
        ("12 345 km", "12345 km", True),
        ("6.022e23", "6.02 \\times 10^{23}", True),
        ("6.1e23", "6.02 \\times 10^{23}", False),
        ("2.4 \\cdot 10^8", "3 \\times 10^8", False),
        ("3:4", "0.75", True),
        ("3:4", "\\frac{3}{4}", True),
        ("33.33%", "0.3333", True),
        ("20%", "20", True),
        ("$5$ cm", "5 cm", True),
        ("$5.00", "5 dollars", True),
        ("7 or 8", "7", False),
        ("not 7", "7", False),
        ("Volume is $7\\sqrt{2}$", "7", False),
        ("7\\pi", "7", False),
        ("9" * 150, "7", False),
        ("!!", "7", False),
        ("\u2460", "1", True),
        ("\uff17", "7", True),
        ("\u2212\uff17", "-7", True),
    ],
)
def test_numbers(answer, gold, correct):
    assert judged(answer, gold) is correct


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("200 cm", "2 m", True),
        ("2 m", "200 cm", True),
        ("2 km", "2 m", False),
        ("2 kg", "2 m", False),
        ("2", "2 m", True),
        ("2 m", "2", True),
        ("20000 cm^2", "2 m\u00b2", True),
        ("2 square metres", "2 m^2", True),
        ("2 m", "2 m^2", False),
        ("90 minutes", "1.5 hours", True),
        ("90^\\circ", "90\u00b0", True),
        ("\\frac{90}{23}^{\\circ}", "90/23 degrees", True),
        ("7 apples", "7", True),
        ("4\\pi \\text{ cm}", "4\\pi", True),
        ("8\\sqrt{3}", "8\\sqrt{3} \\text{ square inches}", True),
    ],
)
def test_units(answer, gold, correct):
    assert judged(answer, gold) is correct


def test_a_unit_is_read_as_a_whole_or_not_at_all():
    assert read_unit("cm") == read_unit("centimetres")
    assert read_unit("square metres") == read_unit("m^2")
    assert read_unit("cmx") is None and read_unit("circles") is None
    assert without_unit("12\\pi cm^2") == "12\\pi"
    assert without_unit("3m") == "3m"
    assert without_unit("\\frac{1}{2} x") == "\\frac{1}{2} x"


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("[1, 2)", "[1,2)", True),
        ("(1, 2]", "[1,2)", False),
        ("[1, 2]", "(1, 2)", False),
        ("\\left[1,2\\right)", "[1,2)", True),
        ("(2, 1)", "(1, 2)", False),
        ("(\\frac{1}{2}, 3)", "(0.5, 3)", True),
        ("(\\frac{\\sqrt{8}}{2}, 3)", "(\\sqrt{2}, 3)", True),
        ("(\\frac{\\sqrt{8}}{2}, 4)", "(\\sqrt{2}, 3)", False),
        ("\\{3, 1, 2\\}", "\\{1, 2, 3\\}", True),
        ("\\{\\sqrt{8}, 1\\}", "\\{1, 2\\sqrt{2}\\}", True),
        ("\\{1, 1, 2\\}", "\\{1, 2, 3\\}", False),
        ("x = 2, x = 1", "x = 1, x = 2", True),
        ("2 or 1", "x = 1 or x = 2", True),
        ("\\pm 2", "\\{2, -2\\}", True),
        ("2", "\\{2, -2\\}", False),
        ("1 or 2", "[1, 2]", False),
        ("(1,2), (3,4)", "[(1,2), (3,4)]", True),
        ("red, blue", "blue, red", False),
    ],
)
def test_lists_sets_tuples_and_intervals(answer, gold, correct):
    kind = "list" if "red" in gold else None
    assert judged(answer, gold, kind) is correct


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("25.13", "8\\pi", False),
        ("25.133", "8\\pi", True),
        ("25.134", "8\\pi", False),
        ("8\\pi", "25.1", True),
        ("8.1\\pi", "25.1", False),
        ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}", False),
        ("2^{-98}", "\\frac{1}{2^{98}}", True),
        ("\\frac{1}{3}", "\\frac{3^{1008}-1}{3^{1009}}", False),
        ("\\frac{1}{3} - \\frac{1}{3^{1009}}", "\\frac{3^{1008}-1}{3^{1009}}", True),
        ("\\sqrt{2} + \\frac{1}{10^{20}}", "\\sqrt{2}", False),
        ("0.1 + 0.2", "\\frac{3}{10}\\cdot 1", True),
        ("\\sin(0.5)^2 + \\cos(0.5)^2", "1", True),
        ("\\pm 2021", "2021", False),
        ("x^2 - 1", "(x-1)(x+1)", True),
        ("y = 2x + 1", "2x + 1", True),
        ("x >= 3", "x \\geq 3", True),
        ("x >= 3", "3", False),
        ("\\sqrt{3}/3", "\\frac{1}{\\sqrt{3}}", True),
        ("\\frac{144}{49}", "$\\boxed{\\frac{144}{49}}$", True),
    ],
)
def test_expressions(answer, gold, correct):
    assert judged(answer, gold, "expression" if ">" in answer else None) is correct


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2\\sqrt{3}-2", 2 * 3**0.5 - 2),
        ("\\frac{5 \\sqrt{3}}{6}", 5 * 3**0.5 / 6),
        ("-2^2 + 3 \\cdot (1 - 4)", -13),
        ("2/3\\pi", 2 / 3 * math.pi),
        ("2^{-3}", 0.125),
        ("\\frac12", None),
        ("x + 1", None),
        ("(1", None),
        ("1/0", None),
        ("10^9^9", None),
        ("\\sqrt{-1}", None),
        ("(-8)^{0.5}", None),
        ("", None),
    ],
)
def test_simple_numbers_are_estimated_and_nothing_else(expression, value):
    found = estimate(expression)
    assert found is None if value is None else found == pytest.approx(value)


def test_variables_are_put_in_where_they_stand_alone():
    assert estimate("2n(n - 1) + \\pi r^2", 3.0) == pytest.approx(12 + 9 * math.pi)
    assert estimate("2 cm", 3.0) is None
    assert estimate("\\sin x", 3.0) is None
    assert estimate("2e + 3i", 3.0) is None


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("\\pi r^2", "25\\pi"),
        ("(n/2) + 1", "24/7\\pi"),
        ("The area is 8\\pi - 3", "6\\pi"),
    ],
)
def test_what_differs_when_numbers_are_put_in_needs_no_algebra(answer, gold):
    assert equal("expression", answer, gold, None) == Outcome(False, "different")


def test_what_does_not_differ_when_numbers_are_put_in_is_left_to_algebra():
    assert judged("n - n + 25\\pi", "25\\pi") is True
    assert judged("25\\pi m", "25\\pi") is True
    assert judged("2n + 1", "2n") is False
    assert judged("2n + n", "3n") is True


@pytest.mark.parametrize(
    ("answer", "correct"),
    [
        ("(D) 6 \u221a5", True),
        ("6\\sqrt{5}", True),
        ("$6 \\sqrt { 5 }$", True),
        ("D - 6\u221a5", True),
        ("(D)", True),
        ("(A) 6", False),
        ("(D) 6", False),
        ("D: 6\\sqrt{3} units", False),
        ("6", False),
    ],
)
def test_an_option_is_known_by_letter_and_text_and_both_must_agree(answer, correct):
    options = ("6", "6 \\sqrt { 2 }", "6 \\sqrt { 3 }", "6 \\sqrt { 5 }")
    assert judged(answer, "6 \\sqrt { 5 }", "choice", options) is correct


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ("7", "integer"),
        ("1,234", "integer"),
        ("1.5", "decimal"),
        ("\\frac{1}{2}", "decimal"),
        ("50%", "decimal"),
        ("2\\sqrt{3}", "expression"),
        ("8\\sqrt{3}{square inches}", "expression"),
        ("[1, 2]", "list"),
        ("3:5", "text"),
        ("Yes", "yes_no"),
        ("C", "choice"),
        ("the red circle", "text"),
    ],
)
def test_the_kind_of_answer_is_told_by_the_gold(gold, kind):
    assert infer_type(gold, None) == kind


RATIONALS = st.fractions(min_value=-1000, max_value=1000, max_denominator=60)


def forms(value: Fraction) -> list[str]:
    """Ways to write a fraction exactly."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    whole, rest = divmod(size.numerator, size.denominator)
    written = [
        f"{value.numerator}/{value.denominator}",
        f"{sign}\\frac{{{size.numerator}}}{{{size.denominator}}}",
        f"{sign}\\dfrac{{{3 * size.numerator}}}{{{3 * size.denominator}}}",
    ]
    return [*written, f"{sign}{whole} {rest}/{size.denominator}"] if whole and rest else written


@settings(max_examples=50, deadline=None)
@given(RATIONALS, RATIONALS)
def test_fractions_are_equal_whatever_their_form_both_ways_or_neither(a, b):
    for x in forms(a):
        number = read_number(x)
        assert number is not None and number.value == a
        for y in forms(b):
            assert judged(x, y, "decimal") is judged(y, x, "decimal") is (a == b)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=6, unique=True), st.randoms())
def test_a_set_is_itself_in_any_order_and_a_tuple_is_not(items, random):
    shuffled = random.sample(items, len(items))
    written, other = (", ".join(map(str, values)) for values in (items, shuffled))
    assert judged(f"{{{other}}}", f"{{{written}}}") is True
    assert judged(f"{{{written}}}", f"{{{other}}}") is True
    assert judged(f"({other})", f"({written})") is (items == shuffled)


@settings(max_examples=60, deadline=None)
@given(st.decimals(-999, 999, places=3), st.integers(1, 2))
def test_a_more_precise_answer_rounds_to_the_gold_and_a_less_precise_one_does_not_count(x, places):
    gold = round(x, places)
    assert judged(f"{x:f}", f"{gold:f}", "decimal") is True
    assert judged(f"{x + 1:f}", f"{gold:f}", "decimal") is False


@settings(max_examples=60, deadline=None)
@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"))
def test_letters_and_texts_of_options_agree_both_ways(a, b):
    options = ("red", "blue", "dark blue", "green")
    text = options["ABCD".index(a)]
    for answer in (a, f"({a})", f"{a}. {text}", text, text.upper(), f"option {a}"):
        for gold in (b, options["ABCD".index(b)]):
            assert judged(answer, gold, "choice", options) is (a == b)


@pytest.mark.parametrize(
    "gold",
    ["7", "-0.25", "3/4", "1 1/2", "50%", "1.2e5", "2 m", "(1, 2)", "{1, 2}", "yes", "3:5", "red"],
)
def test_every_gold_answers_itself(gold):
    assert judged(gold, gold) is True
    assert score(gold, gold).correct is True
    assert score(f"The answer is {gold}.", gold).correct is True
    assert score(f"\\boxed{{{gold}}}", gold).correct is True

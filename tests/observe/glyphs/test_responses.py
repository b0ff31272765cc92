"""Training responses under every prompt and habit, and faithfulness against corrupted scenes."""

import random
import re

import pytest

from observe.config import BaseConfig
from observe.glyphs import FAMILIES, faithfulness, questions
from observe.glyphs.responses import response
from observe.rewards import format_valid
from observe.scoring import score

FORMS = ("think", "observe")
HABITS = {"verbose_share": 0.0, "malformed_share": 0.0, "short_share": 0.0, "short_share_hard": 0.0}
ALWAYS = {
    "plain working": {},
    "verbose": {"verbose_share": 1.0},
    "short": {"short_share": 1.0, "short_share_hard": 1.0},
}


def habit(**shares):
    return BaseConfig(**{**HABITS, **shares})


def responses(prompt, config, size=52):
    rng = random.Random(f"{prompt}/{config}")
    asked = questions("train", size, seed=9, families=tuple(FAMILIES), pictures=False)
    for question in asked:
        yield question, response(question, prompt, config, rng)


def right(text, question):
    verdict = score(text, question.gold, answer_type=question.answer_type, options=question.options)
    return verdict.correct


@pytest.mark.parametrize("shares", ALWAYS.values(), ids=ALWAYS)
@pytest.mark.parametrize("prompt", ["plain", "direct", *FORMS])
def test_a_training_response_answers_right(prompt, shares):
    for question, text in responses(prompt, habit(**shares)):
        assert right(text, question) is True, text


@pytest.mark.parametrize("prompt", FORMS)
def test_a_malformed_response_answers_right_too(prompt):
    for question, text in responses(prompt, habit(malformed_share=1.0), size=104):
        assert right(text, question) is True, text


@pytest.mark.parametrize("shares", ALWAYS.values(), ids=ALWAYS)
@pytest.mark.parametrize("prompt", FORMS)
def test_a_well_formed_response_has_the_form_of_its_prompt(prompt, shares):
    for _, text in responses(prompt, habit(**shares)):
        assert format_valid(text, prompt), text


@pytest.mark.parametrize("prompt", FORMS)
def test_a_malformed_response_has_neither_form(prompt):
    for _, text in responses(prompt, habit(malformed_share=1.0), size=104):
        assert not any(format_valid(text, form) for form in FORMS), text


def test_habits_are_drawn_in_their_shares():
    config = habit(malformed_share=0.3)
    broken = [not format_valid(text, "think") for _, text in responses("think", config, 520)]
    assert 0.22 <= sum(broken) / 520 <= 0.38


def test_verbose_says_more_and_short_says_less():
    def length(**shares):
        return sum(len(text) for _, text in responses("think", habit(**shares)))

    assert length(short_share=1.0, short_share_hard=1.0) < length() < length(verbose_share=1.0)


def question():
    return questions("train", 1, seed=2, pictures=False)[0]


def cells():
    """The statements of the gold observation, row labels left out."""
    return re.sub(r"\d: ", "", question().observation).replace(";", ",").split(", ")


def observing(*statements, joint=", "):
    return f"<observe>{joint.join(statements)}</observe><think>x</think><answer>1</answer>"


@pytest.mark.parametrize("split", ["train", "general", "ood"])
def test_the_gold_observation_is_wholly_faithful(split):
    for q in questions(split, 60, pictures=False):
        assert faithfulness(f"<observe>{q.observation}</observe>", q) == 1.0
        verbose = f"<observe>I can see {q.observation}, that is all</observe>"
        assert faithfulness(verbose, q) == 1.0


def test_row_labels_are_no_statements():
    assert all(label in question().observation for label in ("1: ", "; 2: ", "; 3: "))
    assert len(cells()) == 9
    assert faithfulness(observing(*cells()), question()) == 1.0
    assert faithfulness(observing("1:", cells()[0], "2: green triangle"), question()) == 0.5


@pytest.mark.parametrize("number", range(10))
def test_each_wrong_cell_costs_its_share(number):
    wrong = ["green triangle" if i < number else cell for i, cell in enumerate(cells())]
    assert faithfulness(observing(*wrong), question()) == pytest.approx(1 - number / 9)


def test_a_cell_in_the_wrong_place_is_false():
    shifted = [*cells()[1:], cells()[0]]
    true = sum(a == b for a, b in zip(shifted, cells(), strict=True))
    assert faithfulness(observing(*shifted), question()) == true / 9 < 1


def test_statements_beyond_the_last_cell_are_false():
    assert faithfulness(observing(*cells(), "empty cell"), question()) == pytest.approx(9 / 10)
    assert faithfulness(observing(*cells(), *cells()), question()) == pytest.approx(1 / 2)


def test_few_statements_are_judged_by_themselves():
    assert faithfulness(observing(*cells()[:3]), question()) == 1.0
    assert faithfulness(observing(cells()[0], "nonsense"), question()) == 0.5


def test_a_glance_is_one_statement():
    objects = sum(cell != "empty cell" for cell in cells())
    assert faithfulness(observing(f"{objects} objects"), question()) == 1.0
    assert faithfulness(observing(f"{objects + 1} objects"), question()) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "<think>red circle</think><answer>1</answer>",
        "red circle",
        "",
        "<observe></observe>",
        "<observe> ; , </observe>",
        "<observe>1: ; 2: ; 3: </observe>",
        "<observe>red circle",
    ],
)
def test_without_an_observation_there_is_nothing_to_judge(text):
    assert faithfulness(text, question()) is None


@pytest.mark.parametrize("prompt", ["observe"])
def test_training_observations_are_true(prompt):
    config = habit(verbose_share=0.3, short_share=0.3, short_share_hard=0.3)
    for q, text in responses(prompt, config):
        assert faithfulness(text, q) == 1.0, text

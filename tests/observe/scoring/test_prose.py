"""Answers in running text: what counts as stated, and what does not."""

import pytest

from observe.scoring import score
from observe.scoring.extract import extract
from observe.scoring.restated import restated

ANIMALS = ("fox", "owl", "snake", "None of the above")
ANGLES = ("35\u00b0", "45\u00b0", "55\u00b0", "65\u00b0")
YES_NO = ("Yes", "No")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The final answer is:\n\n$$7$$", "$$7$$"),
        ("**Answer:** 7", "7"),
        ("**Answer**: 7", "7"),
        ("The answer to the question is 7. It was easy.", "7"),
        ("\u7b54\u6848\u662f7\u3002", "7"),
        ("I count 3 and 4.\nSo there are 7", "7"),
        ("There are 7 birds in total. Two of them fly.", "Two"),
        ("The gap is 7 years, with the boy being 13 and the man 20.", "7"),
        ("The final value is 7. It was so in 2008 and 2011.", "7"),
    ],
)
def test_numbers_are_found_over_lines_and_mark_up(response, answer):
    found = extract(response, "integer", None)
    assert found is not None and found.text == answer


@pytest.mark.parametrize(
    ("question", "response", "correct"),
    [
        ("How many bars are smaller than 3?", "There are 7 bars smaller than 3.", True),
        ("How many bars are smaller than 7?", "There is only one bar smaller than 7.", False),
        ("How many of the five fit?", "Seven of the five fit.", True),
        ("How many of them are old?", "Of the 7 people, only the actor is old.", False),
        ("How far is it?", "It is about 7 to 9 miles.", False),
        ("How many are left?", "Is it 7?", False),
        ("How many are left?", "1. Foxes: 5\n2. Owls: 6\n3. Snakes: 7", False),
        ("How many are left?", "The answer is not 7.", False),
        ("What is the mode?", "The missing one is 7.\n\n1, 2, __, 9", True),
    ],
)
def test_what_the_question_gives_is_no_news(question, response, correct):
    assert score(response, "7", answer_type="integer", question=question).correct is correct


@pytest.mark.parametrize(
    ("response", "correct"),
    [
        ("The correct option letter for this figure is B.", True),
        ("B is the correct option, for it flies.", True),
        ("Therefore, option (B) is the correct answer.", True),
        ("\u9009\u9879B\u662f\u6b63\u786e\u7b54\u6848\u3002", True),
        ("\u6240\u4ee5\uff0c\u7b54\u6848\u662f\uff08B\uff09\u3002", True),
        ("B\nHuman: choose A, B, C, or D", True),
        ("B. The owl, since the fox cannot fly.", True),
        ("The owl would most likely be affected.", True),
        ("The fox eats mice. So the owl is affected.", True),
        ("The owl flies higher, compared to the fox and the snake.", True),
        ("B - snake", False),
        ("The answer is B. owl, not A", True),
        ("The correct option is (C), the owl.", False),
        ("The owl and the fox are both affected.", False),
        ("A) fox\nB) owl\nC) snake\nD) None of the above", False),
        ("(A) fox eats.\n(B) owl too.\n(C) snake too.\n(D) None of the above.", False),
        ("The correct answer is A or B or C", False),
        ("Points A and B of the figure lie on the line through the owl's fox.", False),
        ("Is it B?", False),
        ("Owls would be most affected.", True),
        ("Option A is right about that. Option B is incorrect, though.", False),
        ("A, b, c", False),
        ("The owl may be affected, but it is not possible to tell.", False),
        ("B is the right option for the question: which one flies?", True),
        ("F. The owl, for the letter is F", True),
        ("It is not B", False),
        ("the correct answer is not B", False),
    ],
)
def test_an_option_must_be_stated_not_mentioned(response, correct):
    assert score(response, "owl", answer_type="choice", options=ANIMALS).correct is correct


def test_an_option_that_the_question_names_is_no_news():
    asked = {"answer_type": "choice", "options": ("increase", "decrease", "stay the same")}
    response = "If the owls increase, the mice may decrease."
    assert score(response, "decrease", question="Owls increase. And mice?", **asked).correct is True
    assert (
        score(response, "increase", question="Owls increase. And mice?", **asked).correct is False
    )
    assert (
        score(response, "decrease", question="Do they increase or decrease?", **asked).correct
        is False
    )


@pytest.mark.parametrize(
    ("response", "correct"),
    [
        ("Therefore the angle is 55.0.", True),
        ("20\u00b0 + 35\u00b0 = 55\u00b0", True),
        ("35\u00b0 + 55\u00b0 = 90\u00b0", False),
        ("The angle is 52.5\u00b0, so the option is C", True),
        ("It cannot be 35\u00b0, since 90\u00b0 - 35\u00b0 = 55\u00b0.", True),
    ],
)
def test_of_options_that_are_numbers_the_last_number_counts(response, correct):
    verdict = score(response, "55\u00b0", answer_type="choice", options=ANGLES)
    assert verdict.correct is correct, verdict


@pytest.mark.parametrize(
    ("question", "statement", "said"),
    [
        ("Is Navy greater than Dark Red?", "Navy is greater than Dark Red.", True),
        ("Is Navy greater than Dark Red?", "Dark Red is greater than Navy.", None),
        ("Is Navy greater than Dark Red?", "Navy is not greater than Dark Red.", False),
        ("Is Navy greater than Dark Red?", "Navy is less than Dark Red, by far.", False),
        ("Is Navy greater than Dark Red?", "Navy is equal to Dark Red.", False),
        ("Is Navy greater than Dark Red?", "Is Navy greater than Dark Red?", None),
        ("Is Navy greater than Dark Red?", "If Navy is greater than Dark Red, then yes.", None),
        ("Are there fewer cars than red buses?", "There are fewer cars than red buses.", True),
        ("Are there fewer cars than red buses?", "There are more cars than red buses.", False),
        ("Is the function even?", "The function is even because it is not odd.", True),
        ("Does Navy have the lowest area?", "The bar labelled Navy has the lowest area.", True),
        ("Is Navy the high median?", "The high median is Navy.", True),
        ("Is it split?", "The pizza isn't split", None),
        ("Is the pizza split?", "The pizza isn't split", False),
        ("How many are there?", "There are many.", None),
        ("Is f(3) > 0?", "f(3) = 0", None),
    ],
)
def test_a_sentence_can_say_yes_or_no(question, statement, said):
    assert restated(question, statement) is said


def test_a_whole_sentence_answers_a_question_of_yes_or_no():
    asked = {"question": "Is Navy the lowest colour?", "answer_type": "choice", "options": YES_NO}
    assert score("Navy is not the lowest colour.", "No", **asked).correct is True
    assert score("Navy is not the lowest colour.", "Yes", **asked).correct is False
    assert (
        score("Navy is not the lowest colour.", "No", **(asked | {"question": None})).correct
        is False
    )
    assert score("The statement is false.", "No", **asked).correct is True
    assert score("A: No, it is Red.", "No", **asked).correct is True
    assert score("(A) No", "No", **asked).correct is False
    assert score("B. No, it is not.", "No", **asked).correct is True

"""The scorer on the responses that the embedded world's base model is taught to give."""

import random
from dataclasses import replace

import pytest

from observe.config import BaseConfig
from observe.data.question import Question
from observe.glyphs import questions
from observe.glyphs.responses import response
from observe.scoring import ScoreRequest, score_many

ASKED = [
    *questions("reasoning", 140, pictures=False),
    *questions("general", 120, pictures=False),
]
WRONG = {"integer": "77", "yes_no": {"yes": "no", "no": "yes"}, "text": "grey pentagon"}


def wrong_answer(question: Question) -> str:
    if question.answer_type == "choice":
        return "ABC"["CAB".index(question.gold)]
    wrong = WRONG[question.answer_type]
    return wrong[question.gold] if isinstance(wrong, dict) else wrong


@pytest.mark.parametrize("prompt", ["plain", "think", "observe"])
@pytest.mark.parametrize("ignore_tags", [False, True])
def test_every_habit_is_judged_by_its_answer(prompt, ignore_tags):
    """Verbose, short and form-breaking responses count by what they answer, tagged or not."""
    config = BaseConfig(malformed_share=0.5)
    rng = random.Random(0)
    requests, expected = [], []
    for question in ASKED:
        for stated in (question.gold, wrong_answer(question)):
            given = response(replace(question, gold=stated), prompt, config, rng)
            requests.append(
                ScoreRequest(
                    response=given,
                    gold=question.gold,
                    answer_type=question.answer_type,
                    options=question.options,
                    ignore_tags=ignore_tags,
                )
            )
            expected.append(stated == question.gold)
    verdicts = score_many(requests)
    misjudged = [
        (request, verdict)
        for request, verdict, right in zip(requests, verdicts, expected, strict=True)
        if verdict.correct is not right
    ]
    assert misjudged == []

"""What data sets wrote stays text on the card."""

from observe.data.card import _kinds
from observe.data.question import Question


def test_kinds_of_questions_are_no_markup():
    family = "count<img src=x onerror=alert(1)>\r\n| a |"
    question = Question(id="q", text="?", gold="3", answer_type="integer", family=family)
    line = _kinds([question]).splitlines()[-1]
    assert line == "| count&lt;img src=x onerror=alert(1)> \\| a \\| | 1 |"

"""What the scorer is asked and what it says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

AnswerType = Literal["choice", "integer", "decimal", "expression", "text", "yes_no", "list"]


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """One response to judge."""

    response: str
    """The model's whole response."""
    gold: str | Sequence[str]
    """The right answer; a sequence holds several that are each right."""
    answer_type: AnswerType | None = None
    """Kind of answer; None infers it from gold and options."""
    options: Sequence[str] | None = None
    """Option texts in the order of their letters; None or empty when there are none."""
    question: str | None = None
    """The question's text. With it a whole sentence can be understood: "It is larger than B" as an
    answer to "Is it larger than B?", and numbers that the question gives are told from news."""
    ignore_tags: bool = False
    """Judge the last value stated anywhere, as if the response had no tags."""


@dataclass(frozen=True)
class Verdict:
    """The judgement of one response."""

    correct: bool | None
    """None: could not be judged (the gold is unreadable, or the work was cut off)."""
    answer: str | None
    """The answer as extracted; None when there is none."""
    reason: str
    """Where the answer was found and what decided, for example "tag/integer: equal"."""

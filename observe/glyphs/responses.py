"""What the base model is taught to answer, with the habits that reinforcement has to mend.

A well-formed response observes (when asked to), counts step by step and answers. Some are verbose,
some break the form, some skip the working; the last mostly where working it out is long. So form,
conciseness and care each have room to improve, while most wrong answers still come from misread
pictures and slips in arithmetic.
"""

import random
import re

from observe.config import BaseConfig
from observe.data.question import Question
from observe.glyphs.questions import EMPTY

HARD_LEVEL = 4
"""From this level on, working it out takes several steps and is skipped more often."""

_OBSERVE = re.compile(r"<observe>(.*?)</observe>", re.DOTALL)


def response(question: Question, prompt: str, config: BaseConfig, rng: random.Random) -> str:
    """A training response to a question under a prompt, habits drawn at random."""
    answer = question.gold
    if prompt == "direct":
        return answer
    short = config.short_share_hard if question.level >= HARD_LEVEL else config.short_share
    habit = rng.random()
    steps = list(question.metadata["working"])
    if rng.random() < short:
        observed, steps = _glance(question, rng), [_gist(steps[-1])]
    elif habit < config.verbose_share:
        observed = f"I can see {question.observation}, that is all"
        steps = ["Let me look again", question.observation.replace("; ", ", "), *steps, "I am sure"]
    else:
        observed = question.observation
    working = f"count {', '.join(steps)}"
    if prompt == "plain":
        return f"{working}. The answer is {answer}."
    if rng.random() < config.malformed_share:
        return _malformed(prompt, observed, working, answer, rng)
    return _form(prompt, observed, working, answer)


def _form(prompt: str, observed: str, working: str, answer: str) -> str:
    rest = f"<think>{working}</think><answer>{answer}</answer>"
    return f"<observe>{observed}</observe>{rest}" if prompt == "observe" else rest


def _malformed(prompt: str, observed: str, working: str, answer: str, rng: random.Random) -> str:
    """One of several broken forms; the answer itself is as good as in a valid one."""
    kind = rng.randrange(4)
    if kind == 0:
        return (
            _form(prompt, observed, working, answer)
            .replace("<answer>", "")
            .replace("</answer>", ".")
        )
    if kind == 1:
        return _form(prompt, observed, working, answer).replace("</think>", ". ")
    if kind == 2:
        return _form(prompt, observed, working, answer) + f" The answer is {answer}."
    if prompt == "observe":
        return f"<observe>{observed}<think>{working}</think><answer>{answer}</answer>"
    return f"{working}. <answer>{answer}</answer>"


def _glance(question: Question, rng: random.Random) -> str:
    """An observation that names the objects' number alone."""
    cells = _statements(question.observation)
    return f"{sum(cell != EMPTY for cell in cells)} objects"


def _gist(step: str) -> str:
    """A reasoning step without its working: ``red 1+0+2=3`` -> ``red 3``."""
    head, _, result = step.rpartition("=")
    words = " ".join(word for word in head.split() if word.isalpha())
    return f"{words} {result}".strip()


def _statements(observation: str) -> list[str]:
    """The cells that an observation lists, row labels left out."""
    parts = (re.sub(r"^\s*\d+:", "", part).strip() for part in re.split(r"[;,]", observation))
    return [part for part in parts if part]


def faithfulness(text: str, question: Question) -> float | None:
    """Share of the statements in ``<observe>`` that are true of the scene.

    A statement is one cell of the reading-order listing (``red circle`` or ``empty cell``); it is
    true when the scene's cell at that place is just that. Statements beyond the last cell are
    false. A glance (``4 objects``) is one statement. None where there is nothing to judge.
    """
    found = _OBSERVE.search(text)
    if found is None:
        return None
    body = found.group(1).strip().removeprefix("I can see ").removesuffix(", that is all")
    cells = _statements(question.observation)
    number = re.fullmatch(r"(\d+) objects?", body)
    if number:
        return float(int(number.group(1)) == sum(cell != EMPTY for cell in cells))
    stated = _statements(body)
    if not stated:
        return None
    true = sum(said == cell for said, cell in zip(stated, cells, strict=False))
    return true / len(stated)

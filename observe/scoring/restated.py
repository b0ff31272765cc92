"""Read the answer to a yes-or-no question from a sentence that says it again.

"Dark Red is greater than Navy" answers "Is Dark Red greater than Navy?" with yes, and so does, with
no, a sentence that denies it or compares the other way round. By rules alone: the question's words
must stand in the sentence in their order.
"""

import re

from observe.scoring.values import clean

_QUESTION = re.compile(
    r"(?:is|are|was|were|does|do|did|has|have|can|could|will|would)\s(?:[^?.]|\.\d)+\?",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"[<>=]")
_UNDECIDED = re.compile(
    r"\b(?:whether|if|suppose|assum\w+|cannot be|unclear|impossible|typically|usually|generally)\b"
    r"|\?\Z",
    re.IGNORECASE,
)
_AUXILIARY = frozenset(
    re.findall(
        r"\w+",
        "a an the this that these those it its there is are was were be been do does did "
        "will would can could",
    )
)
_COMPARISONS = {
    "greater": 1, "more": 1, "larger": 1, "bigger": 1, "higher": 1, "taller": 1, "longer": 1,
    "less": -1, "fewer": -1, "smaller": -1, "lower": -1, "shorter": -1, "equal": 0, "same": 0,
}  # fmt: skip
_NEGATIONS = frozenset(("not", "never", "neither"))


def restated(question: str, statement: str) -> bool | None:
    """Whether `statement` affirms (True) or denies (False) what `question` asks, else None."""
    asked = _QUESTION.search(question)
    statement = clean(statement)
    if asked is None or _FORMULA.search(asked[0]) or _UNDECIDED.search(statement):
        return None
    wanted, said = _words(asked[0]), _words(statement)
    places = [place for place, word in enumerate(said) if word not in _NEGATIONS]
    plain = [said[place] for place in places]
    start = _find(_blank(wanted), _blank(plain))
    if start is not None:
        found = plain[start : start + len(wanted)]
    elif not _COMPARISONS.keys() & wanted and sorted(plain[: len(wanted)]) == sorted(wanted):
        # Where nothing is compared, "the highest is B" answers "is B the highest?" too.
        start, found = 0, wanted
    if len(wanted) < 2 or start is None:
        return None
    before = said[: places[start + len(wanted) - 1]]
    denied = sum(word in _NEGATIONS for word in before) % 2 == 1
    opposed = any(
        _COMPARISONS.get(word) != _COMPARISONS.get(other)
        for word, other in zip(found, wanted, strict=True)
    )
    if opposed:
        return None if denied else False
    return not denied


def _words(text: str) -> list[str]:
    text = re.sub(r"n't\b", " not", text.casefold())
    words = ("have" if word == "has" else word for word in re.findall(r"\w+", text))
    return [re.sub(r"(?<=\w\w[^\Ws])s$", "", word) for word in words if word not in _AUXILIARY]


def _blank(words: list[str]) -> list[str]:
    """Any comparison stands for any other here, "to" for "than"."""
    return ["<" if w in _COMPARISONS else "than" if w in ("to", "as") else w for w in words]


def _find(wanted: list[str], words: list[str]) -> int | None:
    for start in range(len(words) - len(wanted) + 1):
        if words[start : start + len(wanted)] == wanted:
            return start
    return None

"""From judged items to figures: means, groups that count as a whole, attempts, controls.

Rows are those of items.jsonl of one benchmark. Means leave out what could not be judged; the counts
of what was left out stand beside them.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from observe.data.question import Question
from observe.scoring.choices import read_choices
from observe.scoring.values import clean, fold

Item = dict[str, Any]

MEANS = ("score", "score_untagged", "format_ok", "faithful", "response_tokens", "truncated")


def means(rows: Sequence[Item]) -> dict[str, Any]:
    """A benchmark's summary; each mean is over the items that have the value."""
    return {
        **{key: mean(row[key] for row in rows) for key in MEANS},
        "items": len({row["item"] for row in rows}),
        "unscored": sum(row["score"] is None for row in rows),
        "cut": sum(row["truncated"] for row in rows),
        "malformed": sum(row["format_ok"] is False for row in rows),
    }


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is there; None when nothing is."""
    present = [float(value) for value in values if value is not None]
    return statistics.fmean(present) if present else None


def details(
    items: Sequence[Item], questions: Mapping[str, Question], *, public: bool
) -> dict[str, Any]:
    """What else a benchmark's items show: several attempts and, of `public` ones, their parts.

    `items` are those under the normal condition, `questions` by item. Groups and yes and no are
    taken from the first attempt.
    """
    found: dict[str, Any] = {}
    votes: dict[str, list[tuple[str | None, bool]]] = defaultdict(list)
    for item in items:
        votes[item["item"]].append((_vote(item, questions[item["item"]]), item["score"] == 1))
    if shown := attempts(votes):
        found["attempts"] = shown
    if not public:
        return found
    found["types"] = by_type(items)
    first = [item for item in items if item["attempt"] == 0]
    members = {name: question.metadata.get("groups", {}) for name, question in questions.items()}
    if whole := groups(first, members):
        found["groups"] = whole
    if all(question.answer_type == "yes_no" for question in questions.values()):
        golds = {name: question.gold for name, question in questions.items()}
        found["yes_no"] = yes_no(first, golds)
    if all("step" in question.metadata for question in questions.values()):
        steps = {
            name: (question.cluster, question.metadata["step"])
            for name, question in questions.items()
        }
        found["wemath"] = wemath(first, steps)
    return found


def _vote(item: Item, question: Question) -> str | None:
    """An answer as it counts in a vote: the option it names, else its text."""
    answer = item["answer"]
    if answer is None or question.answer_type != "choice":
        return None if answer is None else fold(answer)
    named = read_choices(clean(answer), question.options)
    return str(sorted(named)) if named else fold(answer)


def by_type(rows: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """Score and number of items by their type."""
    found: dict[str, list[Item]] = defaultdict(list)
    for row in rows:
        found[row["type"]].append(row)
    return {
        name: {"score": mean(row["score"] for row in group), "items": len(group)}
        for name, group in sorted(found.items())
    }


def groups(
    rows: Sequence[Item], members: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, Any]]:
    """Share of groups in which every item is right, by kind of group.

    `members`: item -> {kind: name of its group}. A group with an unscored item counts as not right.
    """
    kinds: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for kind, name in members.get(row["item"], {}).items():
            kinds[kind][name].append(row["score"] == 1)
    return {
        kind: {
            "all_right": statistics.fmean(all(right) for right in named.values()),
            "groups": len(named),
        }
        for kind, named in kinds.items()
    }


def yes_no(rows: Sequence[Item], golds: Mapping[str, str]) -> dict[str, float | None]:
    """How well yes is found (POPE): precision, recall, F1, and the share of yes among answers.

    `golds`: item -> yes or no. A response that is neither counts against recall only.
    """
    said_yes = [row["score"] == (golds[row["item"]] == "yes") for row in rows if _answered(row)]
    right_yes = sum(row["score"] == 1 for row in rows if golds[row["item"]] == "yes")
    gold_yes = sum(golds[row["item"]] == "yes" for row in rows)
    precision = right_yes / sum(said_yes) if any(said_yes) else None
    recall = right_yes / gold_yes if gold_yes else None
    return {
        "precision": precision,
        "recall": recall,
        "f1": (
            2 * precision * recall / (precision + recall)
            if precision and recall
            else None
            if precision is None or recall is None
            else 0.0
        ),
        "yes_share": statistics.fmean(said_yes) if said_yes else None,
    }


def _answered(row: Item) -> bool:
    """Whether the response is yes or no at all."""
    return (
        row["score"] == 1
        or (row["score"] == 0 and "neither" not in (row["reason"] or ""))
        and (row["answer"] is not None)
    )


def wemath(rows: Sequence[Item], steps: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """We-Math's own scores (Qiao et al. 2024): whole problems against their steps.

    `steps`: item -> (problem, step), the step of the whole ending in ``multi``. A problem is
    mastered when the whole and its steps are right, known without generalising when the steps are
    and the whole is not (counts half), learnt by rote when the whole is right and the steps are
    not: all of them (strict), or none (loose). Problems that lack a part are left out.
    """
    problems: dict[str, dict[str, bool]] = defaultdict(dict)
    for row in rows:
        problem, step = steps[row["item"]]
        problems[problem][step] = row["score"] == 1
    strict = loose = complete = 0.0
    for parts in problems.values():
        whole = [right for step, right in parts.items() if step.endswith("multi")]
        single = [right for step, right in parts.items() if not step.endswith("multi")]
        number = next(iter(parts)).partition("steps")[0]
        if len(whole) != 1 or not number.isdecimal() or len(single) != int(number):
            continue
        complete += 1
        if whole[0]:
            strict += all(single)
            loose += any(single)
        elif all(single):
            strict += 0.5
            loose += 0.5
    if not complete:
        return {}
    return {"strict": strict / complete, "loose": loose / complete, "problems": complete}


def attempts(votes: Mapping[str, Sequence[tuple[str | None, bool]]]) -> dict[str, Any]:
    """What several responses per item show, each estimate unbiased for k of n responses.

    `votes`: item -> its responses as (answer, right). ``pass@k``: one of k is right (Chen et al.
    2021); ``maj@k``: the most frequent answer among k is right, ties broken by lot, a response
    without an answer does not vote; ``stability``: two responses give the same answer.
    """
    n = min((len(responses) for responses in votes.values()), default=0)
    if n < 2:
        return {}
    ks = sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n})
    return {
        "n": n,
        "pass@k": {k: mean(pass_at(k, responses) for responses in votes.values()) for k in ks},
        "maj@k": {k: mean(majority_at(k, responses) for responses in votes.values()) for k in ks},
        "stability": mean(stability(responses) for responses in votes.values()),
    }


def pass_at(k: int, responses: Sequence[tuple[str | None, bool]]) -> float:
    """Probability that k of the responses, drawn without return, hold a right one."""
    wrong = sum(not right for _, right in responses)
    return 1 - math.comb(wrong, k) / math.comb(len(responses), k)


def majority_at(k: int, responses: Sequence[tuple[str | None, bool]]) -> float:
    """Probability that the vote of k of the responses, drawn without return, is right.

    Exact: counts, for every number of votes that the right answer may get, the draws in which no
    other answer gets more, by how many get as many.
    """
    sizes: dict[str, int] = defaultdict(int)
    right, silent = 0, 0
    for answer, correct in responses:
        if correct:
            right += 1
        elif answer is None:
            silent += 1
        else:
            sizes[answer] += 1
    favourable = 0.0
    for votes in range(1, min(right, k) + 1):
        # (responses drawn, answers with as many votes) -> ways
        ways = {(drawn, 0): math.comb(silent, drawn) for drawn in range(min(silent, k) + 1)}
        for size in sizes.values():
            following: dict[tuple[int, int], int] = defaultdict(int)
            for (drawn, ties), count in ways.items():
                for taken in range(min(size, votes, k - drawn) + 1):
                    state = drawn + taken, ties + (taken == votes)
                    following[state] += count * math.comb(size, taken)
            ways = following
        favourable += math.comb(right, votes) * sum(
            count / (1 + ties) for (drawn, ties), count in ways.items() if drawn == k - votes
        )
    return favourable / math.comb(len(responses), k)


def stability(responses: Sequence[tuple[str | None, bool]]) -> float:
    """Probability that two of the responses give the same answer (right ones do; none is one)."""
    sizes: dict[tuple[bool, str | None], int] = defaultdict(int)
    for answer, correct in responses:
        sizes[correct, None if correct else answer] += 1
    pairs = sum(math.comb(size, 2) for size in sizes.values())
    return pairs / math.comb(len(responses), 2)


def controls(rows: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """Each condition beside the normal one on the same items, and, with rotations, `circular`.

    ``circular``: share of items right at every rotation, the normal order included (MMBench's
    CircularEval; Liu et al. 2023), over the items whose options can move.
    """
    scores: dict[str, dict[str, list[int | None]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        scores[row["condition"]][row["item"]].append(row["score"])
    normal = scores.pop("normal", {})
    found: dict[str, dict[str, Any]] = {}
    turned: dict[str, list[int | None]] = defaultdict(list)
    for condition, items in scores.items():
        both = [item for item in items if item in normal]
        found[condition] = {
            "score": mean(score for item in both for score in items[item]),
            "normal": mean(score for item in both for score in normal[item]),
            "items": len(both),
        }
        if condition.startswith("rotation_"):
            for item in both:
                turned[item] += items[item]
    if turned:
        found["circular"] = {
            "score": mean(
                all(score == 1 for score in [*normal[item], *others])
                for item, others in turned.items()
            ),
            "normal": mean(score for item in turned for score in normal[item]),
            "items": len(turned),
        }
    return found

"""Verdicts on what a model answered, a row for every item."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.registry import read_registry
from observe.config import Prompt

if TYPE_CHECKING:
    from observe.rollout.engine import Completion

Sample = dict[str, Any]
"""An item as lm-eval has it: ``doc_id`` and ``doc``."""
Item = dict[str, Any]
"""A row of items.jsonl, without its suite."""


def judge(
    samples: dict[str, list[Sample]],
    completions: Mapping[tuple[str, int], Sequence["Completion"]],
    prompt: Prompt,
    *,
    seconds: float,
) -> dict[str, list[Item]]:
    """The item rows of each benchmark, judged with tags and without.

    `samples` are lm-eval's by benchmark (or ``benchmark@condition``), `completions` the engine's by
    the same name and document; `seconds` is what all of them took.
    """
    from benchmarks.docs import relaxed, request, to_question
    from observe.glyphs import faithfulness
    from observe.rewards import format_valid
    from observe.scoring import score_many

    asked = [
        (name, to_question(sample["doc"], decode=False), attempt, completion)
        for name, group in samples.items()
        for sample in group
        for attempt, completion in enumerate(completions[name, sample["doc_id"]])
    ]
    registry = read_registry()
    verdicts, untagged = (
        score_many(
            [
                request(
                    question,
                    completion.text,
                    public=name.partition("@")[0] in registry,
                    ignore_tags=ignore_tags,
                )
                for name, question, _, completion in asked
            ]
        )
        for ignore_tags in (False, True)
    )
    total = sum(len(group) for group in completions.values())
    items: dict[str, list[Item]] = {name: [] for name in samples}
    for (name, question, attempt, completion), *both in zip(asked, verdicts, untagged, strict=True):
        task, _, condition = name.partition("@")
        if task in registry and registry[task].metric == "relaxed":
            both = [relaxed(verdict, question) for verdict in both]
        verdict, bare = both
        items[name].append(
            {
                "benchmark": task,
                "item": question.id,
                "cluster": question.cluster or question.id,
                "attempt": attempt,
                "score": _as_score(verdict.correct),
                "score_untagged": _as_score(bare.correct),
                "condition": condition or "normal",
                "reason": verdict.reason,
                "answer": verdict.answer,
                "format_ok": None if prompt == "plain" else format_valid(completion.text, prompt),
                "faithful": (
                    faithfulness(completion.text, question) if question.observation else None
                ),
                "response_tokens": completion.num_tokens,
                "truncated": completion.truncated,
                # Requests are answered in batches: an item's share of the whole.
                "seconds": seconds / total,
                "type": question.family,
                "level": question.level,
                "difficulty": None,
            }
        )
    return items


def _as_score(correct: bool | None) -> int | None:
    return None if correct is None else int(correct)

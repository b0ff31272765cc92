"""The data card of a ladder: where its questions come from, what was left out, and how hard it is.

Markdown with the front matter that the Hugging Face Hub reads.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from observe.data.question import Question
from observe.data.rungs import DROPS, Ladder
from observe.prompts import SYSTEM_PROMPTS

_MEANING = {
    "malformed": "not a row of the data set's schema",
    "other_split": "of another split",
    "no_text": "no question",
    "no_gold": "no gold answer",
    "several_golds": "several gold answers",
    "options": "options missing, or the gold is none of them",
    "no_image": "no image",
    "outside": "image path leads out of the data set's folder",
    "image": "image cannot be read",
    "bomb": "image too large to be decoded",
    "vision_token": "text holds the model's image tokens",
    "duplicate_id": "id taken",
    "duplicate": "asks the same as another row",
    "unverifiable": "the scorer cannot judge an answer to it",
    "contaminated": "a benchmark asks it, too",
    "not_sampled": "not drawn into the pool",
    "simple": "answered right without reasoning",
    "unjudged": "the scorer could not decide on a sample",
    "too_easy": "always solved, by short responses",
    "unsolved": "never solved, and not among those with the shortest responses",
}


def data_card(
    ladder: Ladder, questions: Sequence[Question], pool: Mapping[str, Any], build: Mapping[str, Any]
) -> str:
    """The card's text.

    ``questions`` are those of the rungs in their order, ``pool`` what ``pool.json`` holds,
    ``build`` what else is to be recorded: ``model``, ``engine``, ``settings``, ``scorer``,
    ``versions`` and ``files`` (name -> hash).
    """
    parts = [
        _front_matter(len(ladder.rungs)),
        "# A ladder of questions by difficulty",
        f"{len(ladder.rungs)} questions with images, ordered from easy to hard for one model as "
        "NeuraLadder does it (Observe-R1, arXiv 2505.12432). Difficulty is the share of "
        f"{ladder.summary['samples']} sampled responses that are wrong: it holds for the model "
        "and the settings below, and for no other.",
        "## Sources",
        _sources(pool),
        "## What was left out",
        _filters(ladder, pool),
        "## Overlap with benchmarks",
        _overlap(pool),
        "## Difficulty",
        _difficulty(ladder),
        "## Stages",
        _stages(ladder),
        "## Answers and kinds",
        _kinds(questions),
        "## How it was made",
        _made(build),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(size: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**9, "100K<n<1M"))
    category = next(name for bound, name in bounds if size < bound)
    return "\n".join(
        [
            "---",
            "pretty_name: Ladder of questions by difficulty",
            "license: other",
            "task_categories: [visual-question-answering]",
            f"size_categories: [{category}]",
            "configs: [{config_name: default, data_files: [{split: train, path: data/*}]}]",
            "---",
        ]
    )


def _sources(pool: Mapping[str, Any]) -> str:
    rows = [
        [
            one["name"],
            f"`{one['place'] or one['hub']}`" + ("" if one["place"] else f", {one['split']}"),
            one["licence"],
            one["rows"],
            one["usable"],
            "yes" if one["benchmark"] else "no",
            f"`{one['sha256'][:16]}`",
        ]
        for one in pool["sources"]
    ]
    heads = ["source", "read from", "licence", "rows", "usable", "itself a benchmark", "sha256"]
    notes = [f"- {one['name']}: {one['note']}" for one in pool["sources"] if one["note"]]
    text = (
        "The questions and images belong to their sources, under the sources' licences; nothing "
        "here gives more rights. The hash is that of the usable rows as they were taken."
    )
    return "\n\n".join([_table(heads, rows), text, *(["\n".join(notes)] if notes else [])])


def _filters(ladder: Ladder, pool: Mapping[str, Any]) -> str:
    refused: Counter[str] = Counter()
    for one in pool["sources"]:
        refused.update(one["rejected"])
    left = sum(one["rows"] for one in pool["sources"])
    rows: list[list[Any]] = [["rows of all sources", "", "", left]]

    def drop(reason: str, count: int) -> None:
        nonlocal left
        if count:
            left -= count
            rows.append([reason, _MEANING[reason], count, left])

    for reason, count in refused.items():
        drop(reason, count)
    drop("contaminated", pool["contamination"]["dropped"])
    drop("not_sampled", left - ladder.summary["counts"]["pool"])
    for reason in DROPS:
        drop(reason, ladder.summary["counts"][reason])
    rows.append(["**on the ladder**", "", "", ladder.summary["counts"]["kept"]])
    return (
        _table(["filter", "what it drops", "dropped", "left"], rows)
        + "\n\n`rejected.jsonl`, `contaminated.jsonl` and `dropped.jsonl` name every one."
    )


def _overlap(pool: Mapping[str, Any]) -> str:
    found = pool["contamination"]
    own = [one["name"] for one in pool["sources"] if one["benchmark"]]
    text = []
    if own:
        text.append(
            f"{', '.join(own)} {'is' if len(own) == 1 else 'are'} also used to evaluate: scores "
            "there of a model trained on these questions are not those of unseen items."
        )
    if not found["references"]:
        text.append("No benchmark was compared with (`--against`).")
        return " ".join(text)
    rows = [
        [f"`{one['name']}`", one["items"], one["unread"], one["matched"]]
        for one in found["references"]
    ]
    rule = found["rule"]
    text.append(
        f"A question matches when an image differs from one of the benchmark's in at most "
        f"{rule['max_bits']} of {rule['bits']} bits of a perceptual hash, or when an item holds at "
        f"least {rule['min_share']:.0%} of its runs of {rule['words']} words. Matches were "
        f"{'dropped' if found['mode'] == 'drop' else 'kept'} ({found['questions']} questions). "
        "Cropped, turned and mirrored images, and questions put in other words, are not seen."
    )
    heads = ["benchmark", "items", "unreadable images or rows", "matching questions"]
    return _table(heads, rows) + "\n\n" + " ".join(text)


def _difficulty(ladder: Ladder) -> str:
    levels = ladder.summary["levels"]
    most = max(level["measured"] for level in levels) or 1
    rows = [
        [
            f"{level['difficulty']:.3f}",
            level["measured"],
            level["kept"],
            "" if level["complexity"] is None else f"{level['complexity']:.1f}",
            "█" * math.ceil(24 * level["measured"] / most),
        ]
        for level in levels
    ]
    return _table(["difficulty", "measured", "kept", "mean tokens", ""], rows)


def _stages(ladder: Ladder) -> str:
    rows = [
        [
            number,
            stage["size"],
            f"{stage['difficulty']:.3f}",
            f"{stage['complexity']:.1f}",
            ", ".join(f"{share:.0%} with {level}" for level, share in stage["from"].items()),
        ]
        for number, stage in enumerate(ladder.summary["stages"], start=1)
    ]
    heads = ["stage", "questions", "mean difficulty", "mean tokens", "wrong samples of a question"]
    return _table(heads, rows)


def _kinds(questions: Sequence[Question]) -> str:
    kinds = Counter(q.answer_type for q in questions)
    families = Counter(q.family for q in questions)
    shown = families.most_common(20)
    rest = len(families) - len(shown)
    text = _table(["answer", "questions"], [[k, n] for k, n in kinds.most_common()])
    more = f"\n\n{rest} further kinds." if rest else ""
    return text + "\n\n" + _table(["kind", "questions"], [[k, n] for k, n in shown]) + more


def _made(build: Mapping[str, Any]) -> str:
    prompts = build["settings"]["prompts"]
    rows = [
        ["model", f"`{build['model']}`"],
        ["engine", build["engine"]],
        ["scorer", f"version {build['scorer']}"],
        *([name, version] for name, version in build["versions"].items()),
        *([f"`{name}`", f"`sha256:{digest}`"] for name, digest in build["files"].items()),
    ]
    settings = json.dumps(build["settings"], indent=1)
    names = dict.fromkeys([*(["direct"] if build["settings"]["simple_filter"] else []), *prompts])
    asked = "\n".join(f"- {name}: {SYSTEM_PROMPTS[name]}" for name in names)
    return "\n\n".join(
        [_table(["", ""], rows), f"System prompts:\n\n{asked}", f"```json\n{settings}\n```"]
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    # Kinds of questions come from data sets: no markup, wherever the card is shown.
    return " ".join(str(value).splitlines()).replace("|", "\\|").replace("<", "&lt;")

"""NeuraLadder: training questions measured with the base model, sorted and mixed by difficulty.

The steps are those of Observe-R1 (arXiv 2505.12432): drop what cannot be verified, drop what needs
no reasoning, sample answers, measure difficulty and complexity, drop the trivial and the doubtful,
sort, mix neighbouring levels. Difficulty is measured on a grid of ``samples + 1`` levels, and the
ladder has one stage per level that occurs.

Importing this loads no torch. What it writes is read with `observe.data.rungs`.
"""

import dataclasses
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observe.allocator import keep_freed_memory
from observe.config import LadderConfig
from observe.data.question import Question
from observe.data.rungs import DROPS, Dropped, Ladder, Measured, Rung, save_ladder
from observe.data.sources import load_usable, write_skipped
from observe.errors import InputError
from observe.mapping import from_mapping

if TYPE_CHECKING:
    from observe.model.processor import Processor
    from observe.rollout.endpoint import EndpointProcessor
    from observe.rollout.engine import Engine

Progress = Callable[[int, int, str], None]

SPLIT = "train"
"""The split that is trained on."""


def difficulty(correct_N: Sequence[bool]) -> float:
    """1 - share of N sampled answers that are correct (Observe-R1, NeuraLadder step 4)."""
    return 1 - sum(correct_N) / len(correct_N)


def drop_extremes(
    measured: Sequence[Measured], config: LadderConfig
) -> tuple[list[Measured], list[Dropped]]:
    """Drop the trivial and the doubtful (NeuraLadder step 5); both lists keep the order given.

    ``too_easy``: always solved, and of a complexity below the configured quantile of such
    questions. ``unsolved``: never solved, and not among the configured share with the shortest
    responses.
    """
    solved = [m.complexity for m in measured if m.own_level == 0]
    floor = quantile(solved, config.easy_complexity_quantile) if solved else 0.0
    never = [m for m in measured if not any(m.correct)]
    never.sort(key=lambda m: (m.complexity, m.question))
    doubtful = {m.question for m in never[round(config.hardest_share * len(never)) :]}
    kept, dropped = [], []
    for m in measured:
        if m.own_level == 0 and m.complexity < floor:
            dropped.append(_drop(m, "too_easy"))
        elif m.question in doubtful:
            dropped.append(_drop(m, "unsolved"))
        else:
            kept.append(m)
    return kept, dropped


def _drop(m: Measured, reason: str) -> Dropped:
    return Dropped(
        question=m.question,
        family=m.family,
        reason=reason,
        difficulty=m.difficulty,
        complexity=m.complexity,
    )


def mix(measured: Sequence[Measured], config: LadderConfig) -> list[Rung]:
    """Sort by difficulty and complexity, then mix neighbouring levels (NeuraLadder steps 5, 6).

    Every question is placed exactly once. Stage k has as many questions as level k: two levels at
    most ``neighbours`` apart exchange equally many, so nothing is drawn twice or left over. A
    stage's own share is at least ``own_share``; what it takes from a neighbour halves with each
    level of distance, and is less where the neighbour is small. Mean difficulty rises from stage
    to stage for any ``own_share`` above 1/4: the exchange moves a stage's mean by at most
    (1 - own_share) x 2/3 of a level. Which questions are exchanged is random (``seed``); within a
    stage the levels are interleaved evenly, each in the order of its complexity.
    """
    levels: dict[int, list[Measured]] = {}
    for m in sorted(measured, key=lambda m: (m.own_level, m.complexity, m.question)):
        levels.setdefault(m.own_level, []).append(m)
    rng = random.Random(f"{config.seed}/mix")
    stages: dict[int, list[tuple[float, Measured]]] = {level: [] for level in levels}
    for own, members in levels.items():
        drawn = members.copy()
        rng.shuffle(drawn)
        taken = 0
        for stage in levels:
            if stage == own:
                continue
            share = exchange_share(abs(stage - own), config.own_share, config.neighbours)
            count = math.floor(share * min(len(members), len(levels[stage])))
            stages[stage] += _spread(drawn[taken : taken + count], rng)
            taken += count
        stages[own] += _spread(drawn[taken:], rng)
    rungs: list[Rung] = []
    for level, placed in stages.items():
        for _, m in sorted(placed, key=lambda pair: (pair[0], pair[1].question)):
            rungs.append(Rung(**dataclasses.asdict(m), level=level, order_index=len(rungs)))
    return rungs


def exchange_share(distance: int, own_share: float, neighbours: int) -> float:
    """Share of a stage that comes from the level ``distance`` >= 1 away, on one of its sides.

    The shares of one side halve with each level and sum to half of what is not the stage's own.
    """
    if distance > neighbours:
        return 0.0
    total = sum(0.5**d for d in range(1, neighbours + 1))
    return (1 - own_share) / 2 * 0.5**distance / total


def _spread(members: list[Measured], rng: random.Random) -> list[tuple[float, Measured]]:
    """Members in the order of their complexity at even, jittered positions in [0, 1)."""
    ordered = sorted(members, key=lambda m: (m.complexity, m.question))
    return [((rank + rng.random()) / len(ordered), m) for rank, m in enumerate(ordered)]


def quantile(values: Sequence[float], q: float) -> float:
    """Quantile with linear interpolation between order statistics."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def build_ladder(
    questions: Sequence[Question],
    *,
    engine: "Engine",
    processor: "Processor | EndpointProcessor",
    config: LadderConfig,
    out: Path,
    origin: dict[str, Any],
    progress: Progress = lambda done, total, message: None,
    chunk: int | None = None,
) -> Ladder:
    """Measure the questions with the engine's model and write the ladder into ``out``.

    ``origin`` (source, split, pool, seed) is what `Ladder.questions` reads them again with; it
    also names the ``model``, so that a call never goes on with another model's samples.
    Deterministic from ``config.seed``; responses are written to ``samples.jsonl`` after every
    ``chunk`` questions (null: 128), so a killed call goes on where it stopped. Raises InputError
    when ``config`` is out of range, ``out`` holds samples of something else, or no question is
    left.
    """
    from observe.data.measure import sample_responses

    responses = sample_responses(
        questions,
        engine=engine,
        processor=processor,
        config=config,
        model=origin["model"],
        out=out,
        progress=progress,
        chunk=chunk,
    )
    measured, early = [], []
    for question, response in zip(questions, responses, strict=True):
        samples = response["samples"]
        reason = response["dropped"]
        if reason:
            early.append(Dropped(question=question.id, family=question.family, reason=reason))
            continue
        correct = tuple(sample["correct"] for sample in samples)
        lengths = tuple(sample["tokens"] for sample in samples)
        measured.append(
            Measured(
                question=question.id,
                family=question.family,
                difficulty=difficulty(correct),
                complexity=statistics.fmean(lengths),
                prompts=tuple(sample["prompt"] for sample in samples),
                correct=correct,
                lengths=lengths,
            )
        )
    kept, late = drop_extremes(measured, config)
    if not kept:
        raise InputError(
            f"the ladder is empty: all {len(questions)} questions of {origin['source']} were "
            f"dropped ({_count_reasons([*early, *late])}); use other questions or another model"
        )
    rungs = mix(kept, config)
    position = {question.id: i for i, question in enumerate(questions)}
    dropped = sorted([*early, *late], key=lambda d: position[d.question])
    ladder = Ladder(
        rungs=tuple(rungs),
        dropped=tuple(dropped),
        summary={"origin": origin, **summarise(measured, rungs, dropped, config)},
    )
    save_ladder(ladder, out)
    return ladder


def _count_reasons(dropped: Sequence[Dropped]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in Counter(d.reason for d in dropped).items())


def summarise(
    measured: Sequence[Measured],
    rungs: Sequence[Rung],
    dropped: Sequence[Dropped],
    config: LadderConfig,
) -> dict[str, Any]:
    """The ladder in numbers, as JSON values.

    ``counts`` per step; per level of difficulty how many were ``measured`` and ``kept`` and their
    mean ``complexity`` (of the measured, tokens); per stage its ``size``, mean ``difficulty`` and
    the share taken ``from`` each level; ``correct_lengths``: quantiles in tokens per prompt, over
    the kept questions; ``selected``: the ids on the ladder in its order.
    """
    reasons = Counter(d.reason for d in dropped)
    levels = []
    for level in range(config.samples + 1):
        own = [m for m in measured if m.own_level == level]
        levels.append(
            {
                "difficulty": level / config.samples,
                "measured": len(own),
                "kept": sum(rung.own_level == level for rung in rungs),
                "complexity": statistics.fmean(m.complexity for m in own) if own else None,
            }
        )
    stages = []
    for level in sorted({rung.level for rung in rungs}):
        stage = [rung for rung in rungs if rung.level == level]
        origins = Counter(rung.own_level for rung in stage)
        stages.append(
            {
                "level": level,
                "size": len(stage),
                "difficulty": statistics.fmean(rung.difficulty for rung in stage),
                "complexity": statistics.fmean(rung.complexity for rung in stage),
                "from": {str(k): n / len(stage) for k, n in sorted(origins.items())},
            }
        )
    return {
        "samples": config.samples,
        "prompts": list(config.prompts),
        "counts": {
            "pool": len(rungs) + len(dropped),
            **{reason: reasons[reason] for reason in DROPS},
            "kept": len(rungs),
        },
        "levels": levels,
        "stages": stages,
        "correct_lengths": {p: _length_grid(rungs, p) for p in dict.fromkeys(config.prompts)},
        "selected": [rung.question for rung in rungs],
    }


def _length_grid(rungs: Sequence[Rung], prompt: str) -> dict[str, float] | None:
    lengths = [
        length
        for rung in rungs
        for p, right, length in zip(rung.prompts, rung.correct, rung.lengths, strict=True)
        if right and p == prompt
    ]
    if not lengths:
        return None
    return {f"{i / 20:.2f}": quantile(lengths, i / 20) for i in range(21)}


def stage(
    config: dict[str, Any], out: Path, inputs: dict[str, Path], progress: Progress
) -> dict[str, Any]:
    """The ladder stage: ``config`` = {ladder: LadderConfig, model: path or null, source: str}.

    ``inputs["model"]``, when present, is the folder of the stage that made the model. Returns the
    ladder's counts, mean difficulty and seconds. Raises InputError for bad input.
    """
    from observe.rollout.factory import open_sampler

    started = time.monotonic()
    settings = from_mapping(
        LadderConfig, config["ladder"], source="ladder stage", key="data.ladder"
    )
    source = config["source"]
    questions, skipped = load_usable(source, split=SPLIT, size=settings.pool, seed=settings.seed)
    if skipped:
        write_skipped(skipped, out / "skipped.jsonl")
    keep_freed_memory()
    model = inputs["model"] / "checkpoint" if "model" in inputs else config["model"]
    sampler = open_sampler(model, settings.sampler)
    ladder = build_ladder(
        questions,
        engine=sampler.engine,
        processor=sampler.processor,
        config=settings,
        out=out,
        origin={
            "source": source,
            "split": SPLIT,
            "pool": settings.pool,
            "seed": settings.seed,
            "model": config["model"],
        },
        progress=progress,
    )
    sampler.close()
    return {
        "counts": ladder.summary["counts"],
        "skipped_questions": len(skipped),
        "mean_difficulty": statistics.fmean(rung.difficulty for rung in ladder.rungs),
        "seconds": time.monotonic() - started,
    }

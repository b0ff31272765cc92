"""Sample the base model's answers to a pool of questions, in chunks that survive a kill."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observe.config import LadderConfig
from observe.data.question import Question
from observe.data.sources import verifiable
from observe.errors import InputError
from observe.mapping import to_mapping
from observe.prompts import build_messages
from observe.rollout.engine import Completion, SamplingParams
from observe.scoring import ScoreRequest, score_many

if TYPE_CHECKING:
    from observe.model.processor import Processor
    from observe.rollout.engine import Engine

CHUNK = 128
"""Questions sampled between two writes: what a kill can cost at most."""


def sample_responses(
    questions: Sequence[Question],
    *,
    engine: "Engine",
    processor: "Processor",
    config: LadderConfig,
    model: str | None,
    out: Path,
    progress: Callable[[int, int, str], None],
) -> list[dict[str, Any]]:
    """One record per question (Observe-R1, NeuraLadder steps 1 to 3).

    A record has ``question``, ``dropped`` (null or the reason: ``unverifiable``, ``simple``, or
    ``unjudged`` when the scorer could not decide on a sample), ``direct`` (the answer without
    reasoning) and ``samples``, each {prompt, text, tokens, truncated, correct}. Records are
    appended to ``out/samples.jsonl`` after every chunk. A question's seeds depend on the config's
    seed, its id and the prompt alone.
    """
    path = out / "samples.jsonl"
    header = {
        "config": to_mapping(config),
        "model": model,
        "questions": _fingerprint(questions),
    }
    records = _resume(path, header, len(questions))
    for start in range(len(records), len(questions), CHUNK):
        progress(start, len(questions), "sampling")
        chunk = questions[start : start + CHUNK]
        sampled = _sample_chunk(chunk, engine, processor, config)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in sampled)
            file.flush()
            os.fsync(file.fileno())
        records += sampled
    progress(len(questions), len(questions), "sampling")
    return records


def _resume(path: Path, header: dict[str, Any], total: int) -> list[dict[str, Any]]:
    """The records of whole chunks in ``path``, which is cut back to them, or begun."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    if not whole:
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return []
    if json.loads(whole[0]) != header:
        raise InputError(
            f"{path}: holds samples of other questions, settings or another model; "
            "give another --out or delete the file"
        )
    # Only whole chunks: engines batch by chunk, and batches decide the last bit of a probability.
    done = len(whole) - 1
    kept = 1 + (done if done == total else done // CHUNK * CHUNK)
    with path.open("r+b") as file:
        file.truncate(sum(map(len, whole[:kept])))
    return [json.loads(line) for line in whole[1:kept]]


def _fingerprint(questions: Sequence[Question]) -> str:
    text = "\n".join(f"{q.id}\t{q.text}\t{q.gold}" for q in questions)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sample_chunk(
    chunk: Sequence[Question], engine: "Engine", processor: "Processor", config: LadderConfig
) -> list[dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {
        q.id: {
            "question": q.id,
            "dropped": None if ok else "unverifiable",
            "direct": None,
            "samples": [],
        }
        for q, ok in zip(chunk, verifiable(list(chunk)), strict=True)
    }

    def draw(prompt: str, n: int, temperature: float) -> None:
        """Sample the questions that are still in, and file the judged responses."""
        rest = [q for q in chunk if records[q.id]["dropped"] is None]
        groups = engine.generate(
            [
                processor.sample(
                    build_messages(prompt, q.text, q.options, len(q.images)), q.open_images()
                )
                for q in rest
            ],
            SamplingParams(max_new_tokens=config.max_new_tokens, temperature=temperature, n=n),
            [_seed(config.seed, prompt, q.id) for q in rest],
        )
        judged = _judge(rest, groups, prompt)
        for question, samples in zip(rest, judged, strict=True):
            if prompt == "direct":
                records[question.id]["direct"] = samples[0]
                if samples[0]["correct"]:
                    records[question.id]["dropped"] = "simple"
            else:
                records[question.id]["samples"] += samples

    if config.simple_filter:
        draw("direct", 1, 0.0)
    turns = Counter(config.prompts[i % len(config.prompts)] for i in range(config.samples))
    for prompt, n in turns.items():
        draw(prompt, n, config.temperature)
    for record in records.values():
        if any(sample["correct"] is None for sample in record["samples"]):
            record["dropped"] = "unjudged"
    return list(records.values())


def _judge(
    questions: Sequence[Question], groups: Sequence[Sequence[Completion]], prompt: str
) -> list[list[dict[str, Any]]]:
    """The completions of each question as records with their verdicts."""
    verdicts = iter(
        score_many(
            [
                ScoreRequest(
                    response=completion.text,
                    gold=question.gold,
                    answer_type=question.answer_type,
                    options=question.options,
                )
                for question, group in zip(questions, groups, strict=True)
                for completion in group
            ]
        )
    )
    return [
        [
            {
                "prompt": prompt,
                "text": completion.text,
                "tokens": len(completion.token_ids),
                "truncated": completion.truncated,
                "correct": next(verdicts).correct,
            }
            for completion in group
        ]
        for group in groups
    ]


def _seed(seed: int, prompt: str, question_id: str) -> int:
    digest = hashlib.sha256(f"{seed}/{prompt}/{question_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big")

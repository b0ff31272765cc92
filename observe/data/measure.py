"""Sample the base model's answers to a pool of questions, in chunks that survive a kill."""

import hashlib
import itertools
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
    from observe.rollout.endpoint import EndpointProcessor
    from observe.rollout.engine import Engine

CHUNK = 128
"""Questions sampled between two writes, unless told otherwise: what a kill can cost at most."""


def sample_responses(
    questions: Sequence[Question],
    *,
    engine: "Engine",
    processor: "Processor | EndpointProcessor",
    config: LadderConfig,
    model: str | None,
    out: Path,
    progress: Callable[[int, int, str], None],
    chunk: int | None = None,
    shard: tuple[int, int] = (1, 1),
) -> list[dict[str, Any]]:
    """One record per question (Observe-R1, NeuraLadder steps 1 to 3).

    A record has ``question``, ``dropped`` (null or the reason: ``unverifiable``, ``simple``, or
    ``unjudged`` when the scorer could not decide on a sample), ``direct`` (the answer without
    reasoning) and ``samples``, each {prompt, text, tokens, truncated, correct}. Records are
    appended to ``out/samples.jsonl`` after every ``chunk`` questions (null: `CHUNK`). A question's
    seeds depend on the config's seed, its id and the prompt alone.

    ``shard`` (k, n) samples every n-th chunk, from the k-th on, into a file of its own, and returns
    those records alone. What any file in ``out`` holds of the same questions, settings and model is
    not sampled again: a call without ``shard`` merges the shards, bit for bit to what one call
    would have sampled.
    """
    number, shards = shard
    chunk = chunk or CHUNK
    own = [
        questions[start : start + chunk]
        for start in range((number - 1) * chunk, len(questions), shards * chunk)
    ]
    name = "samples.jsonl" if shards == 1 else f"samples-{number}-of-{shards}.jsonl"
    path = out / name
    header: dict[str, Any] = {
        "config": to_mapping(config),
        "model": model,
        "questions": _fingerprint(questions),
    }
    if chunk != CHUNK:  # Files of the usual size do not name it.
        header["chunk"] = chunk
    records = _resume(path, header, own)
    sampled = _sampled_elsewhere(out, path, header)
    total = sum(map(len, own))
    for group in own[_whole_chunks(own, len(records)) :]:
        progress(len(records), total, "sampling")
        if all(q.id in sampled for q in group):
            found = [sampled[q.id] for q in group]
        else:
            found = _sample_chunk(group, engine, processor, config)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in found)
            file.flush()
            os.fsync(file.fileno())
        records += found
    progress(total, total, "sampling")
    return records


def _resume(
    path: Path, header: dict[str, Any], chunks: Sequence[Sequence[Question]]
) -> list[dict[str, Any]]:
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
    kept = 1 + sum(map(len, chunks[: _whole_chunks(chunks, len(whole) - 1)]))
    with path.open("r+b") as file:
        file.truncate(sum(map(len, whole[:kept])))
    return [json.loads(line) for line in whole[1:kept]]


def _whole_chunks(chunks: Sequence[Sequence[Question]], records: int) -> int:
    """How many chunks so many records fill."""
    ends = itertools.accumulate(map(len, chunks))
    return sum(end <= records for end in ends)


def _sampled_elsewhere(out: Path, path: Path, header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Question -> its record in the files of other shards that were begun with the same header.

    They may be written to meanwhile: a torn last line is no record.
    """
    found = {}
    for other in sorted(out.glob("samples*.jsonl")):
        lines = other.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        if other == path or not whole or json.loads(whole[0]) != header:
            continue
        for line in whole[1:]:
            record = json.loads(line)
            found[record["question"]] = record
    return found


def _fingerprint(questions: Sequence[Question]) -> str:
    text = "\n".join(f"{q.id}\t{q.text}\t{q.gold}" for q in questions)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sample_chunk(
    chunk: Sequence[Question],
    engine: "Engine",
    processor: "Processor | EndpointProcessor",
    config: LadderConfig,
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
                "tokens": completion.num_tokens,
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

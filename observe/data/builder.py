"""A ladder from data sets: pool, samples (in shards, if asked), ladder, data card, export."""

import dataclasses
import importlib.metadata
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from observe.config import LadderConfig
from observe.data.card import data_card
from observe.data.export import check_folder, export_ladder
from observe.data.ladder import SPLIT, Progress, build_ladder
from observe.data.pool import prepare, write_whole
from observe.data.rows import parse_source
from observe.data.rungs import POOL
from observe.data.sources import load_questions
from observe.errors import InputError
from observe.fingerprint import file_digest, fingerprint_model
from observe.mapping import to_mapping
from observe.scoring import VERSION

if TYPE_CHECKING:
    from observe.rollout.factory import Sampler


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is built from what."""

    sources: tuple[str, ...]
    """See `observe.data.rows.parse_source`."""
    model: Path
    """Folder of the model that answers."""
    ladder: LadderConfig
    """``pool`` is the most that is drawn; fewer usable questions are all taken."""
    against: tuple[str, ...] = ()
    contaminated: Literal["drop", "report", "stop"] = "drop"
    on_bad: Literal["skip", "stop"] = "skip"
    shard: tuple[int, int] = (1, 1)
    chunk: int = 32
    """Questions sampled between two writes."""
    export: Path | None = None


def build_from_sources(
    task: Task,
    out: Path,
    *,
    progress: Progress = lambda done, total, message: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Do one shard's part of the sampling, or, without shards, all that is not done, to the end.

    Goes on with what ``out`` holds. Returns ``counts`` (null for a shard), ``rejected``,
    ``contaminated``, ``sampled`` and ``seconds``. Raises InputError for bad input, and when ``out``
    holds something else.
    """
    started = time.monotonic()
    number, shards = task.shard
    if not 1 <= number <= shards:
        raise InputError(f"--shard: expected K/N with 1 <= K <= N, got {number}/{shards}")
    if task.chunk < 1:
        raise InputError(f"--chunk: expected at least 1, got {task.chunk}")
    if task.export:
        check_folder(task.export)
    if not (task.model / "config.json").is_file():
        raise InputError(f"{task.model}: not a Hugging Face model folder (no config.json)")
    sources = [parse_source(text) for text in task.sources]
    out.mkdir(parents=True, exist_ok=True)
    pool = prepare(
        sources,
        out,
        on_bad=task.on_bad,
        against=task.against,
        contaminated=task.contaminated,
        say=say,
    )
    settings = dataclasses.replace(task.ladder, pool=min(task.ladder.pool, pool["questions"]))
    place = (out / POOL).absolute()
    questions = load_questions(place, split=SPLIT, size=settings.pool, seed=settings.seed)
    model = _Model(task)
    fingerprint = fingerprint_model(task.model)
    result = {
        "counts": None,
        "rejected": sum(sum(one["rejected"].values()) for one in pool["sources"]),
        "contaminated": pool["contamination"]["questions"],
        "pool": len(questions),
    }
    if shards > 1:
        from observe.data.measure import sample_responses

        records = sample_responses(
            questions,
            engine=model,
            processor=model,  # type: ignore[arg-type]
            config=settings,
            model=fingerprint,
            out=out,
            progress=progress,
            chunk=task.chunk,
            shard=task.shard,
        )
        model.close()
        return {**result, "sampled": len(records), "seconds": time.monotonic() - started}
    ladder = build_ladder(
        questions,
        engine=model,
        processor=model,  # type: ignore[arg-type]
        config=settings,
        out=out,
        origin={
            "source": str(place),
            "split": SPLIT,
            "pool": settings.pool,
            "seed": settings.seed,
            "model": fingerprint,
        },
        progress=progress,
        chunk=task.chunk,
    )
    model.close()
    chosen = ladder.questions()
    build = {
        "model": f"{task.model.name}, {fingerprint}",
        "engine": f"{settings.sampler.engine}, {settings.sampler.dtype}",
        "scorer": VERSION,
        "settings": to_mapping(settings),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "datasets")
        },
        "files": {
            name: file_digest(out / name) for name in (POOL, "samples.jsonl", "ladder.jsonl")
        },
    }
    card = data_card(ladder, chosen, pool, build)
    write_whole(out / "card.md", card)
    if task.export:
        licences = {one["name"]: one["licence"] for one in pool["sources"]}
        export_ladder(ladder, chosen, licences, card, task.export)
    return {
        **result,
        "counts": ladder.summary["counts"],
        "sampled": len(questions),
        "mean_difficulty": statistics.fmean(rung.difficulty for rung in ladder.rungs),
        "seconds": time.monotonic() - started,
    }


class _Model:
    """Engine and processor of a model that is loaded when it is first asked for something.

    Shards that have sampled all are merged without it.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._sampler: Sampler | None = None

    def generate(self, *arguments: Any, **named: Any) -> Any:
        """See Engine.generate."""
        return self._opened().engine.generate(*arguments, **named)

    def sync(self) -> None:
        """Nothing to do: the weights do not change."""

    def sample(self, *arguments: Any, **named: Any) -> Any:
        """See Processor.sample."""
        return self._opened().processor.sample(*arguments, **named)

    def close(self) -> None:
        """Give back the engine's memory, if it was ever asked."""
        if self._sampler is not None:
            self._sampler.close()

    def _opened(self) -> "Sampler":
        if self._sampler is None:
            from observe.allocator import keep_freed_memory
            from observe.rollout.factory import open_sampler

            keep_freed_memory()
            self._sampler = open_sampler(self._task.model, self._task.ladder.sampler)
        return self._sampler

"""The tables that an evaluation leaves in its folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.judging import Item, Sample

if TYPE_CHECKING:
    from benchmarks.rows import Loaded
    from observe.rollout.engine import Completion


def write(
    out: Path,
    suites: dict[str, list[str]],
    samples: dict[str, list[Sample]],
    items: dict[str, list[Item]],
    completions: Mapping[tuple[str, int], Sequence["Completion"]],
    *,
    num_images: int,
) -> None:
    """Write items.jsonl, responses.jsonl and questions.jsonl.

    `completions` are the engine's by benchmark and document. Images of the first `num_images` items
    of each benchmark go beside the tables.
    """
    _write_jsonl(
        out / "items.jsonl",
        (
            {"suite": suite, **item}
            for suite, names in suites.items()
            for task in names
            for item in items[task]
        ),
    )
    responses, questions = [], []
    for task, group in samples.items():
        for number, sample in enumerate(group):
            doc = sample["doc"]
            key = {"benchmark": task, "item": doc["id"]}
            image = None
            if number < num_images and doc["images"]:
                image = f"images/{task}/{number:04d}.png"
                (out / image).parent.mkdir(parents=True, exist_ok=True)
                _write_png(out / image, doc["images"][0])
            responses += [
                {**key, "attempt": attempt, "response": completion.text}
                for attempt, completion in enumerate(completions[task, sample["doc_id"]])
            ]
            questions.append(
                {
                    **key,
                    "question": doc["text"],
                    "options": doc["options"],
                    "gold": doc["gold"],
                    "image": image,
                }
            )
    _write_jsonl(out / "responses.jsonl", responses)
    _write_jsonl(out / "questions.jsonl", questions)


def _write_png(path: Path, data: bytes) -> None:
    from observe.data.images import decode_image

    if data.startswith(b"\x89PNG"):
        path.write_bytes(data)
    else:
        decode_image(data, path.name).save(path)


def write_controls(
    out: Path,
    items: dict[str, list[Item]],
    completions: Mapping[tuple[str, int], Sequence["Completion"]],
) -> None:
    """Write responses under conditions other than the normal one, if there are any.

    They are a table of their own, control_responses.jsonl. `items` go by ``benchmark@condition``,
    `completions` by that and document. Without any, a table of an earlier evaluation is removed.
    """
    path = out / "control_responses.jsonl"
    if not items:
        path.unlink(missing_ok=True)
        return
    texts = {
        name: [one.text for (key, _), group in completions.items() if key == name for one in group]
        for name in items
    }
    _write_jsonl(
        path,
        (
            {**{key: item[key] for key in ("benchmark", "condition", "item", "attempt")}}
            | {"response": response}
            for name, rows in items.items()
            for item, response in zip(rows, texts[name], strict=True)
        ),
    )


def write_skipped(out: Path, data: Mapping[str, "Loaded"]) -> None:
    """Write skipped.jsonl, the rows of public benchmarks that were left out, if there are any.

    Without any, that of an earlier evaluation is removed.
    """
    skipped = [
        {"benchmark": task, "item": one.question, "reason": one.reason, "detail": one.detail}
        for task, loaded in data.items()
        for one in loaded.skipped
    ]
    if skipped:
        _write_jsonl(out / "skipped.jsonl", skipped)
    else:
        (out / "skipped.jsonl").unlink(missing_ok=True)


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

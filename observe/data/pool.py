"""The pool that a ladder is built from: rows of any data sets, checked, in the project's own form.

``questions.jsonl`` and ``images/`` hold what can be used (read with `observe.data.sources`),
``rejected.jsonl`` every row that cannot, with its reason, ``pool.json`` where all came from.
"""

import dataclasses
import hashlib
import io
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from observe.data.contamination import RULE, find_matches
from observe.data.images import ImageTooLarge, decode_image
from observe.data.question import Question, from_record
from observe.data.recipes import Rejected, Row, read_row
from observe.data.rows import Folder, Source, image_bytes, raw_rows
from observe.data.sources import ANSWER_TYPES, VISION_TOKEN, verifiable
from observe.errors import InputError
from observe.scoring import infer_type

REASONS = (
    "malformed",
    "other_split",
    "no_text",
    "no_gold",
    "several_golds",
    "options",
    "no_image",
    "outside",
    "image",
    "bomb",
    "vision_token",
    "duplicate_id",
    "duplicate",
    "unverifiable",
)
"""Why a row is not in the pool: it is not readable as its data set's schema; of another split; has
no question, no gold, several, or a gold that is none of its options; its image is missing, lies
outside of the data set's folder, cannot be read, or is too large to be decoded; its text holds the
model's image tokens; its id, or all that it asks, is taken; the scorer cannot judge its gold."""

_BLOCK = 512


def prepare(
    sources: Sequence[Source],
    out: Path,
    *,
    on_bad: Literal["skip", "stop"] = "skip",
    against: Sequence[str] = (),
    contaminated: Literal["drop", "report", "stop"] = "drop",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Check the rows of all sources and write the pool into ``out``; what is there already is kept.

    Questions that the benchmarks ``against`` ask too (see `observe.data.contamination`) are named
    in ``contaminated.jsonl`` and dropped, kept, or an error. Returns what ``pool.json`` holds.
    Calls at the same time (shards) write the same files. ``say`` is told how far it is. Raises
    InputError when ``out`` holds another pool, a source cannot be read, no question is left, or,
    with ``on_bad`` stop, at the first rejected row.
    """
    described = {
        "sources": [
            [s.name, str(s.place.absolute()) if s.place else s.recipe.hub] for s in sources
        ],
        "against": list(against),
        "contaminated": contaminated,
    }
    if (made := out / "pool.json").exists():
        pool = json.loads(made.read_text(encoding="utf-8"))
        if pool["from"] != described:
            raise InputError(
                f"{made}: this folder holds the pool of other sources or benchmarks "
                f"({json.dumps(pool['from'])}); give another --out"
            )
        return pool
    if len({source.name for source in sources}) < len(sources):
        raise InputError("--sources: two have the same name; ids of questions would be ambiguous")
    (out / "images").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    told = []
    for source in sources:
        usable, refused = _read(source, out, on_bad, say)
        if not usable and not refused:
            raise InputError(f"--sources: {source.name}: {source.place} holds no row")
        records += usable
        rejected += refused
        told.append(_describe(source, usable, refused))
    matches, references = find_matches(records, out, against, say)
    shared = {match.question for match in matches}
    if matches and contaminated == "stop":
        first = matches[0]
        raise InputError(
            f"--against: {len(shared)} questions are asked there, too, e.g. {first.question} by "
            f"{first.item} of {first.reference}; --contaminated drop leaves them out"
        )
    if contaminated == "drop":
        records = [record for record in records if record["id"] not in shared]
    write_lines(out / "rejected.jsonl", rejected)
    write_lines(out / "contaminated.jsonl", [dataclasses.asdict(match) for match in matches])
    if not records:
        reasons = dict(Counter(one["reason"] for one in rejected))
        raise InputError(
            f"--sources: no question is left: {reasons or 'none'} rejected, {len(shared)} "
            f"contaminated; {out / 'rejected.jsonl'} names them"
        )
    write_lines(out / "questions.jsonl", records)
    pool = {
        "from": described,
        "sources": told,
        "contamination": {
            "mode": contaminated,
            "questions": len(shared),
            "dropped": len(shared) if contaminated == "drop" else 0,
            "references": references,
            "rule": RULE,
        },
        "questions": len(records),
    }
    write_whole(made, json.dumps(pool, indent=1) + "\n")
    return pool


def _describe(
    source: Source, usable: Sequence[Mapping[str, Any]], refused: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "name": source.name,
        "hub": source.recipe.hub,
        "place": str(source.place) if source.place else None,
        "split": source.recipe.split,
        "licence": source.recipe.licence,
        "benchmark": source.recipe.benchmark,
        "note": source.recipe.note,
        "rows": len(usable) + len(refused),
        "rejected": dict(Counter(one["reason"] for one in refused)),
        "usable": len(usable),
        "sha256": hashlib.sha256(json.dumps(usable, sort_keys=True).encode()).hexdigest(),
    }


def _read(
    source: Source, out: Path, on_bad: Literal["skip", "stop"], say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The usable records of a source, their images saved, and the rejected rows."""
    records: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    ids: set[str] = set()
    contents: dict[str, str] = {}

    def refuse(where: str, name: str, reason: str, detail: str) -> None:
        if on_bad == "stop" and reason != "other_split":
            raise InputError(f"{where}: {name or 'row'}: {reason}: {detail}")
        rejected.append(
            {"source": source.name, "where": where, "id": name, "reason": reason, "detail": detail}
        )

    def keep(block: list[tuple[str, Row, Any]]) -> None:
        """Check what needs pixels or the scorer, many at a time; in the order given."""
        with ThreadPoolExecutor() as threads:
            saved = list(threads.map(lambda one: _try_images(one[1], one[2], out), block))
        ready = []
        for (where, row, _), images in zip(block, saved, strict=True):
            if isinstance(images, Rejected):
                refuse(where, row.id, images.reason, images.detail)
                continue
            content = json.dumps([row.text, row.options, images])
            if content in contents:
                refuse(where, row.id, "duplicate", f"asks what {contents[content]} asks")
                continue
            contents[content] = row.id
            ready.append((where, row, _record(source, row, images)))
        judged = verifiable([from_record(record, out) for _, _, record in ready])
        for (where, row, record), ok in zip(ready, judged, strict=True):
            if ok:
                records.append(record)
            else:
                detail = f"gold {row.gold!r} cannot be judged as {record['answer_type']}"
                refuse(where, row.id, "unverifiable", detail)

    block: list[tuple[str, Row, Any]] = []
    for number, (where, raw, folder) in enumerate(raw_rows(source)):
        row = None
        try:
            if isinstance(raw, Rejected):
                raise raw
            row = read_row(source.recipe, raw, number)
            if row.id in ids:
                raise Rejected("duplicate_id", f"id {row.id!r} is taken")
            ids.add(row.id)
            block.append((where, _checked(row), folder))
        except Rejected as error:
            refuse(where, row.id if row else "", error.reason, error.detail)
        if (number + 1) % _BLOCK == 0:
            keep(block)
            block = []
            if (number + 1) % (10 * _BLOCK) == 0:
                say(f"{source.name}: {number + 1} rows read, {len(rejected)} rejected")
    keep(block)
    say(f"{source.name}: {len(records)} questions, {len(rejected)} rows rejected")
    return records, rejected


def _checked(row: Row) -> Row:
    """The row with a letter for its gold where it has options, or Rejected."""
    if not isinstance(row.text, str) or not row.text.strip():
        raise Rejected("no_text", "the question is empty")
    if not isinstance(row.gold, str) or not row.gold.strip():
        raise Rejected("no_gold", "the gold answer is empty")
    if not all(isinstance(option, str) and option.strip() for option in row.options):
        raise Rejected("options", "an option is empty or no text")
    if found := VISION_TOKEN.search(" ".join((row.text, *row.options))):
        raise Rejected("vision_token", f"the text holds {found[0]}, which stands for pixels")
    texts = (row.id, row.text, row.gold, *row.options, row.family or "", row.cluster or "")
    if any("\ud800" <= c <= "\udfff" for text in texts for c in text):
        raise Rejected("malformed", "the text holds half of a character (a lone surrogate)")
    if not row.images:
        raise Rejected("no_image", "it names no image")
    if row.answer_type is not None and row.answer_type not in ANSWER_TYPES:
        raise Rejected("malformed", f"answer_type {row.answer_type!r}")
    gold = row.gold.strip()
    if not row.options:
        kind = row.answer_type or infer_type(gold, None)
        if kind == "choice":
            raise Rejected("options", f"the gold {gold!r} is a letter, but there are no options")
        return dataclasses.replace(row, gold=gold, answer_type=kind)
    letters = [chr(ord("A") + i) for i in range(len(row.options))]
    bare = gold.strip("()").strip(".").strip()
    if bare.upper() in letters:
        return dataclasses.replace(row, gold=bare.upper(), answer_type="choice")
    same = [i for i, option in enumerate(row.options) if option.strip() == gold]
    if len(same) == 1:
        return dataclasses.replace(row, gold=letters[same[0]], answer_type="choice")
    raise Rejected("options", f"the gold {gold!r} is none of {', '.join(letters)}, nor their texts")


def _record(source: Source, row: Row, images: list[str]) -> dict[str, Any]:
    question = Question(
        id=f"{source.name}/{row.id}",
        text=row.text.strip(),
        gold=row.gold,
        answer_type=row.answer_type or "text",
    )
    record = {
        "id": question.id,
        "text": question.text,
        "gold": question.gold,
        "answer_type": question.answer_type,
        "options": list(row.options),
        "images": images,
        "family": row.family or source.name,
        "level": row.level,
        "cluster": f"{source.name}/{row.cluster}" if row.cluster else "",
        "metadata": dict(row.metadata),
    }
    return {key: value for key, value in record.items() if value}


def _try_images(row: Row, folder: Folder, out: Path) -> list[str] | Rejected:
    try:
        return [_save_image(image, folder, out) for image in row.images]
    except Rejected as error:
        return error


def _save_image(image: Any, folder: Folder, out: Path) -> str:
    """Check an image and copy its bytes into the pool, named by their hash; its name there."""
    data, name = image_bytes(image, folder)
    try:
        decode_image(data, name)
    except ImageTooLarge as error:
        raise Rejected("bomb", str(error)) from None
    except InputError as error:
        raise Rejected("image", str(error)) from None
    kind = (Image.open(io.BytesIO(data)).format or "png").lower()
    suffix = {"jpeg": "jpg", "mpo": "jpg"}.get(kind, kind)
    target = f"images/{hashlib.sha256(data).hexdigest()[:24]}.{suffix}"
    if not (out / target).exists():
        write_whole(out / target, data)
    return target


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_whole(path, "".join(lines))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that no reader, and no kill, ever sees a part of it."""
    # A lone surrogate in what a row held becomes its escape, which JSON reads.
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    part.write_bytes(data)
    os.replace(part, path)

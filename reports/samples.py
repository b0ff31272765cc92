"""Which completions to show side by side, and how to show hostile text safely."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from reports.analysis import Row
from reports.tables import TableError, Tables, plain

EACH = {"fixed": 40, "broken": 40, "never right": 12}
"""Questions shown of each kind."""
BEGINNING, END = 3000, 1000
"""Characters shown of a response: its answer stands at the end."""
LONGEST_QUESTION = 4000
WIDEST = 640
"""Pixels of an image's longer side; larger images are made smaller."""
HEAVY = 100_000
"""Bytes of an image that is shown as it is."""
BUDGET = 24_000_000
"""Bytes of images and texts, so that a page stays below 50 MB."""
MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
TAG = re.compile(r"(</?(?:observe|think|answer)>)")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A piece of a response: a tag, or text inside the innermost open tag."""

    text: str
    kind: str
    """`tag`, `observe`, `think`, `answer`, or `outside`."""


def segments(response: str) -> list[Segment]:
    """Split a response at its tags. Nothing is dropped: the texts join to the response."""
    pieces, inside = [], ["outside"]
    for text in TAG.split(response):
        if not text:
            continue
        if TAG.fullmatch(text) is None:
            pieces.append(Segment(text=text, kind=inside[-1]))
            continue
        name = text.strip("</>")
        if text.startswith("</"):
            if name in inside:
                while inside.pop() != name:
                    pass
        else:
            inside.append(name)
        pieces.append(Segment(text=text, kind="tag"))
    return pieces


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Questions chosen to be shown, and how many there were to choose from."""

    rows: list[Row]
    counts: list[Row]
    """[{kind, total, shown}]."""


def samples(tables: Tables) -> Samples | None:
    """Questions that the reference fixed or broke against the base, and some never right.

    None when responses or questions were not recorded. Those whose image was recorded come first:
    without it nobody can judge. Beyond that the choice is by a hash of the item's name, so it
    is even over benchmarks and the same every time; it ends before the page is too large.
    """
    base = tables.base_of(tables.reference) if tables.runs_of(tables.reference) else None
    if tables.responses is None or tables.questions is None or base is None:
        return None
    arms = list(dict.fromkeys(a for a in (base, tables.control, tables.reference) if a))
    runs = {arm: tables.runs_of(arm)[0] for arm in arms}
    items = plain(tables.items[tables.items["run"].isin(runs.values())])
    items = items[items["attempt"] == items["attempt"].min()]
    scores = items.pivot_table(index=["benchmark", "item"], columns="run", values="score")
    scores = scores.reindex(columns=list(runs.values())).dropna()
    before, after = scores[runs[base]], scores[runs[tables.reference]]
    kinds = {
        "fixed": (before < 0.5) & (after >= 0.5),
        "broken": (before >= 0.5) & (after < 0.5),
        "never right": (scores < 0.5).all(axis=1),
    }
    questions = tables.questions.astype({"benchmark": str, "item": str})
    questions = questions.drop_duplicates(["benchmark", "item"]).set_index(["benchmark", "item"])
    pictured = set(questions.index[questions["image"].notna()])
    rows = items.set_index(["run", "benchmark", "item"])
    texts = tables.responses.of(list(runs.values()))["response"]
    found: list[Row] = []
    counts: list[Row] = []
    left = BUDGET
    for kind, mask in kinds.items():
        keys = sorted(
            scores.index[mask],
            key=lambda key: (key not in pictured, _hash(f"{key[0]}/{key[1]}")),
        )
        counts.append({"kind": kind, "total": len(keys), "shown": 0})
        for key in [key for key in keys if key in questions.index][: EACH[kind]]:
            entry = _question(tables.folder, questions.loc[key]) | {"kind": kind}
            entry |= {"benchmark": key[0], "item": key[1]}
            entry["id"] = f"item-{_hash(f'{key[0]}/{key[1]}')[:12]}"
            entry["answers"] = [
                _answer(arm, rows.loc[(run, *key)], texts.get((run, *key)))
                for arm, run in runs.items()
            ]
            left -= len(entry["image"] or "") + len(arms) * 2 * (BEGINNING + END)
            if left < 0:
                break
            found.append(entry)
            counts[-1]["shown"] += 1
    return Samples(rows=found, counts=counts)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _question(folder: Path, row: pd.Series) -> Row:
    options = row["options"]
    if isinstance(options, str):
        try:
            options = json.loads(options) if options else None
        except ValueError as error:
            raise TableError(
                folder / "questions.parquet", "options", f"not JSON: {error}"
            ) from error
    image = row["image"]
    return {
        "question": _plain(row["question"])[:LONGEST_QUESTION],
        "options": [str(option) for option in options]
        if pd.api.types.is_list_like(options)
        else [],
        "gold": _plain(row["gold"]),
        "image": image_uri(folder, str(image)) if isinstance(image, str) and image else None,
    }


def image_uri(folder: Path, name: str) -> str:
    """An image of the results folder as a data URI.

    Raises TableError when it is missing, of an unknown kind, or outside the folder.
    """
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise TableError(folder / "questions.parquet", f"image = {name}", "lies outside the folder")
    if file.suffix.lower() not in MEDIA:
        raise TableError(file, "image", f"expected one of {', '.join(MEDIA)}")
    if not file.exists():
        raise TableError(file, "missing", "questions.parquet names this image; collect it again")
    data, media = file.read_bytes(), MEDIA[file.suffix.lower()]
    if len(data) > HEAVY:
        data, media = _smaller(file), MEDIA[".png"]
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def _smaller(file: Path) -> bytes:
    """A PNG of the image, at most WIDEST pixels wide and high."""
    try:
        with Image.open(file) as image:
            image.draft("RGB", (2 * WIDEST, 2 * WIDEST))
            shown = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise TableError(file, "image", f"cannot be read ({error}); collect it again") from error
    shown.thumbnail((WIDEST, WIDEST))
    buffer = io.BytesIO()
    shown.quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _plain(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and pd.isna(value)) else str(value)


def _answer(arm: str, row: pd.Series, text: Any) -> Row:
    tokens = row.get("response_tokens")
    response = _plain(text)
    return {
        "arm": arm,
        "correct": bool(row["score"] >= 0.5),
        "answer": _plain(row.get("answer"))[:200],
        "reason": _plain(row.get("reason"))[:200],
        "tokens": None if tokens is None or pd.isna(tokens) else int(tokens),
        "recorded": text is not None,
        "segments": ends(segments(response), len(response)),
    }


def ends(pieces: list[Segment], length: int) -> list[Segment]:
    """The beginning and the end of a response, with what was left out between them said so."""
    if length <= BEGINNING + END:
        return pieces
    first, last = [], []
    place = 0
    for piece in pieces:
        kept = piece.text[: max(0, BEGINNING - place)]
        if kept:
            first.append(Segment(text=kept, kind=piece.kind))
        kept = piece.text[max(0, length - END - place) :]
        if kept:
            last.append(Segment(text=kept, kind=piece.kind))
        place += len(piece.text)
    left_out = f" … {length - BEGINNING - END:,} characters left out … "
    return [*first, Segment(text=left_out, kind="cut"), *last]

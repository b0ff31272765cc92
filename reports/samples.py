"""Which completions to show side by side, and how to show hostile text safely."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reports.analysis import Row
from reports.tables import TableError, Tables

EACH = 4
"""Questions shown of each kind (fixed, broken, never right)."""
LONGEST = 4000
"""Characters shown of a response."""
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


def samples(tables: Tables) -> list[Row] | None:
    """Questions that the reference fixed or broke against the base, and some never right.

    None when responses or questions were not recorded. The choice is by a hash of the item's name,
    so it is even over benchmarks and the same every time.
    """
    base = tables.base_of(tables.reference) if tables.runs_of(tables.reference) else None
    if tables.responses is None or tables.questions is None or base is None:
        return None
    arms = list(dict.fromkeys(a for a in (base, tables.control, tables.reference) if a))
    runs = {arm: tables.runs_of(arm)[0] for arm in arms}
    items = tables.items[tables.items["run"].isin(runs.values())]
    items = items[items["attempt"] == items["attempt"].min()]
    scores = items.pivot_table(index=["benchmark", "item"], columns="run", values="score")
    scores = scores.reindex(columns=list(runs.values())).dropna()
    before, after = scores[runs[base]], scores[runs[tables.reference]]
    kinds = {
        "fixed": (before < 0.5) & (after >= 0.5),
        "broken": (before >= 0.5) & (after < 0.5),
        "never right": (scores < 0.5).all(axis=1),
    }
    chosen = []
    for kind, mask in kinds.items():
        keys = sorted(scores.index[mask], key=lambda key: _hash(f"{key[0]}/{key[1]}"))
        chosen += [(kind, len(keys), key) for key in keys[:EACH]]
    questions = tables.questions.astype({"item": str}).set_index(["benchmark", "item"])
    rows = items.set_index(["run", "benchmark", "item"])
    texts = tables.responses.astype({"run": str, "item": str})
    texts = texts[texts["run"].isin(runs.values())]
    texts = texts[texts["attempt"] == texts["attempt"].min()]
    texts = texts.set_index(["run", "benchmark", "item"])
    found = []
    for kind, total, key in chosen:
        if key not in questions.index:
            continue
        entry = _question(tables.folder, questions.loc[key]) | {"kind": kind, "total": total}
        entry |= {"benchmark": key[0], "item": key[1]}
        entry["answers"] = [
            _answer(arm, rows.loc[(run, *key)], texts, (run, *key)) for arm, run in runs.items()
        ]
        found.append(entry)
    return found


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
        "question": str(row["question"]),
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
    data = base64.b64encode(file.read_bytes()).decode()
    return f"data:{MEDIA[file.suffix.lower()]};base64,{data}"


def _plain(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and pd.isna(value)) else str(value)


def _answer(arm: str, row: pd.Series, texts: pd.DataFrame, key: tuple[str, str, str]) -> Row:
    response = _plain(texts.at[key, "response"]) if key in texts.index else ""
    tokens = row.get("response_tokens")
    return {
        "arm": arm,
        "correct": bool(row["score"] >= 0.5),
        "answer": _plain(row.get("answer")),
        "reason": _plain(row.get("reason")),
        "tokens": None if tokens is None or pd.isna(tokens) else int(tokens),
        "segments": segments(response[:LONGEST]),
        "cut": max(0, len(response) - LONGEST),
    }

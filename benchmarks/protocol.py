"""Everything about the way of asking that can move a score: recorded, hashed, compared.

Light on purpose: two results are compared without torch.
"""

import hashlib
import json
from collections.abc import Iterator
from math import comb
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from observe.errors import InputError

TOLERATED = ("versions", "generation.batch_size", "controls")
"""Parts in which two results may differ and still be compared, with a warning."""


class Difference(NamedTuple):
    """One part of two protocols that is not the same."""

    key: str
    one: Any
    other: Any
    tolerated: bool

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.one)} | {_short(self.other)}"


def hashed(protocol: dict[str, Any]) -> dict[str, Any]:
    """The protocol with the hash of all of it."""
    return {**protocol, "hash": _hash(protocol)}


def _hash(protocol: dict[str, Any]) -> str:
    return digest(json.dumps(protocol, sort_keys=True))


def digest(text: str) -> str:
    """16 hex digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(folder: Path) -> dict[str, Any]:
    """The protocol of a result's folder.

    Raises InputError when there is none, or when it does not have the hash that it states.
    """
    path = folder / "protocol.json"
    try:
        protocol = json.loads(path.read_text(encoding="utf-8"))
        stated = protocol.pop("hash")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a protocol ({error}); evaluate again") from None
    if stated != _hash(protocol):
        raise InputError(f"{path}: was changed after the evaluation: its hash does not hold")
    return protocol


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[Difference]:
    """In what two protocols differ, by dotted key; benchmarks that only one has are tolerated."""
    parts, others = dict(_flat(one)), dict(_flat(other))
    found = []
    for key in dict.fromkeys([*parts, *others]):
        left, right = parts.get(key), others.get(key)
        if left != right:
            name = key.split(".")[1] if key.startswith("data.") else None
            alone = name is not None and (name in one["data"]) != (name in other["data"])
            # Where the rows came from is nothing beside what they are: their fingerprint.
            origin = name is not None and key.endswith((".source", ".revision", ".skipped"))
            listed = any(f"{key}.".startswith(f"{part}.") for part in TOLERATED)
            tolerated = alone or origin or listed
            found.append(Difference(key, left, right, tolerated))
    return found


def _flat(mapping: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = "(absent)" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({digest(text)})"


def compare(one: Path, other: Path) -> tuple[str, bool]:
    """Two results beside each other, and whether their protocols allow that.

    Where they do not, the text says what differs and shows no score. Where they do: for each
    benchmark of both the scores on the items of both, the difference, on how many items either is
    the better one (over all attempts), and the exact sign test of those (of one attempt McNemar's),
    which speaks of these two checkpoints only.
    """
    found = differences(read(one), read(other))
    refused = [difference for difference in found if not difference.tolerated]
    lines = [f"A = {one}", f"B = {other}"]
    if refused:
        lines.append("The protocols differ (A | B); the scores cannot be compared:")
        return "\n".join([*lines, *(f"  {difference}" for difference in refused)]), False
    lines += [f"warning: {difference}" for difference in found]
    left, right = _scores(one), _scores(other)
    lines.append(
        f"{'benchmark':24} {'items':>6} {'A':>6} {'B':>6} {'B-A':>7} {'A wins':>6} "
        f"{'B wins':>6} {'p':>7}"
    )
    for name in [name for name in left if name in right]:
        both = [item for item in left[name] if item in right[name]]
        pairs = [(left[name][item], right[name][item]) for item in both]
        judged = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not judged:
            lines.append(f"{name:24} {0:6}  no item of both was judged")
            continue
        a, b = (sum(scores) / len(judged) for scores in zip(*judged, strict=True))
        lost = sum(x > y for x, y in judged)
        won = sum(x < y for x, y in judged)
        lines.append(
            f"{name:24} {len(judged):6} {a:6.3f} {b:6.3f} {b - a:+7.3f} {lost:6} {won:6} "
            f"{_sign_test(lost, won):7.4f}"
        )
        if len(judged) < max(len(left[name]), len(right[name])):
            lines.append(f"  {name}: the other items are not in both, or not judged in both")
    lines.append("p: exact sign test over items (McNemar's), for these two checkpoints only")
    return "\n".join(lines), True


def _scores(folder: Path) -> dict[str, dict[str, float | None]]:
    """benchmark -> item -> mean score of its attempts under the normal condition."""
    path = folder / "items.jsonl"
    found: dict[str, dict[str, list[float]]] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                if row["condition"] == "normal":
                    scores = found.setdefault(row["benchmark"], {}).setdefault(row["item"], [])
                    scores += [] if row["score"] is None else [row["score"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the items of an evaluation ({error})") from None
    return {
        name: {item: fmean(scores) if scores else None for item, scores in items.items()}
        for name, items in found.items()
    }


def _sign_test(lost: int, won: int) -> float:
    """Two-sided exact p of `lost` against `won` where both are equally likely."""
    total = lost + won
    tail = sum(comb(total, k) for k in range(min(lost, won) + 1)) / 2**total
    return min(1.0, 2 * tail)

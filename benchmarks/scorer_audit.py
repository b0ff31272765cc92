"""How far the scorer's verdicts on real model outputs can be trusted.

``python -m benchmarks.scorer_audit --data DIR --out FILE`` scores outputs that others have judged
(rows of ``*.jsonl.gz`` with response, answer, options, question_type, answer_type, judged) and
compares. Their judgements were made by programs too, so agreement alone decides nothing:

- rows judged right and rows judged wrong are counted apart, since most rows are wrong answers and a
  scorer that never says "right" would agree with most; unscored rows are counted on their own;
- rows whose judgement was a guess (``nearest_option``) are left out;
- where the two disagree, somebody has read the row: ``scorer_audit_labels.csv`` holds what was
  found (right, wrong or unclear) with the class of the disagreement. After adjudication a verdict
  counts as right when it is that label, or, where the two agree, as they say.

The questions are split in two halves by a hash of their id: ``development``, which the scorer was
improved on, and ``held_out``. ``--samples FILE`` writes a seeded sample of every class of
disagreement, and of the rows where both agree, to be read. The outputs themselves are not part of
this repository.
"""

import csv
import gzip
import hashlib
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from harness.cli import run_command
from observe.errors import InputError
from observe.scoring import VERSION, AnswerType, ScoreRequest, Verdict, score_many

Row = dict[str, Any]

LABELS = Path(__file__).with_name("scorer_audit_labels.csv")
HALVES = ("development", "held_out")
COLUMNS = ("half", "type", "judged", "rows", "agree", "differ", "unscored", "right", "unclear")
FIELDS = ("source", "model", "id", "question", "options", "answer", "response", "judged")

_TYPES: dict[str | None, AnswerType] = {"integer": "integer", "float": "decimal", "list": "list"}


def load(folder: Path) -> list[Row]:
    """The rows of all files of a folder but those whose judgement was a guess.

    Raises InputError for a folder without such files and for a row without a needed field.
    """
    files = sorted(folder.glob("*.jsonl.gz"))
    if not files:
        raise InputError(f"{folder}: no *.jsonl.gz in this folder")
    rows = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                row = json.loads(line)
                missing = [field for field in FIELDS if field not in row]
                if missing:
                    raise InputError(f"{file}: line {number} has no {', '.join(missing)}")
                rows.append(row)
    return [row for row in rows if not row.get("nearest_option")]


def half_of(row: Row) -> str:
    """The half that a row's question belongs to, the same for all models."""
    digest = hashlib.sha256(f"{row['source']}/{row['id']}".encode()).digest()
    return HALVES[digest[0] % 2]


def request(row: Row) -> ScoreRequest:
    """What the scorer is asked about a row."""
    choice = row.get("question_type") == "multi_choice"
    return ScoreRequest(
        response=row["response"],
        gold=row["answer"],
        answer_type="choice" if choice else _TYPES.get(row.get("answer_type")),
        options=row["options"] or None,
        question=row["question"],
    )


def key(row: Row) -> tuple[str, str, str]:
    """What names a row."""
    return row["source"], row["model"], row["id"]


def read_labels(path: Path) -> dict[tuple[str, str, str], tuple[str, str]]:
    """Row -> (right, wrong or unclear; class) as read by a person."""
    with path.open(newline="", encoding="utf-8") as file:
        return {
            (line["source"], line["model"], line["id"]): (line["label"], line["class"])
            for line in csv.DictReader(file)
        }


def truth(
    row: Row, verdict: Verdict, labels: dict[tuple[str, str, str], tuple[str, str]]
) -> str | None:
    """Whether the response is right, as far as known; None when nobody has looked yet."""
    if key(row) in labels:
        return labels[key(row)][0]
    if verdict.correct is row["judged"]:
        return "right" if row["judged"] else "wrong"
    return None


def tabulate(
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
    labels: dict[tuple[str, str, str], tuple[str, str]],
) -> list[dict[str, Any]]:
    """Counts by half, answer type and judgement, with totals ("all").

    ``right`` are the verdicts that hold after adjudication, out of those that are neither unscored
    nor unclear; rows that differ and that nobody has read count as not right.
    """
    counts: dict[tuple[str, str, bool], Counter[str]] = defaultdict(Counter)
    for row, verdict in zip(rows, verdicts, strict=True):
        kind = verdict.reason.split(":")[0].rpartition("/")[2]
        found = truth(row, verdict, labels)
        for name in (kind, "all"):
            count = counts[half_of(row), name, row["judged"]]
            count["rows"] += 1
            if verdict.correct is None:
                count["unscored"] += 1
                continue
            count["agree" if verdict.correct is row["judged"] else "differ"] += 1
            if found == "unclear":
                count["unclear"] += 1
            elif found == ("right" if verdict.correct else "wrong"):
                count["right"] += 1
    table = []
    for (half, kind, judged), count in sorted(counts.items(), key=lambda item: _order(item[0])):
        decided = count["rows"] - count["unscored"] - count["unclear"]
        table.append(
            {
                "half": half,
                "type": kind,
                "judged": "right" if judged else "wrong",
                **{name: count[name] for name in COLUMNS[3:]},
                "right_share": count["right"] / decided if decided else None,
            }
        )
    return table


def _order(group: tuple[str, str, bool]) -> tuple[str, bool, str, bool]:
    half, kind, judged = group
    return half, kind == "all", kind, not judged


def disagreement(row: Row, verdict: Verdict) -> str:
    """The class of a disagreement that can be told without reading."""
    said = {True: "right", False: "wrong", None: "unscored"}[verdict.correct]
    judged = "right" if row["judged"] else "wrong"
    return f"{row['source']}: judged {judged}, scored {said}: {verdict.reason}"


def classes(
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
    labels: dict[tuple[str, str, str], tuple[str, str]],
) -> list[dict[str, Any]]:
    """Disagreements by half, class and label, most frequent first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for row, verdict in zip(rows, verdicts, strict=True):
        if verdict.correct is not row["judged"]:
            label, name = labels.get(key(row), ("not read", disagreement(row, verdict)))
            counts[half_of(row), name, label] += 1
    return [
        {"half": half, "class": name, "label": label, "rows": count}
        for (half, name, label), count in counts.most_common()
    ]


def sample(
    rows: Sequence[Row], verdicts: Sequence[Verdict], *, size: int, seed: int
) -> Iterable[dict[str, Any]]:
    """Up to `size` rows of every class of disagreement, and of agreement, drawn at random."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row, verdict in zip(rows, verdicts, strict=True):
        name = "agree" if verdict.correct is row["judged"] else disagreement(row, verdict)
        read = {field: row[field] for field in FIELDS}
        read |= {"extracted": verdict.answer, "scored": verdict.correct, "reason": verdict.reason}
        groups[f"{half_of(row)}: {name}"].append({"class": name, "half": half_of(row), **read})
    for name, group in sorted(groups.items()):
        yield from random.Random(f"{seed}/{name}").sample(group, min(size, len(group)))


def show(table: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> None:
    """Print the agreement table and the classes."""
    console = Console(width=120)
    agreement = Table(title="Agreement", title_justify="left", box=None, pad_edge=False)
    for column in (*COLUMNS, "right %"):
        agreement.add_column(column, justify="left" if column in COLUMNS[:3] else "right")
    for line in table:
        share = line["right_share"]
        cells = [str(line[column]) for column in COLUMNS]
        agreement.add_row(*cells, "-" if share is None else f"{100 * share:.2f}")
    console.print(agreement)
    differences = Table(title="Where they differ", title_justify="left", box=None, pad_edge=False)
    for column in ("half", "rows", "label", "class"):
        differences.add_column(column, justify="right" if column == "rows" else "left")
    for line in found:
        differences.add_row(line["half"], str(line["rows"]), line["label"], line["class"])
    console.print(differences)


def main(arguments: list[str] | None = None) -> int:
    """Score, compare, print and write."""
    parser = ArgumentParser(
        prog="python -m benchmarks.scorer_audit",
        description="How far the scorer's verdicts on real model outputs can be trusted.",
    )
    parser.add_argument("--data", type=Path, required=True, help="Folder of judged outputs.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the tables.")
    parser.add_argument("--labels", type=Path, default=LABELS, help="CSV of rows that were read.")
    parser.add_argument("--samples", type=Path, default=None, help="JSON lines of rows to read.")
    parser.add_argument("--size", type=int, default=20, help="Rows of a class in the sample.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the sample.")
    options = parser.parse_args(arguments)

    def command() -> int:
        rows = load(options.data)
        verdicts = score_many([request(row) for row in rows])
        labels = read_labels(options.labels)
        table, found = tabulate(rows, verdicts, labels), classes(rows, verdicts, labels)
        written = {"scorer": VERSION, "agreement": table, "differences": found}
        options.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        if options.samples is not None:
            drawn = sample(rows, verdicts, size=options.size, seed=options.seed)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in drawn)
            options.samples.write_text("".join(lines), encoding="utf-8")
        show(table, found)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())

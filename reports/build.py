"""The command: `python -m reports DIR` reads `DIR/results/` and writes `DIR/report/`."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, set_parsing_settings

from reports.analysis import Row, Settings
from reports.numbers import analyse
from reports.tables import TableError, Tables, read_tables
from reports.validity import missing_runs, validity
from reports.verdict import verdict

Format = Literal["html", "md", "json"]
FORMATS: tuple[Format, ...] = ("html", "md", "json")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Report a sweep: statistics, figures and text from its result tables."""

    format: str = field(default=",".join(FORMATS))
    """What to write, separated by commas: html, md, json (json writes results.csv too)."""
    confidence: float | None = None
    """Confidence of the intervals, between 0 and 1; the sweep's own when not given."""


def settings_of(tables: Tables, confidence: float | None) -> Settings:
    """The sweep's confidence and correction, unless the reader asks for another confidence."""
    provenance = tables.sweep.get("provenance") or {}
    chosen = provenance.get("confidence", 0.95) if confidence is None else confidence
    source = tables.folder / "sweep.json" if confidence is None else "command line"
    if not isinstance(chosen, int | float) or not 0 < chosen < 1:
        raise TableError(source, f"confidence = {chosen}", "expected a number between 0 and 1")
    correction = provenance.get("correction", "holm") or "none"
    if correction not in ("holm", "none"):
        raise TableError(source, f"correction = {correction!r}", "expected holm or none")
    return Settings(confidence=float(chosen), correction=correction)


def results_of(tables: Tables, settings: Settings) -> Row:
    """Every number of the report, with validity and verdict: what `results.json` holds."""
    results = analyse(tables, settings)
    results["validity"] = validity(tables, results)
    paragraphs = verdict(tables, results)
    results["verdict"] = "\n\n".join(paragraphs)
    return results


def build_report(
    directory: Path, formats: Sequence[str] = FORMATS, *, confidence: float | None = None
) -> Path:
    """Build the report of `directory/results/` in `directory/report/`, and return that folder.

    The same tables give the same bytes. Raises TableError when a table cannot be used; nothing is
    written then.
    """
    return _build(directory, formats, confidence)[0]


def _build(
    directory: Path, formats: Sequence[str], confidence: float | None
) -> tuple[Path, list[str]]:
    """The folder of the report, and the planned runs that are missing."""
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        raise TableError("--format", ",".join(unknown) or "empty", f"expected {', '.join(FORMATS)}")
    tables = read_tables(directory)
    results = results_of(tables, settings_of(tables, confidence))
    files: dict[str, bytes] = {}
    if "json" in formats:
        text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        files["results.json"] = text.encode()
        files["results.csv"] = as_csv(results).encode()
    if "html" in formats or "md" in formats:
        from reports.render import document

        page = document(tables, results)
        if "html" in formats:
            files["index.html"] = page.html().encode()
        if "md" in formats:
            files["report.md"] = page.markdown().encode()
            files |= {f"figures/{figure.name}.png": figure.png for figure in page.drawings}
    target = directory / "report"
    for name, content in files.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        partial.write_bytes(content)
        partial.replace(file)
    return target, missing_runs(tables)


LISTS = (
    *("arms", "effects", "interactions", "alias_sums", "sensitivity", "logit", "contrasts"),
    *("benchmark_contrasts", "leave_one_out", "add_one_in", "shapley", "slices"),
)
COLUMNS = [
    *("table", "arm", "factor", "level", "against", "suite", "benchmark", "by", "value"),
    *("estimate", "low", "high", "p", "p_adjusted", "df", "method", "why"),
]


def as_csv(results: Row) -> str:
    """All estimates as one long table: a row for each, `table` says of what."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name in LISTS:
        for row in results[name]:
            flat: dict[str, Any] = {"table": name, **row}
            flat["estimate"] = row.get(
                "estimate", row.get("mean", row.get("delta", row.get("log_odds")))
            )
            if "factors" in row:
                flat |= {"factor": ":".join(row["factors"]), "level": ":".join(row["levels"])}
            if "effects" in row:
                flat["factor"] = " ".join(row["effects"])
            writer.writerow(flat)
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. 0 = report written; 1 = written, but runs are missing; 2 = bad input."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="python -m reports", description=ReportConfig.__doc__)
    parser.add_argument("--config", action="config", help="a file with these settings")
    parser.add_argument("dir", type=Path, help="folder of the sweep: results/ in, report/ out")
    parser.add_class_arguments(ReportConfig)
    given = parser.parse_args(None if arguments is None else list(arguments))
    try:
        formats = [name.strip() for name in given.format.split(",") if name.strip()]
        target, missing = _build(given.dir, formats, given.confidence)
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in ("index.html", "report.md", "results.json"):
        if (target / name).exists():
            print(target / name)
    if missing:
        print(f"missing runs: {'; '.join(missing)}; continue the sweep", file=sys.stderr)
        return 1
    return 0

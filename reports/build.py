"""The command: `python -m reports DIR` reads `DIR/results/` and writes `DIR/report/`.

`python -m reports A B --out DIR` joins two sweeps first.
"""

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
from reports.compare import join
from reports.numbers import analyse
from reports.tables import TableError, Tables, read_tables
from reports.validity import missing_runs, validity
from reports.verdict import verdict

Format = Literal["html", "md", "tex", "json"]
FORMATS: tuple[Format, ...] = ("html", "md", "tex", "json")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Report a sweep: statistics, figures and text from its result tables."""

    format: str = field(default=",".join(FORMATS))
    """What to write, separated by commas: html, md and tex (with figures/), json (with
    results.csv)."""
    confidence: float | None = None
    """Confidence of the intervals, between 0 and 1; the sweep's own when not given."""
    out: Path | None = None
    """Where report/ goes, and results/ of two sweeps that are joined; a single sweep's own folder
    when not given."""
    port: int = 8642
    """Port for --serve; 0 takes a free one."""
    before: str | None = None
    """With --serve: a command that brings the tables up to date, run before they are looked at,
    such as "python -m harness.collect runs/full" while that sweep runs."""


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
    directory: Path,
    formats: Sequence[str] = FORMATS,
    *,
    confidence: float | None = None,
    out: Path | None = None,
) -> Path:
    """Build the report of `directory/results/` in `report/` beside it or in `out`; that folder.

    The same tables give the same bytes. Raises TableError when a table cannot be used; nothing is
    written then.
    """
    return _build(directory, formats, confidence, out)[0]


def _build(
    directory: Path, formats: Sequence[str], confidence: float | None, out: Path | None = None
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
    if set(formats) & {"html", "md", "tex"}:
        from reports.latex import latex
        from reports.render import document

        page = document(tables, results)
        if "html" in formats:
            files["index.html"] = page.html().encode()
        if "md" in formats:
            files["report.md"] = page.markdown().encode()
        if "tex" in formats:
            files["tables.tex"] = latex(page.context).encode()
        if set(formats) & {"md", "tex"}:
            files |= {f"figures/{figure.name}.png": figure.png for figure in page.drawings}
            files |= {f"figures/{figure.name}.svg": figure.svg for figure in page.drawings}
    target = (out or directory) / "report"
    for name, content in files.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        partial.write_bytes(content)
        partial.replace(file)
    return target, missing_runs(tables)


FIRST = [
    *("table", "arm", "factor", "level", "against", "suite", "benchmark", "by", "value"),
    *("estimate", "low", "high", "p", "p_adjusted", "df", "method", "why"),
]
"""The columns that most tables share; what else their rows have follows."""
ESTIMATES = ("estimate", "mean", "delta", "log_odds")


def as_csv(results: Row) -> str:
    """Every number as one long table: a row for each, `table` says of what."""
    rows: list[Row] = []
    for name, table in results.items():
        if name == "validity" or not isinstance(table, list):
            continue
        for row in table:
            flat: Row = {"table": name, **row}
            found = next((key for key in ESTIMATES if key in row), None)
            flat["estimate"] = None if found is None else flat.pop(found)
            if "factors" in row:
                flat |= {"factor": ":".join(row["factors"]), "level": ":".join(row["levels"])}
            if "effects" in row:
                flat["factor"] = " ".join(row["effects"])
            rows.append({key: _flat(value) for key, value in flat.items()})
    columns = list(dict.fromkeys([*FIRST, *(key for row in rows for key in row)]))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _flat(value: Any) -> Any:
    """A list as words; text that a spreadsheet would run as a formula as the text it is."""
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if isinstance(value, str) and value[:1] in tuple("=+-@\t\r"):
        return f"'{value}"
    return value


def _parser() -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="python -m reports", description=ReportConfig.__doc__)
    parser.add_argument("--config", action="config", help="a file with these settings")
    parser.add_argument(
        "dirs",
        type=Path,
        nargs="+",
        help="folder of a sweep: results/ in, report/ out; or of two, which are joined in --out",
    )
    parser.add_class_arguments(ReportConfig)
    parser.add_argument(
        "--serve",
        action="store_true",
        help="show the report on http://127.0.0.1 and build it again when the tables change",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. 0 = report written; 1 = written, but runs are missing; 2 = bad input."""
    given = _parser().parse_args(None if arguments is None else list(arguments))
    try:
        formats = [name.strip() for name in given.format.split(",") if name.strip()]
        if given.serve:
            from reports.serve import serve

            serve(
                lambda: build_report(
                    _directory(given.dirs, given.out),
                    ["html"],
                    confidence=given.confidence,
                    out=given.out,
                ),
                [folder / "results" for folder in given.dirs],
                port=given.port,
                before=given.before,
            )
            return 0
        directory = _directory(given.dirs, given.out)
        target, missing = _build(directory, formats, given.confidence, given.out)
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in ("index.html", "report.md", "tables.tex", "results.json"):
        if (target / name).exists():
            print(target / name)
    if missing:
        print(f"missing runs: {'; '.join(missing)}; continue the sweep", file=sys.stderr)
        return 1
    return 0


def _directory(directories: Sequence[Path], out: Path | None) -> Path:
    """The folder whose results/ are reported: of two sweeps, that of their joined tables."""
    if len(directories) == 1:
        return directories[0]
    if len(directories) > 2 or out is None:
        raise TableError(
            "command line", f"{len(directories)} folders", "expected one, or two and --out DIR"
        )
    return join(directories[0], directories[1], out)

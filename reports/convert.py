"""Result tables of others' scores: `python -m reports.convert csv|lm_eval SOURCE... --out DIR`.

- `csv FILE`: one row for each item and run, columns arm, benchmark, item, score; seed, suite,
  cluster, attempt, condition, response, question, gold and any other item column are optional.
- `lm_eval ARM=FOLDER ...` (or `ARM@SEED=FOLDER`): the `samples_*.jsonl` that
  `lm_eval --log_samples --output_path` left in each folder.

The levels of the arms come from `--arms FILE.csv`: columns arm, optionally kind and prompt;
every further column is a factor. `python -m reports DIR` then reports them; docs/tables.md has
examples.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd
from jsonargparse import ArgumentParser, set_parsing_settings

from reports.tables import KINDS, MEASURES, TableError, read_tables

METRICS = ("acc", "exact_match", "accuracy", "acc_norm", "score", "relaxed_accuracy")
"""Metrics of lm-eval that are looked for, in this order, when none is named."""
ITEM = ["run", "suite", "benchmark", "item", "cluster", "attempt", "condition", "score"]
EXTRA = [*MEASURES, "reason", "answer", "seconds", "type", "level", "difficulty"]
OPTIONAL = ("responses.parquet", "questions.parquet")
"""Tables that are written where the source holds what is in them."""
NUMBERS = (*MEASURES, "seed", "attempt", "seconds")
"""Columns of a CSV that hold numbers."""
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "None"]
"""What stands in them where there is none."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Write result tables from item scores in a CSV file or from lm-eval's logged samples."""

    out: Path
    """Folder that gets results/."""
    arms: Path | None = None
    """CSV with a row for each arm: column arm, optionally kind (cell, base, variant) and prompt;
    each further column is a factor."""
    reference: str | None = None
    """The arm that the others are contrasted with; the last one when not given."""
    control: str | None = None
    """The arm whose levels are the controls of the factors; the first cell when not given."""
    base: str | None = None
    """An arm that is the untrained model: one fixed checkpoint, no run of the design."""
    metric: str | None = None
    """lm_eval: the metric that is the score; acc, exact_match and the like when not given."""
    filter: str | None = None
    """lm_eval: the filter whose answers count; the first in the file when not given."""
    cluster: str | None = None
    """lm_eval: the field of a document that items of one cluster share, such as an image's name."""
    suite: str = "benchmarks"
    """Name of the suite of benchmarks that come without one."""


def convert(kind: Literal["csv", "lm_eval"], sources: Sequence[str], config: ConvertConfig) -> Path:
    """Write `config.out/results/` and return `config.out`.

    Raises TableError naming file, column and remedy when the source cannot be used.
    """
    if kind == "csv":
        if len(sources) != 1:
            raise TableError("csv", f"{len(sources)} files", "expected one")
        rows = _from_csv(Path(sources[0]))
    else:
        rows = pd.concat([_from_lm_eval(source, config) for source in sources], ignore_index=True)
        _same_documents(rows)
    rows = _completed(rows, config)
    factors, arms = _arms(list(dict.fromkeys(rows["arm"])), config)
    runs = rows[["run", "arm", "seed"]].drop_duplicates("run")
    runs = runs.merge(arms, on="arm", how="left").assign(code=None)
    sweep = _sweep(rows, runs, factors, config)
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".convert-", dir=config.out.parent) as new:
            _write(Path(new) / "results", rows, runs, sweep)
            read_tables(Path(new))
            _replace(Path(new) / "results", config.out / "results")
    except TableError as error:
        raise TableError(", ".join(sources), error.key, error.remedy) from None
    except OSError as error:
        raise TableError("--out", str(config.out), f"cannot be written ({error})") from error
    return config.out


def _write(folder: Path, rows: pd.DataFrame, runs: pd.DataFrame, sweep: dict[str, Any]) -> None:
    folder.mkdir()
    runs.to_parquet(folder / "runs.parquet", index=False)
    extra = [column for column in EXTRA if column in rows.columns and column != "score"]
    rows[[*ITEM, *extra]].to_parquet(folder / "items.parquet", index=False)
    key = ["run", "benchmark", "item", "attempt", "condition"]
    if "response" in rows.columns:
        texts = rows[[*key, "response"]].astype({"response": str})
        texts.to_parquet(folder / "responses.parquet", index=False)
    if "question" in rows.columns:
        questions = rows.drop_duplicates(["benchmark", "item"])
        known = {c: questions.get(c) for c in ("benchmark", "item", "question", "gold")}
        table = pd.DataFrame(known).astype({"question": str}).assign(options=None, image=None)
        table["gold"] = None if "gold" not in rows.columns else table["gold"].astype(str)
        table.to_parquet(folder / "questions.parquet", index=False)
    (folder / "sweep.json").write_text(json.dumps(sweep, indent=1) + "\n", encoding="utf-8")


def _replace(new: Path, folder: Path) -> None:
    """Move the tables into a folder, in place of those of an earlier conversion."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in OPTIONAL:
        (folder / name).unlink(missing_ok=True)
    for file in new.iterdir():
        shutil.move(file, folder / file.name)


def _from_csv(file: Path) -> pd.DataFrame:
    try:
        header = pd.read_csv(file, nrows=0).columns
        # An answer "None" or an arm "null" is a text; only a number can be missing under a name.
        absent = {name: MISSING if name in NUMBERS else [""] for name in header}
        names = dict.fromkeys(("arm", "item", "benchmark", "cluster"), str)
        rows = pd.read_csv(
            file, dtype=names, keep_default_na=False, na_values=absent, low_memory=False
        )
    except FileNotFoundError:
        raise TableError(file, "missing", "expected a CSV file with a row for each item") from None
    except (ValueError, OSError) as error:
        raise TableError(file, "not a CSV table", str(error)) from error
    if not isinstance(rows.index, pd.RangeIndex):  # pandas takes what is too much for an index.
        raise TableError(
            file, "rows", "have more fields than the header; put texts with commas into quotes"
        )
    _need(file, rows, ["arm", "benchmark", "item", "score"])
    for column in [name for name in NUMBERS if name in rows.columns]:
        wrong = rows[column].notna() & pd.to_numeric(rows[column], errors="coerce").isna()
        if wrong.any():
            at = int(wrong.to_numpy().argmax())
            raise TableError(
                f"{file}:{at + 2}", column, f"expected a number, got {rows[column].iloc[at]!r}"
            )
    return rows


def _need(file: Path, rows: pd.DataFrame, columns: list[str]) -> None:
    missing = [column for column in columns if column not in rows.columns]
    if missing:
        found = ", ".join(map(str, rows.columns))
        raise TableError(file, f"column {', '.join(missing)}", f"missing; the file has {found}")
    if rows.empty:
        raise TableError(file, "no rows", "expected a row for each item")
    for column in columns:
        if column != "score" and rows[column].isna().any():
            line = int(rows[column].isna().to_numpy().argmax()) + 2
            raise TableError(f"{file}:{line}", column, "is empty; every row needs it")


def _from_lm_eval(source: str, config: ConvertConfig) -> pd.DataFrame:
    """The newest samples of every task in the folder (or its sub-folders) of one run."""
    name, equals, where = source.partition("=")
    arm, _, seed = name.partition("@")
    if not equals or not arm or (seed and not seed.lstrip("-").isdigit()):
        raise TableError("lm_eval", source, "expected ARM=FOLDER or ARM@SEED=FOLDER")
    folder = Path(where)
    newest: dict[str, Path] = {}
    for file in sorted(folder.rglob("samples_*.jsonl"), key=lambda file: file.name):
        # samples_TASK_2026-01-31T12-00-00.000000.jsonl; names sort as their times do.
        newest[file.stem.removeprefix("samples_").rpartition("_")[0]] = file
    if not newest:
        raise TableError(folder, "samples_*.jsonl", "none here; run lm_eval with --log_samples")
    rows = []
    for task, file in newest.items():
        wanted: str | None = config.filter
        for number, line in enumerate(file.read_text("utf-8", "replace").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                sample = json.loads(line)
            except ValueError as error:
                raise TableError(f"{file}:{number}", "not JSON", str(error)) from error
            if not isinstance(sample, dict) or "doc_id" not in sample:
                raise TableError(f"{file}:{number}", "doc_id", "expected a logged sample with it")
            wanted = wanted or sample.get("filter", "none")
            if sample.get("filter", "none") != wanted:
                continue
            row = {"arm": arm, "seed": int(seed or 0), "benchmark": task}
            rows.append(row | _sample(f"{file}:{number}", sample, config))
        if not any(row["benchmark"] == task for row in rows):
            raise TableError(file, f"filter {wanted}", "no sample has it")
    return pd.DataFrame(rows)


def _sample(where: str, sample: dict[str, Any], config: ConvertConfig) -> dict[str, Any]:
    metrics = [*METRICS, *sample.get("metrics", [])] if config.metric is None else [config.metric]
    metric = next((name for name in metrics if isinstance(sample.get(name), int | float)), None)
    if metric is None:
        found = ", ".join(name for name, x in sample.items() if isinstance(x, int | float))
        raise TableError(where, config.metric or "metric", f"is no number here; there are {found}")
    given = sample.get("doc")
    document: dict[str, Any] = given if isinstance(given, dict) else {}
    row = {"item": str(sample["doc_id"]), "score": float(sample[metric])}
    row |= {"gold": str(sample.get("target", "")), "document": sample.get("doc_hash")}
    if config.cluster is not None:
        if config.cluster not in document:
            raise TableError(where, f"doc.{config.cluster}", f"there are {', '.join(document)}")
        row["cluster"] = str(document[config.cluster])
    row["question"] = _first(sample.get("arguments")) or json.dumps(document, default=str)
    row["response"] = _first(sample.get("resps")) or ""
    return row


def _first(value: Any) -> str | None:
    """The first text in nested lists and mappings: a prompt in arguments, a response in resps."""
    while isinstance(value, list | dict) and value:
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value if isinstance(value, str) else None


def _same_documents(rows: pd.DataFrame) -> None:
    hashes = rows.dropna(subset=["document"]).groupby(["benchmark", "item"])["document"].nunique()
    differ = hashes[hashes > 1]
    if len(differ):
        benchmark, item = differ.index[0]
        raise TableError(
            "lm_eval",
            f"{benchmark}, doc_id {item}",
            f"is not the same document in all runs (and {len(differ) - 1} more); evaluate all "
            "arms with the same version of the task",
        )


def _completed(rows: pd.DataFrame, config: ConvertConfig) -> pd.DataFrame:
    """What the tables need and the source need not have."""
    rows = rows.copy()
    for column, value in (("seed", 0), ("suite", config.suite), ("attempt", 0)):
        if column not in rows.columns:
            rows[column] = value
        rows[column] = rows[column].fillna(value)
    if "condition" not in rows.columns:
        rows["condition"] = "normal"
    rows["condition"] = rows["condition"].fillna("normal")
    for column in ("arm", "suite", "benchmark", "item", "condition"):
        rows[column] = rows[column].astype(str)
    own = rows["benchmark"] + "/" + rows["item"]
    rows["cluster"] = rows["cluster"].fillna(own).astype(str) if "cluster" in rows.columns else own
    rows["run"] = rows["arm"] + "-" + rows["seed"].astype(str)
    return rows


def _arms(names: list[str], config: ConvertConfig) -> tuple[dict[str, Any], pd.DataFrame]:
    """The factors, and a row for each arm: kind, prompt, its level of each factor."""
    if config.arms is None:
        table = pd.DataFrame({"arm": names})
    else:
        try:
            table = pd.read_csv(config.arms, dtype=str, keep_default_na=False, na_values=[""])
        except (ValueError, OSError) as error:
            raise TableError(config.arms, "not a CSV table", str(error)) from error
        _need(config.arms, table, ["arm"])
        lacking = [name for name in names if name not in set(table["arm"])]
        if lacking or table["arm"].duplicated().any():
            what = f"no row for {lacking[0]}" if lacking else "an arm has two rows"
            raise TableError(config.arms, "arm", f"{what}; expected one row for each arm")
    for option, value in (("reference", config.reference), ("control", config.control)):
        if value is not None and value not in names:
            raise TableError(f"--{option}", value, f"no such arm; there are {', '.join(names)}")
    if "kind" not in table.columns:
        table["kind"] = "cell"
    table["kind"] = table["kind"].fillna("cell")
    if config.base is not None:
        if config.base not in names:
            raise TableError("--base", config.base, f"no such arm; there are {', '.join(names)}")
        table.loc[table["arm"] == config.base, "kind"] = "base"
    unknown = sorted(set(table["kind"]) - set(KINDS))
    if unknown:
        raise TableError(
            config.arms or "arms", f"kind {unknown[0]}", f"expected {', '.join(KINDS)}"
        )
    if "prompt" not in table.columns:
        table["prompt"] = "as evaluated"
    table["prompt"] = table["prompt"].fillna("as evaluated")
    cells = table[(table["kind"] == "cell") & table["arm"].isin(names)]
    if cells.empty:
        raise TableError(config.arms or "arms", "kind", "no arm is a cell: all are base or variant")
    control = config.control or str(cells["arm"].iloc[0])
    if taken := [name for name in ("run", "seed", "code") if name in table.columns]:
        raise TableError(
            config.arms or "arms",
            f"column {taken[0]}",
            "is of runs and no factor; drop it or give it another name",
        )
    factors: dict[str, Any] = {}
    for name in [c for c in table.columns if c not in ("arm", "kind", "prompt")]:
        levels = list(dict.fromkeys(cells[name].dropna()))
        own = table.loc[table["arm"] == control, name].iloc[0]
        if len(levels) > 1 and own in levels:
            factors[str(name)] = {"levels": levels, "control": own}
        else:
            table = table.drop(columns=name)
    return factors, table


def _sweep(
    rows: pd.DataFrame, runs: pd.DataFrame, factors: dict[str, Any], config: ConvertConfig
) -> dict[str, Any]:
    cells = runs[runs["kind"] == "cell"]
    reference = config.reference or str(cells["arm"].iloc[-1])
    levels = runs[runs["arm"] == reference].iloc[0]
    pairs = rows[["suite", "benchmark"]].drop_duplicates()
    return {
        "name": config.out.resolve().name,
        "design": "given",
        "factors": factors,
        "reference": {name: str(levels[name]) for name in factors if pd.notna(levels[name])},
        "reference_arm": reference,
        "suites": {
            str(suite): list(part["benchmark"])
            for suite, part in pairs.groupby("suite", sort=False)
        },
        "planned_contrasts": [],
        "cells": [],
        "provenance": {"command": "python -m reports.convert"},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. 0 = tables written; 2 = bad input."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="python -m reports.convert", description=ConvertConfig.__doc__)
    parser.add_argument("kind", type=Literal["csv", "lm_eval"], help="what the sources are")
    parser.add_argument("sources", type=str, nargs="+", help="a CSV file, or ARM[@SEED]=FOLDER ...")
    parser.add_class_arguments(ConvertConfig)
    given = parser.parse_args(None if arguments is None else list(arguments))
    settings = {name: getattr(given, name) for name in ConvertConfig.__dataclass_fields__}
    try:
        out = convert(given.kind, given.sources, ConvertConfig(**settings))
    except TableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out / 'results'}; report them: python -m reports {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

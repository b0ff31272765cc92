"""The result tables: read from `DIR/results/`, checked at this edge, typed from here on.

Everything a report knows comes from these files. A table that is optional and absent is `None`,
and its section says "not recorded". A table that is wrong raises `TableError`, which names the
file, the key and the remedy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

COLUMNS = {
    "runs": ["run", "arm", "seed", "prompt", "code"],
    "items": ["run", "suite", "benchmark", "item", "cluster", "attempt", "score"],
    "responses": ["run", "benchmark", "item", "attempt", "response"],
    "questions": ["benchmark", "item", "question", "options", "gold", "image"],
    "curves": ["run", "step", "metric", "value"],
    "ladder": ["question", "order_index", "difficulty", "complexity", "family", "level"],
    "stages": ["stage", "kind", "arm", "state", "seconds"],
    "trials": ["trial", "state"],
}
"""The columns without which a table cannot be used; others are read when they are there."""

MEASURES = ["score", "score_untagged", "faithful", "format_ok", "response_tokens", "truncated"]
"""Item columns that are numbers (or booleans, or null)."""


class TableError(ValueError):
    """A result table cannot be used. The message names the file, the key and the remedy."""

    def __init__(self, file: Path | str, key: str, remedy: str) -> None:
        super().__init__(f"{file}: {key}: {remedy}")


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A factor of the sweep: its level names in order, one of them the control."""

    name: str
    levels: tuple[str, ...]
    control: str

    @property
    def others(self) -> tuple[str, ...]:
        """The levels that are compared with the control."""
        return tuple(level for level in self.levels if level != self.control)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """All result tables of a sweep."""

    folder: Path
    """`DIR/results`: image paths in `questions` are relative to it."""
    sweep: dict[str, Any]
    factors: tuple[Factor, ...]
    suites: dict[str, list[str]]
    """suite -> benchmarks, in the sweep's order, those with at least one item."""
    runs: pd.DataFrame
    """One row per run, indexed by run id."""
    items: pd.DataFrame
    """One row per run, item and attempt, under the normal condition."""
    responses: pd.DataFrame | None = None
    questions: pd.DataFrame | None = None
    curves: pd.DataFrame | None = None
    ladder: pd.DataFrame | None = None
    stages: pd.DataFrame | None = None
    trials: pd.DataFrame | None = None
    """One row per trial of a search; the search itself is `sweep["search"]`."""
    configs: dict[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The reference arm's name."""
        return str(self.sweep["reference_arm"])

    @property
    def control(self) -> str | None:
        """The arm whose factors are all at their control level, if it was run."""
        cells = self.runs[self.runs["kind"] == "cell"]
        for factor in self.factors:
            cells = cells[cells[factor.name] == factor.control]
        return None if cells.empty or not self.factors else str(cells["arm"].iloc[0])

    def arms(self, *kinds: str) -> list[str]:
        """Names of the arms of these kinds (`cell`, `variant`, `base`), in table order."""
        return list(dict.fromkeys(self.runs.loc[self.runs["kind"].isin(kinds), "arm"]))

    def runs_of(self, arm: str) -> list[str]:
        """Ids of an arm's runs: one for each seed."""
        return list(self.runs.index[self.runs["arm"] == arm])

    @cached_property
    def _prompts(self) -> dict[str, str]:
        """arm -> the prompt under which it was evaluated."""
        first = self.runs.drop_duplicates("arm")
        return {str(a): str(p) for a, p in zip(first["arm"], first["prompt"], strict=True)}

    @cached_property
    def _bases(self) -> dict[str, str]:
        """prompt -> the arm of the untrained base."""
        bases = self.runs[self.runs["kind"] == "base"].drop_duplicates("prompt")
        return {str(p): str(a) for a, p in zip(bases["arm"], bases["prompt"], strict=True)}

    def prompt_of(self, arm: str) -> str:
        """The prompt under which an arm was evaluated."""
        return self._prompts[arm]

    def base_of(self, arm: str) -> str | None:
        """The arm of the untrained base under the same prompt, if it was evaluated."""
        return self._bases.get(self._prompts[arm])

    def levels_of(self, arm: str) -> dict[str, str]:
        """Factor -> level of an arm."""
        row = self.runs[self.runs["arm"] == arm].iloc[0]
        return {f.name: str(row[f.name]) for f in self.factors if pd.notna(row[f.name])}


def read_tables(directory: Path) -> Tables:
    """Read and check `directory/results/`.

    Raises TableError when a required table is missing, cannot be parsed, lacks a column, or
    contradicts another table.
    """
    folder = directory / "results"
    if not folder.is_dir():
        raise TableError(
            folder, "missing", "expected a folder of result tables; run the sweep first"
        )
    sweep = _read_sweep(folder / "sweep.json")
    factors = _factors(folder / "sweep.json", sweep)
    runs = _read_runs(folder / "runs.parquet", factors)
    items = _read_items(folder / "items.parquet", runs)
    suites = _suites(folder, sweep, items)
    if str(sweep["reference_arm"]) not in set(runs["arm"]) | _planned_arms(sweep):
        raise TableError(
            folder / "sweep.json",
            f"reference_arm = {sweep['reference_arm']!r}",
            f"no such arm; runs.parquet has {', '.join(sorted(set(runs['arm'])))}",
        )
    optional = {
        name: _read_parquet(folder / f"{name}.parquet", COLUMNS[name])
        for name in ("responses", "questions", "curves", "ladder", "stages", "trials")
        if (folder / f"{name}.parquet").exists()
    }
    configs = folder / "configs.json"
    return Tables(
        folder=folder,
        sweep=sweep,
        factors=factors,
        suites=suites,
        runs=runs,
        items=items,
        configs=_read_json(configs) if configs.exists() else {},
        **optional,
    )


def _planned_arms(sweep: dict[str, Any]) -> set[str]:
    return {str(cell["arm"]) for cell in sweep.get("cells", [])}


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TableError(file, "missing", "this table is required; run the sweep first") from None
    except ValueError as error:
        raise TableError(file, "not JSON", f"{error}; write the table again") from error


def _read_sweep(file: Path) -> dict[str, Any]:
    sweep = _read_json(file)
    for key, kind in [("name", str), ("factors", dict), ("suites", dict), ("reference_arm", str)]:
        if not isinstance(sweep, dict) or not isinstance(sweep.get(key), kind):
            raise TableError(file, key, f"expected a {kind.__name__} under this key")
    return sweep


def _factors(file: Path, sweep: dict[str, Any]) -> tuple[Factor, ...]:
    factors = []
    for name, entry in sweep["factors"].items():
        levels = entry.get("levels") if isinstance(entry, dict) else None
        if not levels or len(levels) < 2:
            raise TableError(file, f"factors.{name}.levels", "expected two or more level names")
        names = tuple(str(level) for level in levels)
        control = str(entry.get("control"))
        if control not in names:
            raise TableError(file, f"factors.{name}.control", f"expected one of {', '.join(names)}")
        factors.append(Factor(name=str(name), levels=names, control=control))
    return tuple(factors)


def _read_parquet(file: Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(file)
    except FileNotFoundError:
        raise TableError(file, "missing", "this table is required; run the sweep first") from None
    except (OSError, ValueError) as error:
        raise TableError(file, "not a parquet table", f"{error}; write the table again") from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise TableError(
            file,
            f"column {', '.join(missing)}",
            f"missing; the table has {', '.join(table.columns)}",
        )
    return table


def _read_runs(file: Path, factors: tuple[Factor, ...]) -> pd.DataFrame:
    runs = _read_parquet(file, COLUMNS["runs"] + [factor.name for factor in factors])
    if runs.empty:
        raise TableError(file, "no rows", "no run has finished; continue the sweep")
    if runs["run"].duplicated().any():
        twice = runs.loc[runs["run"].duplicated(), "run"].iloc[0]
        raise TableError(file, f"run {twice}", "occurs twice; a run has one row")
    if "kind" not in runs.columns:
        runs["kind"] = ["base" if str(arm).startswith("base/") else "cell" for arm in runs["arm"]]
    for factor in factors:
        known = runs[factor.name].dropna().astype(str)
        for level in sorted(set(known) - set(factor.levels)):
            raise TableError(
                file, f"{factor.name} = {level!r}", f"expected one of {', '.join(factor.levels)}"
            )
        runs[factor.name] = runs[factor.name].astype(object)
        runs.loc[known.index, factor.name] = known
        lacking = runs.loc[(runs["kind"] == "cell") & runs[factor.name].isna(), "run"]
        if len(lacking):
            raise TableError(file, factor.name, f"run {lacking.iloc[0]} is a cell without a level")
    return runs.assign(run=runs["run"].astype(str)).set_index("run")


def _read_items(file: Path, runs: pd.DataFrame) -> pd.DataFrame:
    items = _read_parquet(file, COLUMNS["items"])
    items = items.assign(run=items["run"].astype(str), item=items["item"].astype(str))
    unknown = sorted(set(items["run"]) - set(runs.index))
    if unknown:
        raise TableError(file, f"run {unknown[0]}", "is not in runs.parquet; collect both together")
    if "condition" in items.columns:
        items = items[items["condition"].fillna("normal") == "normal"]
    if items.empty:
        raise TableError(file, "no rows", "no run has been evaluated; continue the sweep")
    for measure in MEASURES:
        if measure in items.columns:
            try:
                items[measure] = pd.to_numeric(items[measure].astype(object)).astype(float)
            except (TypeError, ValueError) as error:
                raise TableError(file, measure, f"expected numbers or null ({error})") from error
    outside = items["score"].dropna()
    if outside.empty:
        raise TableError(file, "score", "every item is unscored; look at their reasons")
    outside = outside[(outside < 0) | (outside > 1)]
    if len(outside):
        raise TableError(
            file, f"score = {outside.iloc[0]}", "expected 0 to 1, or null for unscored"
        )
    key = ["run", "benchmark", "item", "attempt"]
    if items.duplicated(key).any():
        row = items[items.duplicated(key)].iloc[0]
        raise TableError(
            file,
            f"run {row['run']}, item {row['item']}",
            f"occurs twice in {row['benchmark']} with attempt {row['attempt']}",
        )
    return items.reset_index(drop=True)


def _suites(folder: Path, sweep: dict[str, Any], items: pd.DataFrame) -> dict[str, list[str]]:
    present = set(zip(items["suite"], items["benchmark"], strict=True))
    for suite, benchmark in sorted(present):
        if benchmark not in sweep["suites"].get(suite, []):
            raise TableError(
                folder / "items.parquet",
                f"benchmark {benchmark}",
                f"is not in sweep.json under suites.{suite}; name it there",
            )
    found = {
        str(suite): [str(name) for name in names if (suite, name) in present]
        for suite, names in sweep["suites"].items()
    }
    return {suite: names for suite, names in found.items() if names}

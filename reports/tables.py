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

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reports.stats.outcomes import Benchmark

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

KINDS = ("cell", "variant", "base")
"""What a run can be: part of the design, a placebo or second seed, the untrained model."""

LISTS = {
    "cells": {"arm", "seed"},
    "planned_contrasts": {"arm", "against"},
    "flags": {"arm", "factor", "detail"},
    "checks": {"check"},
}
"""Lists of sweep.json, where they are given, and what each of their entries has."""

MEASURES = ["score", "score_untagged", "faithful", "format_ok", "response_tokens", "truncated"]
"""Item columns that are numbers (or booleans, or null)."""

PLAIN = (pa.string(), pa.large_string())


class TableError(ValueError):
    """A result table cannot be used. The message names the file, the key and the remedy."""

    def __init__(self, file: Path | str, key: str, remedy: str) -> None:
        super().__init__(f"{file}: {key}: {remedy}")
        self.key, self.remedy = key, remedy


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
class Responses:
    """The model's texts. They can be large, so only what is shown is read."""

    file: Path

    def of(self, runs: list[str]) -> pd.DataFrame:
        """The first attempts of these runs, by (run, benchmark, item): column `response`."""
        schema = _schema(self.file)
        field = pc.field("run")
        # Not cast without need: groups of rows are skipped by the runs they hold.
        chosen = (field if schema.field("run").type in PLAIN else field.cast(pa.string())).isin(
            runs
        )
        wanted = [*COLUMNS["responses"], "condition"]
        columns = [name for name in wanted if name in schema.names]
        table = _frame(_parquet(self.file, columns, chosen))
        table = table.astype({"run": str, "benchmark": str, "item": str})
        if "condition" in table.columns:
            table = table[table["condition"].fillna("normal") == "normal"]
        table = table[table["attempt"] == table["attempt"].min()]
        key = ["run", "benchmark", "item"]
        return table.drop_duplicates(key).set_index(key)


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
    """One row per run, item and attempt, under the normal condition. Texts are categories, as there
    may be millions of rows: `plain` writes them out."""
    conditions: pd.DataFrame | None = None
    """The same under other conditions (no image, another image), with `condition`."""
    responses: Responses | None = None
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
        pairs = zip(self.arm_of.values(), self.kind_of.values(), strict=True)
        return list(dict.fromkeys(arm for arm, kind in pairs if kind in kinds))

    def runs_of(self, arm: str) -> list[str]:
        """Ids of an arm's runs: one for each seed."""
        return list(self._runs_of.get(arm, []))

    @cached_property
    def arm_of(self) -> dict[str, str]:
        """run -> its arm."""
        return dict(zip(self.runs.index, self.runs["arm"], strict=True))

    @cached_property
    def kind_of(self) -> dict[str, str]:
        """run -> `cell`, `variant` or `base`."""
        return dict(zip(self.runs.index, self.runs["kind"], strict=True))

    @cached_property
    def _runs_of(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for run, arm in self.arm_of.items():
            found.setdefault(arm, []).append(run)
        return found

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

    @cached_property
    def item_runs(self) -> np.ndarray:
        """(rows of `items`,) the place of each row's run among `runs`."""
        run = pd.Categorical(self.items["run"])
        return self.runs.index.get_indexer(run.categories)[run.codes]

    @cached_property
    def item_arms(self) -> tuple[np.ndarray, list[str]]:
        """(rows of `items`,) index of each row's arm, and the names that it points to."""
        arm, names = pd.factorize(self.runs["arm"])
        return arm[self.item_runs], list(names)

    @cached_property
    def drawn(self) -> dict[tuple[str, str], pd.DataFrame]:
        """Curves that were made ready to be drawn: several figures share them."""
        return {}

    @cached_property
    def evaluated(self) -> dict[str, set[Benchmark]]:
        """run -> the benchmarks of which it has items."""
        found: dict[str, set[Benchmark]] = {}
        columns = ["run", "suite", "benchmark"]
        for run, suite, name in self.items[columns].drop_duplicates().itertuples(index=False):
            found.setdefault(str(run), set()).add((str(suite), str(name)))
        return found

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
    items, conditions = _read_items(folder / "items.parquet", runs)
    suites = _suites(folder, sweep, items)
    if str(sweep["reference_arm"]) not in set(runs["arm"]) | _planned_arms(sweep):
        raise TableError(
            folder / "sweep.json",
            f"reference_arm = {sweep['reference_arm']!r}",
            f"no such arm; runs.parquet has {', '.join(sorted(set(runs['arm'])))}",
        )
    optional = {
        name: _read_parquet(folder / f"{name}.parquet", COLUMNS[name])
        for name in ("questions", "curves", "ladder", "stages", "trials")
        if (folder / f"{name}.parquet").exists()
    }
    if "curves" in optional:
        optional["curves"] = _checked_curves(folder / "curves.parquet", optional["curves"], runs)
    if "ladder" in optional:
        numbers = ["order_index", "difficulty", "complexity"]
        optional["ladder"] = _numbers(folder / "ladder.parquet", optional["ladder"], *numbers)
    if "stages" in optional:
        numbers = [name for name in ("seconds", "gpu_hours") if name in optional["stages"].columns]
        optional["stages"] = _numbers(folder / "stages.parquet", optional["stages"], *numbers)
    responses = folder / "responses.parquet"
    if responses.exists():
        _check_columns(responses, _schema(responses).names, COLUMNS["responses"])
    return Tables(
        folder=folder,
        sweep=sweep,
        factors=factors,
        suites=suites,
        runs=runs,
        items=items,
        conditions=conditions,
        responses=Responses(file=responses) if responses.exists() else None,
        configs=_configs(folder / "configs.json"),
        **optional,
    )


def _configs(file: Path) -> dict[str, Any]:
    configs = _read_json(file) if file.exists() else {}
    if not isinstance(configs, dict) or not all(isinstance(c, dict) for c in configs.values()):
        raise TableError(file, "arms", "expected a mapping of each arm to its settings")
    return configs


def _planned_arms(sweep: dict[str, Any]) -> set[str]:
    return {str(cell["arm"]) for cell in sweep.get("cells") or []}


def _read_json(file: Path) -> Any:
    try:
        return _whole(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise TableError(file, "missing", "this table is required; run the sweep first") from None
    except ValueError as error:
        raise TableError(file, "not JSON", f"{error}; write the table again") from error


def _whole(value: Any) -> Any:
    """The value without halves of characters (a lone \\ud800), which no file can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(one) for key, one in value.items()}
    return value


def _read_sweep(file: Path) -> dict[str, Any]:
    sweep = _read_json(file)
    for key, kind in [("name", str), ("factors", dict), ("suites", dict), ("reference_arm", str)]:
        if not isinstance(sweep, dict) or not isinstance(sweep.get(key), kind):
            raise TableError(file, key, f"expected a {kind.__name__} under this key")
    for suite, names in sweep["suites"].items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TableError(file, f"suites.{suite}", "expected a list of benchmarks")
        if len(set(names)) < len(names):
            raise TableError(file, f"suites.{suite}", "names a benchmark twice; name each once")
    if "all" in sweep["suites"] and len(sweep["suites"]) > 1:
        raise TableError(
            file, "suites.all", "is what the mean of all suites is called; give it another name"
        )
    for key, fields in LISTS.items():
        rows = sweep.get(key) or []
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and fields <= row.keys() for row in rows
        ):
            named = ", ".join(sorted(fields))
            raise TableError(file, key, f"expected a list of entries, each with {named}")
    for key in ("provenance", "aliases", "reference", "search", "joined"):
        if not isinstance(sweep.get(key) or {}, dict):
            raise TableError(file, key, "expected a mapping under this key")
    for effect, others in (sweep.get("aliases") or {}).items():
        if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
            raise TableError(file, f"aliases.{effect}", "expected a list of effects")
    return sweep


def _factors(file: Path, sweep: dict[str, Any]) -> tuple[Factor, ...]:
    factors = []
    for name, entry in sweep["factors"].items():
        levels = entry.get("levels") if isinstance(entry, dict) else None
        names = tuple(str(level) for level in levels) if isinstance(levels, list) else ()
        if len(names) < 2 or len(set(names)) < len(names):
            raise TableError(
                file, f"factors.{name}.levels", "expected two or more different level names"
            )
        control = str(entry.get("control"))
        if control not in names:
            raise TableError(file, f"factors.{name}.control", f"expected one of {', '.join(names)}")
        factors.append(Factor(name=str(name), levels=names, control=control))
    return tuple(factors)


def _read_parquet(file: Path, columns: list[str], *, coded: bool = False) -> pd.DataFrame:
    """A table with these columns and whatever else it has; `coded`: its texts as categories."""
    if not file.exists():
        raise TableError(file, "missing", "this table is required; run the sweep first")
    schema = _schema(file)
    _check_columns(file, schema.names, columns)
    if not coded:
        return _frame(_parquet(file))
    texts = [one.name for one in schema if _is_text(one.type)]
    table = _parquet(file, coded=[name for name in texts if schema.field(name).type in PLAIN])
    codes = {name: _coded(table.column(name)) for name in texts}
    return _frame(table.drop_columns(texts)).assign(**codes)


def _is_text(kind: pa.DataType) -> bool:
    return (kind.value_type if pa.types.is_dictionary(kind) else kind) in PLAIN


def _coded(column: pa.ChunkedArray) -> pd.Categorical:
    """Texts as codes of their sorted values; bytes that are no UTF-8 become replacement marks."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    parts = column.unify_dictionaries().chunks
    if not parts:
        return pd.Categorical([])
    written = parts[0].dictionary.cast(pa.large_binary()).to_pylist()
    texts = [None if one is None else one.decode("utf-8", "replace") for one in written]
    names = sorted({text for text in texts if text is not None})
    place: dict[str | None, int] = {name: index for index, name in enumerate(names)}
    place[None] = -1
    code = np.array([place[text] for text in [*texts, None]])
    indices = [part.indices.cast(pa.int32()).fill_null(len(texts)).to_numpy() for part in parts]
    return pd.Categorical.from_codes(code[np.concatenate(indices)], categories=names)


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with their categories as texts."""
    kinds = {
        name: object for name, kind in table.dtypes.items() if isinstance(kind, pd.CategoricalDtype)
    }
    return table.astype(kinds)


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise TableError(file, "not a parquet table", f"{error}; write the table again") from error


def _parquet(
    file: Path,
    columns: list[str] | None = None,
    chosen: pc.Expression | None = None,
    *,
    coded: list[str] | None = None,
) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns, filters=chosen, read_dictionary=coded)
    except (OSError, pa.ArrowException) as error:
        raise TableError(file, "not a parquet table", f"{error}; write the table again") from error


def _check_columns(file: Path, present: list[str], columns: list[str]) -> None:
    missing = [column for column in columns if column not in present]
    if missing:
        raise TableError(
            file, f"column {', '.join(missing)}", f"missing; the table has {', '.join(present)}"
        )


def _frame(table: pa.Table) -> pd.DataFrame:
    """As pandas; bytes that are no UTF-8 become replacement characters."""
    for place, field_ in enumerate(table.schema):
        if pa.types.is_dictionary(field_.type):
            plain = table.column(place).cast(field_.type.value_type)
            table = table.set_column(place, field_.name, plain)
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        fields = [
            pa.field(one.name, pa.large_binary()) if one.type in PLAIN else one
            for one in table.schema
        ]
        table = table.cast(pa.schema(fields))
    frame = table.to_pandas()
    for name in [n for n, kind in frame.dtypes.items() if pd.api.types.is_object_dtype(kind)]:
        if any(isinstance(value, bytes) for value in frame[name].iloc[:100]):
            frame[name] = [
                value.decode("utf-8", "replace") if isinstance(value, bytes) else value
                for value in frame[name]
            ]
    return frame


def _read_runs(file: Path, factors: tuple[Factor, ...]) -> pd.DataFrame:
    runs = _read_parquet(file, COLUMNS["runs"] + [factor.name for factor in factors])
    if runs.empty:
        raise TableError(file, "no rows", "no run has finished; continue the sweep")
    if runs["run"].duplicated().any():
        twice = runs.loc[runs["run"].duplicated(), "run"].iloc[0]
        raise TableError(file, f"run {twice}", "occurs twice; a run has one row")
    for column in ("run", "arm"):
        if runs[column].isna().any():
            raise TableError(file, column, "is null in some row; every row needs it")
    runs = _numbers(file, runs, "seed")
    if "kind" not in runs.columns:
        runs["kind"] = ["base" if str(arm).startswith("base/") else "cell" for arm in runs["arm"]]
    for kind in runs.loc[~runs["kind"].isin(KINDS), "kind"]:
        raise TableError(file, f"kind = {kind!r}", f"expected one of {', '.join(KINDS)}")
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
    for column in ("kind", "prompt", *(factor.name for factor in factors)):
        counts = runs.groupby("arm")[column].nunique(dropna=False)
        for arm in counts.index[counts > 1]:
            found = runs.loc[runs["arm"] == arm, column].unique()
            raise TableError(
                file,
                f"arm {arm}",
                f"has runs of {column} {' and '.join(map(str, found))}; runs of one arm differ in "
                "their seed alone, so give each its own arm",
            )
    return runs.assign(run=runs["run"].astype(str)).set_index("run")


def _read_items(file: Path, runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The items under the normal condition, and those under others, if there are any."""
    items = _read_parquet(file, COLUMNS["items"], coded=True)
    for column in ("run", "suite", "benchmark", "item", "attempt"):
        if items[column].isna().any():
            raise TableError(file, column, "is null in some row; every row needs it")
    if items["cluster"].isna().any():
        # What shares nothing with others is a cluster of its own.
        cluster = items["cluster"].astype(object)
        items["cluster"] = cluster.where(cluster.notna(), items["item"].astype(object))
    for column in ("run", "suite", "benchmark", "item", "cluster"):
        if not isinstance(items[column].dtype, pd.CategoricalDtype):
            items[column] = pd.Categorical(items[column].astype(str))
    unknown = sorted(set(items["run"].unique()) - set(runs.index))
    if unknown:
        raise TableError(file, f"run {unknown[0]}", "is not in runs.parquet; collect both together")
    items, conditions = _by_condition(file, items)
    if items.empty:
        raise TableError(file, "no rows", "no run has been evaluated; continue the sweep")
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
    return items.reset_index(drop=True), conditions


def _by_condition(file: Path, items: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The items with their measures as numbers, apart by condition."""
    for measure in MEASURES:
        if measure in items.columns:
            column = items[measure]
            plain = isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf"
            try:
                number = pd.to_numeric(column if plain else column.astype(object)).astype(float)
            except (TypeError, ValueError) as error:
                raise TableError(file, measure, f"expected numbers or null ({error})") from error
            # An infinite score is refused below; elsewhere it is as good as not recorded.
            if measure != "score" and np.isinf(number).any():
                number = number.where(np.isfinite(number))
            items[measure] = number
    if "condition" not in items.columns:
        return items, None
    normal = items["condition"].isna() | (items["condition"] == "normal")
    if normal.all():
        return items, None
    others = items[~normal]
    others = others.assign(condition=pd.Categorical(others["condition"].astype(str)))
    twice = ["run", "benchmark", "condition", "item", "attempt"]
    if others.duplicated(twice).any():
        row = others[others.duplicated(twice)].iloc[0]
        raise TableError(file, f"item {row['item']}", f"occurs twice under {row['condition']}")
    return items[normal], others


def _numbers(file: Path, table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The table with these columns as numbers; raises TableError where one holds anything else."""
    found = {}
    for column in columns:
        try:
            found[column] = pd.to_numeric(table[column])
        except (TypeError, ValueError) as error:
            raise TableError(file, column, f"expected numbers or null ({error})") from error
    return table.assign(**found)


def _checked_curves(file: Path, curves: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The points that are numbers, of evaluated runs: others may still wait for that."""
    curves = curves.assign(run=curves["run"].astype(str))
    for column in ("step", "value", "samples", "tokens"):
        if column in curves.columns:
            try:
                number = pd.to_numeric(curves[column]).astype(float)
            except (TypeError, ValueError) as error:
                raise TableError(file, column, f"expected numbers or null ({error})") from error
            curves[column] = number.where(np.isfinite(number))
    known = curves["run"].isin(runs.index) & curves["step"].notna() & curves["value"].notna()
    return curves[known].reset_index(drop=True)


def _suites(folder: Path, sweep: dict[str, Any], items: pd.DataFrame) -> dict[str, list[str]]:
    pairs = items[["suite", "benchmark"]].drop_duplicates().itertuples(index=False)
    present = {(str(suite), str(benchmark)) for suite, benchmark in pairs}
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

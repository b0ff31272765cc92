"""Whatever the tables lack, there is a report that says so or a message: never a traceback.

And no certainty that the data do not have: where nothing varies there is no p-value.
"""

import json
import math
import shutil
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reports.build import main
from reports.example import Made, write_example
from reports.tables import TableError, read_tables

TWO = {"format": 0.06, "bonus": 0.0}
Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example(tmp_path_factory.mktemp("whole"), Made(clusters=6, effects=TWO))


def spoil(results: Path, table: str, change: Change) -> None:
    file = results / table
    if table.endswith(".json"):
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    else:
        change(pd.read_parquet(file)).to_parquet(file)
    if table == "runs.parquet":
        known = set(pd.read_parquet(file)["run"])
        items = results / "items.parquet"
        rows = pd.read_parquet(items)
        rows[rows["run"].isin(known)].to_parquet(items)


def keep(kinds: str) -> Change:
    return lambda runs: runs[runs["kind"].isin(kinds.split())]


def column(**values: Any) -> Change:
    return lambda table: table.assign(**values)


def where(mask: str, **values: Any) -> Change:
    """These rows get these values."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        chosen = table.query(mask).index
        table = table.copy()
        for name, value in values.items():
            table[name] = table[name].astype(object)
            table.loc[chosen, name] = value
        return table

    return change


def drop(*names: str) -> Change:
    return lambda table: table.drop(columns=list(names))


EMPTY: Change = lambda table: table.head(0)  # noqa: E731
SPOILT: dict[str, tuple[str, Change]] = {
    **{
        f"empty {name}": (f"{name}.parquet", EMPTY)
        for name in ["runs", "items", "responses", "questions", "curves", "ladder", "stages"]
    },
    "only the base": ("runs.parquet", keep("base")),
    "no base": ("runs.parquet", keep("cell variant")),
    "only variants": ("runs.parquet", keep("variant base")),
    "one arm": ("runs.parquet", lambda runs: runs[runs["arm"] == "control"]),
    "only the reference": ("runs.parquet", lambda runs: runs[runs["arm"] == "format+bonus"]),
    "two arms": ("runs.parquet", lambda runs: runs[runs["arm"].isin(["control", "format"])]),
    "no seed": ("runs.parquet", column(seed=None)),
    "a seed that is a word": ("runs.parquet", column(seed="a")),
    "no arm": ("runs.parquet", column(arm=None)),
    "no prompt": ("runs.parquet", column(prompt=None)),
    "no code": ("runs.parquet", column(code=None)),
    "mechanisms that are not numbers": ("runs.parquet", column(train_bonus_share="much")),
    "training time that is a word": ("runs.parquet", column(train_seconds="long")),
    "training time without end": ("runs.parquet", column(train_seconds=np.inf)),
    "all right": ("items.parquet", column(score=1.0)),
    "all wrong": ("items.parquet", column(score=0.0)),
    "all a half": ("items.parquet", column(score=0.5)),
    "a run unscored": ("items.parquet", where("run == 'control-0'", score=None)),
    "a benchmark unscored": ("items.parquet", where("benchmark == 'count'", score=np.nan)),
    "a suite unscored": ("items.parquet", where("suite == 'general'", score=np.nan)),
    "the base unscored": ("items.parquet", where("run == 'base-observe'", score=np.nan)),
    "one cluster": ("items.parquet", column(cluster="all")),
    "no cluster": ("items.parquet", column(cluster=None)),
    "one item": ("items.parquet", lambda items: items[items["item"].str.endswith("-0000")]),
    "no lengths": ("items.parquet", column(response_tokens=np.nan)),
    "infinite lengths": ("items.parquet", column(response_tokens=np.inf)),
    "equal lengths": ("items.parquet", column(response_tokens=7)),
    "lengths that are words": ("items.parquet", column(response_tokens="long")),
    "no reasons": ("items.parquet", column(reason=None, answer=None)),
    "seconds that are words": ("items.parquet", column(seconds="soon")),
    "seconds without end": ("items.parquet", column(seconds=np.inf)),
    "no types": ("items.parquet", column(type=None, difficulty=None)),
    "some difficulties": (
        "items.parquet",
        lambda items: items.assign(
            difficulty=[[None, np.inf, n][n % 3] for n in range(len(items))]
        ),
    ),
    "difficulty of one value": ("items.parquet", column(difficulty=0.5)),
    "a condition of one run": (
        "items.parquet",
        lambda items: items[(items["condition"] == "normal") | (items["run"] == "control-0")],
    ),
    "only conditions": ("items.parquet", column(condition="no_image")),
    "a condition not known": (
        "items.parquet",
        where("condition == 'no_image'", condition="x" * 99),
    ),
    "several attempts": (
        "items.parquet",
        lambda items: pd.concat([items, items.assign(attempt=1)], ignore_index=True),
    ),
    "curves of nothing": ("curves.parquet", column(value=np.nan)),
    "curves of no metric known": ("curves.parquet", column(metric="mine")),
    "curves of infinity": ("curves.parquet", column(value=np.inf)),
    "curves of one step": ("curves.parquet", lambda curves: curves[curves["step"] == 10]),
    "curves of unknown runs": ("curves.parquet", column(run="other")),
    "curves without axes": ("curves.parquet", drop("samples", "tokens")),
    "a ladder of one question": ("ladder.parquet", lambda ladder: ladder.head(1)),
    "a ladder of numbers as words": (
        "ladder.parquet",
        lambda ladder: ladder.assign(difficulty=ladder["difficulty"].astype(str)),
    ),
    "a ladder of words": ("ladder.parquet", column(order_index="a", difficulty="b")),
    "a ladder without difficulty": ("ladder.parquet", column(difficulty=np.nan)),
    "stages without time": ("stages.parquet", column(seconds=np.nan)),
    "stages whose time is a word": ("stages.parquet", column(seconds="5", gpu_hours="x")),
    "stages whose time is a text": ("stages.parquet", column(seconds="5", gpu_hours="0.5")),
    "responses that are null": ("responses.parquet", column(response=None)),
    "responses of unknown items": ("responses.parquet", column(item="other")),
    "responses without a column": ("responses.parquet", drop("attempt")),
    "questions twice": ("questions.parquet", lambda table: pd.concat([table, table])),
    "questions of null": ("questions.parquet", column(question=None, gold=None, image=None)),
    "options that are no JSON": ("questions.parquet", column(options="{")),
    "no planned cells": (
        "sweep.json",
        lambda sweep: sweep | {"cells": [], "planned_contrasts": []},
    ),
    "planned contrasts of unknown arms": (
        "sweep.json",
        lambda sweep: sweep | {"planned_contrasts": [{"arm": "x", "against": "y", "factor": "z"}]},
    ),
    "planned seeds that are words": (
        "sweep.json",
        lambda sweep: sweep | {"cells": [{"arm": "format", "seed": "0"}]},
    ),
    "a reference not run and half known": (
        "sweep.json",
        lambda sweep: (
            sweep
            | {
                "reference_arm": "x",
                "cells": [{"arm": "x", "seed": 0}],
                "reference": {"format": "on"},
            }
        ),
    ),
    "a reference of no factor": (
        "sweep.json",
        lambda sweep: (
            sweep
            | {"reference_arm": "x", "cells": [{"arm": "x", "seed": 0}], "reference": {"y": "on"}}
        ),
    ),
    "aliases that are numbers": ("sweep.json", lambda sweep: sweep | {"aliases": {"format": [1]}}),
    "no provenance": ("sweep.json", lambda sweep: sweep | {"provenance": None}),
    "no suites": ("sweep.json", lambda sweep: sweep | {"suites": {}}),
    "a list": ("sweep.json", lambda sweep: [sweep]),
    "lists that are null": (
        "sweep.json",
        lambda sweep: sweep | {"cells": None, "planned_contrasts": None, "checks": None},
    ),
    "an unknown design": ("sweep.json", lambda sweep: sweep | {"design": None, "flags": None}),
    "halves of characters": ("sweep.json", lambda sweep: sweep | {"name": "\ud800x"}),
    "configs of nothing": ("configs.json", lambda _: {}),
    "configs that are a list": ("configs.json", lambda _: [1]),
    "configs that are numbers": ("configs.json", lambda _: {"control": 3}),
}


DRAWN = {"only the base", "one arm", "no lengths", "halves of characters"}
"""Of the cases that spoil what numbers need, those whose page is made: figures take their time."""
SHOWN = ("curves", "ladder", "stages", "responses", "questions")
"""Tables that are only shown. Each fails by itself, so one report has a case of every table."""


def cases() -> list[tuple[str, ...]]:
    """The names of the cases that are tried in one report."""
    shown = [
        [name for name, (file, _) in SPOILT.items() if file == f"{table}.parquet"]
        for table in SHOWN
    ]
    alone = [name for name in SPOILT if not any(name in names for names in shown)]
    together = [tuple(filter(None, names)) for names in zip_longest(*shown)]
    return [*((name,) for name in alone), *together]


@pytest.mark.parametrize("names", cases(), ids=", ".join)
def test_a_report_or_a_message(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...]
) -> None:
    shutil.copytree(whole / "results", tmp_path / "results")
    for name in names:
        spoil(tmp_path / "results", *SPOILT[name])
    name = names[0]
    drawn = len(names) > 1 or name in DRAWN
    code = main([str(tmp_path), "--format", "html,json" if drawn else "json"])
    said = capsys.readouterr().err
    if code == 2:
        assert said.startswith("error: ") and not (tmp_path / "report").exists()
        return
    assert (tmp_path / "report" / "index.html").exists() == drawn
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    rows = [row for value in results.values() if isinstance(value, list) for row in value]
    for row in rows:
        if row.get("p") is not None:
            assert row["low"] is not None and row["low"] < row["high"], row
            assert 0 <= row["p"] <= 1
        for value in row.values():
            assert not isinstance(value, float) or math.isfinite(value)
    if name.startswith("all "):
        assert not [row for row in rows if row.get("p") is not None and "measure" not in row]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suites": {"reasoning": [["count"]]}}, "suites.reasoning: expected a list of benchmarks"),
        ({"factors": {"bonus": {"levels": "onoff", "control": "o"}}}, "factors.bonus.levels"),
        (
            {"factors": {"bonus": {"levels": ["on", "on"], "control": "on"}}},
            "different level names",
        ),
        ({"suites": {"reasoning": ["count", "compare", "count"]}}, "names a benchmark twice"),
        ({"suites": {"all": ["count"], "general": ["colour"]}}, "suites.all: is what the mean"),
    ],
)
def test_names_that_are_none_are_refused(
    whole: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    shutil.copytree(whole / "results", tmp_path / "results")
    spoil(tmp_path / "results", "sweep.json", lambda sweep: sweep | changes)
    with pytest.raises(TableError, match=message):
        read_tables(tmp_path)

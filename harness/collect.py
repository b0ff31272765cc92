"""Result tables of a sweep, from what its finished stages wrote: ``python -m harness.collect DIR``.

The tables in ``DIR/results/`` are all that a report needs. Equal results give equal tables: rows
are sorted, and nothing depends on when or where a stage ran, except the columns ``seconds``,
``gpu_hours`` and ``attempt``, and ``provenance``.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from jsonargparse import ArgumentParser

from harness import design, machine, provenance
from harness.ablation import Ablation
from harness.cli import run_command
from harness.estimate import known_statuses
from harness.graph import KINDS, Plan, Run, read_plan
from harness.store import Status, Store, write_atomically
from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml

MECHANISMS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], bool]]] = {
    "curriculum": (("data.order",), lambda config: config["data"]["order"] != "shuffled"),
    "format": (("prompt", "reward.format"), lambda config: config["reward"]["format"] == "observe"),
    "bonus": (("reward.bonus",), lambda config: config["reward"]["bonus"]["weight"] > 0),
    "dynamic_weights": (("weighting",), lambda config: config["weighting"]["sigma"] is not None),
}
"""Part of the method -> the settings that belong to it, and whether they switch it on."""

WALL_CLOCK = ("timing_s/", "perf/")
"""Metrics that differ between equal runs; they stay in ``metrics.jsonl``."""


KEY = ("benchmark", "item", "attempt")
ITEM = ("suite", *KEY, "score")
"""What the items of an evaluation have at least."""


def collect(store: Store, *, command: str | None = None) -> Path | None:
    """Write ``results/`` from the stages that are done, and return it; None when no run is.

    Raises InputError when a finished stage's file is damaged.
    """
    whole = read_plan(store.plan_file)
    # Trials of a search are no runs of its comparison; they have a table of their own.
    plan = dataclasses.replace(whole, runs=[run for run in whole.runs if run.kind != "trial"])
    sweep = load_yaml(store.sweep_file)
    statuses = known_statuses(plan, store)
    done = {stage for stage, status in statuses.items() if status.state == "done"}
    runs = [run for run in plan.runs if run.stages["evaluate"] in done]
    if not runs:
        return None
    store.results.mkdir(parents=True, exist_ok=True)
    tables = {
        "runs": _runs(store, plan, runs, statuses),
        "items": _items(store, runs),
        "responses": _responses(store, runs),
        "questions": _questions(store, runs),
        "curves": _curves(store, plan, done),
        "ladder": _ladder(store, plan, done),
        "stages": _stages(whole, statuses),
    }
    search = _search(store)
    if search:
        tables["trials"] = pd.DataFrame(search.pop("trials"))
    for name, table in tables.items():
        _write_parquet(table, store.results / f"{name}.parquet")
    configs = {run.arm: run.config for run in reversed(plan.runs) if run.config is not None}
    _write_json(dict(sorted(configs.items())), store.results / "configs.json")
    first_items = _read_jsonl(store.folder(runs[0].stages["evaluate"]) / "items.jsonl")
    document = _sweep(sweep, plan, first_items, _flags(store, sweep, plan, done))
    if search:
        document["search"] = search
    document["provenance"] |= {
        "command": command,
        "code": sorted({status.code for status in statuses.values() if status.code}),
        "versions": provenance.versions(),
        "machine": machine.describe(),
        "seconds": seconds_by_kind(plan, statuses),
    }
    _write_json(document, store.results / "sweep.json")
    return store.results


def _search(store: Store) -> dict[str, Any] | None:
    """What a search has found, where there was one."""
    if not store.search_file.exists():
        return None
    return json.loads(store.search_file.read_text(encoding="utf-8"))


def seconds_by_kind(plan: Plan, statuses: dict[str, Status]) -> dict[str, float]:
    """Kind -> seconds that its finished stages took together."""
    total = dict.fromkeys(KINDS, 0.0)
    for stage in plan.stages.values():
        if statuses[stage.id].state == "done":
            total[stage.kind] += statuses[stage.id].seconds
    return {kind: round(seconds, 1) for kind, seconds in total.items()}


def _runs(store: Store, plan: Plan, runs: list[Run], statuses: dict[str, Status]) -> pd.DataFrame:
    factors = list(dict.fromkeys(factor for run in plan.runs for factor in run.levels))
    rows = []
    for run in runs:
        row: dict[str, Any] = {
            "run": run.run,
            "arm": run.arm,
            "seed": run.seed,
            "kind": run.kind,
            "prompt": run.prompt,
            **{factor: run.levels.get(factor) for factor in factors},
        }
        result: dict[str, Any] = {}
        stage = run.stages.get("train", run.stages["evaluate"])
        row["code"] = statuses[stage].code
        if "train" in run.stages:
            result = store.result(stage)
            row |= {
                f"train_{name}": value
                for name, value in result.items()
                if isinstance(value, (int, float)) and not isinstance(value, bool)
            }
            for mechanism, facts in (result.get("mechanisms") or {}).items():
                row |= {
                    f"train_{_short(mechanism)}_{name}": value
                    for name, value in facts.items()
                    if isinstance(value, (int, float)) and not isinstance(value, bool)
                }
            row["train_seconds"] = statuses[stage].seconds
        rows.append(row)
    return pd.DataFrame(rows)


def _short(mechanism: str) -> str:
    return "weight" if mechanism == "dynamic_weights" else mechanism


def _items(store: Store, runs: list[Run]) -> pd.DataFrame:
    parts = []
    for run in runs:
        part = _read_jsonl(store.folder(run.stages["evaluate"]) / "items.jsonl", *ITEM)
        part.insert(0, "run", run.run)
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    if "condition" not in table:
        table["condition"] = "normal"
    order = ["run", "suite", "benchmark", "condition", "item", "attempt"]
    return table.sort_values(order).reset_index(drop=True)


def _responses(store: Store, runs: list[Run]) -> pd.DataFrame:
    parts = []
    for run in runs:
        part = _read_jsonl(store.folder(run.stages["evaluate"]) / "responses.jsonl", *KEY)
        part.insert(0, "run", run.run)
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values(["run", "benchmark", "item", "attempt"]).reset_index(drop=True)


def _questions(store: Store, runs: list[Run]) -> pd.DataFrame:
    """Every question once, its image copied to ``results/images``."""
    images = store.results / "images"
    # They are numbered: those of other questions, from an earlier time, have the same names.
    shutil.rmtree(images, ignore_errors=True)
    parts = []
    for run in runs:
        folder = store.folder(run.stages["evaluate"])
        part = _read_jsonl(folder / "questions.jsonl", "benchmark", "item", "image")
        part["folder"] = str(folder)
        parts.append(part)
    table = pd.concat(parts, ignore_index=True).drop_duplicates(["benchmark", "item"])
    table = table.sort_values(["benchmark", "item"]).reset_index(drop=True)
    for folder, image in table[["folder", "image"]].itertuples(index=False):
        if isinstance(image, str):
            target = store.results / image
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                # Renamed when it is whole: a launcher that dies leaves no half of an image.
                partial = target.with_name(f".{target.name}.{os.getpid()}")
                try:
                    shutil.copyfile(Path(folder) / image, partial)
                except FileNotFoundError:
                    raise _damaged(Path(folder), image, "no such file") from None
                os.replace(partial, target)
    images.mkdir(exist_ok=True)
    return table.drop(columns="folder")


def _curves(store: Store, plan: Plan, done: set[str]) -> pd.DataFrame:
    parts = []
    for run in plan.runs:
        if run.stages.get("train") not in done:
            continue
        metrics = _read_jsonl(store.folder(run.stages["train"]) / "metrics.jsonl", "step")
        metrics = metrics.rename(columns={"num_tokens": "tokens"})
        keys = [key for key in ("step", "samples", "tokens") if key in metrics]
        long = metrics.melt(id_vars=keys, var_name="metric", value_name="value")
        long["value"] = pd.to_numeric(long["value"], errors="coerce")
        long = long[long["value"].notna() & ~long["metric"].str.startswith(WALL_CLOCK)]
        long.insert(0, "run", run.run)
        parts.append(long)
    columns = ["run", "step", "samples", "tokens", "metric", "value"]
    if not parts:
        return pd.DataFrame(columns=columns)
    table = pd.concat(parts, ignore_index=True).reindex(columns=columns)
    table["value"] = table["value"].astype(float)
    return table.sort_values(["run", "metric", "step"]).reset_index(drop=True)


def _ladder(store: Store, plan: Plan, done: set[str]) -> pd.DataFrame:
    """The reference arm's ladder, or the first there is."""
    runs = sorted(plan.runs, key=lambda run: run.arm != plan.reference_arm)
    columns = ["question", "order_index", "difficulty", "complexity", "family", "level"]
    for run in runs:
        if run.stages.get("ladder") in done:
            table = _read_jsonl(store.folder(run.stages["ladder"]) / "ladder.jsonl", *columns)
            return table[columns].sort_values("order_index").reset_index(drop=True)
    return pd.DataFrame(columns=columns)


def _stages(plan: Plan, statuses: dict[str, Status]) -> pd.DataFrame:
    """One row per stage; ``arm`` names those it works for, null where that is more than one."""
    rows = []
    runs_of = plan.runs_of()
    for stage in plan.stages.values():
        arms = list(dict.fromkeys(run.arm for run in runs_of[stage.id]))
        status = statuses[stage.id]
        rows.append(
            {
                "stage": stage.id,
                "kind": stage.kind,
                "arm": arms[0] if len(arms) == 1 else None,
                "state": "pruned" if status.pruned else status.state,
                "seconds": round(status.seconds, 3),
                "gpu_hours": status.seconds * stage.resources.gpus / 3600,
                "attempt": status.attempt,
            }
        )
    order = {kind: i for i, kind in enumerate(KINDS)}
    table = pd.DataFrame(rows)
    return table.sort_values(
        ["kind", "stage"], key=lambda column: column.map(order) if column.name == "kind" else column
    ).reset_index(drop=True)


def _flags(store: Store, sweep: dict[str, Any], plan: Plan, done: set[str]) -> list[dict[str, Any]]:
    """Arms in which a factor switched a part of the method on that then never acted."""
    flags = []
    for run in plan.runs:
        if run.config is None or run.stages["train"] not in done:
            continue
        mechanisms = store.result(run.stages["train"]).get("mechanisms") or {}
        for mechanism, (settings, is_on) in MECHANISMS.items():
            facts = mechanisms.get(mechanism)
            if facts is None or facts["acted"] or not is_on(run.config):
                continue
            for factor, level in run.levels.items():
                set_here = sweep["factors"][factor]["levels"][level]
                if any(key.startswith(settings) for key in set_here):
                    numbers = {name: value for name, value in facts.items() if name != "acted"}
                    detail = f"seed {run.seed}: never acted ({json.dumps(numbers)})"
                    flags.append(
                        {"arm": run.arm, "factor": factor, "mechanism": mechanism, "detail": detail}
                    )
    return flags


def _sweep(
    sweep: dict[str, Any], plan: Plan, first_items: pd.DataFrame, flags: list[dict[str, Any]]
) -> dict[str, Any]:
    ablation = from_mapping(Ablation, sweep, source="sweep.yaml")
    return {
        "name": plan.name,
        "design": sweep["design"],
        "factors": {
            name: {"levels": list(factor["levels"]), "control": factor["control"]}
            for name, factor in sweep["factors"].items()
        },
        "reference": sweep["reference"],
        "reference_arm": plan.reference_arm,
        "suites": {
            str(suite): list(dict.fromkeys(part["benchmark"]))
            for suite, part in first_items.groupby("suite", sort=False)
        },
        "planned_contrasts": sweep["report"]["planned_contrasts"],
        "resolution": ablation.resolution,
        "aliases": design.aliases(ablation),
        "cells": [
            {"arm": run.arm, "seed": run.seed, "levels": run.levels, "kind": run.kind}
            for run in plan.runs
        ],
        "flags": flags,
        "provenance": {
            "confidence": sweep["report"]["confidence"],
            "correction": sweep["report"]["correction"],
            "recipe": sweep["recipe"],
        },
    }


def _read_jsonl(path: Path, *columns: str) -> pd.DataFrame:
    """A finished stage's table, which has these columns. Raises InputError where it has not."""
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                rows.append(dict(json.loads(line)))
    except FileNotFoundError:
        raise _damaged(path.parent, path.name, "no such file") from None
    except (ValueError, TypeError):
        raise _damaged(path.parent, f"{path.name}:{len(rows) + 1}", "not JSON") from None
    table = pd.DataFrame(rows)
    if lacking := [column for column in columns if column not in table]:
        raise _damaged(path.parent, path.name, f"no {', '.join(lacking)}")
    return table


def _damaged(folder: Path, file: str, what: str) -> InputError:
    return InputError(
        f"{folder / file}: {what}; delete the folder {folder} and run the sweep again to make it "
        "anew"
    )


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    table.to_parquet(temporary, index=False)
    os.replace(temporary, path)


def _write_json(value: Any, path: Path) -> None:
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False), durable=False)


def main(arguments: list[str] | None = None) -> int:
    """Write the tables of a sweep's folder."""
    parser = ArgumentParser(
        prog="python -m harness.collect", description="Write the result tables of a sweep."
    )
    parser.add_argument("dir", type=str, help="The sweep's folder, e.g. runs/full.")
    parser.add_argument(
        "--command", type=str, default=None, help="What made the sweep, kept as provenance."
    )
    options = parser.parse_args(arguments)

    def command() -> int:
        results = collect(Store(Path(options.dir)), command=options.command)
        print(results or "no run has been evaluated yet")
        return 0 if results else 1

    return run_command(command)


if __name__ == "__main__":
    raise SystemExit(main())

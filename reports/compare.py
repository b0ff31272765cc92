"""Two sweeps as one: `python -m reports A B --out DIR` joins their tables and reports those.

Which sweep a run comes from becomes a factor of its own. So the difference between the sweeps is a
main effect, a part whose worth differs between them an interaction with that factor, and every arm
that both have is a contrast, all with the intervals that any other effect has.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reports.tables import TableError, Tables, plain, read_tables

ALIKE = 1e-9


def join(first: Path, second: Path, out: Path) -> Path:
    """Write the joined tables of two sweeps to `out/results/`, and return `out`.

    Arms, runs and prompts are named `SWEEP: NAME`. Where both have the same factors, those are kept
    and `sweep` comes beside them; else `settings` is one, whose levels are the arms that both have.
    Raises TableError where the two were not asked the same items, or share no arm.
    """
    if out.resolve() in (first.resolve(), second.resolve()):
        raise TableError("--out", str(out), "is one of the two sweeps; name another folder")
    sides = read_tables(first), read_tables(second)
    _same_protocol(*sides)
    names = _names(first, second, *sides)
    shared = [arm for arm in sides[0].arms("cell", "variant") if arm in set(sides[1].runs["arm"])]
    cells = [arm for arm in shared if arm in sides[0].arms("cell") and arm in sides[1].arms("cell")]
    if not cells:
        raise TableError(
            second / "results" / "runs.parquet",
            "arm",
            f"shares none with {first}: {', '.join(sides[1].arms('cell')[:5])}",
        )
    folder = out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    same = sides[0].factors == sides[1].factors
    sweep = _sweep(names, sides, cells, shared, same_factors=same)
    key = sweep["joined"]["factor"]
    runs = [
        _runs(name, side, key, cells, same_factors=same)
        for name, side in zip(names, sides, strict=True)
    ]
    pd.concat(runs, ignore_index=True).to_parquet(folder / "runs.parquet", index=False)
    _rows("items", names, [_items(side) for side in sides], folder)
    for table, mine in (
        ("curves", [side.curves for side in sides]),
        ("stages", [side.stages for side in sides]),
    ):
        _rows(table, names, mine, folder)
    if sides[0].ladder is not None:
        sides[0].ladder.to_parquet(folder / "ladder.parquet", index=False)
    _responses(names, sides, folder)
    _questions(sides, folder)
    configs = {
        f"{name}: {arm}": config
        for name, side in zip(names, sides, strict=True)
        for arm, config in side.configs.items()
    }
    for name, value in (("configs.json", configs), ("sweep.json", sweep)):
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    return out


def _same_protocol(first: Tables, second: Tables) -> None:
    """Both were asked the same items of the same benchmarks, with the same right answers."""
    where = second.folder / "items.parquet"
    if first.suites != second.suites:
        raise TableError(
            second.folder / "sweep.json",
            f"suites = {second.suites}",
            f"the other sweep has {first.suites}; only the same benchmarks can be compared",
        )
    for suite, names in first.suites.items():
        for name in names:
            mine, other = (
                set(
                    t.items.loc[
                        (t.items["suite"] == suite) & (t.items["benchmark"] == name), "item"
                    ].unique()
                )
                for t in (first, second)
            )
            if mine != other:
                raise TableError(
                    where,
                    f"benchmark {name}",
                    f"{len(mine ^ other)} items were asked in one sweep only; evaluate both on the "
                    "same items",
                )
    if first.questions is None or second.questions is None:
        return
    key = ["benchmark", "item"]
    both = first.questions.merge(second.questions, on=key, suffixes=("", "_other"))
    for column in ("question", "gold"):
        differ = both[both[column].astype(str) != both[f"{column}_other"].astype(str)]
        if len(differ):
            raise TableError(
                second.folder / "questions.parquet",
                column,
                f"differs from the other sweep's for item {differ.iloc[0]['item']} and "
                f"{len(differ) - 1} more; the items are not the same",
            )


def _names(first: Path, second: Path, one: Tables, other: Tables) -> tuple[str, str]:
    """What the two sweeps are called: their names, else their folders', else first and second."""
    for pair in (
        (str(one.sweep["name"]), str(other.sweep["name"])),
        (first.resolve().name, second.resolve().name),
    ):
        if pair[0] != pair[1]:
            return pair
    return "first", "second"


def _sweep(
    names: tuple[str, str],
    sides: tuple[Tables, Tables],
    cells: list[str],
    shared: list[str],
    *,
    same_factors: bool,
) -> dict[str, Any]:
    first, second = sides
    factors: dict[str, Any] = {}
    reference = second.reference
    levels: dict[str, str] = {}
    if same_factors:
        factors = {f.name: {"levels": list(f.levels), "control": f.control} for f in first.factors}
        levels = second.levels_of(reference) if second.runs_of(reference) else {}
    elif len(cells) > 1:
        known = [arm for arm in (reference, first.reference) if arm in cells]
        reference = known[0] if known else cells[-1]
        control = first.control if first.control in cells else cells[0]
        factors = {"settings": {"levels": cells, "control": control}}
        levels = {"settings": reference}
    key = "sweep" if "sweep" not in factors else "joined sweep"
    factors[key] = {"levels": list(names), "control": names[0]}
    given = [side.sweep.get("provenance") or {} for side in sides]
    bases = [arm for arm in first.arms("base") if arm in second.arms("base")]
    return {
        "name": f"{names[0]} and {names[1]}",
        "design": "two sweeps",
        "joined": {"first": names[0], "second": names[1], "factor": key, "arms": len(cells)},
        "factors": factors,
        "reference": {**levels, key: names[1]},
        "reference_arm": f"{names[1]}: {reference}",
        "suites": first.suites,
        "planned_contrasts": [
            {"arm": f"{names[1]}: {arm}", "against": f"{names[0]}: {arm}"}
            | ({"factor": key} if arm in cells else {})
            for arm in [*shared, *bases]
        ],
        "cells": [
            {**cell, "arm": f"{name}: {cell['arm']}"}
            for name, side in zip(names, sides, strict=True)
            for cell in side.sweep.get("cells") or []
        ],
        "flags": [
            {**flag, "arm": f"{name}: {flag['arm']}"}
            for name, side in zip(names, sides, strict=True)
            for flag in side.sweep.get("flags") or []
        ],
        "checks": [_same_settings(sides, shared), _same_base(sides)],
        "provenance": {
            "confidence": given[0].get("confidence", 0.95),
            "correction": given[0].get("correction", "holm"),
            **dict(zip(names, given, strict=True)),
        },
    }


def _same_settings(sides: tuple[Tables, Tables], shared: list[str]) -> dict[str, Any]:
    """Do arms of one name have one config?"""
    check = "arms of one name have the same settings in both sweeps"
    known = [arm for arm in shared if all(arm in side.configs for side in sides)]
    if not known:
        return {"check": check, "ok": None, "detail": "configs not recorded"}
    differ = [arm for arm in known if sides[0].configs[arm] != sides[1].configs[arm]]
    detail = f"they differ in {', '.join(differ[:5])}" if differ else f"{len(known)} arms"
    return {"check": check, "ok": not differ, "detail": detail}


def _same_base(sides: tuple[Tables, Tables]) -> dict[str, Any]:
    """Does the untrained base answer alike in both, item by item?"""
    check = "the untrained base scores alike in both sweeps"
    key = ["benchmark", "item", "attempt"]
    found, differ = 0, []
    for arm in sides[0].arms("base"):
        if arm not in sides[1].arms("base"):
            continue
        one, other = (
            plain(side.items[side.items["run"] == side.runs_of(arm)[0]]).set_index(key)["score"]
            for side in sides
        )
        found += 1
        other = other.reindex(one.index)
        # Scored in one of them alone is not alike either.
        if ((one - other).abs() > ALIKE).any() or (one.isna() != other.isna()).any():
            differ.append(arm)
    if not found:
        return {"check": check, "ok": None, "detail": "no base in both"}
    detail = f"it does not as {', '.join(differ)}" if differ else f"{found} prompts"
    return {"check": check, "ok": not differ, "detail": detail}


def _runs(
    name: str, side: Tables, key: str, cells: list[str], *, same_factors: bool
) -> pd.DataFrame:
    runs = side.runs.reset_index()
    base = runs["kind"] == "base"
    if not same_factors:
        # Their own factors mean nothing to the other sweep, nor do arms that it lacks.
        runs = runs.drop(columns=[factor.name for factor in side.factors])
        outside = (runs["kind"] == "cell") & ~runs["arm"].isin(cells)
        runs["kind"] = runs["kind"].mask(outside, "variant")
        if len(cells) > 1:
            runs["settings"] = runs["arm"].where(runs["kind"] == "cell")
    for column in ("run", "arm", "prompt"):
        runs[column] = f"{name}: " + runs[column].astype(str)
    runs[key] = pd.Series(name, index=runs.index, dtype=object).mask(base)
    if not same_factors:
        runs[key] = runs[key].where(runs["kind"] == "cell")
    return runs


def _items(side: Tables) -> pd.DataFrame:
    items = plain(side.items.assign(condition="normal"))
    return items if side.conditions is None else pd.concat([items, plain(side.conditions)])


def _rows(
    table: str, names: tuple[str, str], tables: list[pd.DataFrame | None], folder: Path
) -> None:
    """Both tables below each other, with what names a run or an arm renamed."""
    parts = []
    for name, part in zip(names, tables, strict=True):
        if part is None:
            return
        part = part.copy()
        for column in ("run", "arm"):
            if column in part.columns:
                part[column] = (f"{name}: " + part[column].astype(str)).where(part[column].notna())
        parts.append(part)
    pd.concat(parts, ignore_index=True).to_parquet(folder / f"{table}.parquet", index=False)


def _responses(names: tuple[str, str], sides: tuple[Tables, Tables], folder: Path) -> None:
    """Normal responses file by file, batch by batch: they can be larger than memory."""
    files = [side.responses.file for side in sides if side.responses is not None]
    if len(files) < 2:
        return
    columns = ["run", "benchmark", "item", "attempt", "response"]
    kinds = pa.schema(
        [(name, pa.int64() if name == "attempt" else pa.string()) for name in columns]
    )
    with pq.ParquetWriter(folder / "responses.parquet", kinds) as writer:
        for name, file in zip(names, files, strict=True):
            source = pq.ParquetFile(file)
            known = [n for n in (*columns, "condition") if n in source.schema_arrow.names]
            for batch in source.iter_batches(columns=known):
                table = pa.Table.from_batches([batch])
                if "condition" in known:
                    normal = pc.equal(table["condition"].cast(pa.string()), "normal")
                    table = table.filter(pc.fill_null(normal, True))
                table = table.select(columns).cast(kinds)
                run = pc.binary_join_element_wise(f"{name}: ", table["run"], "")
                writer.write_table(table.set_column(0, "run", run))


def _questions(sides: tuple[Tables, Tables], folder: Path) -> None:
    """The first sweep's questions, with their images: they are the same in both."""
    for side in sides:
        if side.questions is None:
            continue
        root = side.folder.resolve()
        images: dict[Any, str] = {}
        for image in side.questions["image"].dropna().unique():
            source = (root / str(image)).resolve()
            if source.is_relative_to(root) and source.exists():
                # However it was named (an absolute path, too), it lies in the new folder now.
                images[image] = source.relative_to(root).as_posix()
                target = folder / images[image]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        known = side.questions["image"]
        named = side.questions.assign(
            image=known.map(images).where(known.isin(list(images)), known)
        )
        named.to_parquet(folder / "questions.parquet", index=False)
        return

"""From numbers to a page: sections, tables and figures, as HTML and as Markdown."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from reports.analysis import Row
from reports.configs import differing_keys, flatten, variant_role
from reports.figures import curves, forest
from reports.figures.ladder import ladder
from reports.figures.search import search
from reports.figures.style import Drawing
from reports.labels import effect_label
from reports.samples import samples
from reports.tables import Tables
from reports.validity import points

WHY = "the verdict says why"


@dataclass(frozen=True, kw_only=True)
class Document:
    """Everything that a template needs."""

    context: dict[str, Any]
    drawings: list[Drawing]

    def html(self) -> str:
        """One self-contained page: style and figures inside, nothing from the network."""
        return _environment(html=True).get_template("report.html.j2").render(self.context)

    def markdown(self) -> str:
        """Markdown for a pull request; its figures lie in `figures/`."""
        return _environment(html=False).get_template("report.md.j2").render(self.context)


def _environment(*, html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        points=points,
        percent=percent,
        pvalue=pvalue,
        seconds=duration,
        cell=markdown_cell,
        breakable=breakable,
    )
    return environment


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent."""
    return "–" if value is None or pd.isna(value) else f"{100 * value:.{digits}f}"


def pvalue(value: float | None) -> str:
    """A p-value for reading."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def duration(value: float | None) -> str:
    """Seconds as h, min or s."""
    if value is None or pd.isna(value):
        return "–"
    if value >= 5400:
        return f"{value / 3600:.1f} h"
    return f"{value / 60:.1f} min" if value >= 90 else f"{value:.0f} s"


def breakable(text: str) -> str:
    """An arm's long name may break after each plus."""
    return re.sub(r"\+(?=[^\W\d])", "+\u200b", text)


def markdown_cell(value: Any) -> str:
    """Text that cannot break out of a Markdown table's cell."""
    text = str(value).replace("\\", "\\\\")
    for mark in "|`*_<>[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def document(tables: Tables, results: Row) -> Document:
    """Draw the figures and gather what the sections show."""
    figures: dict[str, Drawing | None] = {
        "arms": forest.arms(tables, results),
        "effects": forest.effects(results, "effects", title="Main effects"),
        "interactions": forest.effects(results, "interactions", title="Interactions"),
        "length": forest.accuracy_by_length(tables, results),
        "curves": curves.by_arm(tables),
        "levels": curves.by_level(tables, results["confidence"]),
        "ladder": ladder(tables),
        "search": search(tables),
    }
    context = {
        "tables": tables,
        "results": results,
        "figures": figures,
        "verdict": results["verdict"].split("\n\n"),
        "broken": [row for row in results["validity"] if row["ok"] is False],
        "tiles": _tiles(tables, results),
        "arms": _arm_table(tables, results),
        "benchmarks": [(s, b) for s, names in tables.suites.items() for b in names],
        "methods": _methods(results),
        "effect_label": effect_label,
        "parts": _parts(results),
        "contrasts": _contrast_tables(tables, results),
        "mechanisms": _mechanisms(tables),
        "samples": samples(tables),
        "stages": _stages(tables),
        "provenance": _provenance(tables),
        "differences": _differences(tables),
    }
    return Document(context=context, drawings=[one for one in figures.values() if one is not None])


def _role(tables: Tables, arm: str, kind: str) -> str:
    if arm == tables.reference:
        return "reference"
    if arm == tables.control:
        return "control"
    if kind == "variant":
        return variant_role(tables, arm) or "variant"
    return "base" if kind == "base" else ""


def _tiles(tables: Tables, results: Row) -> list[Row]:
    """The first screen's figures: the reference's gain, and what the sweep could have seen."""
    tiles = []
    for row in results["reference_gain"]:
        if row["measure"] == "score" and row["suite"] in tables.suites:
            known = row["estimable"]
            value = points(row["estimate"]) if known else "not estimable"
            note = f"{points(row['low'])} to {points(row['high'])}" if known else WHY
            name = f"reference against the base, {row['suite']}"
            unit = "points" if known else ""
            tiles.append({"name": name, "value": value, "unit": unit, "note": note})
    for row in results["mde"]:
        if row["suite"] in tables.suites:
            known = row["value"] is not None
            pair = f"{100 * row['contrast']:.1f} between two runs" if known else WHY
            value = f"{100 * row['value']:.1f}" if known else "not estimable"
            name = f"minimum detectable effect, {row['suite']}"
            unit = "points" if known else ""
            tiles.append({"name": name, "value": value, "unit": unit, "note": pair})
    return tiles


def _arm_table(tables: Tables, results: Row) -> list[Row]:
    """One row for each arm: suite and benchmark means, and the difference from its base."""
    cells = {(row["arm"], row["suite"], row["benchmark"]): row for row in results["arms"]}
    deltas = {(row["arm"], row["against"], row["suite"]): row for row in results["contrasts"]}
    kinds = dict.fromkeys(row["arm"] for row in results["arms"])
    rows = []
    for arm in kinds:
        kind = str(tables.runs.loc[tables.runs["arm"] == arm, "kind"].iloc[0])
        base = None if kind == "base" else tables.base_of(arm)
        rows.append(
            {
                "arm": arm,
                "parts": arm.split("+"),
                "role": _role(tables, arm, kind),
                "suites": {s: cells.get((arm, s, None)) for s in tables.suites},
                "deltas": {s: deltas.get((arm, base, s)) for s in tables.suites},
                "benchmarks": {
                    (s, b): cells.get((arm, s, b))
                    for s, names in tables.suites.items()
                    for b in names
                },
            }
        )
    first = next(iter(tables.suites))
    order = {"reference": 0, "control": 1, "base": 2, "": 3}

    def place(row: Row) -> tuple[int, float]:
        cell = row["suites"][first]
        return order.get(row["role"], 4), -(cell["mean"] if cell else 0.0)

    return sorted(rows, key=place)


def _methods(results: Row) -> list[str]:
    """How the main effects' intervals came about, or why there are none: each way once."""
    rows = results["effects"]
    ways = dict.fromkeys(
        f"not estimable: {row['why']}" if row["why"] else row["method"] for row in rows
    )
    assumed = dict.fromkeys(f"assumed: {row['assumes']}" for row in rows if row["assumes"])
    return [*ways, *assumed]


def _parts(results: Row) -> list[Row]:
    """One row for each part and suite: alone, in the end, and its share; None where not run."""
    found: dict[tuple[str, str], Row] = {}
    for name in ("add_one_in", "leave_one_out", "shapley"):
        for row in results[name]:
            empty: Row = {"add_one_in": None, "leave_one_out": None, "shapley": None}
            found.setdefault((row["suite"], row["factor"]), empty)[name] = row
    return [{"suite": suite, "factor": name, **row} for (suite, name), row in found.items()]


def _contrast_tables(tables: Tables, results: Row) -> list[Row]:
    titles = {
        "planned": "Planned contrasts",
        "base": "Every arm against the base under the same prompt",
        "reference": "Every arm against the reference",
        "variant": "Controls: placebo and second seed",
    }
    found = []
    for family, title in titles.items():
        rows = [
            r for r in results["contrasts"] if r["family"] == family and r["suite"] in tables.suites
        ]
        if rows:
            found.append({"title": title, "family": family, "rows": rows})
    return found


def _mechanisms(tables: Tables) -> Row | None:
    """How often each mechanism acted: the `train_` columns of runs, averaged over seeds."""
    columns = [
        name
        for name in tables.runs.columns
        if name.startswith("train_") and pd.api.types.is_numeric_dtype(tables.runs[name])
    ]
    trained = tables.runs[tables.runs["kind"] != "base"]
    columns = [name for name in columns if trained[name].notna().any()]
    if not columns:
        return None
    means = trained.groupby("arm", sort=False)[columns].mean()
    names = [name.removeprefix("train_").replace("_", " ") for name in columns]
    shares = [name.endswith("_share") for name in columns]
    rows = [
        (arm, [_quantity(v, share) for v, share in zip(row, shares, strict=True)])
        for arm, row in zip(means.index, means.to_numpy(), strict=True)
    ]
    return {"columns": names, "rows": rows}


def _quantity(value: float, share: bool) -> str:
    if pd.isna(value):
        return "–"
    return f"{100 * value:.1f}%" if share else f"{value:.4g}"


def _stages(tables: Tables) -> list[Row] | None:
    if tables.stages is None:
        return None
    rows = []
    for kind, part in tables.stages.groupby("kind", sort=False):
        states = part["state"].value_counts(sort=False)
        rows.append(
            {
                "kind": kind,
                "count": len(part),
                "states": ", ".join(f"{count} {state}" for state, count in states.items()),
                "seconds": float(part["seconds"].sum()),
                "longest": float(part["seconds"].max()),
                "gpu_hours": float(part["gpu_hours"].sum()) if "gpu_hours" in part else None,
            }
        )
    return rows


def _provenance(tables: Tables) -> list[tuple[str, str]]:
    given = tables.sweep.get("provenance") or {}
    return [(key, _text(value)) for key, value in flatten(given).items() if value is not None]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _differences(tables: Tables) -> Row | None:
    """The config keys in which arms differ, as a matrix."""
    arms = [arm for arm in tables.arms("cell", "variant") if arm in tables.configs]
    keys = differing_keys([tables.configs[arm] for arm in arms]) if len(arms) > 1 else []
    if not keys:
        return None
    flat = {arm: flatten(tables.configs[arm]) for arm in arms}
    rows = [(arm, [_text(flat[arm].get(key)) for key in keys]) for arm in arms]
    return {"columns": keys, "rows": rows}

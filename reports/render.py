"""From numbers to a page: sections, tables and figures, as HTML and as Markdown."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reports.analysis import Row
from reports.configs import differing_keys, flatten, variant_role
from reports.figures import curves, forest
from reports.figures.clarity import lengths
from reports.figures.curriculum import curriculum
from reports.figures.ladder import ladder
from reports.figures.search import parallel, search
from reports.figures.slices import slices
from reports.figures.style import Drawing
from reports.labels import effect_label, full_label, holds, percent_of
from reports.samples import samples
from reports.tables import Tables
from reports.text import finalize, markdown
from reports.validity import points

WHY = "the verdict says why"
CONTENTS = {
    "verdict": "Verdict",
    "validity": "Validity",
    "arms": "Arms",
    "effects": "Main effects",
    "interactions": "Interactions",
    "parts": "Parts",
    "contrasts": "Contrasts",
    "slices": "Slices",
    "length": "Length",
    "clarity": "Clarity",
    "controls": "Controls",
    "scorer": "Scorer",
    "curves": "Learning curves",
    "ladder": "Curriculum",
    "search": "Search",
    "mechanisms": "Mechanisms",
    "samples": "Completions",
    "cost": "Cost",
    "configs": "Settings",
    "provenance": "Provenance",
}
"""The page's sections in order: the name that a link has after its #, and the title."""
BAR = 150
"""Width of the picture of an interval beside its numbers."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """Everything that a template needs."""

    context: dict[str, Any]
    drawings: list[Drawing]

    def html(self) -> str:
        """One self-contained page: style and figures inside, nothing from the network.

        Only the report's own script may run in it, whatever a response holds.
        """
        script = files("reports").joinpath("templates/script.js").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        page = {"script": Markup(script), "script_hash": f"sha256-{digest}"}
        return _environment(html=True).get_template("report.html.j2").render(self.context | page)

    def markdown(self) -> str:
        """Markdown for a pull request; its figures lie in `figures/`."""
        return _environment(html=False).get_template("report.md.j2").render(self.context)


def _environment(*, html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=html,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        points=points,
        percent=percent,
        pvalue=pvalue,
        seconds=duration,
        cell=markdown,
        breakable=breakable,
        level=percent_of,
        sentence=sentence,
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


def sentence(text: str) -> str:
    """The text with a capital first letter; names within it stay as they are."""
    return text[:1].upper() + text[1:]


def document(tables: Tables, results: Row) -> Document:
    """Draw the figures and gather what the sections show."""
    figures: dict[str, Drawing | None] = {
        "arms": forest.arms(tables, results),
        "effects": forest.effects(results, "effects", title="Main effects"),
        "interactions": forest.effects(results, "interactions", title="Interactions"),
        "length": forest.accuracy_by_length(tables, results),
        "clarity": lengths(tables, results),
        "ladder": ladder(tables),
        "curriculum": curriculum(tables),
        "search": search(tables),
        "parallel": parallel(tables),
    }
    confidence = results["confidence"]
    learning = [
        (
            curves.AXES[axis][0],
            curves.by_level(tables, confidence, axis),
            curves.by_arm(tables, confidence, axis),
        )
        for axis in curves.axes_of(tables)
    ]
    learning = [row for row in learning if row[1] or row[2]]
    slice_figures = slices(tables, results)
    drawings = [*figures.values(), *slice_figures, *(d for row in learning for d in row[1:])]
    context = {
        "tables": tables,
        "results": results,
        "figures": figures,
        "verdict": results["verdict"].split("\n\n"),
        "broken": [row for row in results["validity"] if row["ok"] is False],
        "tiles": _tiles(tables, results),
        "glance": glance(tables, results),
        "stands": holds(results["correction"], confidence),
        "counts": _counts(tables),
        "arms": _arm_table(tables, results),
        "benchmarks": [(s, b) for s, names in tables.suites.items() for b in names],
        "methods": _methods(results),
        "effect_label": effect_label,
        "parts": _parts(results),
        "contrasts": _contrast_tables(tables, results),
        "mechanisms": _mechanisms(tables),
        "question": _question(tables),
        "contents": list(CONTENTS.items()),
        "curves": learning,
        "slices": slice_figures,
        "clusters": {
            row["suite"]: row["among"] for row in results["slices"] if row["by"] == "cluster"
        },
        "variants": tables.arms("variant"),
        "untagged_gain": _untagged_gain(tables, results),
        "trials": _trials(tables),
        "samples": samples(tables),
        "stages": _stages(tables),
        "cost": _cost(results),
        "provenance": _provenance(tables),
        "differences": _differences(tables),
    }
    return Document(context=context, drawings=[one for one in drawings if isinstance(one, Drawing)])


def _question(tables: Tables) -> str:
    if tables.sweep.get("joined"):
        return "what differs?"
    return "are the settings found better?" if tables.sweep.get("search") else "which part matters?"


def _counts(tables: Tables) -> list[str]:
    """How many arms of each kind were evaluated."""
    names = {"cell": "arm", "variant": "variant", "base": "base"}
    found = [(len(tables.arms(kind)), name) for kind, name in names.items()]
    return [f"{count} {name}{'s' * (count != 1)}" for count, name in found if count]


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


def glance(tables: Tables, results: Row) -> list[Row]:
    """Each effect with what is known of it in one word, by suite: the answer at a glance."""
    alpha = 1 - results["confidence"]
    found: dict[str, dict[str, Row]] = {}
    for row in results["effects"]:
        if row["suite"] in tables.suites:
            word = "open" if row["estimable"] else ""
            if row["estimable"] and row["p_adjusted"] <= alpha:
                word = "helps" if row["estimate"] > 0 else "harms"
            found.setdefault(full_label(row), {})[row["suite"]] = row | {"word": word}
    shown = [row for suites in found.values() for row in suites.values() if row["estimable"]]
    left = min([0.0, *(row["low"] for row in shown)])
    right = max([0.0, *(row["high"] for row in shown)])
    for row in shown:  # One scale for all, so that lengths can be compared.
        row["bar"] = [
            round(BAR * (value - left) / (right - left), 1)
            for value in (0.0, row["low"], row["estimate"], row["high"])
        ]
    return [
        {"label": label, "suites": rows, "known": any(row["word"] for row in rows.values())}
        for label, rows in found.items()
    ]


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
    planned = dict.fromkeys(str(cell["arm"]) for cell in tables.sweep.get("cells") or [])
    rows += [
        {
            "arm": arm,
            "parts": arm.split("+"),
            "role": "missing",
            "suites": dict.fromkeys(tables.suites),
            "deltas": dict.fromkeys(tables.suites),
            "benchmarks": {(s, b): None for s, names in tables.suites.items() for b in names},
        }
        for arm in planned
        if arm not in kinds
    ]
    first = next(iter(tables.suites))
    order = {"reference": 0, "control": 1, "base": 2, "": 3, "missing": 5}

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
    columns.sort(key=lambda name: not name.endswith("_share"))
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
    if share:
        return f"{100 * value:.1f}%"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


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


def _untagged_gain(tables: Tables, results: Row) -> list[tuple[str, Row, Row]]:
    """The reference's gain over its base by either way of reading answers, for each suite."""
    rows = {(row["measure"], row["suite"]): row for row in results["reference_gain"]}
    pairs = [
        (suite, rows.get(("score", suite)), rows.get(("score_untagged", suite)))
        for suite in tables.suites
    ]
    return [(s, a, b) for s, a, b in pairs if a and b and a["estimable"] and b["estimable"]]


COSTS: dict[str, tuple[str, float, str]] = {
    "train_seconds": ("training, min", 60, ".1f"),
    "evaluate_seconds": ("answering, min", 60, ".1f"),
    "gpu_hours": ("GPU hours", 1, ".2f"),
    "train_samples": ("samples trained on", 1, ",.0f"),
    "train_tokens": ("tokens trained on", 1, ",.0f"),
    "answer_tokens": ("tokens answered", 1, ",.0f"),
}
"""Column of `cost` -> its title, what it is divided by, and how it is written."""


def _cost(results: Row) -> Row | None:
    rows = results["cost"]
    keys = [key for key in COSTS if any(row.get(key) is not None for row in rows)]
    if not keys:
        return None

    def text(row: Row, key: str) -> str:
        _, unit, form = COSTS[key]
        return "–" if row.get(key) is None else format(row[key] / unit, form)

    return {
        "columns": ["runs", *(COSTS[key][0] for key in keys)],
        "rows": [(row["arm"], [row["runs"], *(text(row, key) for key in keys)]) for row in rows],
    }


def _trials(tables: Tables) -> Row | None:
    """The trials of a search, with the objectives and settings they had."""
    if tables.trials is None or tables.trials.empty:
        return None
    columns = [
        name
        for name in tables.trials.columns
        if name in ("trial", "state") or str(name).startswith(("objective/", "setting/"))
    ]
    titles = [str(name).removeprefix("objective/").removeprefix("setting/") for name in columns]
    rows = [[_value(value) for value in row] for row in tables.trials[columns].to_numpy(object)]
    return {"columns": titles, "rows": rows}


def _value(value: Any) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _provenance(tables: Tables) -> list[tuple[str, str]]:
    given = tables.sweep.get("provenance") or {}
    return [(key, _text(value)) for key, value in flatten(given).items() if value is not None]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _differences(tables: Tables) -> Row | None:
    """The config keys in which arms differ, as a matrix."""
    arms = [arm for arm in tables.arms("cell", "variant") if arm in tables.configs]
    if len(arms) < 2:
        return None
    keys = differing_keys([tables.configs[arm] for arm in arms])
    flat = {arm: flatten(tables.configs[arm]) for arm in arms}
    rows = [(arm, [_text(flat[arm].get(key)) for key in keys]) for arm in arms]
    return {"columns": keys, "rows": rows}

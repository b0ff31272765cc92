"""Can the numbers be believed? Checks that stand above the verdict when they fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from reports.analysis import Row
from reports.configs import variant_role
from reports.stats.multiplicity import adjust
from reports.tables import Tables

TRUNCATED = 0.05
UNSCORED = 0.01
MALFORMED = 0.10


def validity(tables: Tables, results: Row) -> list[Row]:
    """[{check, ok, detail}]; ok is None where what it needs was not recorded."""
    checks = [
        _missing_runs(tables),
        _failed_stages(tables),
        _same_items(tables),
        _share(tables, "unscored", UNSCORED, ("base", "cell", "variant")),
        _share(tables, "truncated", TRUNCATED, ("cell", "variant")),
        _share(tables, "malformed", MALFORMED, ("cell", "variant")),
        _same_code(tables),
        *_controls(tables, results),
        _mechanisms(tables),
        *_one_factor(tables),
        *_given(tables),
    ]
    return [{"check": check, "ok": ok, "detail": detail} for check, ok, detail in checks]


Check = tuple[str, bool | None, str]


def missing_runs(tables: Tables) -> list[str]:
    """Planned runs (arm, seed) without a row in runs, or not evaluated on every benchmark."""
    done = {
        (str(a), _seed(s)) for a, s in zip(tables.runs["arm"], tables.runs["seed"], strict=True)
    }
    planned = [(str(c["arm"]), _seed(c["seed"])) for c in tables.sweep.get("cells") or []]
    missing = [f"{arm} (seed {seed})" for arm, seed in planned if (arm, seed) not in done]
    wanted = {(suite, name) for suite, names in tables.suites.items() for name in names}
    for run, arm in tables.runs["arm"].items():
        lacking = sorted(name for _, name in wanted - tables.evaluated.get(str(run), set()))
        if lacking:
            missing.append(f"{arm}: {run} on {', '.join(lacking)}")
    return missing


def _seed(value: Any) -> str:
    """A seed's name, the same from JSON and from a column that also holds nulls."""
    if value is None or pd.isna(value):
        return "-"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _missing_runs(tables: Tables) -> Check:
    missing = missing_runs(tables)
    name = "every planned run is there"
    undone = [
        f"{suite}/{benchmark} (no items at all)"
        for suite, names in tables.sweep["suites"].items()
        for benchmark in names
        if benchmark not in tables.suites.get(suite, [])
    ]
    if missing or undone:
        return name, False, f"missing: {_some(missing + undone)}"
    return name, True, f"{len(tables.runs)} runs, all evaluated on every benchmark"


def _failed_stages(tables: Tables) -> Check:
    name = "no stage failed"
    if tables.stages is None:
        return name, None, "stages not recorded"
    failed = tables.stages[tables.stages["state"].isin(["failed", "cancelled"])]
    if len(failed):
        return name, False, f"failed: {_some(failed['stage'].astype(str).tolist())}"
    return name, True, f"{len(tables.stages)} stages"


def _same_items(tables: Tables) -> Check:
    key = ["benchmark", "run"]
    once = tables.items[[*key, "item"]].drop_duplicates()
    counts = once.groupby(key, observed=True).size().unstack(0)
    # As many items are not yet the same ones: a run that has all of them has as many as all runs.
    whole = once.groupby("benchmark", observed=True)["item"].nunique()
    name = "all runs answered the same items"
    uneven = [str(column) for column in counts if (counts[column] < whole[column]).any()]
    if uneven:
        return name, False, f"runs were asked different items of {', '.join(uneven)}"
    return name, True, f"{int(counts.max().sum())} items in {counts.shape[1]} benchmarks"


def _share(tables: Tables, what: str, limit: float, kinds: tuple[str, ...]) -> Check:
    """The worst arm's share of unscored, truncated or malformed responses, against a limit."""
    columns = {"unscored": "score", "truncated": "truncated", "malformed": "format_ok"}
    name = {
        "unscored": "answers could be judged",
        "truncated": "responses were not cut off",
        "malformed": "responses keep the format",
    }[what]
    items = tables.items
    if columns[what] not in items.columns or items[columns[what]].notna().sum() == 0:
        return name, None, f"{columns[what]} not recorded"
    value = items[columns[what]]
    bad = {"unscored": value.isna(), "truncated": value == 1, "malformed": value == 0}[what]
    arm, names = tables.item_arms
    count, found = (np.bincount(x, minlength=len(names)) for x in (arm, arm[bad.to_numpy()]))
    shares = pd.Series(found / np.where(count > 0, count, np.nan), index=names)
    shares = shares.reindex(tables.arms(*kinds)).dropna()
    if shares.empty:
        return name, None, "no such arm"
    worst = f"at most {shares.max():.1%} {what}, in {shares.idxmax()}"
    return name, bool(shares.max() <= limit), f"{worst}; limit {limit:.0%}"


def _same_code(tables: Tables) -> Check:
    name = "all arms come from the same code"
    codes = tables.runs["code"].dropna().astype(str).unique()
    if len(codes) == 0:
        return name, None, "code commit not recorded"
    if len(codes) > 1:
        return name, False, f"commits {', '.join(_commit(code) for code in sorted(codes))}"
    return name, True, f"commit {_commit(codes[0])}"


def _commit(code: str) -> str:
    """A commit's short name, with what follows it (`+dirty`)."""
    name, plus, rest = code.partition("+")
    return name[:10] + plus + rest


def _controls(tables: Tables, results: Row) -> Iterator[Check]:
    if tables.sweep.get("joined"):
        return  # A placebo of one sweep says nothing about the other's reference.
    for arm in tables.arms("variant"):
        role = variant_role(tables, arm)
        if role is None:
            continue
        against = tables.base_of(arm) if role == "placebo" else tables.reference
        name = (
            f"placebo “{arm}” does as the base does"
            if role == "placebo"
            else f"second seed “{arm}” agrees with the reference"
        )
        rows = [r for r in results["contrasts"] if r["arm"] == arm and r["against"] == against]
        if not rows:
            yield name, None, "not evaluated"
            continue
        text = []
        for row in rows:
            interval = f"{points(row['delta'])} [{points(row['low'])}, {points(row['high'])}]"
            text.append(
                f"{row['suite']}: {interval if row['low'] is not None else 'not estimable'}"
            )
        # Several suites are several chances of a false alarm; their mean is no further one.
        suites = [row["p"] for row in rows if row["suite"] in tables.suites]
        adjusted = [p for p in adjust(suites, "holm") if p is not None]
        detail = "no difference expected – " + "; ".join(text)
        if adjusted:
            detail += f"; smallest p {min(adjusted):.2g}"
            detail += " after Holm's correction" if len(adjusted) > 1 else ""
        yield name, min(adjusted) > 1 - results["confidence"] if adjusted else None, detail


def _mechanisms(tables: Tables) -> Check:
    name = "every part of the method acted"
    flags: list[dict[str, Any]] = tables.sweep.get("flags") or []
    if flags:
        found: dict[str, list[str]] = {}
        for flag in flags:
            found.setdefault(str(flag["factor"]), []).append(str(flag["arm"]))
        detail = {str(flag["factor"]): str(flag["detail"]) for flag in reversed(flags)}
        texts = [f"{factor} in {_some(arms)}: {detail[factor]}" for factor, arms in found.items()]
        return name, False, "; ".join(texts)
    recorded = any(column.startswith("train_") for column in tables.runs.columns)
    return name, True if recorded else None, "no flag raised" if recorded else "not recorded"


def _one_factor(tables: Tables) -> Iterator[Check]:
    """Contrasts that claim to isolate one factor must differ in that one only."""
    claims = [
        (str(c["arm"]), str(c["against"]), str(c["factor"]))
        for c in tables.sweep.get("planned_contrasts") or []
        if c.get("factor")
    ]
    anchors = {"leave_one_out": tables.reference, "add_one_in": tables.control}
    anchor = anchors.get(str(tables.sweep.get("design")))
    if anchor is not None and tables.runs_of(anchor):
        claims += [(arm, anchor, "") for arm in tables.arms("cell") if arm != anchor]
    if not claims:
        return
    broken = []
    for arm, against, factor in claims:
        if not tables.runs_of(arm) or not tables.runs_of(against):
            continue
        first, second = tables.levels_of(arm), tables.levels_of(against)
        changed = [name for name in first if first[name] != second.get(name)]
        if len(changed) != 1 or (factor and changed != [factor]):
            broken.append(f"{arm} against {against} differs in {', '.join(changed) or 'nothing'}")
    name = "one-factor contrasts differ in one factor"
    yield name, not broken, _some(broken) if broken else f"{len(claims)} contrasts"


def _given(tables: Tables) -> Iterator[Check]:
    """Checks that whoever wrote the tables made themselves: `checks` of sweep.json."""
    for row in tables.sweep.get("checks") or []:
        ok = row.get("ok")
        yield str(row["check"]), None if ok is None else bool(ok), str(row.get("detail", ""))


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def points(value: float | None) -> str:
    """A difference of fractions in percentage points, with its sign."""
    if value is None or pd.isna(value):
        return "not estimable"
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")

"""How answers were found and judged, and whether the comparison depends on it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.analysis import Row
from reports.tables import Tables

MOST_PATHS = 20
RIGHT = 0.5


def agreement(tables: Tables) -> list[Row]:
    """For each arm: do the verdicts with tags and without regard to them agree?

    Counts over all items of its runs, with Cohen's kappa; empty without `score_untagged`.
    """
    items = tables.items
    if "score_untagged" not in items.columns or not items["score_untagged"].notna().any():
        return []
    known = (items["score"].notna() & items["score_untagged"].notna()).to_numpy()
    tagged = (items["score"] >= RIGHT).to_numpy()
    untagged = (items["score_untagged"] >= RIGHT).to_numpy()
    arm, names = tables.item_arms
    masks = {
        "items": np.ones(len(items), dtype=bool),
        "unscored": items["score"].isna().to_numpy(),
        "both_right": known & tagged & untagged,
        "only_tagged": known & tagged & ~untagged,
        "only_untagged": known & ~tagged & untagged,
        "both_wrong": known & ~tagged & ~untagged,
    }
    counts = {name: np.bincount(arm[mask], minlength=len(names)) for name, mask in masks.items()}
    rows = []
    for name in tables.arms("base", "cell", "variant"):
        place = names.index(name)
        row: Row = {"arm": name} | {what: int(count[place]) for what, count in counts.items()}
        both, first, second = (row[x] for x in ("both_right", "only_tagged", "only_untagged"))
        count = both + first + second + row["both_wrong"]
        agree = (both + row["both_wrong"]) / count if count else None
        row |= {"agree": agree, "kappa": None}
        if agree is not None:
            a, b = (both + first) / count, (both + second) / count
            chance = a * b + (1 - a) * (1 - b)
            row["kappa"] = (agree - chance) / (1 - chance) if chance < 1 else None
        rows.append(row)
    return rows


def paths(tables: Tables) -> list[Row]:
    """By which path an answer was read and judged (the `reason` up to its colon), the commonest.

    Counts of the base's and of the trained runs' items, and how many of them were right.
    """
    items = tables.items
    if "reason" not in items.columns or not items["reason"].notna().any():
        return []
    code, reasons = pd.factorize(items["reason"])
    named = np.array([*(str(one).split(":")[0][:80] for one in reasons), "no reason given"], object)
    names, path = np.unique(named, return_inverse=True)
    of = path[code]
    base = (tables.runs["kind"] == "base").to_numpy(dtype=bool)[tables.item_runs]
    right = (items["score"] >= RIGHT).to_numpy()
    masks = {
        "base": base,
        "trained": ~base,
        "base_right": base & right,
        "trained_right": ~base & right,
        "unscored": items["score"].isna().to_numpy(),
    }
    counts = pd.DataFrame(
        {name: np.bincount(of[mask], minlength=len(names)) for name, mask in masks.items()},
        index=names,
    )
    counts = counts[counts[["base", "trained"]].sum(axis=1) > 0]
    counts["all"] = counts["base"] + counts["trained"]
    counts = counts.sort_values("all", ascending=False, kind="stable").head(MOST_PATHS)
    return [
        {"path": str(name), **{column: int(row[column]) for column in masks}}
        for name, row in counts.iterrows()
    ]

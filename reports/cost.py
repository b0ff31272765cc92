"""What the arms cost: time, tokens, GPU hours, as far as they were recorded."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.analysis import Row
from reports.tables import Tables


def cost_by_arm(tables: Tables) -> list[Row]:
    """One row for each arm, sums over its runs; null where not recorded. Empty when nothing was."""
    runs = tables.runs
    parts: dict[str, pd.Series] = {}
    if "train_seconds" in runs.columns and pd.api.types.is_numeric_dtype(runs["train_seconds"]):
        parts["train_seconds"] = runs["train_seconds"]
    curves = tables.curves
    if curves is not None:
        for axis in ("samples", "tokens"):
            if axis in curves.columns and curves[axis].notna().any():
                parts[f"train_{axis}"] = curves.groupby("run")[axis].max()
    items = tables.items
    for column, name in (("seconds", "evaluate_seconds"), ("response_tokens", "answer_tokens")):
        if column in items.columns and pd.api.types.is_numeric_dtype(items[column]):
            sums = items[column].groupby(tables.item_runs).sum(min_count=1)
            parts[name] = sums.set_axis(runs.index[sums.index])
    table = pd.DataFrame({name: column.reindex(runs.index) for name, column in parts.items()})
    table = table.where(np.isfinite(table.astype(float)))
    if table.empty or not table.notna().any(axis=None):
        return []
    sums = table.groupby(runs["arm"], sort=False).sum(min_count=1)
    hours: dict[str, float] = {}
    stages = tables.stages
    if stages is not None and "gpu_hours" in stages.columns:
        sums_of = stages.dropna(subset=["arm"]).groupby("arm")["gpu_hours"].sum(min_count=1)
        hours = sums_of.dropna().to_dict()
    counts = runs.groupby("arm", sort=False).size()
    return [
        {
            "arm": str(arm),
            "runs": int(counts[arm]),
            **{name: None if pd.isna(value) else float(value) for name, value in row.items()},
            "gpu_hours": float(hours[str(arm)]) if str(arm) in hours else None,
        }
        for arm, row in sums.iterrows()
    ]

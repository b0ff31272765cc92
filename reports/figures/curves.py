"""Learning curves: by arm (the arms that matter stand out) and by factor level (with bands)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from reports.figures.forest import arm_colours, arm_label
from reports.figures.style import BLUE, MUTED, ORANGE, REST, Drawing, bare, canvas, style
from reports.tables import Tables

METRICS = {
    "eval/accuracy": "validation accuracy",
    "rewards/accuracy/mean": "training accuracy",
    "reward": "reward",
    "rewards/format/mean": "format reward",
    "completions/mean_length": "response length, tokens",
    "frac_reward_zero_std": "groups without a signal",
    "entropy": "entropy",
    "kl": "KL to the base",
}
FEW = 6
"""Curves of so few points are drawn with their points."""
POINTS = 15
"""Curves of more steps than this are averaged in so many bins, so that they can be read."""


def smoothed(curves: pd.DataFrame, metric: str) -> pd.DataFrame:
    """(runs, steps) of one metric; many steps are averaged in bins, labelled by their middle."""
    part = curves[curves["metric"] == metric]
    steps = np.unique(part["step"])
    if len(steps) <= POINTS:
        middle = part["step"].astype(float)
    else:
        groups = np.array_split(steps, POINTS)
        names = {step: float(group.mean()) for group in groups for step in group}
        middle = part["step"].map(names)
    return part.assign(step=middle).pivot_table(index="run", columns="step", values="value")


def by_arm(tables: Tables) -> Drawing | None:
    """Small multiples of the metrics that were recorded; each line the mean of an arm's seeds."""
    if tables.curves is None:
        return None
    recorded = set(tables.curves["metric"])
    metrics = [metric for metric in METRICS if metric in recorded][:6]
    if not metrics:
        return None
    colours = {a: c for a, c in arm_colours(tables).items() if a not in tables.arms("base")}
    with style():
        columns = min(3, len(metrics))
        lines = -(-len(metrics) // columns)
        figure = canvas(9.2, 0.5 + 2.35 * lines)
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes, metric in zip(panels.flat, metrics, strict=False):
            table = smoothed(tables.curves, metric)
            arms = table.index.map(tables.runs["arm"])
            for arm in sorted(set(arms), key=lambda arm: (arm in colours, arm)):
                mean = table[arms == arm].mean(axis=0).dropna()
                special = arm in colours
                width, colour = (2.0, colours[arm]) if special else (0.9, REST)
                marker = "o" if len(mean) <= FEW else None
                axes.plot(mean.index, mean, marker=marker, c=colour, lw=width, markersize=3)
            axes.set_title(METRICS[metric])
            bare(axes, grid="y")
        for axes in list(panels.flat)[len(metrics) :]:
            axes.set_visible(False)
        for axes in panels[-1]:
            axes.set_xlabel("step")
        entries = [(arm_label(tables, arm), colour, 2.0) for arm, colour in colours.items()]
        entries.append(("other arms", REST, 0.9))
        _legend(figure, entries)
        names = ", ".join(METRICS[metric] for metric in metrics)
        alt = f"Learning curves of every arm against training steps: {names}."
        return Drawing(figure=figure, name="curves", title="Learning curves by arm", alt=alt)


def by_level(tables: Tables, confidence: float) -> Drawing | None:
    """One panel for each factor: mean over all runs of a level, with its interval over runs."""
    if tables.curves is None or not tables.factors:
        return None
    recorded = set(tables.curves["metric"])
    found = [(m, smoothed(tables.curves, m)) for m in METRICS if m in recorded]
    metric, table = next(((m, t) for m, t in found if t.shape[1] > 1), (None, None))
    if metric is None or table is None:
        return None
    cells = tables.runs.loc[table.index]
    table, cells = table[cells["kind"] == "cell"], cells[cells["kind"] == "cell"]
    texts = []
    with style():
        count = len(tables.factors)
        figure = canvas(9.2, 2.9)
        panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
        for axes, factor in zip(panels, tables.factors, strict=True):
            palette = dict(
                zip(factor.others, [BLUE, "#029e73", "#cc78bc", "#ca9161"], strict=False)
            )
            palette[factor.control] = ORANGE
            for level in factor.levels:
                rows = table[(cells[factor.name] == level).to_numpy()]
                _band(axes, rows, palette.get(level, MUTED), level, confidence)
                if len(rows):
                    last = rows.mean(axis=0).dropna()
                    texts.append(f"{factor.name} {level} ends at {last.iloc[-1]:.3f}")
            axes.set_title(factor.name)
            axes.set_xlabel("step")
            axes.legend(loc="lower right", fontsize=8.5)
            bare(axes, grid="y")
        panels[0].set_ylabel(METRICS[metric])
        alt = f"{METRICS[metric]} by factor level. " + "; ".join(texts)
        title = f"{METRICS[metric].capitalize()} by factor level"
        return Drawing(figure=figure, name="curves_by_level", title=title, alt=alt)


def _band(axes: Axes, rows: pd.DataFrame, colour: str, label: str, confidence: float) -> None:
    """Mean over runs and its t interval; the line alone where there is one run."""
    rows = rows.dropna(axis=1, how="all")
    if rows.empty:
        return
    mean = rows.mean(axis=0)
    axes.plot(mean.index, mean, color=colour, linewidth=2, label=label)
    count = rows.notna().sum(axis=0)
    if count.min() >= 2:
        quantile = stats.t.ppf((1 + confidence) / 2, count - 1)
        half = quantile * rows.std(axis=0, ddof=1) / np.sqrt(count)
        axes.fill_between(
            mean.index, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0
        )


def _legend(figure: Figure, entries: list[tuple[str, str, float]]) -> None:
    handles = [Line2D([], [], color=c, linewidth=w, label=label) for label, c, w in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))

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


AXES = {
    "step": ("steps", "step"),
    "samples": ("samples", "samples seen, thousands"),
    "tokens": ("tokens", "tokens seen, millions"),
}
"""Column that curves can be drawn against -> its name, and the label of the axis."""
UNITS = {"step": 1.0, "samples": 1e3, "tokens": 1e6}


def axes_of(tables: Tables) -> list[str]:
    """What the curves can be drawn against."""
    curves = tables.curves
    if curves is None:
        return []
    return [axis for axis in AXES if axis in curves.columns and curves[axis].notna().any()]


def smoothed(tables: Tables, metric: str, values: str = "value") -> pd.DataFrame:
    """(runs, steps) of one metric; many steps are averaged in bins, labelled by their middle.

    `values` may name another column: where on that axis the runs were then. Made once: figures
    against steps, samples and tokens draw the same points.
    """
    known = tables.drawn
    if (metric, values) not in known:
        assert tables.curves is not None, "callers ask for axes_of first"
        known[metric, values] = _smoothed(tables.curves, metric, values)
    return known[metric, values]


def _smoothed(curves: pd.DataFrame, metric: str, values: str) -> pd.DataFrame:
    part = curves[curves["metric"] == metric]
    steps = np.unique(part["step"])
    if len(steps) <= POINTS:
        middle = part["step"].astype(float)
    else:
        groups = np.array_split(steps, POINTS)
        names = {step: float(group.mean()) for group in groups for step in group}
        middle = part["step"].map(names)
    return part.assign(step=middle).pivot_table(index="run", columns="step", values=values)


def _positions(tables: Tables, metric: str, axis: str, values: pd.DataFrame) -> pd.DataFrame:
    """(runs, bins) as `values` of a metric: where each run was on an axis then."""
    if axis == "step":
        steps = np.broadcast_to(np.asarray(values.columns, dtype=float), values.shape)
        return pd.DataFrame(steps, index=values.index, columns=values.columns)
    return smoothed(tables, metric, axis).reindex_like(values) / UNITS[axis]


def _name(stem: str, axis: str) -> str:
    return stem if axis == "step" else f"{stem}_{axis}"


def by_arm(tables: Tables, confidence: float, axis: str = "step") -> Drawing | None:
    """Small multiples of the metrics that were recorded; each line the mean of an arm's seeds.

    The arms that stand out have a band over seeds, whose variance is pooled over the arms: two or
    three seeds of an arm by themselves say next to nothing of it.
    """
    if tables.curves is None or axis not in axes_of(tables):
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
            table = smoothed(tables, metric)
            places = _positions(tables, metric, axis, table)
            arms = table.index.map(tables.runs["arm"])
            means, middles = table.groupby(arms).mean(), places.groupby(arms).mean()
            halves = _half_widths(table, arms, confidence)
            for arm in sorted(means.index, key=lambda arm: (arm in colours, arm)):
                mean = means.loc[arm].dropna()
                special = arm in colours
                width, colour = (2.0, colours[arm]) if special else (0.9, REST)
                marker = "o" if len(mean) <= FEW else None
                place = middles.loc[arm]
                x = place.reindex(mean.index)
                axes.plot(x, mean, marker=marker, c=colour, lw=width, markersize=3)
                if special and halves.loc[arm].notna().any():
                    half = halves.loc[arm].reindex(mean.index)
                    axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.18, lw=0)
            axes.set_title(METRICS[metric])
            bare(axes, grid="y")
        for axes in list(panels.flat)[len(metrics) :]:
            axes.set_visible(False)
        for axes in panels[-1]:
            axes.set_xlabel(AXES[axis][1])
        entries = [(arm_label(tables, arm), colour, 2.0) for arm, colour in colours.items()]
        entries.append(("other arms", REST, 0.9))
        _legend(figure, entries)
        names = ", ".join(METRICS[metric] for metric in metrics)
        alt = f"Learning curves of every arm against training {AXES[axis][0]}: {names}."
        title = f"Learning curves by arm against {AXES[axis][0]}"
        return Drawing(figure=figure, name=_name("curves", axis), title=title, alt=alt)


def by_level(tables: Tables, confidence: float, axis: str = "step") -> Drawing | None:
    """One panel for each factor: mean over all runs of a level, with its interval over runs."""
    if tables.curves is None or not tables.factors or axis not in axes_of(tables):
        return None
    recorded = set(tables.curves["metric"])
    found = ((m, smoothed(tables, m)) for m in METRICS if m in recorded)
    metric, table = next(((m, t) for m, t in found if t.shape[1] > 1), (None, None))
    if metric is None or table is None:
        return None
    places = _positions(tables, metric, axis, table)
    cells = tables.runs.loc[table.index]
    table, cells = table[cells["kind"] == "cell"], cells[cells["kind"] == "cell"]
    places = places.loc[table.index]
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
                place = places.loc[rows.index].mean(axis=0)
                _band(axes, rows, place, palette.get(level, MUTED), level, confidence)
                if len(rows):
                    last = rows.mean(axis=0).dropna()
                    texts.append(f"{factor.name} {level} ends at {last.iloc[-1]:.3f}")
            axes.set_title(factor.name)
            axes.set_xlabel(AXES[axis][1])
            axes.legend(loc="lower right", fontsize=8.5)
            bare(axes, grid="y")
        panels[0].set_ylabel(METRICS[metric])
        alt = f"{METRICS[metric]} by factor level. " + "; ".join(texts)
        title = f"{METRICS[metric].capitalize()} by factor level against {AXES[axis][0]}"
        return Drawing(figure=figure, name=_name("curves_by_level", axis), title=title, alt=alt)


def _half_widths(table: pd.DataFrame, arms: pd.Index, confidence: float) -> pd.DataFrame:
    """(arms, steps) half of each arm's t interval; the variance between seeds pooled over arms.

    NaN where no arm has two runs.
    """
    groups = table.groupby(arms)
    df = (groups.count() - 1).clip(lower=0).sum(axis=0)
    squares = ((table - groups.transform("mean")) ** 2).sum(axis=0)
    sd = np.sqrt(squares / df.where(df > 0))
    return stats.t.ppf((1 + confidence) / 2, df.where(df > 0)) * sd / np.sqrt(groups.count())


def _band(
    axes: Axes, rows: pd.DataFrame, place: pd.Series, colour: str, label: str, confidence: float
) -> None:
    """Mean over runs and its t interval; the line alone where there is one run."""
    rows = rows.dropna(axis=1, how="all")
    if rows.empty:
        return
    mean, count = rows.mean(axis=0), rows.notna().sum(axis=0)
    x = place.reindex(mean.index)
    axes.plot(x, mean, color=colour, linewidth=2, label=label)
    if count.min() < 2:
        return
    half = stats.t.ppf((1 + confidence) / 2, count - 1) * rows.std(axis=0, ddof=1) / np.sqrt(count)
    axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)


def _legend(figure: Figure, entries: list[tuple[str, str, float]]) -> None:
    handles = [Line2D([], [], color=c, linewidth=w, label=label) for label, c, w in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))

"""What was trained on when, and how much it weighed: difficulty, weights and progress over time."""

from __future__ import annotations

from matplotlib.lines import Line2D

from reports.figures.curves import smoothed
from reports.figures.forest import arm_colours, arm_label
from reports.figures.style import REST, Drawing, bare, canvas, style
from reports.tables import Tables

METRICS = {
    "observe/difficulty": "difficulty of the questions",
    "observe/complexity": "complexity of the questions, tokens",
    "observe/weight_mean": "mean weight of a group",
    "observe/weight_active_share": "share of groups with weight",
    "observe/bonus_share": "share of groups with a bonus",
    "observe/zero_advantage_share": "share of groups without a signal",
}


def curriculum(tables: Tables) -> Drawing | None:
    """One panel for each of these metrics, a line for each arm; None when none was recorded."""
    if tables.curves is None:
        return None
    recorded = set(tables.curves["metric"])
    metrics = [name for name in METRICS if name in recorded]
    if not metrics:
        return None
    colours = {a: c for a, c in arm_colours(tables).items() if a not in tables.arms("base")}
    texts = []
    with style():
        columns = min(3, len(metrics))
        lines = -(-len(metrics) // columns)
        figure = canvas(9.2, 0.5 + 2.35 * lines)
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes, metric in zip(panels.flat, metrics, strict=False):
            table = smoothed(tables, metric)
            means = table.groupby(table.index.map(tables.runs["arm"])).mean()
            for arm in sorted(means.index, key=lambda arm: (arm in colours, arm)):
                mean = means.loc[arm].dropna()
                special = arm in colours
                axes.plot(
                    mean.index,
                    mean,
                    color=colours.get(arm, REST),
                    linewidth=2.0 if special else 0.9,
                )
                if arm == tables.reference and len(mean):
                    ends = f"{mean.iloc[0]:.3g} to {mean.iloc[-1]:.3g}"
                    texts.append(f"{METRICS[metric]} of the reference from {ends}")
            axes.set_title(METRICS[metric])
            bare(axes, grid="y")
        for axes in list(panels.flat)[len(metrics) :]:
            axes.set_visible(False)
        for axes in panels[-1]:
            axes.set_xlabel("step")
        entries = [(arm_label(tables, arm), colour) for arm, colour in colours.items()]
        handles = [
            Line2D([], [], color=colour, label=label)
            for label, colour in [*entries, ("other arms", REST)]
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
        alt = "What was trained on when, by arm. " + "; ".join(texts)
        return Drawing(figure=figure, name="curriculum", title="What was trained on when", alt=alt)

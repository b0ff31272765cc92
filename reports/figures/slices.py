"""Slices as forest plots: the reference's gain and every main effect in parts of a suite."""

from __future__ import annotations

from reports.analysis import Row
from reports.figures.forest import line
from reports.figures.style import MUTED, Drawing, bare, canvas, style, zero_line
from reports.labels import effect_label, short
from reports.tables import Tables

MOST_COLUMNS = 6
LONGEST = 26
"""Characters of a slice's name."""


def slices(tables: Tables, results: Row) -> list[Drawing]:
    """For each suite that has slices a figure, a panel for the gain and for each effect.

    Clusters have one of their own: they are of few items, and their intervals wide.
    """
    found = []
    for place, suite in enumerate(tables.suites):
        of = [row for row in results["slices"] if row["suite"] == suite]
        clusters = [row for row in of if row["by"] == "cluster"]
        others = [row for row in of if row["by"] != "cluster"]
        for name, rows in (("slices", others), ("clusters", clusters)):
            if any(row["estimable"] for row in rows):
                title = f"{name.capitalize()} of {suite}"
                found.append(_forest(rows, title, f"{name}_{place + 1}", 1 - results["confidence"]))
    return found


def _of(row: Row) -> str:
    return "reference − base" if row["of"] == "reference" else effect_label(row)


def _forest(rows: list[Row], title: str, name: str, alpha: float) -> Drawing:
    columns = list(dict.fromkeys(_of(row) for row in rows))
    columns.sort(key=lambda of: of != "reference − base")
    columns = columns[:MOST_COLUMNS]
    labels = list(dict.fromkeys((row["by"], row["value"]) for row in rows))
    with style():
        figure = canvas(9.2, 1.1 + 0.3 * len(labels))
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        texts = []
        for axes, column in zip(panels, columns, strict=True):
            zero_line(axes)
            for row in rows:
                if _of(row) != column:
                    continue
                line(axes, labels.index((row["by"], row["value"])), row, alpha)
                if row["estimable"]:
                    texts.append(
                        f"{column} where {row['by']} is {row['value']}: "
                        f"{100 * row['estimate']:+.1f} points "
                        f"({100 * row['low']:.1f} to {100 * row['high']:.1f})"
                    )
            axes.margins(x=0.1)
            axes.set_title(column, fontsize=9)
            axes.set_xlabel("points")
            bare(axes)
            for y in range(1, len(labels)):
                if labels[y][0] != labels[y - 1][0]:
                    axes.axhline(y - 0.5, color=MUTED, linewidth=0.6)
        counts = {(row["by"], row["value"]): row["items"] for row in rows}
        names = [f"{by}: {short(value, LONGEST)} ({counts[by, value]})" for by, value in labels]
        panels[0].set_yticks(range(len(labels)), names)
        panels[0].set_ylim(len(labels) - 0.5, -0.5)
        return Drawing(figure=figure, name=name, title=title, alt=f"{title}. " + "; ".join(texts))

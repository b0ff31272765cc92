"""The ladder: what was climbed, in which order, and how long its answers are."""

from __future__ import annotations

import numpy as np
import seaborn as sns

from reports.figures.style import BLUE, INK, MUTED, Drawing, bare, canvas, style
from reports.tables import Tables

BINS = 24


def ladder(tables: Tables) -> Drawing | None:
    """Levels along the ladder, questions by difficulty, complexity by difficulty."""
    if tables.ladder is None or tables.ladder.empty:
        return None
    table = tables.ladder[tables.ladder["difficulty"].notna()].sort_values("order_index")
    if table.empty:
        return None
    levels = np.sort(table["difficulty"].unique())
    palette = sns.color_palette("viridis_r", len(levels)).as_hex()
    with style():
        figure = canvas(9.2, 3.0)
        mix, count, length = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1.5, 1, 1]})
        position = np.arange(len(table))
        edges = np.linspace(0, len(table), min(BINS, len(table)) + 1)
        shares = np.stack(
            [
                np.histogram(position[(table["difficulty"] == x).to_numpy()], edges)[0]
                for x in levels
            ]
        )
        shares = 100 * shares / shares.sum(axis=0)
        mix.stackplot((edges[:-1] + edges[1:]) / 2, shares, colors=palette, linewidth=0)
        mix.set_title("Difficulty along the ladder")
        mix.set_xlabel("position in the ladder")
        mix.set_ylabel("share of questions, %")
        mix.set_xlim(0, len(table))
        mix.set_ylim(0, 100)
        sizes = [int((table["difficulty"] == x).sum()) for x in levels]
        ticks = range(len(levels))
        names = [f"{x:.3g}" for x in levels]
        count.bar(ticks, sizes, color=palette, width=0.82)
        count.set_title("Questions")
        mean = table.groupby("difficulty")["complexity"].agg(["mean", "std", "count"]).loc[levels]
        half = 1.96 * mean["std"] / np.sqrt(mean["count"])
        length.errorbar(
            ticks, mean["mean"], yerr=half, fmt="o-", color=BLUE, ecolor=INK, markersize=5
        )
        length.set_title("Complexity, tokens")
        for axes in (count, length):
            axes.set_xlabel("difficulty")
            every = slice(None, None, max(1, -(-len(levels) // 5)))
            axes.set_xticks(list(ticks)[every], names[every])
        for axes in (mix, count, length):
            bare(axes, grid="y")
            axes.tick_params(colors=MUTED)
        texts = [
            f"difficulty {name}: {size} questions, {row.mean_:.0f} tokens"
            for name, size, row in zip(
                names, sizes, mean.rename(columns={"mean": "mean_"}).itertuples(), strict=True
            )
        ]
        alt = f"The ladder of {len(table)} questions. " + "; ".join(texts)
        return Drawing(figure=figure, name="ladder", title="The ladder", alt=alt)

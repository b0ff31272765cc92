"""How long responses are and what a right answer costs in tokens."""

from __future__ import annotations

from matplotlib.axes import Axes

from reports.analysis import Row
from reports.clarity import QUANTILES
from reports.figures.forest import arm_colours, arm_label
from reports.figures.style import PAPER, REST, Drawing, bare, canvas, style
from reports.tables import Tables

MOST_ARMS = 14


def lengths(tables: Tables, results: Row) -> Drawing | None:
    """Spread of response lengths, and tokens for each right answer with its interval.

    The first suite, the arms that matter most; None when lengths were not recorded.
    """
    suite = next(iter(tables.suites))
    rows = [row for row in results["clarity"] if row["suite"] == suite and row["tokens_quantiles"]]
    rows = rows[:MOST_ARMS]
    if not rows:
        return None
    colours = arm_colours(tables)
    with style():
        figure = canvas(9.2, 1.1 + 0.34 * len(rows))
        spread, price = figure.subplots(1, 2, sharey=True)
        texts = []
        for y, row in enumerate(rows):
            colour = colours.get(row["arm"], REST)
            low, middle, high = row["tokens_quantiles"]
            spread.plot([low, high], [y, y], color=colour, linewidth=3.5, alpha=0.45)
            spread.plot(middle, y, "o", color=colour, markersize=6)
            text = f"{arm_label(tables, row['arm'])}: median {middle:.0f} tokens"
            if row["tokens_per_correct"] is not None:
                _price(price, y, row, colour)
                text += f", {row['tokens_per_correct']:.0f} for each right answer"
            texts.append(text)
        first, _, last = QUANTILES
        spread.set_title(f"Response length on {suite}")
        spread.set_xlabel(f"tokens: median, {first:.0%} to {last:.0%} of responses")
        price.set_title("Tokens for each right answer")
        price.set_xlabel("tokens, with interval")
        for axes in (spread, price):
            bare(axes)
        spread.set_yticks(range(len(rows)), [arm_label(tables, row["arm"]) for row in rows])
        spread.set_ylim(len(rows) - 0.5, -0.5)
        alt = "Length of responses and price of right answers. " + "; ".join(texts)
        return Drawing(figure=figure, name="clarity", title="Length and price of answers", alt=alt)


def _price(axes: Axes, y: int, row: Row, colour: str) -> None:
    low, high = row["tokens_per_correct_low"], row["tokens_per_correct_high"]
    known = low is not None
    if known:
        axes.plot([low, high], [y, y], color=colour, linewidth=2)
    face = colour if known else PAPER
    axes.plot(row["tokens_per_correct"], y, "o", color=colour, markerfacecolor=face, markersize=6)

"""Effects and interactions as forest plots, arms with their design matrix, accuracy by length."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.analysis import Row
from reports.figures.style import (
    BLUE,
    BROWN,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PINK,
    REST,
    Drawing,
    bare,
    canvas,
    style,
    zero_line,
)
from reports.labels import full_label, short
from reports.tables import Tables


def effects(results: Row, which: str, *, title: str) -> Drawing | None:
    """One panel for each suite, one line for each of the `effects` or `interactions`.

    None where not one of them is estimable: there is nothing to see then.
    """
    rows = results[which]
    if not any(row["estimable"] for row in rows):
        return None
    alpha = 1 - results["confidence"]
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    labels = list(dict.fromkeys(full_label(row) for row in rows))
    pairs = len({tuple(row["factors"]) for row in rows}) if which == "interactions" else len(labels)
    # Interactions have the main effects' standard error only where every factor has two levels.
    banded = results["mde"] if pairs == len(labels) else []
    detectable = {row["suite"]: row["value"] for row in banded}
    with style():
        figure = canvas(8.6, 0.95 + 0.36 * len(labels))
        panels = figure.subplots(1, len(suites), sharey=True, sharex=True, squeeze=False)[0]
        for axes, suite in zip(panels, suites, strict=True):
            band = detectable.get(suite)
            if band is not None:
                axes.axvspan(-100 * band, 100 * band, color=GRID, alpha=0.55, linewidth=0, zorder=0)
            zero_line(axes)
            for row in (row for row in rows if row["suite"] == suite):
                line(axes, labels.index(full_label(row)), row, alpha)
            axes.margins(x=0.08)
            axes.set_title(suite)
            axes.set_xlabel("effect, points")
            bare(axes)
        panels[0].set_yticks(
            range(len(labels)), ["\n[".join(map(short, label.split(" [", 1))) for label in labels]
        )
        panels[0].set_ylim(len(labels) - 0.5, -0.5)
        texts = [
            f"{full_label(row)} on {row['suite']} {100 * row['estimate']:+.1f} points "
            f"({100 * row['low']:.1f} to {100 * row['high']:.1f})"
            if row["estimable"]
            else f"{full_label(row)} on {row['suite']} not estimable"
            for row in rows
        ]
        return Drawing(figure=figure, name=which, title=title, alt=f"{title}. " + "; ".join(texts))


def line(axes: Axes, y: int, row: Row, alpha: float) -> None:
    """An effect and its interval; filled where it stands after correction."""
    if not row["estimable"]:
        _not_estimable(axes, y)
        return
    clear = row["p_adjusted"] <= alpha
    colour = BLUE if clear else MUTED
    axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=colour, linewidth=2.4)
    face = colour if clear else PAPER
    axes.plot(100 * row["estimate"], y, "o", color=colour, markerfacecolor=face, markersize=6.5)


def _not_estimable(axes: Axes, y: int) -> None:
    middle = axes.get_yaxis_transform()
    axes.text(
        0.5, y, "not estimable", transform=middle, ha="center", va="center", color=MUTED, size=8
    )


def arm_colours(tables: Tables) -> dict[str, str]:
    """The arms that stand out, with their colours; all others are grey."""
    colours = {arm: INK for arm in tables.arms("base")}
    if tables.control is not None:
        colours[tables.control] = ORANGE
    colours |= dict(zip(tables.arms("variant"), [PINK, GREEN, BROWN], strict=False))
    colours[tables.reference] = BLUE
    return colours


def arm_label(tables: Tables, arm: str) -> str:
    """A short name for a figure: "reference" instead of the reference arm's long one."""
    return "reference" if arm == tables.reference else arm


def arms(tables: Tables, results: Row) -> Drawing:
    """Arms by suite, best first, with the design matrix beside the names."""
    suites = list(tables.suites)
    rows = {(r["arm"], r["suite"]): r for r in results["arms"] if r["benchmark"] is None}
    known = dict.fromkeys(arm for arm, _ in rows)
    names = sorted(known, key=lambda arm: _height(rows, arm, suites), reverse=True)
    colours = arm_colours(tables)
    with style():
        figure = canvas(9.2, 1.3 + 0.27 * len(names))
        ratios = [0.42 * max(1, len(tables.factors)), *[3.0] * len(suites)]
        panels = figure.subplots(
            1, len(suites) + 1, sharey=True, squeeze=False, gridspec_kw={"width_ratios": ratios}
        )[0]
        _matrix(panels[0], tables, names)
        for axes, suite in zip(panels[1:], suites, strict=True):
            for y, arm in enumerate(names):
                row = rows.get((arm, suite))
                if row is not None:
                    _dot(axes, y, row, colours.get(arm, REST))
            low, high = axes.get_xlim()
            if high - low < 1:
                axes.set_xlim(low - 5, high + 5)
            # The last number of a panel stays apart from the first of the next one.
            axes.locator_params(axis="x", nbins=5)
            axes.set_title(suite)
            axes.set_xlabel("accuracy, %")
            bare(axes)
        few = len(names) <= 10 or not tables.factors
        labels = [short(arm_label(tables, a)) if few or a in colours else "" for a in names]
        panels[0].set_yticks(range(len(names)), labels)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        texts = [
            f"{arm_label(tables, arm)}: "
            + ", ".join(f"{s} {_text(rows[arm, s])}" for s in suites if (arm, s) in rows)
            for arm in names
        ]
        alt = "Accuracy of every arm, best first. " + "; ".join(texts)
        return Drawing(figure=figure, name="arms", title="Accuracy of every arm", alt=alt)


def _height(rows: dict[tuple[str, str], Row], arm: str, suites: list[str]) -> float:
    row = rows.get((arm, suites[0]))
    return -1.0 if row is None else float(row["mean"])


def _text(row: Row) -> str:
    if row["low"] is None:
        return f"{100 * row['mean']:.1f}% (interval not estimable)"
    return f"{100 * row['mean']:.1f}% ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _dot(axes: Axes, y: int, row: Row, colour: str) -> None:
    """A mean with its interval; dashed and hollow where only the items' sampling is in it."""
    whole = row["low"] is not None
    low, high = ("low", "high") if whole else ("checkpoints_low", "checkpoints_high")
    if row[low] is None:
        _not_estimable(axes, y)
        return
    shape = "-" if whole else (0, (1.5, 1.5))
    axes.plot([100 * row[low], 100 * row[high]], [y, y], color=colour, linestyle=shape, linewidth=2)
    face = colour if whole else PAPER
    axes.plot(100 * row["mean"], y, "o", color=colour, markerfacecolor=face, markersize=6)


def _matrix(axes: Axes, tables: Tables, names: list[str]) -> None:
    """Which level each arm has: a full dot for a level that is not the control's."""
    dots: dict[str, list[tuple[int, int]]] = {INK: [], GRID: []}
    for y, arm in enumerate(names):
        levels = tables.levels_of(arm)
        for x, factor in enumerate(tables.factors):
            level = levels.get(factor.name)
            if level is None:
                continue
            active = level != factor.control
            dots[INK if active else GRID].append((x, y))
            if active and len(factor.others) > 1:
                axes.annotate(level, (x, y), xytext=(5, -3), textcoords="offset points", fontsize=7)
    for colour, places in dots.items():
        if places:
            axes.plot(*zip(*places, strict=True), "o", color=colour, markersize=5.5)
    axes.set_xticks(range(len(tables.factors)), [short(f.name, 24) for f in tables.factors])
    axes.tick_params(axis="x", labelrotation=90, labelsize=8)
    axes.set_xlim(-0.6, max(0.6, len(tables.factors) - 0.4))
    bare(axes)
    axes.grid(visible=False)


def accuracy_by_length(tables: Tables, results: Row) -> Drawing | None:
    """Accuracy against mean response length, with both intervals; None when not recorded."""
    suites = list(tables.suites)
    score = {(r["arm"], r["suite"]): r for r in results["arms"] if r["benchmark"] is None}
    length = {(row["arm"], row["suite"]): row for row in results["lengths"]}
    if not length:
        return None
    colours = arm_colours(tables)
    with style():
        figure = canvas(8.6, 3.9)
        panels = figure.subplots(1, len(suites), squeeze=False)[0]
        texts = []
        for axes, suite in zip(panels, suites, strict=True):
            found = [arm for arm, name in length if name == suite and (arm, suite) in score]
            front = [length[arm, suite] for arm in found if length[arm, suite]["front"]]
            front.sort(key=lambda row: row["mean"])
            axes.plot(
                [row["mean"] for row in front],
                [100 * row["score"] for row in front],
                color=MUTED,
                linewidth=1,
                linestyle=(0, (4, 2)),
                zorder=1,
            )
            for arm in sorted(found, key=lambda arm: arm in colours):
                x, y = length[arm, suite], score[arm, suite]
                _cross(axes, x, y, colours.get(arm, REST), arm in colours)
                if arm in colours:
                    texts.append(
                        f"{arm_label(tables, arm)} on {suite}: {x['mean']:.0f} tokens, {_text(y)}"
                    )
            axes.set_title(suite)
            axes.set_xlabel("response length, tokens")
            bare(axes, grid="both")
        panels[0].set_ylabel("accuracy, %")
        _legend(figure, tables, colours)
        alt = "Accuracy against response length. " + "; ".join(texts)
        return Drawing(
            figure=figure, name="length", title="Accuracy against response length", alt=alt
        )


def _cross(axes: Axes, x: Row, y: Row, colour: str, special: bool) -> None:
    mean = (x["mean"], 100 * y["mean"])
    if x["low"] is not None:
        axes.plot([x["low"], x["high"]], [mean[1]] * 2, color=colour, linewidth=1.4)
    if y["low"] is not None:
        axes.plot([mean[0]] * 2, [100 * y["low"], 100 * y["high"]], color=colour, linewidth=1.4)
    whole = x["low"] is not None and y["low"] is not None
    face = colour if whole else PAPER
    axes.plot(*mean, "o", color=colour, markerfacecolor=face, markersize=7 if special else 4.5)


def _legend(figure: Figure, tables: Tables, colours: dict[str, str]) -> None:
    entries = [(arm_label(tables, arm), colour) for arm, colour in colours.items()]
    bases = tables.arms("base")
    shown = [(label, colour) for label, colour in entries if label not in bases]
    if bases:
        shown.append(("base", INK))
    shown.append(("other arms", REST))
    handles = [
        Line2D([], [], color=c, marker="o", linestyle="-", label=label) for label, c in shown
    ]
    handles.append(Line2D([], [], color=MUTED, linestyle=(0, (4, 2)), label="Pareto front"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))

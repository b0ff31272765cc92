"""A search: what its trials reached, and what they reached at each value of each setting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from reports.figures.style import BLUE, INK, MUTED, ORANGE, REST, Drawing, bare, canvas, style
from reports.tables import Tables


def search(tables: Tables) -> Drawing | None:
    """History of the first objective (with two or more: the first against the second), slices."""
    given = tables.sweep.get("search")
    if tables.trials is None or given is None:
        return None
    metrics = [str(objective["metric"]) for objective in given["objectives"]]
    done = tables.trials[tables.trials["state"] == "complete"]
    if done.empty:
        return None
    best = _best(done, given)
    count = 1 + len(given["space"])
    with style():
        columns = 2 if count in (2, 4) else 3
        lines = -(-count // columns)
        figure = canvas(9.2, 2.9 * lines)
        panels = list(figure.subplots(lines, columns, squeeze=False).flat)
        if len(metrics) == 1:
            _history(panels[0], tables.trials, given["objectives"][0], best)
        else:
            _tradeoff(panels[0], done, metrics, best)
        for axes, (key, setting) in zip(panels[1:], given["space"].items(), strict=False):
            _slice(axes, done, metrics[0], key, setting, best)
            share = given["importance"].get(key)
            axes.set_title(key if share is None else f"{key}: {share:.0%}")
        for axes in panels[count:]:
            axes.set_visible(False)
        for axes in panels[:count]:
            bare(axes, grid="y")
        value = done.loc[best, f"objective/{metrics[0]}"]
        settings = ", ".join(f"{key} {given['space'][key]['winner']}" for key in given["space"])
        alt = (
            f"{len(tables.trials)} trials, {len(done)} finished. The best, trial "
            f"{int(done.loc[best, 'trial'])}, reached {metrics[0]} {value:.4g} with {settings}."
        )
        return Drawing(figure=figure, name="search", title="The search", alt=alt)


def parallel(tables: Tables) -> Drawing | None:
    """Parallel coordinates: a finished trial is a line through its settings and its objective.

    None for a search in one setting, whose panel in `search` says the same.
    """
    given = tables.sweep.get("search")
    if tables.trials is None or given is None or len(given["space"]) < 2:
        return None
    done = tables.trials[tables.trials["state"] == "complete"]
    if len(done) < 2:
        return None
    objective = given["objectives"][0]
    metric = str(objective["metric"])
    reached = done[f"objective/{metric}"].astype(float)
    names = [*given["space"], metric]
    heights, ends = [], []
    for key, setting in given["space"].items():
        height, low, high = _coordinate(done[f"setting/{key}"], setting)
        heights.append(height)
        ends.append((low, high))
    span = float(reached.max() - reached.min()) or 1.0
    heights.append(((reached - reached.min()) / span).to_numpy())
    ends.append((_text(float(reached.min())), _text(float(reached.max()))))
    worth = heights[-1] if objective["direction"] == "maximize" else 1 - heights[-1]
    best = _best(done, given)
    with style():
        figure = canvas(9.2, 3.2)
        axes = figure.subplots()
        places = np.arange(len(names))
        lines = np.stack(heights, axis=1)
        for line, good, index in zip(lines, worth, done.index, strict=True):
            chosen = index == best
            axes.plot(
                places,
                line,
                color=ORANGE if chosen else BLUE,
                alpha=1.0 if chosen else 0.12 + 0.6 * float(good),
                linewidth=2.6 if chosen else 1.2,
                zorder=4 if chosen else 2,
            )
        for place, (low, high) in enumerate(ends):
            axes.axvline(place, color=MUTED, linewidth=1, zorder=1)
            axes.annotate(low, (place, -0.06), ha="center", va="top", fontsize=8, color=INK)
            axes.annotate(high, (place, 1.04), ha="center", va="bottom", fontsize=8, color=INK)
        axes.set_xticks(places, names)
        axes.tick_params(axis="x", pad=14)
        axes.set_yticks([])
        axes.set_ylim(-0.14, 1.14)
        bare(axes, grid="y")
        spans = "; ".join(f"{n}: {a} to {b}" for n, (a, b) in zip(names, ends, strict=True))
        alt = f"Parallel coordinates of {len(done)} finished trials. The axes: {spans}."
        return Drawing(figure=figure, name="search_parallel", title="Trials side by side", alt=alt)


def _coordinate(values: pd.Series, setting: dict[str, Any]) -> tuple[np.ndarray, str, str]:
    """(trials,) heights between 0 and 1 on a setting's axis, and what its ends are called."""
    choices = setting["choices"]
    if choices:
        place = values.map(_text).map({str(name): i for i, name in enumerate(choices)})
        height = place.astype(float) / max(1, len(choices) - 1)
        return height.to_numpy(), str(choices[0]), str(choices[-1])
    number = values.astype(float)
    scaled = np.log(number) if setting["log"] else number
    span = float(scaled.max() - scaled.min()) or 1.0
    height = ((scaled - scaled.min()) / span).to_numpy()
    return height, _text(float(number.min())), _text(float(number.max()))


def _best(done: pd.DataFrame, given: dict[str, Any]) -> Any:
    """Index of the trial that the comparison calls the winner."""
    same = pd.Series(True, index=done.index)
    for key, setting in given["space"].items():
        same &= done[f"setting/{key}"].map(_text) == str(setting["winner"])
    return same.idxmax()


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _history(axes: Axes, trials: pd.DataFrame, objective: dict[str, Any], best: Any) -> None:
    metric, values = objective["metric"], trials[f"objective/{objective['metric']}"]
    done = values.notna()
    running = values.cummax() if objective["direction"] == "maximize" else values.cummin()
    axes.step(trials["trial"], running.ffill(), where="post", color=MUTED, linewidth=1.2)
    axes.scatter(trials["trial"][done], values[done], color=BLUE, s=22, zorder=3)
    early = trials[(trials["state"] == "pruned") & trials["last_value"].notna()]
    axes.scatter(early["trial"], early["last_value"], color=REST, marker="x", s=22, zorder=2)
    axes.scatter(trials.loc[[best], "trial"], values[[best]], color=ORANGE, s=46, zorder=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Trials")
    axes.set_xlabel("trial" + (" (crosses: ended early)" if len(early) else ""))
    axes.set_ylabel(metric)


def _tradeoff(axes: Axes, done: pd.DataFrame, metrics: list[str], best: Any) -> None:
    first, second = (done[f"objective/{metric}"] for metric in metrics[:2])
    axes.scatter(second, first, color=BLUE, s=22, zorder=3)
    axes.scatter(second[[best]], first[[best]], color=ORANGE, s=46, zorder=4)
    axes.set_title("Objectives")
    axes.set_xlabel(metrics[1])
    axes.set_ylabel(metrics[0])


def _slice(
    axes: Axes, done: pd.DataFrame, metric: str, key: str, setting: dict[str, Any], best: Any
) -> None:
    """The objective against the values of one setting; the dashed line is the default."""
    values, reached = done[f"setting/{key}"], done[f"objective/{metric}"]
    names = setting["choices"]
    if names:
        values = values.map(_text).map({name: i for i, name in enumerate(names)})
        axes.set_xticks(np.arange(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif setting["log"]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.scatter(values, reached, color=BLUE, s=22, zorder=3)
    axes.scatter(values[[best]], reached[[best]], color=ORANGE, s=46, zorder=4)
    default = names.index(setting["default"]) if setting["default"] in names else None
    if default is None and not names and setting["default"] != "None":
        default = float(setting["default"])
    if default is not None:
        axes.axvline(default, color=INK, linewidth=1, linestyle="--", zorder=1)
    axes.set_xlabel("value")

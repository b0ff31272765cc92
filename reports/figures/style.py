"""One look for all figures, colour-blind safe, and their encoding as light and dark SVG and PNG."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from reports.text import visible

INK, MUTED, GRID, REST, PAPER = "#1b2431", "#5f6b79", "#dde2e8", "#b4bdc8", "#fffffe"
BLUE, ORANGE, GREEN, _, PINK, BROWN = sns.color_palette("colorblind", 6).as_hex()
DARK = {
    INK: "#e8ecf1",
    MUTED: "#a3aebb",
    GRID: "#333d49",
    REST: "#5b6675",
    PAPER: "#161c24",
    BLUE: "#4fa8e0",
}
"""What each ink becomes on a dark page."""
LONGEST_ALT = 2000


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A finished figure, encoded when asked for: the same data give the same bytes."""

    figure: Figure
    name: str
    title: str
    alt: str
    """What the figure shows, for those who do not see it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "alt", _shortened(visible(self.alt)))
        object.__setattr__(self, "title", visible(self.title))
        # Once for all encodings: each would measure every text anew, and draw twice to do so.
        engine = self.figure.get_layout_engine()
        if engine is not None:
            with style():
                engine.execute(self.figure)
            self.figure.set_layout_engine(None)

    @cached_property
    def light(self) -> str:
        """The SVG for a light page, without dates and random ids."""
        buffer = io.StringIO()
        with style():
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return visible(re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL))

    @property
    def svg(self) -> bytes:
        """The figure as a file of its own, on white."""
        return self.light.replace(PAPER, "#ffffff").encode()

    @property
    def dark(self) -> str:
        """The SVG for a dark page."""
        svg = self.light
        for ink, replacement in DARK.items():
            svg = svg.replace(ink, replacement)
        return svg

    @property
    def light_uri(self) -> str:
        """The light SVG as a data URI."""
        return _uri(self.light)

    @property
    def dark_uri(self) -> str:
        """The dark SVG as a data URI."""
        return _uri(self.dark)

    @cached_property
    def png(self) -> bytes:
        """The figure on white, for Markdown."""
        buffer = io.BytesIO()
        with style():
            self.figure.savefig(
                buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None}
            )
        return buffer.getvalue()

    @property
    def width(self) -> int:
        """In CSS pixels."""
        return round(96 * float(self.figure.get_size_inches()[0]))

    @property
    def height(self) -> int:
        """In CSS pixels."""
        return round(96 * float(self.figure.get_size_inches()[1]))


def _shortened(alt: str) -> str:
    """Nobody listens to more; the tables hold every number."""
    return alt if len(alt) <= LONGEST_ALT else alt[:LONGEST_ALT].rpartition(";")[0] + "; and more"


def _uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this: fonts, inks and a fixed SVG salt, so equal data give equal bytes."""
    theme: Any = sns.axes_style(
        "whitegrid",
        {
            "axes.edgecolor": GRID,
            "grid.color": GRID,
            "text.color": INK,
            "axes.labelcolor": MUTED,
            "xtick.color": MUTED,
            "ytick.color": INK,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
        },
    )
    fixed: Any = {
        "svg.hashsalt": "report",
        "svg.fonttype": "path",
        # Names come from files: a $ in one of them is no formula.
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.unicode_minus": True,
        "legend.frameon": False,
        "lines.solid_capstyle": "round",
    }
    with matplotlib.rc_context(theme | fixed):
        yield


def canvas(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)  # Texts are measured as the SVG has them.
    return figure


def zero_line(axes: Axes) -> None:
    """A line at no difference."""
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1)


def bare(axes: Axes, *, grid: Literal["x", "y", "both"] = "x") -> None:
    """Only the grid that helps reading."""
    sns.despine(ax=axes, left=True, bottom=True)
    axes.grid(visible=False)
    axes.grid(visible=True, axis=grid, color=GRID, linewidth=0.8)
    axes.tick_params(length=0)

"""The report's tables for a paper: `tables.tex`, with booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from reports.analysis import Row
from reports.labels import full_label, holds, percent_of
from reports.text import tex
from reports.validity import points

PREAMBLE = r"""% Tables of an ablation report, with \usepackage{array,booktabs,longtable,textcomp}.
% Each table may be copied by itself; \label and \caption are there to be changed.
"""


def latex(context: dict[str, Any]) -> str:
    """Arms, main effects, interactions, parts and contrasts as LaTeX tables."""
    results, tables = context["results"], context["tables"]
    alpha = 1 - results["confidence"]
    level = percent_of(results["confidence"])
    suites = list(tables.suites)
    stars = f"*: {holds(results['correction'], results['confidence'])}. {level} intervals."
    found = [
        PREAMBLE,
        _table(
            "arms",
            f"Accuracy in percent, and the difference from the base under the same prompt. {stars}",
            ["arm", *(x for suite in suites for x in (suite, "Δ base"))],
            [
                [
                    row["arm"] + (f" ({row['role']})" if row["role"] else ""),
                    *(
                        x
                        for suite in suites
                        for x in (
                            _mean(row["suites"][suite]),
                            _difference(row["deltas"][suite], "delta", alpha),
                        )
                    ),
                ]
                for row in context["arms"]
            ],
        ),
    ]
    for name, title in (("effects", "Main effects"), ("interactions", "Two-way interactions")):
        rows = [
            [row["suite"], full_label(row), _difference(row, "estimate", alpha), _p(row)]
            for row in results[name]
        ]
        if rows:
            caption = f"{title} in points. {stars}"
            found.append(_table(name, caption, ["suite", "effect", "points", "p adjusted"], rows))
    if context["parts"]:
        columns = [("add_one_in", "delta"), ("leave_one_out", "delta"), ("shapley", "estimate")]
        found.append(
            _table(
                "parts",
                f"Each part put in alone, left out of the reference, and its Shapley share, in "
                f"points. {stars}",
                ["suite", "part", "put in", "left out", "share"],
                [
                    [
                        row["suite"],
                        row["factor"],
                        *(_difference(row[name], key, alpha) for name, key in columns),
                    ]
                    for row in context["parts"]
                ],
            )
        )
    for entry in context["contrasts"]:
        found.append(
            _table(
                f"contrasts-{entry['family']}",
                f"{entry['title']}, in points. {stars}",
                ["arm", "against", "suite", "points", "p adjusted"],
                [
                    [
                        row["arm"],
                        row["against"],
                        row["suite"],
                        _difference(row, "delta", alpha),
                        _p(row),
                    ]
                    for row in entry["rows"]
                ],
            )
        )
    return "\n".join(found)


def _mean(cell: Row | None) -> str:
    if cell is None:
        return "–"
    mean = f"{100 * cell['mean']:.1f}"
    if cell["low"] is None:
        return f"{mean} (not estimable)"
    return f"{mean} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def _difference(row: Row | None, key: str, alpha: float) -> str:
    if row is None:
        return "–"
    if not row["estimable"]:
        return "not estimable"
    star = "*" if row["p_adjusted"] <= alpha else ""
    return f"{points(row[key])}{star} [{points(row['low'])}, {points(row['high'])}]"


def _p(row: Row) -> str:
    value = row["p_adjusted"]
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


LONG = ("arm", "against", "effect", "part")
"""Columns of names, which may be long: they are broken into lines."""
SHORT = ("suite",)


def _table(name: str, caption: str, head: Sequence[str], rows: list[list[str]]) -> str:
    """A table that may be longer than a page; every cell is text and nothing else."""
    # Fits the text of an article of one column, with two suites.
    share = 0.3 if len(head) == 4 else 0.22
    size = "scriptsize" if name == "arms" else "footnotesize"
    kinds = [
        f">{{\\raggedright\\arraybackslash}}p{{{share}\\linewidth}}"
        if title in LONG
        else "l"
        if title in SHORT
        else "r"
        for title in head
    ]
    lines = [
        f"{{\\{size}\\setlength{{\\tabcolsep}}{{3pt}}",
        f"\\begin{{longtable}}{{@{{}}{''.join(kinds)}@{{}}}}",
        f"\\caption{{{tex(caption)}}}\\label{{tab:{name}}}\\\\",
        "\\toprule",
        " & ".join(tex(title) for title in head) + " \\\\",
        "\\midrule",
        "\\endhead",
        "\\bottomrule",
        "\\endlastfoot",
        # Braces keep a cell that begins with a bracket or a star from being read as an argument.
        *(
            " & ".join(
                f"{{{_name(cell) if title in LONG else _number(cell)}}}"
                for title, cell in zip(head, row, strict=True)
            )
            + " \\\\"
            for row in rows
        ),
        "\\end{longtable}}",
        "",
    ]
    return "\n".join(lines)


def _name(cell: str) -> str:
    """A name that may be broken after each plus and underscore."""
    return re.sub(r"(\+|\\_)(?=\w)", r"\1\\allowbreak{}", tex(cell))


def _number(cell: str) -> str:
    """An estimate, its interval smaller."""
    return re.sub(r" (\[[^]]*\])$", r" {\\scriptsize \1}", tex(cell))

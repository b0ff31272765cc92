"""What the scripts here print."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from harness import machine

Row = dict[str, Any]


def publish(
    rows: Sequence[Row], show: Callable[[Sequence[Row], dict[str, object]], None], *, as_json: bool
) -> int:
    """Print the rows with the machine they were measured on; the exit code of success.

    ``show`` prints them as a table; with ``as_json`` it is one JSON object.
    """
    described = machine.describe()
    if as_json:
        print(json.dumps({"machine": described, "results": rows}, indent=1))
    else:
        show(rows, described)
    return 0


def show_columns(rows: Sequence[Row], described: dict[str, object]) -> None:
    """Print rows that all have the same columns as a table of them."""
    table = Table(*rows[0], title=str(described))
    for row in rows:
        table.add_row(*(f"{x:.2f}" if isinstance(x, float) else str(x) for x in row.values()))
    Console().print(table)

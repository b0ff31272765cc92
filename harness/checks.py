"""What was looked at, and how it is shown: the doctor's checks as a table."""

import dataclasses
import re
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

State = Literal["ok", "note", "missing"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    section: str
    """config, inputs, model, memory, slurm, disk, time or try."""
    what: str
    """What it is about."""
    state: State
    """ok; note: worth knowing; missing: the sweep cannot run like this."""
    detail: str
    """What was found."""
    remedy: str = ""
    """The command, or the change, that mends it."""


def show(checks: list[Check], name: str) -> None:
    """The checks of a sweep as a table, then what is missing with its remedy."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=3)
    table.add_column(overflow="fold", ratio=5)
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]MISSING[/]"}
    section = None
    for check in checks:
        if check.section != section:
            section = check.section
            table.add_row(f"[bold]{section}[/]", "", "")
        table.add_row(f"  {marks[check.state]}", escape(_short(check.what)), escape(check.detail))
    console.print(table)
    missing = [check for check in checks if check.state == "missing"]
    if not missing:
        console.print(f"\n{name}: nothing is missing")
        return
    console.print(f"\n{name}: {len(missing)} missing")
    for check in missing:
        console.print(f"  {check.what}: {check.remedy}", soft_wrap=True, markup=False)


def _short(what: str) -> str:
    """Twelve digits of a commit are enough to know it by."""
    return re.sub(r"@([0-9a-f]{12})[0-9a-f]{28}$", r"@\1", what)


def size_in_words(size: float) -> str:
    """Bytes for people: ``7.5 GB``."""
    for unit, divisor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= 0.995 * divisor:
            return f"{size / divisor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"

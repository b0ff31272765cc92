"""What a sweep is doing: a live table on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections import Counter

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.estimate import duration, estimate, known_statuses
from harness.graph import Plan, Stage
from harness.store import State, Status, Store
from observe.errors import InputError

REFRESH_S = 1.0
LINE_S = 15.0
ENDED: tuple[State, ...] = ("failed", "cancelled")


class Watch:
    """Shows the states the dispatcher hands it; how far a stage is comes from its status."""

    def __init__(self, plan: Plan, store: Store, *, cores: int, jobs: int | None) -> None:
        self._plan, self._store = plan, store
        self._cores, self._jobs = cores, jobs
        self._arms = arms_of(plan)
        self._live: Live | None = None
        self._states: dict[str, State] = {}
        self._shown: Counter[State] = Counter()
        self._next = 0.0
        self._known = known_statuses(plan, store)
        if sys.stdout.isatty():
            self._live = Live(console=Console(), auto_refresh=False)
            self._live.start()

    def __call__(self, states: dict[str, State]) -> None:
        """Show the states, at most once per second (or per line's interval)."""
        self._states = states
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + (REFRESH_S if self._live else LINE_S)
            self._show()

    def _show(self) -> None:
        if len(self._plan.stages) > len(self._known):
            self._arms, self._known = arms_of(self._plan), known_statuses(self._plan, self._store)
        self._shown = Counter(self._states.values())
        statuses = self._statuses(self._states)
        left = estimate(self._plan, statuses, cores=self._cores, jobs=self._jobs).seconds
        if self._live:
            self._live.update(self._table(statuses, left), refresh=True)
        else:
            print(line(self._plan, statuses, self._arms, left), flush=True)

    def _statuses(self, states: dict[str, State]) -> dict[str, Status]:
        """Read again only what may have changed."""
        for stage, state in states.items():
            if state == "running" or state not in ("pending", self._known[stage].state):
                with contextlib.suppress(InputError):
                    self._known[stage] = self._store.status(stage)
        return self._known

    def close(self) -> None:
        """Leave the last state on the screen."""
        if Counter(self._states.values()) != self._shown:
            self._show()
        if self._live:
            self._live.stop()

    def _table(self, statuses: dict[str, Status], left: float) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("", min_width=2 + max(map(len, self._arms.values())))
        for column in ("done", "", "", ""):
            table.add_column(column)
        for kind, stages in self._plan.stages_of().items():
            done, total, ended = counts(stages, statuses)
            bar = ProgressBar(total=total, completed=done, width=24)
            share = f"{done}/{total}"
            table.add_row(Text(kind, style="bold"), share, bar, Text(ended, style="red"))
            for stage in stages:
                status = statuses[stage.id]
                if status.state != "running":
                    continue
                progress = status.progress or {"done": 0, "total": 1, "message": "starting"}
                bar = ProgressBar(total=progress["total"], completed=progress["done"], width=24)
                text = f"{duration(time.time() - (status.started or time.time()))}"
                # Text, which unlike a string holds no markup: levels may be named like it.
                name, message = Text(f"  {self._arms[stage.id]}"), Text(progress["message"])
                share = f"{progress['done']}/{progress['total']}"
                table.add_row(name, share, bar, text, message)
        table.add_row("", "", "", f"about {duration(left)} left" if left else "")
        return table


def line(plan: Plan, statuses: dict[str, Status], arms: dict[str, str], left: float) -> str:
    """The state of a sweep in one line."""
    parts = []
    for kind, stages in plan.stages_of().items():
        done, total, ended = counts(stages, statuses)
        parts.append(f"{kind} {done}/{total}" + (f" ({ended})" if ended else ""))
    running = []
    for stage in plan.stages.values():
        status = statuses[stage.id]
        if status.state == "running":
            progress = status.progress
            share = f" {progress['done']}/{progress['total']}" if progress else ""
            running.append(f"{stage.kind} {arms[stage.id]}{share}")
    text = f"[{time.strftime('%H:%M:%S')}] {', '.join(parts)}"
    text += f" | {'; '.join(running)}" if running else ""
    return text + (f" | about {duration(left)} left" if left else "")


def counts(stages: list[Stage], statuses: dict[str, Status]) -> tuple[int, int, str]:
    """Stages done, stages in all, and how many failed or were cancelled, in words."""
    states = Counter(statuses[stage.id].state for stage in stages)
    words = [f"{states[state]} {state}" for state in ENDED if states[state]]
    return states["done"], len(stages), ", ".join(words)


def arms_of(plan: Plan) -> dict[str, str]:
    """Stage -> the arm it works for, or how many share it."""
    return {
        stage: runs[0].run if len(runs) == 1 else f"for {len(runs)} runs"
        for stage, runs in plan.runs_of().items()
    }

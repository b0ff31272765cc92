"""What a sweep is doing: a live table on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections import Counter

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from harness.estimate import duration, estimate, known_statuses
from harness.graph import KINDS, Plan
from harness.store import State, Status, Store
from observe.errors import InputError

REFRESH_S = 1.0
LINE_S = 15.0


class Watch:
    """Shows the states the dispatcher hands it; how far a stage is comes from its status."""

    def __init__(self, plan: Plan, store: Store, *, cores: int, jobs: int | None) -> None:
        self._plan, self._store = plan, store
        self._cores, self._jobs = cores, jobs
        self._arms = arms_of(plan)
        self._live: Live | None = None
        self._finished: Counter[State] = Counter()
        self._next = 0.0
        self._known = known_statuses(plan, store)
        if sys.stdout.isatty():
            self._live = Live(console=Console(), auto_refresh=False)
            self._live.start()

    def __call__(self, states: dict[str, State]) -> None:
        """Show the states, at most once per second (or per line's interval)."""
        finished = Counter(
            state for state in states.values() if state not in ("pending", "running")
        )
        complete = sum(finished.values()) == len(states)
        now = time.monotonic()
        if now < self._next and not (complete and finished != self._finished):
            return
        if len(self._plan.stages) > len(self._known):
            self._arms, self._known = arms_of(self._plan), known_statuses(self._plan, self._store)
        self._finished = finished
        statuses = self._statuses(states)
        left = estimate(self._plan, statuses, cores=self._cores, jobs=self._jobs).seconds
        if self._live:
            self._next = now + REFRESH_S
            self._live.update(self._table(statuses, left), refresh=True)
        else:
            self._next = now + LINE_S
            print(line(self._plan, statuses, self._arms, left), flush=True)

    def _statuses(self, states: dict[str, State]) -> dict[str, Status]:
        """Read again only what may have changed."""
        for stage, state in states.items():
            if state == "running" or self._known[stage].state != state:
                with contextlib.suppress(InputError):
                    self._known[stage] = self._store.status(stage)
        return self._known

    def close(self) -> None:
        """Leave the last table on the screen."""
        if self._live:
            self._live.stop()

    def _table(self, statuses: dict[str, Status], left: float) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("", min_width=2 + max(map(len, self._arms.values())))
        for column in ("done", "", "", ""):
            table.add_column(column)
        for kind, (done, total, ended) in counts(self._plan, statuses).items():
            note = f"[red]{ended}[/red]"
            bar = ProgressBar(total=total, completed=done, width=24)
            table.add_row(f"[bold]{kind}[/bold]", f"{done}/{total}", bar, note)
            for stage in self._plan.stages.values():
                status = statuses[stage.id]
                if stage.kind != kind or status.state != "running":
                    continue
                progress = status.progress or {"done": 0, "total": 1, "message": "starting"}
                bar = ProgressBar(total=progress["total"], completed=progress["done"], width=24)
                text = f"{duration(time.time() - (status.started or time.time()))}"
                name = f"  {self._arms[stage.id]}"
                share = f"{progress['done']}/{progress['total']}"
                table.add_row(name, share, bar, text, progress["message"])
        table.add_row("", "", "", f"about {duration(left)} left" if left else "")
        return table


def line(plan: Plan, statuses: dict[str, Status], arms: dict[str, str], left: float) -> str:
    """The state of a sweep in one line."""
    parts = []
    for kind, (done, total, ended) in counts(plan, statuses).items():
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


def counts(plan: Plan, statuses: dict[str, Status]) -> dict[str, tuple[int, int, str]]:
    """Kind -> stages done, stages in all, and how many failed or were cancelled, in words."""
    table = {}
    for kind in KINDS:
        states = [statuses[s.id].state for s in plan.stages.values() if s.kind == kind]
        if states:
            ended = ((states.count(state), state) for state in ("failed", "cancelled"))
            words = ", ".join(f"{count} {state}" for count, state in ended if count)
            table[kind] = (states.count("done"), len(states), words)
    return table


def arms_of(plan: Plan) -> dict[str, str]:
    """Stage -> the arm it works for, or how many share it."""
    names = {}
    for stage in plan.stages:
        runs = [run.run for run in plan.runs if stage in run.stages.values()]
        names[stage] = runs[0] if len(runs) == 1 else f"for {len(runs)} runs"
    return names

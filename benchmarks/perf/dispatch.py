"""What a stage costs beyond its own work, here and with other launchers.

``python -m benchmarks.perf.dispatch``. Every launcher runs the same function, which does nothing,
``--stages`` times, ``--slots`` at a time; its own import is not counted. How to read it:

- ``wall``: milliseconds from the first submission to the last result, per stage, with the smallest
  and the largest of ``--repeats``;
- ``cpu: launcher``: processor milliseconds of the launching process, per stage: what a login node
  bears; ``all``: with those of all processes that it started (on Slurm they are not its own);
- ``process``: what keeps one run from another. A run in a warm worker, as our local executor has
  them, or in a thread, sees what an earlier run left behind in the process; a new process does not.
  Our executor is therefore also measured with a new process for every stage, and compared with
  peers of either kind;
- ``ratio``: their wall time over that of our local executor as it is; ``ratio_new`` over that with
  new processes. Above 1, ours is faster.

Ours records more than the peers do: config, status, events and log of every stage, so that a sweep
survives the death of any process. ``python`` is no launcher: it starts Python, which does nothing.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from benchmarks.perf.measure import NOT_INSTALLED, Cost, measured
from benchmarks.perf.results import publish
from harness import graph, machine
from harness.ablation import Resources
from harness.cli import run_command
from harness.dispatch import dispatch
from harness.executors.base import Executor
from harness.executors.local import LocalExecutor
from harness.executors.slurm import SlurmExecutor
from harness.graph import Kind, Plan, Stage
from harness.profile import Profile
from harness.store import Store
from harness.task import Task

ROOT = Path(__file__).resolve().parents[2]

OURS, OURS_NEW, OURS_SLURM = "ours", "ours, new processes", "ours, Slurm"

PROCESSES = {
    OURS: "warm worker",
    OURS_NEW: "new",
    "python": "new",
    "submitit": "new, and a second that watches it",
    "hydra": "the launcher's own, one at a time",
    "optuna": "the launcher's own, in threads",
    OURS_SLURM: "new, a Slurm job",
    "submitit_slurm": "new, a Slurm job",
}
"""Launcher -> the process that a run gets."""


COLUMNS = ("launcher", "process", "wall", "(range)", "cpu: launcher", "all", "ratio", "ratio_new")


class NewProcesses(LocalExecutor):
    """For the comparison alone: no worker is used twice."""

    def _idle_worker(self, task: Task) -> None:
        return None


def ours(stages: int, folder: Path, make: Callable[[], Executor]) -> Cost:
    """The cost of a sweep of stages that do nothing."""
    graph.KINDS.setdefault("noop", Kind(function="benchmarks.perf.noop:stage", version=1))
    resources = Resources(cpus=1, mem_gb=0.1, hours=0.1)
    planned = (
        Stage(id=f"noop-{i:05}", kind="noop", config={"i": i}, consumes={}, resources=resources)
        for i in range(stages)
    )
    plan = Plan(name="noop", reference_arm="", runs=[], stages={s.id: s for s in planned})
    store = Store(folder / "sweep")
    store.directory.mkdir()

    def sweep() -> None:
        assert dispatch(plan, store, make(), retries=0).complete

    return measured(sweep)


def theirs(name: str, stages: int, slots: int, folder: Path, python: Path) -> Cost | None:
    """The cost with a peer; None when it is not installed."""
    command = [str(python), "-m", "benchmarks.perf.dispatch_peers"]
    command += [name, str(stages), str(slots), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    if run.returncode == NOT_INSTALLED:
        return None
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{run.stderr}")
    return json.loads((folder / "cost.json").read_text())


def compare(
    stages: int, slots: int, repeats: int, *, slurm: bool, peers: bool, python: Path
) -> list[dict[str, Any]]:
    """One row per launcher; without ``peers`` our own alone."""
    executors: dict[str, Callable[[], Executor]] = {
        OURS: lambda: LocalExecutor(jobs=slots),
        OURS_NEW: lambda: NewProcesses(jobs=slots),
    }
    if slurm:
        # No more at a time than that, although Slurm may have more cores: arrays are short-lived.
        profile = Profile(poll_seconds=1.0, max_submitted=1000, max_running=slots)
        executors[OURS_SLURM] = lambda: SlurmExecutor(profile)
    known = [name for name in PROCESSES if slurm or "slurm" not in name.lower()]
    names = [name for name in known if peers or name in executors]
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for _ in range(repeats):  # In turn, so that what else the machine does falls on all of them.
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                if name in executors:
                    costs[name].append(ours(stages, Path(folder), executors[name]))
                elif cost := theirs(name, stages, slots, Path(folder), python):
                    costs[name].append(cost)
    return [_row(name, costs, stages, slots) for name in names]


def _row(name: str, costs: dict[str, list[Cost]], stages: int, slots: int) -> dict[str, Any]:
    row: dict[str, Any] = {"launcher": name, "process": PROCESSES[name]}
    if not costs[name]:
        return {**row, "missing": "not installed: make perf-env"}
    walls = [1000 * cost["wall"] / stages for cost in costs[name]]
    on_slurm = "slurm" in name.lower()
    row |= {
        "stages": stages,
        "slots": slots,
        "wall_ms": statistics.median(walls),
        "wall_ms_range": [min(walls), max(walls)],
        "launcher_cpu_ms": _median(costs[name], "launcher", stages),
        "all_cpu_ms": None if on_slurm else _median(costs[name], "total", stages),
    }
    baseline = OURS_SLURM if on_slurm else OURS
    row["ratio"] = row["wall_ms"] / _median(costs[baseline], "wall", stages)
    if not on_slurm:
        row["ratio_new"] = row["wall_ms"] / _median(costs[OURS_NEW], "wall", stages)
    return row


def _median(costs: list[Cost], what: str, stages: int) -> float:
    """Milliseconds per stage."""
    return 1000 * statistics.median(cost[what] for cost in costs) / stages  # type: ignore[literal-required]


def show(rows: Sequence[dict[str, Any]], described: dict[str, object]) -> None:
    """Print the table."""
    title = f"{described['cpu']}, {described['cores']} cores; milliseconds per stage"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
    for row in rows:
        if "missing" in row:
            table.add_row(row["launcher"], row["missing"])
            continue
        low, high = row["wall_ms_range"]
        cells = [f"{row['wall_ms']:.1f}", f"{low:.1f}-{high:.1f}", f"{row['launcher_cpu_ms']:.2f}"]
        cells.append("-" if row["all_cpu_ms"] is None else f"{row['all_cpu_ms']:.1f}")
        cells += [f"{row[key]:.1f}" if key in row else "-" for key in ("ratio", "ratio_new")]
        table.add_row(row["launcher"], row["process"], *cells)
    Console(width=120).print(table)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = ArgumentParser(
        prog="python -m benchmarks.perf.dispatch",
        description="What a stage costs beyond its own work, with our launcher and with others.",
    )
    parser.add_argument("--stages", type=int, default=100, help="Stages of a sweep.")
    parser.add_argument("--slots", type=int, default=machine.cores(), help="Stages at a time.")
    parser.add_argument("--repeats", type=int, default=3, help="Sweeps of every launcher.")
    parser.add_argument(
        "--slurm", action="store_true", help="Also jobs of the Slurm whose sbatch is on PATH."
    )
    parser.add_argument("--no_peers", action="store_true", help="Leave other launchers out.")
    parser.add_argument(
        "--python",
        type=str,
        default=".venv-perf/bin/python",
        help="Python of the peers' environment, made by make perf-env.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead.")
    options = parser.parse_args(arguments)

    def command() -> int:
        python = Path(options.python)
        rows = compare(
            options.stages,
            options.slots,
            options.repeats,
            slurm=options.slurm,
            peers=not options.no_peers,
            python=python,
        )
        return publish(rows, show, as_json=options.json)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())

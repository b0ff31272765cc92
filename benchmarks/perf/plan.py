"""How long a large grid takes to plan, and to tell the status of.

``python -m benchmarks.perf.plan`` makes a grid of ``--levels`` levels of each of four factors (10:
10,000 cells) on the embedded world. Rows: its ablation file read, checked and planned, and the plan
written into the sweep's folder; then ``harness.status`` of that folder. Each is a process of its
own, start and imports included. Columns: seconds and peak memory, each followed by its goal.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from benchmarks.perf.measure import measured_process
from benchmarks.perf.results import publish, show_columns
from harness.ablation_file import load_ablation
from harness.cli import run_command
from harness.graph import make_plan, write_plan
from harness.store import Store

GOALS = {"plan": (10.0, 1000.0), "status": (2.0, 1000.0)}
"""Seconds and megabytes."""
KEYS = {
    "rate": ("optim.lr", 1e-6),
    "bonus": ("reward.bonus.weight", 0.01),
    "sigma": ("weighting.sigma", 0.1),
    "clip": ("loss.clip_high", 0.02),
}
"""Factor -> the key that its levels set to multiples of a value."""


def write_grid(file: Path, levels: int) -> None:
    """The ablation file. JSON is YAML."""
    factors = {
        factor: {
            "control": "1",
            "levels": {str(i): {key: i * step} for i in range(1, levels + 1)},
        }
        for factor, (key, step) in KEYS.items()
    }
    content: dict[str, Any] = {
        "name": "grid",
        "recipe": "glyphs",
        "factors": factors,
        "design": "full_factorial",
        "reference": dict.fromkeys(factors, "1"),
        "evaluate": {"suites": ["reasoning"]},
    }
    file.write_text(json.dumps(content), encoding="utf-8")


def write_planned(file: Path, folder: Path) -> None:
    """Plan the ablation and write the plan into the sweep's folder."""
    ablation, start = load_ablation(file)
    plan = make_plan(ablation, start, str(file))
    folder.mkdir(parents=True)
    write_plan(plan, Store(folder).plan_file)


def measure(levels: int) -> list[dict[str, Any]]:
    """A row for planning and one for the status."""
    with tempfile.TemporaryDirectory() as name:
        file, folder = Path(name) / "grid.yaml", Path(name) / "grid"
        write_grid(file, levels)
        planning = (
            "import sys; from pathlib import Path; from benchmarks.perf.plan import write_planned; "
            "write_planned(Path(sys.argv[1]), Path(sys.argv[2]))"
        )
        commands = {
            "plan": [sys.executable, "-c", planning, str(file), str(folder)],
            "status": [sys.executable, "-m", "harness.status", str(folder)],
        }
        rows = []
        for what, command in commands.items():
            # The status is 1 of a sweep that has not run.
            seconds, peak_mb = measured_process(
                command, success=(0, 1) if what == "status" else (0,)
            )
            goal_s, goal_mb = GOALS[what]
            rows.append(
                {
                    "what": what,
                    "cells": levels ** len(KEYS),
                    "seconds": seconds,
                    "goal_s": goal_s,
                    "peak_mb": peak_mb,
                    "goal_mb": goal_mb,
                }
            )
        return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = ArgumentParser(
        prog="python -m benchmarks.perf.plan",
        description="How long a large grid takes to plan, and to tell the status of.",
    )
    parser.add_argument("--levels", type=int, default=10, help="Levels of each of four factors.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead.")
    options = parser.parse_args(arguments)
    return run_command(lambda: publish(measure(options.levels), show_columns, as_json=options.json))


if __name__ == "__main__":
    sys.exit(main())

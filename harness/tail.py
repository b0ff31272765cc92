"""What one run of a sweep is doing: its stages, its last metrics and the end of its log."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.graph import Plan, Run
from harness.store import Store, whole_lines
from observe.errors import InputError

SHOWN = (
    *("reward", "rewards/accuracy/mean", "completions/mean_length", "entropy"),
    *("eval/accuracy", "timing_s/step"),
)
"""Metrics that are shown, those of them that are recorded."""
LOOK_S = 1.0
TAIL_BYTES = 65536
FINAL = ("done", "failed", "cancelled")


def run_of(plan: Plan, name: str) -> Run:
    """The run of this name, or the only one of this arm. Raises InputError."""
    found = [run for run in plan.runs if run.run == name]
    found = found or [run for run in plan.runs if run.arm == name]
    if len(found) == 1:
        return found[0]
    known = ", ".join(run.run for run in found or plan.runs)
    raise InputError(f"--run {name}: no single run of this name; expected one of {known}")


def describe_run(run: Run, store: Store, *, lines: int) -> str:
    """Its stages with their state, the last metrics of its training, the last lines of its log."""
    told = [run.run]
    for kind, stage in run.stages.items():
        status = store.status(stage)
        progress = status.progress or {}
        share = f" {progress['done']}/{progress['total']} {progress['message']}" if progress else ""
        told.append(f"  {kind:<9} {status.state}{share}")
    if "train" in run.stages:
        rows = whole_lines(_metrics(store, run))
        told += [f"  {_metric_line(json.loads(rows[-1]))}"] if rows else []
    stage = current_stage(run, store)
    told += ["", f"the end of {store.log(stage)}:"]
    told += [f"  {line}" for line in last_lines(store.log(stage), lines)]
    return "\n".join(told)


def current_stage(run: Run, store: Store) -> str:
    """The stage that runs or failed; else the last one that was started."""
    states = {stage: store.status(stage).state for stage in run.stages.values()}
    for wanted in ("running", "failed", "cancelled"):
        for stage, state in states.items():
            if state == wanted:
                return stage
    started = [stage for stage, state in states.items() if state != "pending"]
    return started[-1] if started else next(iter(states))


def follow(run: Run, store: Store) -> Iterator[str]:
    """New lines of its logs and metrics, until all of its stages have ended."""
    seen: dict[Path, int] = {}
    for path in _files(run, store):
        seen[path] = path.stat().st_size if path.exists() else 0
    while True:
        ended = all(store.status(stage).state in FINAL for stage in run.stages.values())
        for path in _files(run, store):
            if not path.exists():
                continue
            with path.open("rb") as file:
                # A training that goes on from its last checkpoint takes back the metrics after it.
                seen[path] = min(seen[path], file.seek(0, os.SEEK_END))
                file.seek(seen[path])
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            seen[path] += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                metrics = path.name == "metrics.jsonl"
                yield _metric_line(json.loads(line)) if metrics else line
        if ended:
            return
        time.sleep(LOOK_S)


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log, of a long one's end at most; none where there is no log."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


def _files(run: Run, store: Store) -> list[Path]:
    logs = [store.log(stage) for stage in run.stages.values()]
    return [*logs, _metrics(store, run)] if "train" in run.stages else logs


def _metrics(store: Store, run: Run) -> Path:
    return store.folder(run.stages["train"]) / "metrics.jsonl"


def _metric_line(row: dict[str, Any]) -> str:
    shown = [f"{key} {row[key]:.4g}" for key in SHOWN if isinstance(row.get(key), (int, float))]
    return f"step {row['step']}: {', '.join(shown)}"

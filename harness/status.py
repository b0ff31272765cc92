"""How a sweep stands: ``python -m harness.status DIR``."""

import json
import time
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from harness import detach, machine, process, tail
from harness.cli import many_objects, run_command
from harness.estimate import duration, estimate
from harness.executors import slurm
from harness.graph import read_plan
from harness.store import Status, Store
from observe.errors import InputError


@many_objects()
def sweep_status(store: Store) -> dict[str, Any]:
    """The sweep's state as plain values: launcher, stages with what is known of them, time left.

    A stage that says running while its process is dead is ``interrupted``; one whose process
    cannot be seen from here, or whose status cannot be read, is ``unknown``; one that a search
    ended early, for good, is ``pruned``. Raises InputError when there is no sweep.
    """
    plan = read_plan(store.plan_file)
    runs = plan.runs_of()
    stages, readable = [], {}
    for stage in plan.stages.values():
        entry: dict[str, Any] = {
            "stage": stage.id,
            "kind": stage.kind,
            "runs": [run.run for run in runs[stage.id]],
        }
        try:
            status = store.status(stage.id)
        except InputError as error:
            entry |= {"state": "unknown", "error": {"class": "InputError", "message": str(error)}}
            status = Status(stage=stage.id)
        else:
            entry |= vars(status)
            entry |= {"state": "pruned"} if status.pruned else {}
            entry |= {"seconds": round(status.seconds, 3), "log": str(store.log(stage.id))}
        readable[stage.id] = status
        stages.append(entry)
    alive = _liveness(store, list(readable.values()))
    for entry in stages:
        if entry["stage"] in alive:
            words = {"alive": "running", "dead": "interrupted", "unknown": "unknown"}
            entry["state"] = words[alive[entry["stage"]]]
    launcher = detach.launcher_of(store)
    log = detach.log_of(store)
    cost = estimate(plan, readable, cores=machine.cores(), jobs=None)
    return {
        "name": plan.name,
        "directory": str(store.directory),
        "launcher": launcher.state,
        "launcher_where": launcher.where,
        "launcher_log": str(log) if log.exists() else None,
        "expected_seconds": round(cost.seconds, 1),
        "stages_per_hour": round(_per_hour(list(readable.values())), 1),
        "stages": stages,
    }


def _per_hour(statuses: list[Status]) -> float:
    """Stages that were done in the last hour, as a rate; of a younger sweep since its start."""
    now = time.time()
    began = min((status.started for status in statuses if status.started), default=now)
    done = [s for s in statuses if s.state == "done" and s.ended and s.ended > now - 3600]
    return len(done) * 3600 / min(max(now - began, 1.0), 3600.0)


def _liveness(store: Store, statuses: list[Status]) -> dict[str, process.Liveness]:
    """Stage -> whether it runs, for those whose status says so."""
    running = [status for status in statuses if status.state == "running"]
    jobs = [status for status in running if status.executor == "slurm"]
    alive = {s.stage: process.liveness(s.process) for s in running if s.executor != "slurm"}
    return alive | (slurm.liveness(store.directory, jobs) if jobs else {})


def describe_status(status: dict[str, Any]) -> str:
    """The status for people."""
    where = f" ({status['launcher_where']})" if status["launcher_where"] else ""
    lines = [f"{status['name']} in {status['directory']}; launcher: {status['launcher']}{where}"]
    if status["launcher_log"]:
        lines.append(f"  what a detached launcher said: {status['launcher_log']}")
    kinds = list(dict.fromkeys(stage["kind"] for stage in status["stages"]))
    for kind in kinds:
        states = [stage["state"] for stage in status["stages"] if stage["kind"] == kind]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(sorted(states)))
        lines.append(f"  {kind:<9} {counts}")
    for stage in status["stages"]:
        runs = stage["runs"]
        whose = runs[0] if len(runs) == 1 else f"{len(runs)} runs"
        if stage["state"] in ("running", "interrupted", "unknown"):
            progress = stage.get("progress") or {}
            share = (
                f"{progress['done']}/{progress['total']} {progress['message']}" if progress else ""
            )
            lines.append(f"  {stage['state']}: {stage['stage']} ({whose}) {share}".rstrip())
        if stage["state"] in ("failed", "cancelled", "unknown") and stage.get("error"):
            error = stage["error"]
            lines.append(f"  {stage['state']}: {stage['stage']} ({whose})")
            lines.append(f"    {error['class']}: {error['message']}")
            if error["class"] not in ("Blocked", "InputError"):
                last = tail.last_lines(Path(stage["log"]), 1)
                lines += [f"    {line}" for line in last] + [f"    see {stage['log']}"]
    if status["expected_seconds"]:
        left = f"about {duration(status['expected_seconds'])} of work left"
        rate = status["stages_per_hour"]
        lines.append(f"{left}, {rate:.0f} stages an hour at present" if rate else left)
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when all is done, 1 when something is not, 2 for bad input."""
    parser = ArgumentParser(prog="python -m harness.status", description="Show how a sweep stands.")
    parser.add_argument("dir", type=str, help="The sweep's folder, e.g. runs/full.")
    parser.add_argument("--json", action="store_true", help="Print everything as JSON.")
    parser.add_argument(
        "--run",
        type=str,
        default=None,
        help="Show one run alone: its stages, its last metrics and the end of its log.",
    )
    parser.add_argument(
        "--follow", action="store_true", help="With --run: go on showing what it writes."
    )
    parser.add_argument("--lines", type=int, default=20, help="With --run: lines of the log.")
    options = parser.parse_args(arguments)

    def command() -> int:
        store = Store(Path(options.dir))
        if options.run:
            run = tail.run_of(read_plan(store.plan_file), options.run)
            print(tail.describe_run(run, store, lines=options.lines), flush=True)
            for line in tail.follow(run, store) if options.follow else ():
                print(line, flush=True)
            done = all(store.status(stage).state == "done" for stage in run.stages.values())
            return 0 if done else 1
        status = sweep_status(store)
        print(json.dumps(status, indent=1) if options.json else describe_status(status))
        return 0 if all(stage["state"] in ("done", "pruned") for stage in status["stages"]) else 1

    return run_command(command)


if __name__ == "__main__":
    raise SystemExit(main())

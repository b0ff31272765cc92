"""Stop a sweep: ``python -m harness.cancel DIR``. What is done stays done."""

import dataclasses
import os
import signal
import time
from pathlib import Path

from jsonargparse import ArgumentParser

from harness import detach, process
from harness.cli import run_command
from harness.executors import slurm
from harness.graph import Plan, read_plan
from harness.store import Status, Store

WAIT_S = 30.0


def cancel(store: Store, *, gone: bool = False) -> list[str]:
    """Stop the launcher and every stage that waits or runs; the stages it stopped.

    Waits for processes of this machine, and for jobs to leave Slurm's queue. ``gone`` also gives
    up stages on machines that cannot be seen from here. Raises InputError when there is no sweep.
    """
    plan = read_plan(store.plan_file)
    deadline = time.monotonic() + WAIT_S
    active = _active(plan, store)
    detach.stop(store, deadline)
    active |= _active(plan, store)  # What the launcher sent with its last breath.
    before = {stage: store.status(stage) for stage in active}
    sent = [before[stage] for stage in active if before[stage].executor == "slurm"]
    slurm.cancel_sweep(store.directory, sent)
    jobs = slurm.liveness(store.directory, sent) if sent else {}
    stopped = []
    for stage in active:
        status = store.status(stage)
        if status.state == "running" and stage not in jobs:
            _stop(status, deadline)
            status = store.status(stage)
        if status.state in ("submitted", "running"):
            alive = process.liveness(status.process) if status.process else "dead"
            alive = jobs.get(stage, alive)
            if alive == "dead" or (alive == "unknown" and gone):
                _write_cancelled(store, status)
                status = store.status(stage)
        if status.state == "cancelled":
            stopped.append(stage)
    return stopped


def _active(plan: Plan, store: Store) -> dict[str, None]:
    """The stages that wait or run, in the plan's order."""
    states = {stage: store.status(stage).state for stage in plan.stages}
    return {stage: None for stage, state in states.items() if state in ("submitted", "running")}


def _stop(status: Status, deadline: float) -> None:
    if status.process is None or process.liveness(status.process) != "alive":
        return
    os.kill(status.process["pid"], signal.SIGTERM)
    while process.liveness(status.process) == "alive" and time.monotonic() < deadline:
        time.sleep(0.1)


def _write_cancelled(store: Store, status: Status) -> None:
    store.write_status(
        dataclasses.replace(
            status,
            state="cancelled",
            ended=status.heartbeat or time.time(),
            error={"class": "Cancelled", "message": "told to stop"},
        )
    )
    store.event("cancelled", stage=status.stage)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when nothing of the sweep runs any more, 1 when something may."""
    parser = ArgumentParser(
        prog="python -m harness.cancel", description="Stop a sweep; what is done stays done."
    )
    parser.add_argument("dir", type=str, help="The sweep's folder, e.g. runs/full.")
    parser.add_argument(
        "--gone",
        action="store_true",
        help="Also give up stages on machines that cannot be seen from here: say so only when "
        "those machines are gone.",
    )
    options = parser.parse_args(arguments)

    def command() -> int:
        store = Store(Path(options.dir))
        stopped = cancel(store, gone=options.gone)
        print(f"stopped {len(stopped)} stages" + "".join(f"\n  {stage}" for stage in stopped))
        left = _active(read_plan(store.plan_file), store)
        for stage in left:
            print(f"still running, or not to be seen from here: {stage}")
        launcher = detach.launcher_of(store)
        gone = launcher.state == "unknown" and options.gone
        if launcher.state in ("queued", "alive", "unknown") and not gone:
            print(f"still there, or not to be seen from here: the launcher, {launcher.where}")
            return 1
        return 1 if left else 0

    return run_command(command)


if __name__ == "__main__":
    raise SystemExit(main())
